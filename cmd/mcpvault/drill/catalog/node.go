package catalog

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/drill/rehearse"
)

func leaderKill() *rehearse.Drill {
	return &rehearse.Drill{
		Name:   "leader-kill",
		Breaks: "kills the node that leads the cell with SIGKILL, and starts it again at the end",
		Blast:  "requests under way on that node have an unknown outcome; its clients go to the other nodes",
		Lost:   "leader of a cell", Works: "everything, on the other nodes", Until: "a new leader, at most 1.5 s",
		Recovers: "another node leads",
		Needs:    []rehearse.Need{rehearse.Processes, rehearse.ThreeNodes},
		Limits:   rehearse.Limits{RTO: electionLimit, Unknown: inFlight},
		Break: func(ctx context.Context, r *rehearse.Run) error {
			leader, err := dethroned(ctx, r)
			if err != nil {
				return err
			}
			return r.Site.Kill(ctx, leader.ID())
		},
		Observe: succeeded,
		Mend:    func(ctx context.Context, r *rehearse.Run) error { return r.Site.Wake(ctx) },
	}
}

// dethroned keeps the node that leads, which is about to be broken: the clock of the RTO runs from here.
func dethroned(ctx context.Context, r *rehearse.Run) (rehearse.Node, error) {
	leader, err := r.Leader(ctx)
	if err != nil {
		return leader, err
	}
	r.Keep("node", leader)
	r.Step("%s leads", leader.ID())
	r.Recovering()
	return leader, nil
}

// succeeded waits until another node leads than the one that was kept, where the clock of the RTO stops.
func succeeded(ctx context.Context, r *rehearse.Run) error {
	leader, err := r.Leader(ctx, node(r))
	if err != nil {
		return err
	}
	r.Recovered()
	r.Step("%s leads now", leader.ID())
	return nil
}

// deposed waits until a node says no more that it leads. Of two that think so, one may not go on thinking it.
func deposed(ctx context.Context, r *rehearse.Run, within time.Duration, n rehearse.Node, what string) error {
	return r.Until(ctx, within, n.ID()+" "+what, func(ctx context.Context) bool {
		return ctx.Err() == nil && !r.Site.Page(ctx, n, "/readyz/leader")
	})
}

// node is the node that a drill has kept; the zero value when it has not come to that.
func node(r *rehearse.Run) rehearse.Node {
	n, _ := r.Kept("node").(rehearse.Node)
	return n
}

// ids is the name of the node that a drill has kept, if it has.
func ids(r *rehearse.Run) []string {
	if n := node(r); n != (rehearse.Node{}) {
		return []string{n.ID()}
	}
	return nil
}

// follower keeps a node that does not lead.
func follower(ctx context.Context, r *rehearse.Run) (rehearse.Node, error) {
	leader, err := r.Leader(ctx)
	if err != nil {
		return leader, err
	}
	for _, n := range slices.Backward(r.Nodes) {
		if n != leader {
			r.Keep("node", n)
			return n, nil
		}
	}
	return leader, fmt.Errorf("%s has no node besides the leader", r.Cell)
}

func nodeLoss() *rehearse.Drill {
	return &rehearse.Drill{
		Name:   "node-loss",
		Breaks: "kills a node that does not lead with SIGKILL, and starts it again at the end",
		Blast:  "requests under way on that node have an unknown outcome; its clients go to the other nodes",
		Lost:   "one of three nodes", Works: "everything, on the other nodes", Until: "no limit",
		Recovers: "the node answers rightly, from its start",
		Needs:    []rehearse.Need{rehearse.Processes, rehearse.ThreeNodes},
		Limits:   rehearse.Limits{RTO: bootLimit, Unknown: inFlight},
		Break: func(ctx context.Context, r *rehearse.Run) error {
			n, err := follower(ctx, r)
			if err != nil {
				return err
			}
			return r.Site.Kill(ctx, n.ID())
		},
		Observe: func(ctx context.Context, r *rehearse.Run) error {
			// Policy goes on changing while it is away: it must not come back with what it knew.
			return r.Change(ctx)
		},
		Mend: func(ctx context.Context, r *rehearse.Run) error { return boot(ctx, r, ids(r)...) },
	}
}

// boot starts nodes of the cell and returns when they answer. The clock of the RTO runs from the start of the first to its answer.
func boot(ctx context.Context, r *rehearse.Run, names ...string) error {
	for i, name := range names {
		begin := time.Now()
		if i == 0 {
			r.Recovering()
		}
		if err := r.Site.Start(ctx, name); err != nil {
			return err
		}
		for _, n := range r.Site.Nodes {
			if n.ID() != name {
				continue
			}
			if err := r.Answers(ctx, 10*bootLimit, n); err != nil {
				return err
			}
		}
		if i == 0 {
			r.Recovered()
		}
		r.Step("%s answers %d ms after its start", name, time.Since(begin).Milliseconds())
	}
	return nil
}

