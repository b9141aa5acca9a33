package store_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/store"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"google.golang.org/protobuf/proto"
)

const crashDir = "MCPVAULT_TEST_CRASH_DIR"

// TestCrashChild is the process that is killed: it writes one generation after the other and says which is written.
func TestCrashChild(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		t.Skip("runs as the child of TestNothingReportedWrittenIsLostToSIGKILL")
	}
	s, err := store.Open(store.Config{Dir: dir, Key: store.Key{9}})
	must(t, err)
	for g := uint64(s.Floor(one).Generation) + 1; ; g++ {
		body := []byte(strconv.FormatUint(g, 10))
		must(t, s.PutBlob(snapshot.DigestOf(body), body))
		// Every fifth generation is a head, the others are deltas on it.
		if _, parent := s.FloorDigest(one); g%5 != 1 {
			must(t, s.PutDeltas([]*snapshotv1.SignedDelta{delta(t, one, version{1, g}, parent[:], g)}))
		} else {
			must(t, s.PutUpdate(update(t, g, head(t, one, version{1, g}, g, body))))
		}
		_, err := s.AddKill(fmt.Sprintf("k%06d", g), envelope(t, &snapshotv1.Kill{Id: strconv.FormatUint(g, 10)}, "a"))
		must(t, err)
		fmt.Printf("written %d\n", g)
	}
}

func TestNothingReportedWrittenIsLostToSIGKILL(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	last := uint64(0)
	var written []uint64
	for round := range 10 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrashChild$")
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines := bufio.NewScanner(out)
		stop := last + 1 + rand.Uint64N(20)
		for lines.Scan() {
			if n, ok := strings.CutPrefix(lines.Text(), "written "); ok {
				last, err = strconv.ParseUint(n, 10, 64)
				must(t, err)
				written = append(written, last)
				if last >= stop {
					break
				}
			}
		}
		must(t, cmd.Process.Kill())
		for lines.Scan() {
			if n, ok := strings.CutPrefix(lines.Text(), "written "); ok {
				last, err = strconv.ParseUint(n, 10, 64)
				must(t, err)
				written = append(written, last)
			}
		}
		_ = cmd.Wait()
		checkAfterCrash(t, dir, written, round)
	}
}

func checkAfterCrash(t *testing.T, dir string, written []uint64, round int) {
	t.Helper()
	last := written[len(written)-1]
	s, err := store.Open(store.Config{Dir: dir, Key: store.Key{9}})
	must(t, err)
	defer func() { must(t, s.Close()) }()
	if len(s.Corrupt()) != 0 {
		t.Fatalf("round %d: %v", round, s.Corrupt())
	}
	floor := uint64(s.Floor(one).Generation)
	if floor < last || floor > last+1 {
		t.Fatalf("round %d: %d was written; floor %d", round, last, floor)
	}
	kills := map[string]bool{}
	for _, env := range s.Kills() {
		var e snapshotv1.Envelope
		var k snapshotv1.Kill
		must(t, proto.Unmarshal(env, &e))
		must(t, proto.Unmarshal(e.GetPayload(), &k))
		kills[k.GetId()] = true
	}
	for _, g := range written {
		if !kills[strconv.FormatUint(g, 10)] {
			t.Fatalf("round %d: kill %d was written and is gone", round, g)
		}
	}
	c := s.Chains()[one]
	if uint64(c.Version.Generation) != floor || len(c.Deltas) != int((floor-1)%5) {
		t.Fatalf("round %d: generation %s with %d deltas under floor %d", round, c.Version, len(c.Deltas), floor)
	}
	if _, want := s.FloorDigest(one); c.Digest != want {
		t.Fatalf("round %d: generation %s is another one than was accepted", round, c.Version)
	}
	body := []byte(strconv.FormatUint(last, 10))
	if _, err := s.GetBlob(snapshot.DigestOf(body), 100); err != nil {
		t.Fatalf("round %d: %v", round, err)
	}
}

// Readers see versions that only rise, and manifest and head of one update together.
func TestReadersSeeWholeUpdatesInOrder(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), newKey(t))
	const last = 30
	all := make([]*cellv1.Update, 0, last)
	manifests := map[string]string{}
	for g := uint64(1); g <= last; g++ {
		u := update(t, g, head(t, "acme", version{1, g}, g))
		all = append(all, u)
		manifests[string(u.GetManifest())] = string(u.GetHeads()[0])
	}
	var readers sync.WaitGroup
	deadline := time.Now().Add(30 * time.Second)
	for range 4 {
		readers.Go(func() {
			var seen snapshot.Version
			for seen.Generation < last && time.Now().Before(deadline) {
				u := s.LastUpdate()
				if len(u.GetManifest()) > 0 && manifests[string(u.GetManifest())] != string(u.GetHeads()[0]) {
					t.Error("a manifest with the head of another update")
				}
				now := s.Floor("acme")
				if seen.Newer(now) {
					t.Errorf("%s after %s", now, seen)
				}
				seen = now
			}
		})
	}
	for _, u := range all {
		must(t, s.PutUpdate(u))
	}
	readers.Wait()
}
