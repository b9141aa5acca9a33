package tlog_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mcpvault/mcpvault/kit/tlog"
	"github.com/mcpvault/mcpvault/kit/tlog/tlogtest"
)

func faulty(t *testing.T) (*tlog.Log, *tlogtest.FS, tlog.Config) {
	disk := tlogtest.New(tlogtest.Quick{})
	cfg := config(t.TempDir())
	cfg.FS, cfg.WriteTimeout, cfg.RingDir = disk, 500*time.Millisecond, "-"
	l, _ := open(t, cfg)
	return l, disk, cfg
}

// commitAgain commits the record until the disk takes it. Within a bubble it fails when that takes longer than two seconds.
func commitAgain(t *testing.T, l *tlog.Log, rec []byte) {
	t.Helper()
	began := time.Now()
	waitFor(t, func() bool { _, err := l.Commit(t.Context(), rec); return err == nil })
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the log came back after %s", took)
	}
}

func TestAFailedDiskRefusesCommitsAndKeepsAppends(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*tlogtest.FS, error){
		"write": (*tlogtest.FS).FailWrites,
		"sync":  (*tlogtest.FS).FailSyncs,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { failAndHeal(t, fault) })
		})
	}
}

func failAndHeal(t *testing.T, fault func(*tlogtest.FS, error)) {
	l, disk, cfg := faulty(t)
	commit(t, l, 0, 10)
	fault(disk, syscall.EIO)
	if _, err := l.Commit(t.Context(), record(10)); !errors.Is(err, tlog.ErrUnavailable) || !errors.Is(err, syscall.EIO) {
		t.Fatalf("commit on a failing disk: %v", err)
	}
	// The record that failed has its place; from now on a commit takes none.
	if i, err := l.Commit(t.Context(), record(99)); !errors.Is(err, tlog.ErrUnavailable) || i != -1 {
		t.Fatalf("second commit: %d, %v", i, err)
	}
	for i := 11; i < 50; i++ {
		if at, err := l.Append(record(i)); err != nil || at != int64(i) {
			t.Fatalf("append %d: %d, %v", i, at, err)
		}
	}
	if l.Durable() != 10 {
		t.Fatalf("durable is %d", l.Durable())
	}
	fault(disk, nil)
	commitAgain(t, l, record(50))
	readAll(t, l, 51)
	closeLog(t, l)
	l, rec := open(t, cfg)
	defer closeLog(t, l)
	if rec.Size != 51 || len(rec.Torn) != 0 {
		t.Fatalf("after restart: %+v", rec)
	}
	readAll(t, l, 51)
}

func TestAFullDiskIsAnErrorAndLosesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, aFullDiskIsAnErrorAndLosesNothing)
}

func aFullDiskIsAnErrorAndLosesNothing(t *testing.T) {
	l, disk, cfg := faulty(t)
	commit(t, l, 0, 10)
	disk.Full(100) // the next record is cut in the middle
	failed := 10
	for ; failed < 30; failed++ {
		if _, err := l.Commit(t.Context(), record(failed)); err != nil {
			if !errors.Is(err, tlog.ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("commit on a full disk: %v", err)
			}
			break
		}
	}
	if failed == 30 {
		t.Fatal("a full disk took everything")
	}
	disk.Free()
	commitAgain(t, l, record(failed+1))
	readAll(t, l, failed+2)
	closeLog(t, l)
	l, _ = open(t, cfg)
	defer closeLog(t, l)
	readAll(t, l, failed+2)
}

func TestAHangingDiskIsAnErrorWithinTheTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, aHangingDiskIsAnErrorWithinTheTimeout)
}

func aHangingDiskIsAnErrorWithinTheTimeout(t *testing.T) {
	l, disk, cfg := faulty(t)
	commit(t, l, 0, 10)
	release := disk.Hang()
	began := time.Now()
	if _, err := l.Commit(t.Context(), record(10)); !errors.Is(err, tlog.ErrUnavailable) {
		t.Fatalf("commit on a hanging disk: %v", err)
	}
	if took := time.Since(began); took > 600*time.Millisecond {
		t.Errorf("the refusal took %s", took)
	}
	began = time.Now()
	if _, err := l.Commit(t.Context(), record(99)); !errors.Is(err, tlog.ErrUnavailable) {
		t.Fatalf("second commit: %v", err)
	}
	for i := 11; i < 50; i++ {
		if _, err := l.Append(record(i)); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took > 100*time.Millisecond {
		t.Errorf("known to hang, yet it took %s", took)
	}
	release()
	commitAgain(t, l, record(50))
	readAll(t, l, 51)
	closeLog(t, l)
	l, _ = open(t, cfg)
	defer closeLog(t, l)
	readAll(t, l, 51)
}

func TestTheRingIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, theRingIsBounded)
}

