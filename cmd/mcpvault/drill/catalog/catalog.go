// Package catalog holds the drills: what may be lost, who notices, and what is promised meanwhile.
package catalog

import (
	"context"
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/drill/rehearse"
)

// All are the drills, in the order in which they are listed and run.
func All() []*rehearse.Drill {
	return []*rehearse.Drill{controlPlaneLoss(), leaderKill()}
}

// Find returns the drill with a name.
func Find(name string) (*rehearse.Drill, bool) {
	for _, d := range All() {
		if d.Name == name {
			return d, true
		}
	}
	return nil, false
}

// inFlight is how many requests may be under way on one node at the moment when it dies: their outcome is unknown. At the full load
// some hundred milliseconds' worth of a third of the requests.
const inFlight = 60

// electionLimit is how long a cell may be without a leader.
const electionLimit = 1500 * time.Millisecond

func controlPlaneLoss() *rehearse.Drill {
	return &rehearse.Drill{
		Name:   "control-plane-loss",
		Breaks: "kills the control plane with SIGKILL, and starts it again at the end",
		Blast:  "administrators: no policy changes, no console, no queries; callers notice nothing",
		Lost:   "control plane", Works: "every decision, session and call; audit records wait on the nodes",
		Until:    "each class's max_staleness (reads 72 h, others 24 h unless set)",
		Recovers: "every node is connected and has acknowledged a policy change, from the start of the control plane",
		Needs:    []rehearse.Need{rehearse.Processes},
		Limits:   rehearse.Limits{RTO: 10 * time.Second},
		Break:    func(ctx context.Context, r *rehearse.Run) error { return r.Site.Kill(ctx, rehearse.ControlPlane) },
		Mend: func(ctx context.Context, r *rehearse.Run) error {
			return backInOffice(ctx, r, rehearse.ControlPlane)
		},
	}
}

// backInOffice starts what administers, and returns when a policy change reaches every node.
func backInOffice(ctx context.Context, r *rehearse.Run, names ...string) error {
	r.Recovering()
	if err := r.Site.Start(ctx, names...); err != nil {
		return err
	}
	err := r.Until(ctx, 30*time.Second, "a policy change reaches every node", func(ctx context.Context) bool {
		return r.Change(ctx, r.Site.Nodes...) == nil
	})
	if err == nil {
		r.Recovered()
	}
	return err
}

func leaderKill() *rehearse.Drill {
	return &rehearse.Drill{
		Name:   "leader-kill",
		Breaks: "kills the node that leads the cell with SIGKILL, and starts it again at the end",
		Blast:  "requests under way on that node have an unknown outcome; its clients go to the other nodes",
		Lost:   "leader", Works: "everything, on the other nodes", Until: "a new leader, at most 1.5 s",
		Recovers: "another node leads",
		Needs:    []rehearse.Need{rehearse.Processes, rehearse.ThreeNodes},
		Limits:   rehearse.Limits{RTO: electionLimit, Unknown: inFlight},
		Break: func(ctx context.Context, r *rehearse.Run) error {
			leader, err := r.Leader(ctx)
			if err != nil {
				return err
			}
			r.Keep("leader", leader)
			r.Step("%s leads", leader.ID())
			r.Recovering()
			return r.Site.Kill(ctx, leader.ID())
		},
		Observe: func(ctx context.Context, r *rehearse.Run) error {
			old, _ := r.Kept("leader").(rehearse.Node)
			leader, err := r.Leader(ctx, old)
			if err != nil {
				return err
			}
			r.Recovered()
			r.Step("%s leads now", leader.ID())
			return nil
		},
		Mend: startKept("leader"),
	}
}

// startKept starts the node again that was kept under the name, if any was.
func startKept(name string) func(context.Context, *rehearse.Run) error {
	return func(ctx context.Context, r *rehearse.Run) error {
		n, ok := r.Kept(name).(rehearse.Node)
		if !ok {
			return nil
		}
		return r.Site.Start(ctx, n.ID())
	}
}
