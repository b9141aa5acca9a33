package tlog_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/kit/tlog"
	"github.com/mcpvault/mcpvault/kit/tlog/check"
)

const childEnv = "TLOG_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
	}
	os.Exit(m.Run())
}

// child appends and commits until it is killed, and says which records were acknowledged.
func child(dir string) {
	l, _, err := tlog.Open(tlog.Config{Dir: dir, Prefix: prefix, SegmentBytes: 32 << 10, WriteTimeout: 20 * time.Second})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	for w := range 8 {
		go func() {
			for n := 0; ; n++ {
				var i int64
				var err error
				rec := fmt.Appendf(nil, "%d/%d/%d", os.Getpid(), w, n)
				if w < 4 {
					i, err = l.Commit(context.Background(), rec)
				} else {
					i, err = l.Append(rec)
					time.Sleep(50 * time.Microsecond)
				}
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(4)
				}
				_, _ = os.Stdout.WriteString(strconv.FormatInt(i, 10) + " " + string(rec) + "\n")
			}
		}()
	}
	select {}
}

// TestWhatWasAcknowledgedSurvivesSIGKILL kills a process in the middle of its work, again and again on one directory.
func TestWhatWasAcknowledgedSurvivesSIGKILL(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/dev/shm"); err != nil {
		t.Skip("without a tmpfs there is no ring, and appends may be lost")
	}
	dir := t.TempDir()
	t.Cleanup(func() {
		_ = os.Remove(filepath.Join("/dev/shm", tlog.RingFile(dir)))
	})
	acked := map[int64]string{}
	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	var replayed int64
	for round := range rounds {
		killOne(t, dir, acked, time.Duration(rand.IntN(60))*time.Millisecond)
		if r, err := check.Dir(dir, check.Options{}); err != nil || !r.OK() {
			t.Fatalf("round %d: the checker says %v, %v", round, r.Fault, err)
		}
		l, rec, err := tlog.Open(tlog.Config{Dir: dir, Prefix: prefix, SegmentBytes: 32 << 10, WriteTimeout: 20 * time.Second})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		replayed += rec.Replayed
		for at := int64(0); at < l.Durable(); {
			recs, err := l.Read(at, 1000, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range recs {
				if want, ok := acked[at]; ok && want != string(b) {
					t.Fatalf("round %d: record %d is %q, acknowledged was %q", round, at, b, want)
				}
				at++
			}
		}
		for i, rec := range acked {
			if i >= l.Durable() {
				t.Fatalf("round %d: record %d %q was acknowledged, and there are %d", round, i, rec, l.Durable())
			}
		}
		closeLog(t, l)
	}
	t.Logf("%d kills, %d records acknowledged, %d of them came from the ring", rounds, len(acked), replayed)
}

// killOne runs a child for a while after its first acknowledgement, kills it, and notes what it acknowledged.
func killOne(t *testing.T, dir string, acked map[int64]string, after time.Duration) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	s := bufio.NewScanner(out)
	for s.Scan() {
		once.Do(func() { time.AfterFunc(after, func() { _ = cmd.Process.Kill() }) })
		var i int64
		var rec string
		if n, _ := fmt.Sscanf(s.Text(), "%d %s", &i, &rec); n == 2 {
			acked[i] = rec
		}
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() > 0 {
		t.Fatalf("the child ended by itself: %v", err)
	}
}
