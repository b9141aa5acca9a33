package tlog_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/kit/tlog"
	"github.com/mcpvault/mcpvault/kit/tlog/tlogtest"
)

const prefix = "mcpvault/audit/eu-1/n1"

func config(dir string) tlog.Config {
	return tlog.Config{Dir: dir, Prefix: prefix, SegmentBytes: 8 << 10, FS: tlogtest.Quick{}, WriteTimeout: 20 * time.Second}
}

func open(t testing.TB, cfg tlog.Config) (*tlog.Log, tlog.Recovery) {
	t.Helper()
	l, rec, err := tlog.Open(cfg)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return l, rec
}

func record(i int) []byte {
	return fmt.Appendf(nil, "record %d %s", i, string(make([]byte, i%97)))
}

func commit(t testing.TB, l *tlog.Log, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		at, err := l.Commit(t.Context(), record(i))
		if err != nil || at != int64(i) {
			t.Fatalf("commit %d: index %d, %v", i, at, err)
		}
	}
}

// appendAll appends without waiting, and then makes everything durable.
func appendAll(t testing.TB, l *tlog.Log, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if at, err := l.Append(record(i)); err != nil || at != int64(i) {
			t.Fatalf("append %d: index %d, %v", i, at, err)
		}
	}
	if err := l.Sync(t.Context()); err != nil {
		t.Fatalf("sync: %v", err)
	}
}

func readAll(t testing.TB, l *tlog.Log, want int) {
	t.Helper()
	at := int64(0)
	for at < l.Durable() {
		recs, err := l.Read(at, 37, 4<<10)
		if err != nil {
			t.Fatalf("read from %d: %v", at, err)
		}
		for _, rec := range recs {
			if string(rec) != string(record(int(at))) {
				t.Fatalf("record %d is %q", at, rec)
			}
			at++
		}
	}
	if at != int64(want) {
		t.Fatalf("read %d records, want %d", at, want)
	}
}

func closeLog(t testing.TB, l *tlog.Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

func TestRecordsAreThereAfterRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, rec := open(t, config(dir))
	if !rec.Created || rec.Size != 0 {
		t.Fatalf("a new directory: %+v", rec)
	}
	commit(t, l, 0, 20)
	appendAll(t, l, 20, 1000)
	readAll(t, l, 1000)
	closeLog(t, l)

	l, rec = open(t, config(dir))
	defer closeLog(t, l)
	if rec.Created || rec.Size != 1000 || len(rec.Torn) != 0 || rec.HashesRebuilt != 0 {
		t.Fatalf("after a clean stop: %+v", rec)
	}
	readAll(t, l, 1000)
	commit(t, l, 1000, 1010)
	readAll(t, l, 1010)
}

func TestEachDirectoryHasAnIdentityOfItsOwn(t *testing.T) {
	t.Parallel()
	a, _ := open(t, config(t.TempDir()))
	defer closeLog(t, a)
	b, _ := open(t, config(t.TempDir()))
	defer closeLog(t, b)
	if a.Origin() == b.Origin() || a.VerifierKey() == b.VerifierKey() {
		t.Fatalf("two incarnations share %s", a.Origin())
	}
}

func TestADirectoryIsOpenOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, _ := open(t, config(dir))
	defer closeLog(t, l)
	if _, _, err := tlog.Open(config(dir)); !errors.Is(err, tlog.ErrInUse) {
		t.Fatalf("second open: %v", err)
	}
}

func TestAnotherNodesDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, _ := open(t, config(dir))
	closeLog(t, l)
	cfg := config(dir)
	cfg.Prefix = "mcpvault/audit/eu-1/n2"
	if _, _, err := tlog.Open(cfg); err == nil {
		t.Fatal("the log of n1 was opened as that of n2")
	}
}

func TestProofsHoldAgainstCheckpoints(t *testing.T) {
	t.Parallel()
	l, _ := open(t, config(t.TempDir()))
	defer closeLog(t, l)
	appendAll(t, l, 0, 300)
	for _, size := range []int64{1, 2, 255, 256, 257, 300} {
		signed, cp, err := l.CheckpointAt(size)
		if err != nil {
			t.Fatal(err)
		}
		opened, err := tlog.OpenCheckpoint(signed, l.VerifierKey())
		if err != nil || opened != cp {
			t.Fatalf("checkpoint at %d: %v", size, err)
		}
		for i := int64(0); i < size; i += 7 {
			proof, err := l.ProveRecord(size, i)
			if err != nil {
				t.Fatal(err)
			}
			if err := tlog.CheckRecord(proof, size, cp.Root, i, tlog.LeafHash(record(int(i)))); err != nil {
				t.Fatalf("record %d in %d: %v", i, size, err)
			}
		}
		if _, err := l.ProveTree(300, size); err != nil {
			t.Fatalf("300 begins with %d: %v", size, err)
		}
	}
	if _, _, err := l.CheckpointAt(301); !errors.Is(err, tlog.ErrRange) {
		t.Fatalf("a checkpoint beyond the log: %v", err)
	}
}

