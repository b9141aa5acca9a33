package consensus_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/celltest"
	"github.com/mcpvault/mcpvault/dataplane/consensus"
	"github.com/mcpvault/mcpvault/kit/problem"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"google.golang.org/protobuf/proto"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// same reports whether a node's disk gives back exactly this update.
func same(c *celltest.Cell, name string, entry proto.Message) bool {
	return proto.Equal(c.Node(name).Store.LastUpdate(), entry)
}

func TestACommittedEntryReachesEveryNode(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 3, 5} {
		c := celltest.New(t, size)
		u := c.Update(1, c.Head(1, 1), c.Head(2, 4))
		must(t, c.Propose(u))
		must(t, c.Propose(c.Kill("k1")))
		for _, name := range c.Names {
			c.Eventually(name+" has it all", func() bool {
				s := c.Node(name).Store
				return same(c, name, u.GetUpdate()) && len(s.Kills()) == 1 && len(s.SessionKeys()) == 1
			})
		}
	}
}

func others(names []string, not string) []string {
	var rest []string
	for _, n := range names {
		if n != not {
			rest = append(rest, n)
		}
	}
	return rest
}

func TestALeaderThatDiesIsReplacedAndNothingAckedIsLost(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3)
	acked := map[string]bool{}
	for round := range 3 {
		leader := c.WaitLeader()
		id := fmt.Sprintf("before-%d", round)
		must(t, c.Propose(c.Kill(id), leader))
		acked[id] = true
		c.KillNode(leader)
		id = fmt.Sprintf("after-%d", round)
		must(t, c.Propose(c.Kill(id), others(c.Names, leader)...))
		acked[id] = true
		c.RestartNode(leader)
	}
	elections := uint64(0)
	for _, name := range c.Names {
		n := c.Node(name).Log
		elections += n.Elections()
		// One that has just come back learns it from the leader.
		c.Eventually(name+" knows what was committed", func() bool { return n.CommitIndex() > 0 })
		c.Eventually(name+" hears a leader", func() bool { since, ok := n.LeaderContact(); return ok && since < celltest.Patience })
	}
	if elections == 0 {
		t.Error("three leaders died and no election was counted")
	}
	for _, name := range c.Names {
		c.Eventually(name+" has every acknowledged kill", func() bool {
			return len(c.Node(name).Store.Kills()) == len(acked)
		})
	}
}

func TestALeaderWhoseDiskHangsIsReplaced(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3, func(cfg *consensus.Config) { cfg.RetryAfter = 50 * time.Millisecond })
	leader := c.WaitLeader()
	must(t, c.Propose(c.Kill("before"), leader))
	c.HangDisk(leader)
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), celltest.Patience)
	defer cancel()
	// The entry may reach the others before the leader notices: only an answer without error would be a promise.
	_, hung := c.Node(leader).Log.Propose(ctx, c.Kill("hung"))
	rest := others(c.Names, leader)
	next := c.WaitLeader(rest...)
	t.Logf("new leader after %s", time.Since(began))
	must(t, c.Propose(c.Kill("after"), next))
	if hung := c.Node(leader).Log.Hung(); hung == 0 || hung > time.Since(began) || c.Node(next).Log.Hung() > time.Second {
		t.Errorf("after %s the disk has hung for %s", time.Since(began), hung)
	}
	if hung == nil {
		t.Error("an entry was acknowledged that the leader could not write")
	}
	c.Eventually("the hung node is out of service and says why", func() bool {
		return c.Node(leader).Log.State() == "shutdown" && c.Node(leader).Log.Problem() != nil
	})
	// When the disk is back the node catches up without a restart.
	c.ThawDisk(leader)
	c.Eventually("the node is back", func() bool {
		return c.Node(leader).Log.Problem() == nil && len(c.Node(leader).Store.Kills()) >= 2 &&
			c.Node(leader).Log.AppliedIndex() >= c.Node(next).Log.AppliedIndex()
	})
}

