package session_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/dataplane/session/sessiontest"
	"github.com/mcpvault/mcpvault/dataplane/store"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// wall is a clock that several goroutines read.
type wall struct{ ms atomic.Int64 }

func (w *wall) now() time.Time          { return time.UnixMilli(w.ms.Load()) }
func (w *wall) advance(d time.Duration) { w.ms.Add(d.Milliseconds()) }

// nodes are a cell of n that tells uses and sweeps all the time; time passes when the test says so.
func nodes(t *testing.T, n int, adjust ...func(*session.LeasesConfig)) (*sessiontest.Cell, *wall) {
	t.Helper()
	w := &wall{}
	w.ms.Store(1_700_000_000_000)
	cfg := session.LeasesConfig{Now: w.now, FlushEvery: time.Hour, SweepEvery: time.Hour}
	for _, f := range adjust {
		f(&cfg)
	}
	return sessiontest.New(t, n, cfg), w
}

func busy(cfg *session.LeasesConfig) {
	cfg.FlushEvery, cfg.SweepEvery = 5*time.Millisecond, 5*time.Millisecond
}

var serial atomic.Int64

func leaseOf(w *wall, user string) (session.LeaseID, *cellv1.SessionLease) {
	id := session.LeaseIDOf(fmt.Sprint("session-", serial.Add(1)), w.now())
	owner := session.OwnerOf("iss", user)
	return id, &cellv1.SessionLease{
		Id: id[:], TenantId: "acme", Server: "pay", Owner: owner[:], Principal: user, Node: "n1", UsedMs: w.now().UnixMilli(),
	}
}

func open(t *testing.T, n *sessiontest.Node, w *wall, user string) session.LeaseID {
	t.Helper()
	id, lease := leaseOf(w, user)
	if err := n.Open(t.Context(), lease, nil); err != nil {
		t.Fatal(err)
	}
	return id
}

func lives(n *sessiontest.Node, id session.LeaseID) bool { return n.Use(id, nil) == nil }

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain: " + what)
		}
	}
}

func TestASessionOpenedAtOneNodeLivesAndEndsAtAll(t *testing.T) {
	t.Parallel()
	c, w := nodes(t, 3)
	id := open(t, c.Node(1), w, "alice")
	w.advance(2 * session.Grace)
	for i := range 3 {
		if !lives(c.Node(i), id) {
			t.Errorf("node %d does not know it", i)
		}
	}
	c.Node(2).End(t.Context(), id, true)
	for i := range 3 {
		if lives(c.Node(i), id) {
			t.Errorf("it lives on at node %d", i)
		}
	}
}

func TestWithoutAQuorumNoSessionIsOpenedAndThoseThatAreGoOn(t *testing.T) {
	t.Parallel()
	c, w := nodes(t, 3)
	id, ended := open(t, c.Node(0), w, "alice"), open(t, c.Node(0), w, "alice")
	c.Agree(false)
	_, lease := leaseOf(w, "alice")
	if err := c.Node(1).Open(t.Context(), lease, nil); !errors.Is(err, session.ErrNoQuorum) {
		t.Fatal(err)
	}
	if err := c.Node(1).Room("acme", session.OwnerOf("iss", "alice"), nil); !errors.Is(err, session.ErrNoQuorum) {
		t.Fatal(err)
	}
	// For longer than the idle time: nobody can tell this node of uses elsewhere.
	w.advance(3 * time.Hour)
	if !lives(c.Node(1), id) {
		t.Error("a node that is cut off refuses a session that it knows")
	}
	w.advance(session.DefaultMax)
	if lives(c.Node(1), id) {
		t.Error("a session outlives what it may at most")
	}
	w.advance(-session.DefaultMax)
	c.Node(1).End(t.Context(), ended, true)
	if lives(c.Node(1), ended) {
		t.Error("an end waits for a quorum to take effect where it was said")
	}
	c.Agree(true)
	c.Node(1).End(t.Context(), ended, true) // wakes what waits
	if lives(c.Node(2), ended) {
		t.Error("the end was not told once there was a quorum")
	}
}

func TestASealedIDIsBelievedWhereItsLeaseCannotBeKnownYet(t *testing.T) {
	t.Parallel()
	c, w := nodes(t, 3)
	w.advance(time.Minute)
	behind := c.Node(2)
	eventually(t, "the node is current", func() bool { // as of now
		time.Sleep(300 * time.Millisecond)
		return true
	})
	older := open(t, c.Node(0), w, "alice")
	c.Node(0).End(t.Context(), older, true)
	behind.Cut(true)
	id := open(t, c.Node(0), w, "alice")
	if !lives(behind, id) {
		t.Error("a session that was opened a moment ago is refused")
	}
	w.advance(time.Hour)
	later := open(t, c.Node(0), w, "alice")
	if !lives(behind, id) || !lives(behind, later) {
		t.Error("a node that is cut off refuses what it cannot have heard of")
	}
	if lives(behind, older) {
		t.Error("it takes up again what it knows to have ended")
	}
	c.Node(0).End(t.Context(), later, true)
	behind.Cut(false)
	if lives(behind, later) || !lives(behind, id) {
		t.Error("back in the cell it does not know what the others know")
	}
	// Nobody ever heard of this one, and everybody would have.
	never, _ := leaseOf(w, "mallory")
	w.advance(session.Grace + time.Second)
	for i := range 3 {
		if lives(c.Node(i), never) {
			t.Error("a session without a lease lives longer than the grace")
		}
	}
}

