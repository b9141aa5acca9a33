package catalog

import (
	"context"
	"fmt"
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/drill/rehearse"
)

const (
	// hangLimit is how long a leader whose disk hangs may stay the leader.
	hangLimit = 2 * time.Second
	// caughtUpLimit is how long a node may take to be well again once its disk is.
	caughtUpLimit = 10 * time.Second
	// refusalTime is how long a call may wait to be refused when its record cannot be kept, and writableLimit how long calls may be
	// refused once it can.
	refusalTime   = 600 * time.Millisecond
	writableLimit = 2 * time.Second
)

// noAudit is the reason of the refusals of a node whose audit log takes no records.
const noAudit = "audit_unavailable"

func diskHang() *rehearse.Drill {
	return &rehearse.Drill{
		Name:   "disk-hang",
		Breaks: "lets every write to the disk of the node that leads the cell hang, and lets them go on at the end",
		Blast:  "calls with effects are refused on that node; reads and lists go on",
		Lost:   "the disk of the leader: it hangs", Works: "everything on the other nodes; reads and lists on that one", Until: "a new leader, at most 2 s; the node is back within 10 s of its disk",
		Recovers:  "another node leads",
		Needs:     []rehearse.Need{rehearse.Faults, rehearse.ThreeNodes},
		Flags:     faults(),
		Limits:    rehearse.Limits{RTO: hangLimit, Unknown: inFlight, Changes: rehearse.Any},
		Tolerates: []string{noAudit, "outcome_unknown"},
		Break: func(ctx context.Context, r *rehearse.Run) error {
			leader, err := dethroned(ctx, r)
			if err != nil {
				return err
			}
			return r.Site.SetFault(ctx, "disk "+leader.ID()+" hang")
		},
		Observe: func(ctx context.Context, r *rehearse.Run) error {
			hung := node(r)
			if err := succeeded(ctx, r); err != nil {
				return err
			}
			if err := deposed(ctx, r, hangLimit, hung, "does not lead any more"); err != nil {
				r.Fail("%v", err)
			}
			return closed(ctx, r, hung)
		},
		Mend:  func(ctx context.Context, r *rehearse.Run) error { return thaw(ctx, r, node(r)) },
		Check: prompt,
	}
}

func diskFull() *rehearse.Drill {
	return &rehearse.Drill{
		Name:   "disk-full",
		Breaks: "leaves no room on the disk of a node that does not lead, and makes room at the end",
		Blast:  "calls with effects are refused on that node; reads and lists go on",
		Lost:   "room on the disk of a node", Works: "everything on the other nodes; reads and lists on that one", Until: "the audit records of reads fill the node's memory: 10,000 of them",
		Recovers:  "the node is ready and takes part in the log, from when there is room",
		Needs:     []rehearse.Need{rehearse.Faults, rehearse.ThreeNodes},
		Flags:     faults(),
		Limits:    rehearse.Limits{RTO: caughtUpLimit, Unknown: inFlight, Changes: rehearse.Any},
		Tolerates: []string{noAudit, "outcome_unknown"},
		Break: func(ctx context.Context, r *rehearse.Run) error {
			n, err := follower(ctx, r)
			if err != nil {
				return err
			}
			return r.Site.SetFault(ctx, "disk "+n.ID()+" full")
		},
		Observe: func(ctx context.Context, r *rehearse.Run) error { return closed(ctx, r, node(r)) },
		Mend: func(ctx context.Context, r *rehearse.Run) error {
			r.Recovering()
			if err := thaw(ctx, r, node(r)); err != nil {
				return err
			}
			r.Recovered()
			return nil
		},
		// What is on the disk is whole when the node can start from it.
		Check: func(ctx context.Context, r *rehearse.Run) error {
			n := node(r)
			if err := r.Site.Start(ctx, n.ID()); err != nil {
				return fmt.Errorf("start %s from the disk that was full: %w", n.ID(), err)
			}
			return r.Answers(ctx, 10*bootLimit, n)
		},
	}
}

// closed looks at a node whose audit log takes no records: calls with effects are refused soon, reads are answered.
func closed(ctx context.Context, r *rehearse.Run, n rehearse.Node) error {
	began := time.Now()
	// The first call that wants a record is the one that finds out.
	if err := r.Until(ctx, 10*refusalTime, "calls with effects are refused on "+n.ID(), func(context.Context) bool {
		reason, took := r.Write(n)
		return refusedInTime(r, reason, took)
	}); err != nil {
		return err
	}
	r.Fact("closed_after_ms", float64(time.Since(began).Milliseconds()))
	for range 10 {
		reason, took := r.Write(n)
		if !refusedInTime(r, reason, took) {
			r.Fail("a call with effects on %s is refused with %s: %q", n.ID(), noAudit, reason)
		}
		if reason, _ := r.Read(n); reason != "" {
			r.Fail("a read on %s is answered: %q", n.ID(), reason)
		}
	}
	if r.Site.Ready(ctx, n) {
		r.Fail("%s says that it is not ready", n.ID())
	}
	return nil
}

