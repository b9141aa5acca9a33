package check_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/kit/tlog"
	"github.com/mcpvault/mcpvault/kit/tlog/check"
	"github.com/mcpvault/mcpvault/kit/tlog/tlogtest"
)

// export is a log of n records with checkpoints at some sizes.
func export(t testing.TB, n int, sizes ...int64) (check.Log, [][]byte) {
	t.Helper()
	l, _, err := tlog.Open(tlog.Config{
		Dir: t.TempDir(), Prefix: "mcpvault/audit/c/n", FS: tlogtest.Quick{}, WriteTimeout: 20 * time.Second, RingDir: "-",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var leaves [][]byte
	for i := range n {
		leaves = append(leaves, fmt.Appendf(nil, "record %d", i))
		if _, err := l.Append(leaves[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	log := check.Log{Origin: l.Origin(), VerifierKey: l.VerifierKey()}
	for _, size := range sizes {
		signed, _, err := l.CheckpointAt(size)
		if err != nil {
			t.Fatal(err)
		}
		log.Checkpoints = append(log.Checkpoints, signed)
	}
	return log, leaves
}

func all(leaves [][]byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, leaf := range leaves {
			if !yield(leaf, nil) {
				return
			}
		}
	}
}

func TestLeavesProveWhatWasSigned(t *testing.T) {
	t.Parallel()
	log, leaves := export(t, 100, 0, 1, 50, 90)
	r, err := check.Leaves(log.VerifierKey, all(leaves), log.Checkpoints...)
	if err != nil || !r.OK() || r.Size != 100 || r.Signed != 90 || r.Checkpoints != 4 || r.Origin != log.Origin {
		t.Fatalf("%+v, %v", r, err)
	}
	for name, c := range map[string]struct {
		change func([][]byte) [][]byte
		kind   string
	}{
		"changed":   {func(l [][]byte) [][]byte { l[60] = []byte("x"); return l }, check.Changed},
		"deleted":   {func(l [][]byte) [][]byte { return slices.Delete(l, 10, 11) }, check.Changed},
		"moved":     {func(l [][]byte) [][]byte { l[3], l[4] = l[4], l[3]; return l }, check.Changed},
		"put in":    {func(l [][]byte) [][]byte { return slices.Insert(l, 70, []byte("x")) }, check.Changed},
		"truncated": {func(l [][]byte) [][]byte { return l[:89] }, check.Truncated},
		"empty":     {func([][]byte) [][]byte { return nil }, check.Truncated},
	} {
		r, err := check.Leaves(log.VerifierKey, all(c.change(slices.Clone(leaves))), log.Checkpoints...)
		if err != nil || r.OK() || r.Fault.Kind != c.kind {
			t.Errorf("%s: %+v, %v", name, r.Fault, err)
		}
	}
	// What nobody signed nobody can prove: the end behind the last checkpoint.
	if r, err := check.Leaves(log.VerifierKey, all(leaves[:95]), log.Checkpoints...); err != nil || !r.OK() {
		t.Errorf("behind the last checkpoint: %v, %v", r.Fault, err)
	}
}

func TestAStrangersCheckpointProvesNothing(t *testing.T) {
	t.Parallel()
	log, leaves := export(t, 10, 10)
	other, _ := export(t, 10, 10)
	r, err := check.Leaves(log.VerifierKey, all(leaves), other.Checkpoints...)
	if err != nil || r.OK() || r.Fault.Kind != check.Unsigned {
		t.Fatalf("%+v, %v", r.Fault, err)
	}
	if r, err = check.Leaves("no key", all(leaves)); err != nil || r.OK() {
		t.Fatalf("%+v, %v", r, err)
	}
}

func TestOnlineProvesEveryLogOfAServer(t *testing.T) {
	t.Parallel()
	logs := map[string][][]byte{}
	var list []check.Log
	for range 3 {
		log, leaves := export(t, 70, 70)
		list = append(list, log)
		logs[log.Origin] = leaves
	}
	logs[list[1].Origin][5] = []byte("x")
	read := func(_ context.Context, origin string, first int64) ([][]byte, error) {
		l := logs[origin]
		return l[first:min(len(l), int(first)+7)], nil
	}
	pinned := map[string]string{list[2].Origin: list[0].VerifierKey}
	reports, err := check.Online(t.Context(), list, pinned, read)
	if err != nil || len(reports) != 3 || !reports[0].OK() || reports[1].OK() || reports[2].OK() {
		t.Fatalf("%+v, %v", reports, err)
	}
	if !strings.Contains(reports[2].Fault.Error(), "pinned") {
		t.Errorf("%v", reports[2].Fault)
	}
	// A log under another's name.
	list[0].Origin = list[1].Origin
	if reports, err = check.Online(t.Context(), list[:1], nil, read); err != nil || reports[0].OK() {
		t.Fatalf("%+v, %v", reports, err)
	}
	gone := errors.New("gone")
	_, err = check.Online(t.Context(), list[1:2], nil, func(context.Context, string, int64) ([][]byte, error) { return nil, gone })
	if !errors.Is(err, gone) {
		t.Fatalf("%v", err)
	}
}

func TestABundleProvesItself(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	var pinned map[string]string
	for i := range 3 {
		log, leaves := export(t, 40+i, 40)
		if i == 1 {
			pinned = map[string]string{log.Origin: "another key"}
		}
		if err := check.WriteBundle(&b, log, all(leaves)); err != nil {
			t.Fatal(err)
		}
	}
	reports, err := check.Bundle(bytes.NewReader(b.Bytes()), nil)
	if err != nil || len(reports) != 3 {
		t.Fatalf("%+v, %v", reports, err)
	}
	for i, r := range reports {
		if !r.OK() || r.Size != int64(40+i) || r.Signed != 40 {
			t.Errorf("log %d: %+v", i, r)
		}
	}
	reports, err = check.Bundle(bytes.NewReader(b.Bytes()), pinned)
	if err != nil || len(reports) != 3 || !reports[0].OK() || reports[1].OK() || !reports[2].OK() {
		t.Fatalf("pinned: %+v, %v", reports, err)
	}
	lines := strings.SplitAfter(b.String(), "\n")
	cut := strings.Join(slices.Delete(slices.Clone(lines), 5, 6), "")
	if reports, err = check.Bundle(strings.NewReader(cut), nil); err != nil || reports[0].OK() || !reports[1].OK() {
		t.Fatalf("a leaf is missing: %+v, %v", reports, err)
	}
	for _, bad := range []string{"rubbish\n", lines[1], lines[0] + "{}\n", lines[0] + strings.Repeat("x", 2<<20)} {
		if _, err := check.Bundle(strings.NewReader(bad), nil); err == nil {
			t.Errorf("%.40q was read", bad)
		}
	}
	if reports, err = check.Bundle(strings.NewReader(""), nil); err != nil || len(reports) != 0 {
		t.Errorf("empty: %v, %v", reports, err)
	}
}

func FuzzBundle(f *testing.F) {
	log, leaves := export(f, 5, 5)
	var b bytes.Buffer
	if err := check.WriteBundle(&b, log, all(leaves)); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		reports, err := check.Bundle(bytes.NewReader(raw), map[string]string{log.Origin: log.VerifierKey})
		if err != nil || bytes.Equal(raw, b.Bytes()) {
			return
		}
		for _, r := range reports {
			if r.Origin == log.Origin && r.OK() && r.Signed == 5 && r.Size < 5 {
				t.Fatal("a signed log of five records verifies with fewer")
			}
		}
	})
}
