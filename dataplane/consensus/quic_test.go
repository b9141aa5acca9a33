package consensus_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/celltest"
	"github.com/mcpvault/mcpvault/dataplane/consensus"
)

func TestACellOverQUICLosesItsLeaderALinkAndADisk(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3, over(consensus.QUIC), func(cfg *consensus.Config) { cfg.RetryAfter = 50 * time.Millisecond })
	leader := c.WaitLeader()
	must(t, c.Propose(c.Kill("k1"), leader))
	began := time.Now()
	c.KillNode(leader)
	must(t, c.Propose(c.Kill("k2"), others(c.Names, leader)...))
	t.Logf("committed after the leader died: %s", time.Since(began))
	c.RestartNode(leader)

	leader = c.WaitLeader()
	rest := others(c.Names, leader)
	for _, other := range rest {
		c.Cut(other, leader)
	}
	began = time.Now()
	must(t, c.Propose(c.Kill("k3"), rest...))
	t.Logf("committed after the leader heard nothing: %s", time.Since(began))
	c.Rejoin(leader)

	leader = c.WaitLeader()
	c.FailDisk(leader, errors.New("no space left on device"))
	must(t, c.Propose(c.Kill("k4")))
	c.FailDisk(leader, nil)
	for _, name := range c.Names {
		c.Eventually(name+" has it all", func() bool { return len(c.Node(name).Store.Kills()) == 4 })
	}
}

func TestASnapshotTravelsOverQUICAndANodeJoins(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 1, over(consensus.QUIC), promoteSoon, func(cfg *consensus.Config) { cfg.SnapshotEvery = 4 })
	for i := range 30 {
		must(t, c.Propose(c.Kill(fmt.Sprint("k", i))))
	}
	must(t, c.Node("n1").Log.Compact(t.Context()))
	must(t, add(c, c.Join("n2")))
	c.Eventually("n2 has a vote and all of it", func() bool {
		return len(voters(c.Node("n1").Log)) == 2 && len(c.Node("n2").Store.Kills()) == 30
	})
	if got := len(c.Node("n2").Applied()); got > 60 {
		t.Errorf("n2 applied %d entries", got)
	}
}

// A member that stays away too long is given up, and taken again when it is back.
func TestAQuietLinkEndsAndIsMadeAgain(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3, over(consensus.QUIC))
	must(t, c.Propose(c.Kill("k1")))
	c.Isolate("n3")
	must(t, c.Propose(c.Kill("k2"), "n1", "n2"))
	began := time.Now()
	c.Eventually("longer than an idle connection lives", func() bool { return time.Since(began) > 5*time.Second })
	c.Rejoin("n3")
	c.Eventually("n3 hears again", func() bool { return len(c.Node("n3").Store.Kills()) == 2 })
}
