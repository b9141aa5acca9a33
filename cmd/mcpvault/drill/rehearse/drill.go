// Package rehearse runs drills: it puts an installation under load, breaks something in it, watches, mends it, and holds what
// happened against what was promised.
//
// A drill says what it breaks and how to mend it; everything else is the same for all: the load before, during and after, the judge,
// the comparison with the audit log, the abort, the report. Whatever happens, Mend is called once Break was.
package rehearse

import (
	"context"
	"slices"
	"strconv"
	"time"
)

// Drill is one rehearsed failure.
type Drill struct {
	Name string
	// Breaks says what is broken, and Blast who notices, each in a sentence.
	Breaks, Blast string
	// Lost, Works and Until are a row of the degradation table: what is lost, what works meanwhile, and until when.
	Lost, Works, Until string
	// Recovers says what the RTO measures the time to: "another node leads".
	Recovers string
	// Needs are what the installation must be able to do.
	Needs []Need
	// Cells is how many cells a private installation is started with; 0 for one.
	Cells int
	// Flags are further flags of `mcpvault dev` for a private installation; a drill with flags has one of its own.
	Flags []string
	// Limits are what it must keep.
	Limits Limits
	// Tolerates are the reasons of refusals that are by design while it is broken: "audit_unavailable".
	Tolerates []string

	// Break breaks it. Observe returns when what the drill is about has been seen, and may tell Run.Recovered. Mend undoes Break, is
	// called even when the drill is aborted, and may be called when Break has failed half-way. Check looks, after everything serves
	// again and the load has ended, at what only this drill promises. Observe and Check may be nil.
	Break, Observe, Mend, Check func(ctx context.Context, r *Run) error
}

// DevFlags are the flags of `mcpvault dev` for a private installation that can run the drill. Drills with the same ones share it.
func (d *Drill) DevFlags() []string {
	flags := slices.Clone(d.Flags)
	if d.Cells > 1 {
		flags = append(flags, "--cells", strconv.Itoa(d.Cells))
	}
	return flags
}

// Limits are the promises of a drill that are figures. What is left at zero is promised to be zero.
type Limits struct {
	// RTO is the longest time from the fault (or from when Run.Recovering said) to Run.Recovered; 0 holds nothing.
	RTO time.Duration
	// Failed and Unknown requests at most; Any for as many as may be. Requests are unknown that were under way on a node that was killed.
	Failed, Unknown int
	// Changes are policy changes, at most, that the control plane does not take or that do not reach every connected node within 10 s.
	Changes int
}

// Any is no limit.
const Any = -1

// Need is something that an installation must be able to do for a drill.
type Need string

// Needs.
const (
	// Processes can be killed, stopped and started.
	Processes Need = "its processes must be ours to kill and start"
	// Disks of nodes can be read and changed.
	Disks Need = "its nodes' data must be ours to change"
	// Faults are the faults that `mcpvault dev fault` makes.
	Faults Need = "it must be one that `mcpvault dev --faults` runs"
	// TwoCells serve the tenant.
	TwoCells Need = "it must have two cells"
	// ThreeNodes make a cell whose leader may be lost.
	ThreeNodes Need = "its cell must have three nodes"
)