func TestCheckpointFollowsRecords(t *testing.T) {
	t.Parallel()
	cfg := config(t.TempDir())
	cfg.CheckpointEvery = 5 * time.Millisecond
	l, _ := open(t, cfg)
	defer closeLog(t, l)
	if _, err := l.Append(record(0)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { _, cp := l.Checkpoint(); return cp.Size == 1 })
}

func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen within a minute")
		}
		time.Sleep(time.Millisecond)
	}
}

// TestManyWritersShareSyncs waits for the real disk.
func TestManyWritersShareSyncs(t *testing.T) {
	t.Parallel()
	disk := tlogtest.New(tlog.Disk{})
	cfg := config(t.TempDir())
	cfg.FS, cfg.SegmentBytes = disk, 1<<20
	l, _ := open(t, cfg)
	before := disk.Syncs()
	var wg sync.WaitGroup
	const writers, each = 64, 50
	seen := make([][]int64, writers)
	for w := range writers {
		wg.Go(func() {
			for range each {
				i, err := l.Commit(context.Background(), []byte("x"))
				if err != nil || l.Durable() <= i {
					t.Errorf("commit %d: %v, durable %d", i, err, l.Durable())
				}
				seen[w] = append(seen[w], i)
			}
		})
	}
	wg.Wait()
	if n := disk.Syncs() - before; n >= writers*each/2 {
		t.Errorf("%d syncs for %d commits", n, writers*each)
	}
	all := map[int64]bool{}
	for _, s := range seen {
		for _, i := range s {
			all[i] = true
		}
	}
	if len(all) != writers*each || l.Size() != writers*each {
		t.Fatalf("%d indexes, size %d", len(all), l.Size())
	}
	closeLog(t, l)
}

func TestPrunedSegmentsAreGoneAndProofsStay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, _ := open(t, config(dir))
	for i := 0; i < 1000; i += 100 {
		appendAll(t, l, i, i+100)
	}
	if err := l.Prune(500, 0); err != nil {
		t.Fatal(err)
	}
	first := l.First()
	if first == 0 || first > 500 {
		t.Fatalf("first record kept is %d", first)
	}
	if _, err := l.Read(0, 1, 1<<20); !errors.Is(err, tlog.ErrRange) {
		t.Fatalf("read a pruned record: %v", err)
	}
	if _, err := l.ProveTree(1000, 3); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	l, rec := open(t, config(dir))
	defer closeLog(t, l)
	if l.First() != first || rec.Size != 1000 {
		t.Fatalf("after restart: first %d, %+v", l.First(), rec)
	}
	if recs, err := l.Read(500, 500, 1<<20); err != nil || len(recs) != 500 {
		t.Fatalf("%d records, %v", len(recs), err)
	}
}

func TestAPrunedFileThatIsMissingWithoutPruningIsFound(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, _ := open(t, config(dir))
	for i := 0; i < 1000; i += 100 {
		appendAll(t, l, i, i+100)
	}
	closeLog(t, l)
	if err := os.Remove(filepath.Join(dir, tlog.SegmentName(0))); err != nil {
		t.Fatal(err)
	}
	if _, _, err := tlog.Open(config(dir)); !errors.Is(err, tlog.ErrCorrupt) {
		t.Fatalf("open: %v", err)
	}
}

func TestRecordsOutOfBoundsAreRefused(t *testing.T) {
	t.Parallel()
	l, _ := open(t, config(t.TempDir()))
	for _, rec := range [][]byte{nil, make([]byte, tlog.MaxRecord+1)} {
		if _, err := l.Append(rec); !errors.Is(err, tlog.ErrRecord) {
			t.Fatalf("%d bytes: %v", len(rec), err)
		}
	}
	if _, err := l.Commit(t.Context(), make([]byte, tlog.MaxRecord)); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	if _, err := l.Append([]byte("x")); !errors.Is(err, tlog.ErrClosed) {
		t.Fatalf("append after close: %v", err)
	}
}