func TestALeaderWhoseStoreHangsIsReplaced(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3, func(cfg *consensus.Config) { cfg.RetryAfter = 50 * time.Millisecond })
	leader := c.WaitLeader()
	must(t, c.Propose(c.Kill("before"), leader))
	c.HangStore(leader)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	if _, err := c.Node(leader).Log.Propose(ctx, c.Kill("hung")); err == nil {
		t.Error("an entry was acknowledged that the leader could not apply")
	}
	next := c.WaitLeader(others(c.Names, leader)...)
	must(t, c.Propose(c.Kill("after"), next))
	c.ThawStore(leader)
	c.Eventually("the node is back, with all of it", func() bool {
		return c.Node(leader).Log.Problem() == nil && len(c.Node(leader).Store.Kills()) == 3
	})
}

func TestADiskErrorTakesANodeOutUntilItIsOver(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3, func(cfg *consensus.Config) { cfg.RetryAfter = 50 * time.Millisecond })
	leader := c.WaitLeader()
	c.FailDisk(leader, errors.New("no space left on device"))
	_, err := c.Node(leader).Log.Propose(t.Context(), c.Kill("x"))
	if problem.CodeOf(err) != problem.Unavailable {
		t.Fatalf("got %v", err)
	}
	must(t, c.Propose(c.Kill("y"), others(c.Names, leader)...))
	c.FailDisk(leader, nil)
	c.Eventually("the node is back", func() bool { return len(c.Node(leader).Store.Kills()) > 0 })
}

func TestANodeThatIsAloneHasNoLeaderAndStillKnowsWhatToServe(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3)
	u := c.Update(3, c.Head(1, 7))
	must(t, c.Propose(u))
	for _, name := range c.Names {
		c.Eventually(name+" has the update", func() bool { return same(c, name, u.GetUpdate()) })
	}
	for _, name := range c.Names {
		c.KillNode(name)
	}
	c.RestartNode("n1")
	n := c.Node("n1")
	if !same(c, "n1", u.GetUpdate()) || n.Store.Floor(celltest.TenantID(1)).Generation != 7 {
		t.Fatal("the disk does not give back the last update")
	}
	c.Eventually("the node looks for others", func() bool { return n.Log.State() == "candidate" })
	began := time.Now()
	_, err := n.Log.Propose(t.Context(), c.Kill("k"))
	if p, ok := problem.As(err); !ok || p.Code != problem.Unavailable {
		t.Fatalf("got %v", err)
	}
	if _, ok := n.Log.Leader(); ok || n.Log.Leads() {
		t.Fatal("a lone node of three leads")
	}
	if took := time.Since(began); took > time.Second {
		t.Fatalf("the refusal took %s", took)
	}
}

func TestANodeThatIsNotTheLeaderNamesIt(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3)
	leader := c.WaitLeader()
	for _, name := range others(c.Names, leader) {
		c.Eventually(name+" knows the leader", func() bool {
			who, ok := c.Node(name).Log.Leader()
			return ok && who == leader
		})
		_, err := c.Node(name).Log.Propose(t.Context(), c.Kill("k"))
		if p, ok := problem.As(err); !ok || p.Code != problem.Unavailable || p.Fix != "ask node "+leader {
			t.Fatalf("got %v", err)
		}
	}
}

func TestALeaderThatIsHeardButHearsNothingStepsDown(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]func(c *celltest.Cell, leader, other string){
		"hears nothing": func(c *celltest.Cell, leader, other string) { c.Cut(other, leader) },
		"says nothing":  func(c *celltest.Cell, leader, other string) { c.Cut(leader, other) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := celltest.New(t, 3)
			leader := c.WaitLeader()
			rest := others(c.Names, leader)
			for _, other := range rest {
				cut(c, leader, other)
			}
			began := time.Now()
			must(t, c.Propose(c.Kill("k"), rest...))
			t.Logf("committed again after %s", time.Since(began))
			c.Eventually("the old leader has stepped down", func() bool { return !c.Node(leader).Log.Leads() })
			c.Rejoin(leader)
			c.Eventually("the old leader has the entry", func() bool { return len(c.Node(leader).Store.Kills()) == 1 })
		})
	}
}

