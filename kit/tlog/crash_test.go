package tlog_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/mcpvault/mcpvault/kit/tlog"
	"github.com/mcpvault/mcpvault/kit/tlog/check"
)

// crashed copies a log's directory as it is at this moment, which is what SIGKILL leaves: everything that was written.
func crashed(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, e.Name()), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// frameStarts lists where the records of a segment begin, and where the last ends.
func frameStarts(b []byte) []int {
	at := []int{tlog.SegmentHeader}
	for off := tlog.SegmentHeader; off < len(b); {
		off += 8 + int(binary.LittleEndian.Uint32(b[off:]))
		at = append(at, off)
	}
	return at
}

// abandoned makes a log with durable records and some that are only written, and leaves it running: the directory is what
// a killed process leaves behind.
func abandoned(t testing.TB, durable, written int) string {
	t.Helper()
	l, _ := open(t, config(t.TempDir()))
	commit(t, l, 0, durable)
	for i := durable; i < durable+written; i++ {
		if _, err := l.Append(record(i)); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, func() bool { return l.Stats().Written == int64(durable+written) })
	dir := crashed(t, l.Dir())
	closeLog(t, l)
	return dir
}

func TestATornEndIsCutOffAtEveryByteUnlessItWasAcknowledged(t *testing.T) {
	t.Parallel()
	const durable, written = 20, 4
	dir := abandoned(t, durable, written)
	name := tlog.SegmentName(0)
	whole, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	starts := frameStarts(whole)
	if len(starts) != durable+written+1 {
		t.Fatalf("%d records on disk", len(starts)-1)
	}
	for cut := starts[durable-2]; cut <= len(whole); cut++ {
		want := 0
		for want+1 < len(starts) && starts[want+1] <= cut {
			want++
		}
		dir := crashed(t, dir)
		if err := os.WriteFile(filepath.Join(dir, name), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := check.Dir(dir, check.Options{})
		if err != nil || r.OK() != (want >= durable) {
			t.Fatalf("cut at %d of %d: checker says %+v, %v", cut, len(whole), r, err)
		}
		l, rec, err := tlog.Open(config(dir))
		if want < durable {
			var corrupt *tlog.CorruptError
			if !errors.As(err, &corrupt) || corrupt.File != name {
				t.Fatalf("cut at %d: %d of %d durable records, yet %v", cut, want, durable, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("cut at %d of %d: %v", cut, len(whole), err)
		}
		torn := cut != starts[want]
		if rec.Size != int64(want) || (len(rec.Torn) == 1) != torn {
			t.Fatalf("cut at %d: %d records, %+v", cut, want, rec)
		}
		if torn {
			kept, err := os.ReadFile(filepath.Join(dir, rec.Torn[0].KeptAs))
			if err != nil || !bytes.Equal(kept, whole[starts[want]:cut]) {
				t.Fatalf("the torn bytes were not kept: %v", err)
			}
		}
		commit(t, l, want, want+3)
		readAll(t, l, want+3)
		closeLog(t, l)
		if r, err := check.Dir(dir, check.Options{}); err != nil || !r.OK() {
			t.Fatalf("after recovery: %v, %v", r.Fault, err)
		}
	}
}

func TestAHoleAtTheEndIsTornAndBeforeARecordIsCorrupt(t *testing.T) {
	t.Parallel()
	dir := abandoned(t, 10, 4)
	name := filepath.Join(dir, tlog.SegmentName(0))
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	starts := frameStarts(whole)
	for i := 10; i < 14; i++ {
		dir := crashed(t, dir)
		b := bytes.Clone(whole)
		clear(b[starts[i]+5 : starts[i+1]])
		if err := os.WriteFile(filepath.Join(dir, tlog.SegmentName(0)), b, 0o600); err != nil {
			t.Fatal(err)
		}
		l, rec, err := tlog.Open(config(dir))
		if i < 13 {
			if !errors.Is(err, tlog.ErrCorrupt) {
				t.Fatalf("record %d has a hole and others behind it: %v", i, err)
			}
			continue
		}
		if err != nil || rec.Size != 13 || len(rec.Torn) != 1 {
			t.Fatalf("a hole at the end: %+v, %v", rec, err)
		}
		closeLog(t, l)
	}
}

func TestHashesBehindTheCheckpointAreComputedAgain(t *testing.T) {
	t.Parallel()
	dir := abandoned(t, 50, 5)
	for _, cut := range []int64{0, 32, 33, 1000, 50 * 32} {
		dir := crashed(t, dir)
		if err := os.Truncate(filepath.Join(dir, "hashes"), cut); err != nil {
			t.Fatal(err)
		}
		l, rec := open(t, config(dir))
		if rec.HashesRebuilt == 0 {
			t.Fatalf("hashes cut at %d: %+v", cut, rec)
		}
		readAll(t, l, 55)
		closeLog(t, l)
		if r, err := check.Dir(dir, check.Options{}); err != nil || !r.OK() || r.Size != 55 {
			t.Fatalf("after recovery: %+v, %v", r, err)
		}
	}
}

func TestASegmentThatWasOnlyBegunIsMadeAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, _ := open(t, config(dir))
	commit(t, l, 0, 10)
	closeLog(t, l)
	for _, n := range []int{0, 7, tlog.SegmentHeader - 1} {
		dir := crashed(t, dir)
		if err := os.WriteFile(filepath.Join(dir, tlog.SegmentName(10)), make([]byte, n), 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := check.Dir(dir, check.Options{}); err != nil || !r.OK() {
			t.Fatalf("checker: %v, %v", r.Fault, err)
		}
		l, rec := open(t, config(dir))
		if rec.Size != 10 || len(rec.Torn) != 1 {
			t.Fatalf("%d bytes of a segment: %+v", n, rec)
		}
		commit(t, l, 10, 500)
		readAll(t, l, 500)
		closeLog(t, l)
	}
}

func TestRecoveryTellsWhichFileAndOffset(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, _ := open(t, config(dir))
	commit(t, l, 0, 20)
	closeLog(t, l)
	name := tlog.SegmentName(0)
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	at := frameStarts(b)[7]
	b[at+9] ^= 1
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err = tlog.Open(config(dir))
	var corrupt *tlog.CorruptError
	if !errors.As(err, &corrupt) || corrupt.File != name || corrupt.Offset != int64(at) {
		t.Fatalf("want %s at %d: %v", name, at, err)
	}
}
