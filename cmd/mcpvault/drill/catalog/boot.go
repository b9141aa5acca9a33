package catalog

import (
	"context"
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/drill/rehearse"
)

func coldBoot() *rehearse.Drill {
	return &rehearse.Drill{
		Name:   "cold-boot",
		Breaks: "kills control plane and PostgreSQL with SIGKILL, then each node in turn and starts it again, then all nodes, and starts one of them alone; the rest at the end",
		Blast:  "nobody while nodes are restarted in turn; everybody for the moment in which no node runs",
		Lost:   "everything, with one node that comes back alone", Works: "decisions, calls and open sessions from the node's own disk", Until: leases,
		Recovers: "one node alone answers rightly, from its start",
		Needs:    []rehearse.Need{rehearse.Processes},
		Limits:   rehearse.Limits{RTO: bootLimit, Failed: rehearse.Any, Unknown: 6 * inFlight, Changes: rehearse.Any},
		Break: func(ctx context.Context, r *rehearse.Run) error {
			if err := r.Site.Kill(ctx, rehearse.ControlPlane, rehearse.Postgres); err != nil {
				return err
			}
			if err := inTurn(ctx, r); err != nil {
				return err
			}
			if n := r.Counts().Failed; n > 0 && len(r.Nodes) > 1 {
				r.Fail("%d calls failed while nodes were restarted in turn", n)
			}
			r.Step("no node runs from here on")
			return r.Site.Kill(ctx, rehearse.IDs(r.Nodes)...)
		},
		Observe: func(ctx context.Context, r *rehearse.Run) error {
			dark := r.Counts().Failed
			if err := boot(ctx, r, r.Nodes[0].ID()); err != nil {
				return err
			}
			r.Fact("failed_while_no_node_ran", float64(r.Counts().Failed-dark))
			r.Keep("failed", r.Counts().Failed)
			return nil
		},
		Mend: func(ctx context.Context, r *rehearse.Run) error { return r.Site.Wake(ctx) },
		Check: func(_ context.Context, r *rehearse.Run) error {
			if before, ok := r.Kept("failed").(int); ok && r.Counts().Failed > before {
				r.Fail("%d calls failed after one node had answered", r.Counts().Failed-before)
			}
			return nil
		},
	}
}

// inTurn kills each node and starts it again when there are others, with nothing else there to ask.
func inTurn(ctx context.Context, r *rehearse.Run) error {
	var slowest time.Duration
	for _, n := range r.Nodes {
		if len(r.Nodes) == 1 {
			break
		}
		if err := r.Site.Kill(ctx, n.ID()); err != nil {
			return err
		}
		begin := time.Now()
		if err := r.Site.Start(ctx, n.ID()); err != nil {
			return err
		}
		if err := r.Answers(ctx, 10*bootLimit, n); err != nil {
			return err
		}
		slowest = max(slowest, time.Since(begin))
		r.Step("%s answers %d ms after its start", n.ID(), time.Since(begin).Milliseconds())
	}
	r.Fact("slowest_restart_ms", float64(slowest.Milliseconds()))
	return nil
}
