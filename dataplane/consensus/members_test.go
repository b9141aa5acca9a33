package consensus_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/celltest"
	"github.com/mcpvault/mcpvault/dataplane/consensus"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

func promoteSoon(cfg *consensus.Config) { cfg.PromoteAfter = 50 * time.Millisecond }

// voters are those with a vote, as one node knows them.
func voters(n *consensus.Node) []string {
	var all []string
	for _, m := range n.Members() {
		if m.Votes {
			all = append(all, m.Node)
		}
	}
	return all
}

func add(c *celltest.Cell, m *cellv1.Member, among ...string) error {
	return c.Lead(func(n *consensus.Node) error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return n.AddMember(ctx, m)
	}, among...)
}

// remove has the leader remove a node; one that leads itself steps down first.
func remove(c *celltest.Cell, node string, among ...string) error {
	return c.Lead(func(n *consensus.Node) error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		err := n.RemoveMember(ctx, node)
		if leader, _ := n.Leader(); leader == node && err != nil {
			_ = n.TransferLeadership(ctx)
		}
		return err
	}, among...)
}

func TestACellGrowsFromOneToFiveAndShrinksAgain(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 1, promoteSoon)
	must(t, c.Propose(c.Kill("k1")))
	for i := 2; i <= 5; i++ {
		name := fmt.Sprintf("n%d", i)
		must(t, add(c, c.Join(name)))
		c.Eventually(name+" has a vote everywhere and all that was agreed before", func() bool {
			for _, other := range c.Names {
				if len(voters(c.Node(other).Log)) != i {
					return false
				}
			}
			return len(c.Node(name).Store.Kills()) == 1 && len(c.Node(name).Store.SessionKeys()) == 1
		})
	}
	// Five outlive two.
	leader := c.WaitLeader()
	dead := others(c.Names, leader)[:2]
	for _, name := range dead {
		c.KillNode(name)
	}
	rest := slices.DeleteFunc(slices.Clone(c.Names), func(n string) bool { return slices.Contains(dead, n) })
	must(t, c.Propose(c.Kill("k2"), rest...))
	for _, name := range dead {
		must(t, remove(c, name, rest...))
	}
	c.Eventually("three are left", func() bool { return len(voters(c.Node(c.WaitLeader(rest...)).Log)) == 3 })
	must(t, c.Propose(c.Kill("k3"), rest...))
}

func TestANodeThatIsRestartedAloneKnowsItsPeers(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3, promoteSoon)
	must(t, add(c, c.Join("n4")))
	must(t, remove(c, "n3"))
	names := []string{"n1", "n2", "n4"}
	for _, name := range names {
		c.Eventually(name+" knows the members", func() bool { return slices.Equal(voters(c.Node(name).Log), names) })
	}
	for _, name := range c.Names {
		c.KillNode(name)
	}
	// n1 has never had n4's address in its configuration.
	c.RestartNode("n1")
	n1 := c.Node("n1")
	if got := n1.Store.Members(); len(got.GetMembers()) != 3 || n1.Log.IsMember("n4") != nil || n1.Log.IsMember("n3") == nil {
		t.Fatalf("alone it knows %v", got)
	}
	c.RestartNode("n4")
	must(t, c.Propose(c.Kill("together"), "n1", "n4"))
}

// A node gets a vote only when it has been up to date for a while: until then the cell's quorum does not count it.
func TestANewNodeHasNoVoteBeforeItHasCaughtUp(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 1, func(cfg *consensus.Config) { cfg.PromoteAfter = time.Second })
	must(t, add(c, c.Join("n2")))
	c.KillNode("n2")
	// One node that is not there would stop a cell of two.
	must(t, c.Propose(c.Kill("k"), "n1"))
	if got := voters(c.Node("n1").Log); !slices.Equal(got, []string{"n1"}) {
		t.Fatalf("%v vote", got)
	}
	began := time.Now()
	c.RestartNode("n2")
	c.Eventually("n2 votes", func() bool { return len(voters(c.Node("n1").Log)) == 2 })
	if took := time.Since(began); took < time.Second {
		t.Errorf("it had its vote after %s", took)
	}
	if len(c.Node("n2").Store.Kills()) != 1 {
		t.Error("it votes and has not caught up")
	}
}

// F06: a removed node that comes back, ignorant of its removal, disturbs nobody.
func TestARemovedNodeIsLetInNowhereAndCannotDisturb(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3)
	must(t, c.Propose(c.Kill("k1")))
	c.Eventually("n3 has its log", func() bool { return len(c.Node("n3").Store.Kills()) == 1 && len(c.Node("n3").Store.SessionKeys()) == 1 })
	c.Isolate("n3")
	rest := []string{"n1", "n2"}
	must(t, remove(c, "n3", rest...))
	leader := c.WaitLeader(rest...)
	for _, name := range rest {
		c.Eventually(name+" knows it", func() bool { return c.Node(name).Log.IsMember("n3") != nil })
	}
	term := c.Node(leader).Log.Term()
	c.Rejoin("n3")
	asking := time.Now()
	c.Eventually("n3 asks for votes, several times", func() bool {
		return c.Node("n3").Log.State() == "candidate" && time.Since(asking) > 2*time.Second
	})
	for _, name := range rest {
		err := knock(c.Node(name).Log.Addr(), svid.ClientTLS(node(t, c.CA, celltest.CellName, "n3"), svid.CellMembers(celltest.TrustDomain, celltest.CellName, name), protocol))
		if err == nil {
			t.Errorf("%s lets n3 in with its old SVID", name)
		}
	}
	must(t, c.Propose(c.Kill("k2"), rest...))
	if now := c.WaitLeader(rest...); now != leader || c.Node(leader).Log.Term() != term {
		t.Errorf("leader %s of term %d, before %s of term %d", now, c.Node(leader).Log.Term(), leader, term)
	}
	if got := len(c.Node("n3").Store.Kills()); got != 1 {
		t.Errorf("the removed node has %d kills", got)
	}
}