func TestAnEntryThatDoesNotVerifyChangesNothing(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 1)
	n := c.Node(c.WaitLeader())
	must(t, c.Propose(c.Update(5, c.Head(1, 5))))
	before := n.Store.LastUpdate()
	propose := func(e *cellv1.RaftEntry) error {
		_, err := n.Log.Propose(t.Context(), e)
		return err
	}
	forged := c.Update(6, c.Head(1, 6))
	forged.GetUpdate().Heads[0][len(forged.GetUpdate().GetHeads()[0])-1] ^= 1
	forgedKill := c.Kill("k")
	kill := forgedKill.GetKill()
	kill[len(kill)-1] ^= 1
	big := c.Update(6, c.Head(1, 6))
	for range 400 {
		big.GetUpdate().Heads = append(big.GetUpdate().GetHeads(), big.GetUpdate().GetHeads()[0])
	}
	for name, want := range map[string]struct {
		entry *cellv1.RaftEntry
		code  problem.Code
	}{
		"a flipped signature":   {forged, problem.Denied},
		"a forged kill":         {forgedKill, problem.Denied},
		"an older manifest":     {c.Update(4, c.Head(1, 5)), problem.Conflict},
		"an older head":         {c.Update(6, c.Head(1, 4)), problem.Conflict},
		"another body":          {c.Update(5, c.Head(1, 6)), problem.Conflict},
		"too long":              {big, problem.Exhausted},
		"no command":            {&cellv1.RaftEntry{}, problem.Invalid},
		"a short session key":   {&cellv1.RaftEntry{Command: &cellv1.RaftEntry_SessionKey{SessionKey: &cellv1.SessionKey{Id: 9, Key: []byte("x")}}}, problem.Invalid},
		"another session key 1": {&cellv1.RaftEntry{Command: &cellv1.RaftEntry_SessionKey{SessionKey: &cellv1.SessionKey{Id: 1, Key: make([]byte, 32)}}}, problem.Conflict},
	} {
		if name == "another session key 1" {
			c.Eventually("the first session key is there", func() bool { return len(n.Store.SessionKeys()) == 1 })
		}
		if err := propose(want.entry); problem.CodeOf(err) != want.code {
			t.Errorf("%s: got %v, want %s", name, err, want.code)
		}
	}
	if !proto.Equal(before, n.Store.LastUpdate()) || len(n.Store.Kills()) != 0 || len(n.Store.SessionKeys()) != 1 {
		t.Fatal("a refused entry changed the store")
	}
}

func TestAMemberThatWasAwayIsBroughtUpByASnapshot(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3, func(cfg *consensus.Config) { cfg.SnapshotEvery = 4 })
	c.WaitLeader()
	c.KillNode("n3")
	rest := []string{"n1", "n2"}
	var last *cellv1.RaftEntry
	for g := uint64(1); g <= 20; g++ {
		last = c.Update(g, c.Head(1, g))
		must(t, c.Propose(last, rest...))
	}
	must(t, c.Propose(c.Kill("k"), rest...))
	for _, name := range rest {
		ctx, cancel := context.WithTimeout(t.Context(), celltest.Patience)
		must(t, c.Node(name).Log.Compact(ctx))
		cancel()
	}
	c.RestartNode("n3")
	n := c.Node("n3")
	c.Eventually("n3 has all of it", func() bool {
		return same(c, "n3", last.GetUpdate()) && len(n.Store.Kills()) == 1 && len(n.Store.SessionKeys()) == 1
	})
	if got := len(n.Applied()); got > 10 {
		t.Errorf("n3 applied %d entries: it did not get a snapshot", got)
	}
	// And it starts from that snapshot.
	c.KillNode("n3")
	c.RestartNode("n3")
	must(t, c.Propose(c.Kill("k2")))
	c.Eventually("n3 goes on", func() bool { return len(c.Node("n3").Store.Kills()) == 2 })
}

func TestStoppingInOrderHandsOverLeadership(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3)
	leader := c.WaitLeader()
	began := time.Now()
	c.StopNode(leader)
	next := c.WaitLeader(others(c.Names, leader)...)
	must(t, c.Propose(c.Kill("k"), next))
	t.Logf("handed over in %s", time.Since(began))
	must(t, c.Node(next).Log.TransferLeadership(t.Context()))
	c.WaitLeader(others(others(c.Names, leader), next)...)
}
