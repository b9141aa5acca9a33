package consensus_test

import (
	"context"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/celltest"
	"github.com/mcpvault/mcpvault/dataplane/consensus"
	"github.com/mcpvault/mcpvault/kit/problem"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"google.golang.org/protobuf/proto"
)

func headDigest(t *testing.T, env []byte) snapshot.Digest {
	t.Helper()
	d, err := seal.HeadDigest(env)
	must(t, err)
	return d
}

// with is what a disk should give back after an update and entries of deltas.
func with(u *cellv1.RaftEntry, entries ...*cellv1.RaftEntry) *cellv1.Update {
	want := proto.CloneOf(u.GetUpdate())
	for _, e := range entries {
		want.Deltas = append(want.Deltas, e.GetDeltas().GetDeltas()...)
	}
	return want
}

func TestDeltasReachEveryNodeInOrder(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3)
	h1, h2 := c.Head(1, 1), c.Head(2, 4)
	u := c.Update(1, h1, h2)
	must(t, c.Propose(u))
	a, at := c.Deltas(1, 1, headDigest(t, h1), 2)
	b, _ := c.Deltas(1, 3, at, 1)
	other, _ := c.Deltas(2, 4, headDigest(t, h2), 1)
	// Deltas of several tenants share an entry.
	b.GetDeltas().Deltas = append(b.GetDeltas().GetDeltas(), other.GetDeltas().GetDeltas()...)
	must(t, c.Propose(a))
	must(t, c.Propose(b))
	if err := c.Propose(a); problem.CodeOf(err) != problem.Conflict {
		t.Errorf("proposed again: %v", err)
	}
	for _, name := range c.Names {
		c.Eventually(name+" has it all", func() bool { return same(c, name, with(u, a, b)) })
		if n := c.Node(name).Log.Refused(); n > 1 {
			t.Errorf("%s refused %d entries", name, n)
		}
	}
}

func TestADeltaThatDoesNotVerifyOrFollowChangesNothing(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 1)
	n := c.Node(c.WaitLeader())
	h1, h2 := c.Head(1, 1), c.Head(2, 1)
	must(t, c.Propose(c.Update(1, h1, h2)))
	first, at := c.Deltas(1, 1, headDigest(t, h1), 1)
	must(t, c.Propose(first))
	before := n.Store.LastUpdate()

	next, _ := c.Deltas(1, 2, at, 1)
	forged := proto.CloneOf(next)
	forged.GetDeltas().GetDeltas()[0].Signature[3] ^= 1
	unsigned := proto.CloneOf(next)
	unsigned.GetDeltas().GetDeltas()[0].Signature = nil
	gapped, _ := c.Deltas(1, 3, at, 1)
	another, _ := c.Deltas(1, 1, at, 1)
	old, _ := c.Deltas(1, 1, headDigest(t, h1), 1)
	large := proto.CloneOf(next)
	large.GetDeltas().GetDeltas()[0].Body = make([]byte, seal.MaxDelta+1)
	for name, want := range map[string]struct {
		entry *cellv1.RaftEntry
		code  problem.Code
	}{
		"a flipped signature":  {forged, problem.Denied},
		"no signature":         {unsigned, problem.Denied},
		"a gap":                {gapped, problem.Invalid},
		"another body":         {another, problem.Conflict},
		"too long":             {large, problem.Denied},
		"none":                 {&cellv1.RaftEntry{Command: &cellv1.RaftEntry_Deltas{Deltas: &cellv1.Deltas{}}}, ""},
		"what is there before": {old, ""},
	} {
		_, err := n.Log.Propose(t.Context(), want.entry)
		if problem.CodeOf(err) != want.code && (err != nil || want.code != "") {
			t.Errorf("%s: got %v, want %q", name, err, want.code)
		}
	}
	if !proto.Equal(before, n.Store.LastUpdate()) {
		t.Fatal("a refused entry changed the store")
	}
	// One tenant's gap holds up no other's delta.
	fine, _ := c.Deltas(2, 1, headDigest(t, h2), 1)
	fine.GetDeltas().Deltas = append(fine.GetDeltas().GetDeltas(), gapped.GetDeltas().GetDeltas()...)
	applied := len(n.Applied())
	if _, err := n.Log.Propose(t.Context(), fine); problem.CodeOf(err) != problem.Invalid {
		t.Errorf("got %v", err)
	}
	if n.Store.Floor(celltest.TenantID(2)).Generation != 2 || len(n.Applied()) != applied+1 {
		t.Error("the other tenant did not go forward")
	}
}

func TestAMemberThatWasAwayIsBroughtItsDeltasByASnapshot(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3, func(cfg *consensus.Config) { cfg.SnapshotEvery = 4 })
	c.WaitLeader()
	c.KillNode("n3")
	rest := []string{"n1", "n2"}
	h := c.Head(1, 1)
	u := c.Update(1, h)
	must(t, c.Propose(u, rest...))
	at := headDigest(t, h)
	var all []*cellv1.RaftEntry
	for g := range uint64(20) {
		var d *cellv1.RaftEntry
		d, at = c.Deltas(1, g+1, at, 1)
		all = append(all, d)
		must(t, c.Propose(d, rest...))
	}
	for _, name := range rest {
		ctx, cancel := context.WithTimeout(t.Context(), celltest.Patience)
		must(t, c.Node(name).Log.Compact(ctx))
		cancel()
	}
	c.RestartNode("n3")
	c.Eventually("n3 has all of it", func() bool { return same(c, "n3", with(u, all...)) })
	if got := len(c.Node("n3").Applied()); got > 10 {
		t.Errorf("n3 applied %d entries: it did not get a snapshot", got)
	}
	c.KillNode("n3")
	c.RestartNode("n3")
	next, _ := c.Deltas(1, 21, at, 1)
	must(t, c.Propose(next))
	c.Eventually("n3 goes on", func() bool { return same(c, "n3", with(u, append(all, next)...)) })
}