func TestRemovalRotatesTheKeyOfSessionsAndTheOldOneStillOpens(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3)
	must(t, c.Propose(c.Kill("k")))
	c.Eventually("n3 has the first key", func() bool { return len(c.Node("n3").Store.SessionKeys()) == 1 })
	c.Isolate("n3")
	must(t, remove(c, "n3", "n1", "n2"))
	for _, name := range []string{"n1", "n2"} {
		c.Eventually(name+" has both keys", func() bool {
			keys := c.Node(name).Store.SessionKeys()
			return len(keys) == 2 && keys[1].GetId() == 2
		})
	}
	c.Rejoin("n3")
	must(t, c.Propose(c.Kill("later"), "n1", "n2"))
	if got := c.Node("n3").Store.SessionKeys(); len(got) != 1 {
		t.Fatalf("the removed node has %d keys", len(got))
	}
}

func TestARemovedNodeThatHearsOfItSaysSoAndStaysQuiet(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3)
	must(t, c.Propose(c.Kill("k")))
	must(t, remove(c, "n3"))
	c.Eventually("n3 knows", func() bool { return c.Node("n3").Log.Removed() })
	c.KillNode("n3")
	c.RestartNode("n3")
	if !c.Node("n3").Log.Removed() {
		t.Error("forgotten over a restart")
	}
	if err := add(c, &cellv1.Member{Node: "n3"}, "n1", "n2"); problem.CodeOf(err) != problem.Conflict {
		t.Errorf("a removed name was taken in again: %v", err)
	}
}

func TestRemovalIsRefusedWhenTheQuorumWouldBeLost(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3)
	leader := c.WaitLeader()
	rest := others(c.Names, leader)
	c.KillNode(rest[0])
	c.Eventually("the leader notices", func() bool {
		return c.Node(leader).Log.QuorumWithout(rest[1]) != nil
	})
	err := remove(c, rest[1], leader)
	if problem.CodeOf(err) != problem.Conflict {
		t.Fatalf("got %v", err)
	}
	if err := c.Node(leader).Log.QuorumDuring(rest[1]); problem.CodeOf(err) != problem.Conflict {
		t.Errorf("while it is down: %v", err)
	}
	// The one that is down may go, and after it either of two may be removed, but not be down.
	must(t, remove(c, rest[0], leader, rest[1]))
	must(t, c.Propose(c.Kill("k"), leader, rest[1]))
	left := c.WaitLeader(leader, rest[1])
	other := others([]string{leader, rest[1]}, left)[0]
	c.Eventually("the two hear each other", func() bool { return c.Node(left).Log.QuorumWithout(left) == nil })
	if err := c.Node(left).Log.QuorumDuring(other); problem.CodeOf(err) != problem.Conflict {
		t.Errorf("one of two down: %v", err)
	}
	one := celltest.New(t, 1)
	one.WaitLeader()
	if err := one.Node("n1").Log.QuorumWithout("n1"); problem.CodeOf(err) != problem.Conflict {
		t.Errorf("the last one: %v", err)
	}
}

func TestASilentNodeIsRemovedOnlyWhereWantedAndTheOthersKeepAQuorum(t *testing.T) {
	t.Parallel()
	const limit = 3 * time.Second
	c := celltest.New(t, 3, func(cfg *consensus.Config) { cfg.DeadAfter = limit })
	leader := c.WaitLeader()
	rest := others(c.Names, leader)
	// Two of three gone: nobody can be removed, by nobody.
	c.KillNode(rest[0])
	c.KillNode(rest[1])
	c.Eventually("nobody leads", func() bool { return !c.Node(leader).Log.Leads() })
	c.RestartNode(rest[1])
	two := []string{leader, rest[1]}
	c.WaitLeader(two...)
	c.Eventually("the dead one is removed", func() bool {
		return c.Node(leader).Log.IsMember(rest[0]) != nil && c.Node(rest[1]).Log.IsMember(rest[0]) != nil
	})
	must(t, c.Propose(c.Kill("k"), two...))
	// Of two, neither may go: the other one alone would be no quorum to agree on it.
	c.KillNode(rest[1])
	c.Eventually("nobody leads", func() bool { return !c.Node(leader).Log.Leads() })
	if err := c.Node(leader).Log.IsMember(rest[1]); err != nil {
		t.Fatal(err)
	}
}

func TestTheListOfMembersOutlivesASnapshotAndALostLog(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3, promoteSoon, func(cfg *consensus.Config) { cfg.SnapshotEvery = 4 })
	must(t, c.Propose(c.Kill("k")))
	must(t, remove(c, "n3"))
	for i := range 20 {
		must(t, c.Propose(c.Kill(fmt.Sprint("more", i)), "n1", "n2"))
	}
	for _, name := range []string{"n1", "n2"} {
		ctx, cancel := context.WithTimeout(t.Context(), celltest.Patience)
		must(t, c.Node(name).Log.Compact(ctx))
		cancel()
	}
	must(t, add(c, c.Join("n4"), "n1", "n2"))
	c.Eventually("n4 has the list out of the snapshot", func() bool {
		n := c.Node("n4")
		return len(n.Store.Kills()) == 21 && n.Log.IsMember("n3") != nil && n.Log.IsMember("n2") == nil
	})
}
