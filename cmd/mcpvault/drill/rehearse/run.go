package rehearse

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mcpvault/mcpvault/bench/drill/canary"
	"github.com/mcpvault/mcpvault/bench/drill/load"
	"github.com/mcpvault/mcpvault/bench/drill/report"
)

// Run is one drill under way: what its functions are given.
type Run struct {
	Site *Site
	// Cell is the cell that is drilled; Nodes are its nodes.
	Cell  string
	Nodes []Node
	// Canary is the server that counts calls.
	Canary *canary.Server
	// Server is the name that the canary is registered under.
	Server string
	// For is how long the drill is under load.
	For time.Duration
	// People may call the canary.
	People []load.Person

	load   *load.Load
	policy *policy
	tell   func(format string, args ...any)
	began  time.Time
	// others counts the calls of other servers.
	others atomic.Uint64

	mu        sync.Mutex // Guards what is below.
	faultAt   time.Time
	recovered time.Time
	timeline  []report.Event
	findings  []string
	facts     map[string]float64
	notes     map[string]any
}

// Step enters a line into the timeline.
func (r *Run) Step(format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	r.mu.Lock()
	r.timeline = append(r.timeline, report.Event{Seconds: time.Since(r.began).Seconds(), What: what})
	r.mu.Unlock()
	r.tell("%s", what)
}

// Fail enters a promise that did not hold. The drill goes on, and does not pass.
func (r *Run) Fail(format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	r.mu.Lock()
	r.findings = append(r.findings, what)
	r.mu.Unlock()
	r.Step("NOT HELD: %s", what)
}

// Fact enters a figure into the report: "election_ms".
func (r *Run) Fact(name string, value float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.facts[name] = value
}

// Recovering starts the clock of the RTO anew: it runs from when Break began otherwise.
func (r *Run) Recovering() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faultAt = time.Now()
}

// Recovered stops the clock of the RTO: what the drill breaks works again. Only the first call counts.
func (r *Run) Recovered() {
	r.mu.Lock()
	first := r.recovered.IsZero()
	if first {
		r.recovered = time.Now()
	}
	took := r.recovered.Sub(r.faultAt)
	r.mu.Unlock()
	if first {
		r.Step("recovered after %d ms", took.Milliseconds())
	}
}

// Keep and Kept carry something from one function of a drill to the next.
func (r *Run) Keep(name string, value any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notes[name] = value
}

// Kept returns what was kept; nil when nothing was.
func (r *Run) Kept(name string) any {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.notes[name]
}

// pollEvery is how often something is looked at that is waited for.
const pollEvery = 5 * time.Millisecond

// Until polls until ok, and fails when that takes longer than the limit.
func (r *Run) Until(ctx context.Context, limit time.Duration, what string, ok func(context.Context) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %s: %s", limit, what))
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !ok(ctx) {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	return nil
}

// Leader waits for the node that leads the cell, none of those excepted.
func (r *Run) Leader(ctx context.Context, except ...Node) (leader Node, err error) {
	err = r.Until(ctx, settleLimit, "a node leads", func(ctx context.Context) (ok bool) {
		leader, ok = r.Site.Leader(ctx, r.Cell, except...)
		return ok
	})
	return leader, err
}

// Ask asks one node for the list of each person; the judge says whether the answers are right. It reports whether all came.
func (r *Run) Ask(n Node) bool {
	ok := true
	for _, p := range r.People {
		ok = r.load.List(n.MCP+"/"+r.Server, p) && ok
	}
	return ok
}

// Answers waits until a node answers.
func (r *Run) Answers(ctx context.Context, limit time.Duration, n Node) error {
	return r.Until(ctx, limit, n.ID()+" answers", func(context.Context) bool { return r.Ask(n) })
}

// Change makes one policy change that every connected node must acknowledge. It fails when the control plane does not take it or
// when one of the nodes named is not among those that have it.
func (r *Run) Change(ctx context.Context, nodes ...Node) error {
	have, err := r.policy.touch(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if !slices.Contains(have, n.ID()) {
			return fmt.Errorf("%s is not among the nodes that have the newest policy", n.ID())
		}
	}
	return nil
}

// Astray says that from now on (or no longer) the control plane is one that no node may follow: what it acknowledges must not come into
// force anywhere.
func (r *Run) Astray(yes bool) {
	r.policy.mu.Lock()
	defer r.policy.mu.Unlock()
	r.policy.astray = yes
}

// Open asks a node for a session of the first person, as clients before revision 2026-07-28 do; Use lists tools in one.
func (r *Run) Open(ctx context.Context, n Node) (load.Session, error) {
	return r.load.Open(ctx, n.MCP+"/"+r.Server, r.People[0])
}

// Use lists tools in a session.
func (r *Run) Use(ctx context.Context, n Node, id string) (load.Session, error) {
	return r.load.Use(ctx, n.MCP+"/"+r.Server, r.People[0], id)
}

// Counts are the load's totals so far.
func (r *Run) Counts() load.Counts { return r.load.Counts() }