func TestUsesAreToldInBatchesAndKeepASessionAliveEverywhere(t *testing.T) {
	t.Parallel()
	c, w := nodes(t, 2, busy)
	var ids []session.LeaseID
	for range 50 {
		ids = append(ids, open(t, c.Node(0), w, "alice"))
	}
	idle := open(t, c.Node(0), w, "alice")
	for range 4 {
		w.advance(20 * time.Minute)
		for _, id := range ids {
			if !lives(c.Node(0), id) {
				t.Fatal("a session that is used ended")
			}
		}
		eventually(t, "the uses on disk", func() bool {
			all, _, err := c.Node(1).Disk.List("acme", 1000, func(l *cellv1.SessionLease) bool { return l.GetUsedMs() == w.now().UnixMilli() })
			return err == nil && len(all) == len(ids)
		})
	}
	for _, id := range ids {
		if !lives(c.Node(1), id) {
			t.Fatal("the other node did not hear of the uses")
		}
	}
	if lives(c.Node(1), idle) || lives(c.Node(0), idle) {
		t.Error("a session that nobody used lives on")
	}
	eventually(t, "the lease of the idle session is gone", func() bool { return c.Node(1).Disk.Len() == len(ids) })
	touches := 0
	for _, b := range c.Batches() {
		if len(b.GetTouched()) > 0 {
			touches++
		}
	}
	if touches > 4*10 {
		t.Errorf("%d entries for 200 uses", touches)
	}
	w.advance(2 * time.Hour)
	eventually(t, "every lease is gone, the ends are forgotten, and nothing is kept in memory", func() bool {
		oldest, err := c.Node(1).Disk.OldestEnded()
		return err == nil && oldest == 0 && c.Node(0).Disk.Len() == 0 && c.Node(1).Disk.Len() == 0 && c.Node(0).Live() == 0
	})
}

func TestATenantDecidesOnTimesAndCaps(t *testing.T) {
	t.Parallel()
	c, w := nodes(t, 1)
	n := c.Node(0)
	s := &snapshotv1.Settings{SessionIdleMs: 60_000, SessionMaxMs: 600_000, SessionsPerPrincipal: 2, SessionsPerTenant: 3}
	var ids []session.LeaseID
	try := func(user string) error {
		id, lease := leaseOf(w, user)
		ids = append(ids, id)
		return n.Open(t.Context(), lease, s)
	}
	for _, want := range []struct {
		user string
		err  error
	}{{"alice", nil}, {"alice", nil}, {"alice", session.ErrPrincipalFull}, {"bob", nil}, {"carol", session.ErrTenantFull}} {
		if err := try(want.user); !errors.Is(err, want.err) {
			t.Errorf("%s: %v", want.user, err)
		}
	}
	if err := n.Room("acme", session.OwnerOf("iss", "alice"), s); !errors.Is(err, session.ErrPrincipalFull) {
		t.Error(err)
	}
	if n.Use(ids[2], s) == nil && w.now().Sub(ids[2].Created()) > session.Grace {
		t.Error("a refused session lives")
	}
	for range 9 {
		w.advance(time.Minute)
		if n.Use(ids[0], s) != nil {
			t.Fatal("ended while it was used")
		}
	}
	w.advance(time.Minute + time.Second)
	if n.Use(ids[0], s) == nil {
		t.Error("a busy session outlives the absolute time-out")
	}
}

func TestAKilledSessionLosesItsLease(t *testing.T) {
	t.Parallel()
	c, w := nodes(t, 2)
	var mu sync.Mutex
	var heard []store.EndedLease
	c.Node(1).Ended = func(e store.EndedLease) {
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, e)
	}
	id := open(t, c.Node(0), w, "alice")
	c.Node(0).Kill([16]byte(id[8:]))
	c.Node(1).Kill([16]byte(id[8:]))
	eventually(t, "the lease is gone", func() bool { return c.Node(0).Disk.Len() == 0 && c.Node(1).Disk.Len() == 0 })
	mu.Lock()
	defer mu.Unlock()
	if len(heard) != 1 || heard[0].Closed || !bytes.Equal(heard[0].Lease.GetId(), id[:]) {
		t.Fatalf("%v", heard)
	}
}

func TestManyOpeningsAtOnceShareEntries(t *testing.T) {
	t.Parallel()
	c, w := nodes(t, 3)
	var wg sync.WaitGroup
	for i := range 400 {
		id, lease := leaseOf(w, fmt.Sprint("u", i))
		wg.Go(func() {
			if err := c.Node(i%3).Open(t.Context(), lease, nil); err != nil {
				t.Error(err)
			}
			if !lives(c.Node((i+1)%3), id) {
				t.Error("not known elsewhere")
			}
		})
	}
	wg.Wait()
	if n := len(c.Batches()); n > 300 || c.Node(0).Disk.Len() != 400 {
		t.Errorf("%d entries for %d sessions", n, c.Node(0).Disk.Len())
	}
}