func quorumLoss() *rehearse.Drill {
	return &rehearse.Drill{
		Name:   "quorum-loss",
		Breaks: "kills all nodes of the cell but one with SIGKILL, and starts them again at the end",
		Blast:  "requests under way on those nodes have an unknown outcome; new sessions of older clients and new policy wait for a quorum",
		Lost:   "quorum of a cell", Works: "decisions, calls and sessions that are open, on each node that is left; policy stays as it was", Until: leases,
		Recovers: "a policy change reaches every node, from the start of the nodes",
		Needs:    []rehearse.Need{rehearse.Processes, rehearse.ThreeNodes},
		Limits:   rehearse.Limits{RTO: officeLimit, Unknown: 2 * inFlight, Changes: rehearse.Any},
		Break: func(ctx context.Context, r *rehearse.Run) error {
			last, err := follower(ctx, r)
			if err != nil {
				return err
			}
			session, err := r.Open(ctx, last)
			if err != nil || session.ID == "" {
				return fmt.Errorf("open a session on %s: status %d, %w", last.ID(), session.Status, err)
			}
			r.Keep("session", session.ID)
			r.Step("%s is to be the last", last.ID())
			return r.Site.Kill(ctx, others(r)...)
		},
		Observe: lonely,
		Mend: func(ctx context.Context, r *rehearse.Run) error {
			if node(r) == (rehearse.Node{}) {
				return nil
			}
			r.Recovering()
			if err := r.Site.Start(ctx, others(r)...); err != nil {
				return err
			}
			if err := inOffice(ctx, r); err != nil {
				return err
			}
			r.Recovered()
			return nil
		},
	}
}

// others are the names of the cell's nodes besides the one that was kept.
func others(r *rehearse.Run) (names []string) {
	for _, n := range r.Nodes {
		if n != node(r) {
			names = append(names, n.ID())
		}
	}
	return names
}

// refusalLimit is how long a node without quorum may think about what it cannot do.
const refusalLimit = 2 * time.Second

// lonely looks at what a node without a quorum does for clients that keep sessions: those that are open are served, new ones are refused
// soon, with a time to come back.
func lonely(ctx context.Context, r *rehearse.Run) error {
	last := node(r)
	id, _ := r.Kept("session").(string)
	used, err := r.Use(ctx, last, id)
	if err != nil || used.Status != http.StatusOK {
		r.Fail("a session that is open goes on: status %d, %v", used.Status, err)
	}
	// What was agreed while there was a quorum may still be under way for a moment.
	if err := r.Until(ctx, 3*electionLimit, last.ID()+" knows that nobody leads", func(ctx context.Context) bool {
		_, ok := r.Site.Leader(ctx, r.Cell)
		return !ok
	}); err != nil {
		return err
	}
	opened, err := r.Open(ctx, last)
	switch {
	case err != nil:
		r.Fail("a new session is refused soon: %v", err)
	case opened.ID != "":
		r.Fail("a session was opened without a quorum")
	case opened.Status != http.StatusServiceUnavailable || opened.RetryAfter == "" || opened.Took > refusalLimit:
		r.Fail("a new session is refused with 503, a time to come back, within %s: status %d, Retry-After %q, %s", refusalLimit, opened.Status, opened.RetryAfter, opened.Took)
	}
	r.Fact("refusal_of_a_session_ms", float64(opened.Took.Milliseconds()))
	return nil
}

func cellLoss() *rehearse.Drill {
	return &rehearse.Drill{
		Name:   "cell-loss",
		Breaks: "kills every node of the cell with SIGKILL, and starts them again at the end; another cell runs",
		Blast:  "requests under way in the cell have an unknown outcome; its clients go to the next cell, older ones open their session anew",
		Lost:   "a whole cell", Works: "everything, in the next cell with the same login", Until: "no limit",
		Recovers: "requests are answered by the next cell",
		Needs:    []rehearse.Need{rehearse.Processes, rehearse.TwoCells},
		Cells:    2,
		Limits:   rehearse.Limits{RTO: nextCellLimit, Unknown: 3 * inFlight},
		Break: func(ctx context.Context, r *rehearse.Run) error {
			session, err := r.Open(ctx, r.Nodes[0])
			if err != nil || session.ID == "" {
				return fmt.Errorf("open a session: status %d, %w", session.Status, err)
			}
			r.Keep("session", session.ID)
			r.Recovering()
			return r.Site.Kill(ctx, rehearse.IDs(r.Nodes)...)
		},
		Observe: nextCell,
		Mend:    func(ctx context.Context, r *rehearse.Run) error { return r.Site.Wake(ctx) },
	}
}

// nextCell waits for answers of the next cell, and looks at how it takes a session of the one that has gone.
func nextCell(ctx context.Context, r *rehearse.Run) error {
	before := r.Counts().OK
	if err := r.Until(ctx, 10*nextCellLimit, "requests are answered", func(context.Context) bool { return r.Counts().OK > before }); err != nil {
		return err
	}
	r.Recovered()
	next := r.Site.Nodes[slices.IndexFunc(r.Site.Nodes, func(n rehearse.Node) bool { return n.Cell != r.Cell })]
	id, _ := r.Kept("session").(string)
	used, err := r.Use(ctx, next, id)
	if err != nil || used.Status != http.StatusNotFound {
		r.Fail("the next cell does not know the session: status %d, want 404, %v", used.Status, err)
	}
	opened, err := r.Open(ctx, next)
	if err != nil || opened.ID == "" {
		r.Fail("the next cell opens a session: status %d, %v", opened.Status, err)
	}
	return nil
}
