package catalog

import (
	"context"
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/drill/rehearse"
)

// leases is until when cells go on without a control plane.
const leases = "each class's max_staleness (reads 72 h, others 24 h unless set)"

func controlPlaneLoss() *rehearse.Drill {
	return &rehearse.Drill{
		Name:   "control-plane-loss",
		Breaks: "kills the control plane with SIGKILL, and starts it again at the end",
		Blast:  "administrators: no policy changes, no console, no queries; callers notice nothing",
		Lost:   "control plane", Works: "every decision, session and call; audit records wait on the nodes", Until: leases,
		Recovers: "a policy change reaches every node, from the start of the control plane",
		Needs:    []rehearse.Need{rehearse.Processes},
		Limits:   rehearse.Limits{RTO: officeLimit, Changes: rehearse.Any},
		Break:    func(ctx context.Context, r *rehearse.Run) error { return r.Site.Kill(ctx, rehearse.ControlPlane) },
		Mend:     reopen(rehearse.ControlPlane),
	}
}

func postgresLoss() *rehearse.Drill {
	return &rehearse.Drill{
		Name:   "postgres-loss",
		Breaks: "kills PostgreSQL with SIGKILL, and starts it again at the end; the control plane runs on",
		Blast:  "administrators: changes and queries are refused until it is back; callers notice nothing",
		Lost:   "PostgreSQL", Works: "every decision, session and call; audit records wait on the nodes", Until: leases,
		Recovers: "a policy change reaches every node, from the start of PostgreSQL",
		Needs:    []rehearse.Need{rehearse.Processes},
		Limits:   rehearse.Limits{RTO: officeLimit, Changes: rehearse.Any},
		Break:    func(ctx context.Context, r *rehearse.Run) error { return r.Site.Kill(ctx, rehearse.Postgres) },
		Observe: func(ctx context.Context, r *rehearse.Run) error {
			begin := time.Now()
			if err := r.Change(ctx); err == nil {
				r.Fail("a policy change was acknowledged without a database")
			}
			r.Fact("refusal_of_a_change_ms", float64(time.Since(begin).Milliseconds()))
			return nil
		},
		Mend: reopen(rehearse.Postgres),
	}
}

// reopen starts what administers, and returns when a policy change reaches every node.
func reopen(names ...string) func(context.Context, *rehearse.Run) error {
	return func(ctx context.Context, r *rehearse.Run) error {
		r.Recovering()
		if err := r.Site.Start(ctx, names...); err != nil {
			return err
		}
		if err := inOffice(ctx, r); err != nil {
			return err
		}
		r.Recovered()
		return nil
	}
}

// inOffice waits until a policy change reaches every node.
func inOffice(ctx context.Context, r *rehearse.Run) error {
	return r.Until(ctx, 3*officeLimit, "a policy change reaches every node", func(ctx context.Context) bool {
		return r.Change(ctx, r.Site.Nodes...) == nil
	})
}