func theRingIsBounded(t *testing.T) {
	l, disk, _ := faulty(t)
	disk.FailWrites(syscall.EIO)
	n, err := 0, error(nil)
	for ; n <= 2*tlog.MaxWaiting && err == nil; n++ {
		_, err = l.Append([]byte("x"))
	}
	if !errors.Is(err, tlog.ErrUnavailable) || n != tlog.MaxWaiting+1 {
		t.Fatalf("after %d appends: %v", n, err)
	}
	disk.FailWrites(nil)
	commitAgain(t, l, []byte("x"))
	closeLog(t, l)
}

func TestClosingOnAFailedDiskSaysWhatIsLost(t *testing.T) {
	t.Parallel()
	for ring, want := range map[string]int64{"-": 3, "": 4} {
		disk := tlogtest.New(tlogtest.Quick{})
		cfg := config(t.TempDir())
		cfg.FS, cfg.RingDir = disk, ring
		l, _ := open(t, cfg)
		commit(t, l, 0, 3)
		disk.FailWrites(syscall.EIO)
		if _, err := l.Append(record(3)); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); !errors.Is(err, tlog.ErrUnavailable) {
			t.Fatalf("close: %v", err)
		}
		disk.FailWrites(nil)
		l, rec := open(t, cfg)
		if rec.Size != want || rec.Replayed != want-3 {
			t.Errorf("ring %q: after restart: %+v", ring, rec)
		}
		closeLog(t, l)
	}
}

func TestTheReserveIsGivenToAFullDiskAndTakenBack(t *testing.T) {
	t.Parallel()
	cfg := config(t.TempDir())
	cfg.Reserve, cfg.CheckpointEvery = 4<<20, 10*time.Millisecond
	disk := tlogtest.New(tlogtest.Quick{})
	cfg.FS = &reserved{FS: disk}
	l, _ := open(t, cfg)
	defer closeLog(t, l)
	reserve := filepath.Join(cfg.Dir, "reserve")
	if st, err := os.Stat(reserve); err != nil || st.Size() != 4<<20 {
		t.Fatalf("reserve: %v", err)
	}
	disk.Full(0)
	commit(t, l, 0, 10)
	if !l.Stats().ReserveUsed {
		t.Fatal("ten records fitted on a full disk without the reserve")
	}
	disk.Free()
	waitFor(t, func() bool { return !l.Stats().ReserveUsed })
	if _, err := os.Stat(reserve); err != nil {
		t.Fatal(err)
	}
}

// reserved is a full disk that has room again for the bytes of a file that is removed.
type reserved struct{ *tlogtest.FS }

func (r *reserved) Remove(name string) error {
	if filepath.Base(name) == "reserve" {
		r.Full(4 << 20)
	}
	return r.FS.Remove(name)
}

func TestARealFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := mountSmall(t, dir, 6<<20); err != nil {
		t.Skipf("no small file system can be mounted here: %v", err)
	}
	cfg := tlog.Config{Dir: filepath.Join(dir, "audit"), Prefix: prefix, SegmentBytes: 1 << 20, Reserve: 4 << 20, WriteTimeout: 20 * time.Second}
	l, _ := open(t, cfg)
	rec := make([]byte, 64<<10)
	n := 0
	for ; n < 1000; n++ {
		if _, err := l.Commit(t.Context(), rec); err != nil {
			if !errors.Is(err, tlog.ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("commit %d: %v", n, err)
			}
			break
		}
	}
	if n < 50 || n == 1000 || !l.Stats().ReserveUsed {
		t.Fatalf("%d records of 64 KiB fitted in 6 MiB", n)
	}
	if err := l.Prune(int64(n), 0); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { _, err := l.Commit(t.Context(), rec); return err == nil })
	closeLog(t, l)
	l, r := open(t, cfg)
	defer closeLog(t, l)
	if r.Size < int64(n)+1 || len(r.Torn) > 0 {
		t.Fatalf("after restart: %+v, wrote %d", r, n)
	}
}
