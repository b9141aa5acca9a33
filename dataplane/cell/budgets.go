package cell

import (
	"context"
	"slices"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/limit"
	"github.com/mcpvault/mcpvault/kit/run"
)

// shareEvery is how often the nodes of a cell share their budgets of requests anew.
const shareEvery = time.Second

// ownLimits hold where a tenant's settings say nothing: what costs a node memory or time, but no server anything.
func ownLimits() *limit.Plan {
	p := &limit.Plan{MaxCalls: 256}
	for scope, r := range map[limit.Scope]limit.Rate{
		limit.Discover: {Requests: 20, Per: time.Second, Burst: 40},
		limit.Resume:   {Requests: 10, Per: time.Second, Burst: 10},
	} {
		if err := p.Set(scope, "", "", r); err != nil {
			panic(err) // they are constants
		}
	}
	return p
}

func (n *Node) newLimiter() *limit.Limiter {
	var others []string
	for _, m := range n.consensus.Members() {
		if m.Node != n.cfg.Node {
			others = append(others, m.Node)
		}
	}
	slices.Sort(others)
	// Buckets fill by the machine's own clock: one that is set back must not leave them empty.
	return limit.New(limit.Config{Peers: others, Born: uint64(n.clock.Now().UnixNano())})
}

// shareBudgets lets budgets follow the load, until ctx ends. A peer that does not answer keeps what it has.
func (n *Node) shareBudgets(ctx context.Context) error {
	return run.Every(ctx, shareEvery, func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, shareEvery)
		defer cancel()
		n.limits.Exchange(ctx, n.peers.ShareBudgets)
	})
}

// ShareBudgets hears what a peer gave this node.
func (n *Node) ShareBudgets(peer string, in []limit.Entry) []limit.Entry {
	return n.limits.Meet(peer, in)
}
