package catalog

import (
	"context"
	"fmt"
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/drill/rehearse"
)

// faults are the flags of a private installation in which things can be broken.
func faults() []string { return []string{"--faults"} }

// clearFaults mends what was broken by faults.
func clearFaults(ctx context.Context, r *rehearse.Run) error { return r.Site.ClearFaults(ctx) }

// cutLimit is how long a node that was cut off may hold itself for connected, and the changes that wait for it be held up.
const cutLimit = 30 * time.Second

func partition() *rehearse.Drill {
	return &rehearse.Drill{
		Name:   "partition",
		Breaks: "cuts the node that leads the cell off from the other nodes and from the control plane, and lets it back at the end",
		Blast:  "clients of that node are served by the policy that it has; new sessions of older clients wait for a quorum there",
		Lost:   "the network between a node and the rest", Works: "everything, on either side; new policy on the side with most nodes", Until: leases,
		Recovers: "a node of the other side leads",
		Needs:    []rehearse.Need{rehearse.Faults, rehearse.ThreeNodes},
		Flags:    faults(),
		Limits:   rehearse.Limits{RTO: electionLimit, Changes: rehearse.Any},
		Break: func(ctx context.Context, r *rehearse.Run) error {
			leader, err := dethroned(ctx, r)
			if err != nil {
				return err
			}
			for _, other := range append(others(r), rehearse.ControlPlane) {
				if err := r.Site.SetFault(ctx, "cut "+leader.ID()+" "+other); err != nil {
					return err
				}
			}
			return nil
		},
		Observe: func(ctx context.Context, r *rehearse.Run) error {
			cut := node(r)
			if err := succeeded(ctx, r); err != nil {
				return err
			}
			if err := deposed(ctx, r, electionLimit, cut, "knows that it does not lead"); err != nil {
				r.Fail("%v", err)
			}
			if !r.Ask(cut) {
				r.Fail("%s answers from what it has", cut.ID())
			}
			begin := time.Now()
			if err := r.Until(ctx, cutLimit, "a policy change reaches the other side", func(ctx context.Context) bool { return r.Change(ctx, rest(r)...) == nil }); err != nil {
				return err
			}
			r.Fact("change_ms", float64(time.Since(begin).Milliseconds()))
			return nil
		},
		Mend: clearFaults,
	}
}

// rest are the cell's nodes besides the one that was kept.
func rest(r *rehearse.Run) (nodes []rehearse.Node) {
	for _, n := range r.Nodes {
		if n != node(r) {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

func oneWayPartition() *rehearse.Drill {
	return &rehearse.Drill{
		Name:   "one-way-partition",
		Breaks: "lets the node that leads the cell be heard and hear nothing; then lets the one that leads next hear and not be heard",
		Blast:  "nobody: decisions need no leader; new sessions of older clients wait for the next one",
		Lost:   "one direction of the network between the leader and the other nodes", Works: "everything", Until: "a new leader, at most 1.5 s",
		Recovers: "another node leads, when the leader hears nothing",
		Needs:    []rehearse.Need{rehearse.Faults, rehearse.ThreeNodes},
		Flags:    faults(),
		Limits:   rehearse.Limits{RTO: electionLimit, Changes: rehearse.Any},
		Break:    func(ctx context.Context, r *rehearse.Run) error { return oneWay(ctx, r, "deaf_leader_ms", false) },
		Observe: func(ctx context.Context, r *rehearse.Run) error {
			if err := r.Site.ClearFaults(ctx); err != nil {
				return err
			}
			r.Step("it hears again")
			if err := r.Until(ctx, settle, "every node is ready", func(ctx context.Context) bool { return ready(ctx, r) }); err != nil {
				return err
			}
			return oneWay(ctx, r, "mute_leader_ms", true)
		},
		Mend: clearFaults,
	}
}

// settle is how long a cell may take to be at rest between two faults.
const settle = 15 * time.Second

// ready reports whether every node says so and one of them leads.
func ready(ctx context.Context, r *rehearse.Run) bool {
	for _, n := range r.Nodes {
		if !r.Site.Ready(ctx, n) || !r.Site.Page(ctx, n, "/readyz/raft") {
			return false
		}
	}
	_, ok := r.Site.Leader(ctx, r.Cell)
	return ok
}

// oneWay cuts one direction between the leader and all others, and measures how long it takes until another leads.
func oneWay(ctx context.Context, r *rehearse.Run, fact string, mute bool) error {
	leader, err := r.Leader(ctx)
	if err != nil {
		return err
	}
	r.Keep("node", leader)
	begin := time.Now()
	for _, other := range others(r) {
		words := "one-way " + other + " " + leader.ID()
		if mute {
			words = "one-way " + leader.ID() + " " + other
		}
		if err := r.Site.SetFault(ctx, words); err != nil {
			return err
		}
	}
	if !mute {
		r.Recovering()
		begin = time.Now()
	}
	next, err := r.Leader(ctx, leader)
	if err != nil {
		return err
	}
	took := time.Since(begin)
	r.Recovered()
	r.Fact(fact, float64(took.Milliseconds()))
	if took > electionLimit {
		r.Fail("another node leads within %s: it took %d ms (%s)", electionLimit, took.Milliseconds(), fact)
	}
	r.Step("%s was cut off in one direction (%s); %s leads after %d ms", leader.ID(), fact, next.ID(), took.Milliseconds())
	if err := deposed(ctx, r, electionLimit, leader, "does not lead any more"); err != nil {
		return fmt.Errorf("two leaders: %w", err)
	}
	return nil
}