// prompt holds the load's own refusals to the limit: those that came first waited for the disk.
func prompt(_ context.Context, r *rehearse.Run) error {
	slowest := r.SlowestRefusal()
	r.Fact("slowest_refusal_ms", float64(slowest.Milliseconds()))
	if slowest > refusalTime {
		r.Fail("a call is refused within %s when its record cannot be kept: the slowest took %d ms", refusalTime, slowest.Milliseconds())
	}
	return nil
}

// refusedInTime reports whether a call was refused for want of a record, and notes it when that took too long.
func refusedInTime(r *rehearse.Run, reason string, took time.Duration) bool {
	if reason != noAudit {
		return false
	}
	if took > refusalTime {
		r.Fail("a call is refused within %s when its record cannot be kept: it took %d ms", refusalTime, took.Milliseconds())
	}
	return true
}

// writes waits until a node takes calls with effects.
func writes(ctx context.Context, r *rehearse.Run, n rehearse.Node) error {
	return r.Until(ctx, caughtUpLimit, n.ID()+" takes calls with effects", func(context.Context) bool {
		reason, _ := r.Write(n)
		return reason == ""
	})
}

// thaw mends a node's disk and waits until its audit log takes records, and until it takes part in the cell's log.
func thaw(ctx context.Context, r *rehearse.Run, n rehearse.Node) error {
	if err := r.Site.ClearFaults(ctx); err != nil || n == (rehearse.Node{}) {
		return err
	}
	began := time.Now()
	if err := writes(ctx, r, n); err != nil {
		return err
	}
	writable := time.Since(began)
	r.Fact("writable_after_ms", float64(writable.Milliseconds()))
	if writable > writableLimit {
		r.Fail("calls with effects are taken within %s of a disk that works: it took %d ms", writableLimit, writable.Milliseconds())
	}
	if err := r.Until(ctx, caughtUpLimit, n.ID()+" takes part in the cell's log", func(ctx context.Context) bool {
		return r.Site.Page(ctx, n, "/readyz/raft") && r.Site.Ready(ctx, n)
	}); err != nil {
		return err
	}
	r.Fact("caught_up_after_ms", float64(time.Since(began).Milliseconds()))
	return nil
}

func auditUnwritable() *rehearse.Drill {
	return &rehearse.Drill{
		Name:   "audit-unwritable",
		Breaks: "lets writes to the audit log hang on every node of the cell, then fail for want of room, and lets them work at the end",
		Blast:  "calls with effects are refused in the whole cell; reads and lists go on",
		Lost:   "the audit log's disk on every node", Works: "reads and lists; calls with effects are refused, none is made without a record", Until: "the records of reads fill the nodes' memory: 10,000 on each",
		Recovers:  "calls with effects are taken again, from when the disks work",
		Needs:     []rehearse.Need{rehearse.Faults},
		Flags:     faults(),
		Limits:    rehearse.Limits{RTO: writableLimit, Unknown: 3 * inFlight},
		Tolerates: []string{noAudit, "outcome_unknown"},
		Break:     func(ctx context.Context, r *rehearse.Run) error { return breakAudit(ctx, r, "hang") },
		Observe: func(ctx context.Context, r *rehearse.Run) error {
			for _, kind := range []string{"hang", "full"} {
				if err := breakAudit(ctx, r, kind); err != nil {
					return err
				}
				r.Step("audit logs: %s", kind)
				for _, n := range r.Nodes {
					if err := closed(ctx, r, n); err != nil {
						return err
					}
				}
			}
			return nil
		},
		Mend: func(ctx context.Context, r *rehearse.Run) error {
			if err := r.Site.ClearFaults(ctx); err != nil {
				return err
			}
			r.Recovering()
			for _, n := range r.Nodes {
				if err := writes(ctx, r, n); err != nil {
					return err
				}
			}
			r.Recovered()
			return nil
		},
		Check: prompt,
	}
}

func breakAudit(ctx context.Context, r *rehearse.Run, kind string) error {
	for _, n := range r.Nodes {
		if err := r.Site.SetFault(ctx, "disk "+n.ID()+" "+kind, "audit"); err != nil {
			return err
		}
	}
	return nil
}
