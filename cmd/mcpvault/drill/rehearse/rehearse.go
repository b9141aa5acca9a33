package rehearse

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/bench/drill/judge"
	"github.com/mcpvault/mcpvault/bench/drill/load"
	"github.com/mcpvault/mcpvault/bench/drill/report"
	"github.com/mcpvault/mcpvault/bench/measure"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// Config says how drills are run.
type Config struct {
	Load load.Rates
	// For is how long each drill is under load: a quarter before, half while it is broken, a quarter after, and what it takes
	// to break and to mend.
	For time.Duration
	// Cell is the cell that is drilled; "" for the first.
	Cell string
	// Budget is how many requests may fail before a drill is aborted; it is aborted at the first wrong decision, too. Any for no limit
	// of either.
	Budget int
	// CanaryListen and CanaryURL say where the counting server listens, and how nodes reach it; "" for loopback.
	CanaryListen, CanaryURL string
	// Tell takes a line whenever something happens, Live the figures twice a second. Both may be nil.
	Tell func(format string, args ...any)
	Live func(Figures)
}

// Figures are how a drill is doing.
type Figures struct {
	Drill   string
	Elapsed time.Duration
	load.Counts
	Wrong int
	// Broken says that the fault is in; Away is how long what it breaks has been away, or was.
	Broken    bool
	Away      time.Duration
	Recovered bool
	// Stale is the longest time that a policy change took to reach the nodes.
	Stale time.Duration
}

// Stage is an installation that is ready for drills, one after the other.
type Stage struct {
	cfg   Config
	site  *Site
	world *world
	// read is how far each audit log has been read.
	read map[string]uint64
	// touched is the state of the right that touch changes.
	touched bool
}

// Prepare gives an installation what drills need.
func Prepare(ctx context.Context, s *Site, cfg Config) (*Stage, error) {
	if cfg.Tell == nil {
		cfg.Tell = func(string, ...any) {}
	}
	if cfg.Live == nil {
		cfg.Live = func(Figures) {}
	}
	if cfg.Cell == "" {
		cfg.Cell = s.Cells()[0]
	}
	if len(s.Cell(cfg.Cell)) == 0 {
		return nil, fmt.Errorf("there is no cell %q: there are %v", cfg.Cell, s.Cells())
	}
	w, err := newWorld(ctx, s, cfg.CanaryListen, cfg.CanaryURL)
	if err != nil {
		return nil, err
	}
	stage := &Stage{cfg: cfg, site: s, world: w, read: map[string]uint64{}}
	if err := stage.tidy(ctx); err != nil {
		return nil, errors.Join(err, w.close(ctx))
	}
	return stage, nil
}

// Close takes away what Prepare gave. The installation itself goes on.
func (s *Stage) Close(ctx context.Context) error { return s.world.close(ctx) }

// Site is the installation.
func (s *Stage) Site() *Site { return s.site }

// mendLimit is how long the mending and what follows may take.
const mendLimit = 90 * time.Second

// Run rehearses one drill, and returns its report. An error means that the installation is not in order afterwards.
func (s *Stage) Run(ctx context.Context, d *Drill) (*report.Drill, error) {
	out := &report.Drill{
		Name: d.Name, Breaks: d.Breaks, Blast: d.Blast, Recover: d.Recovers, Loses: d.Lost, Works: d.Works, Until: d.Until, Started: time.Now().UTC(), Findings: []string{},
		Limits: report.Limits{RTO: float64(d.Limits.RTO.Milliseconds()), Failed: d.Limits.Failed, Unknown: d.Limits.Unknown, Changes: d.Limits.Changes},
	}
	if why := s.site.Lacks(d, s.cfg.Cell); why != "" {
		out.Unavailable = why
		return out, nil
	}
	err := (&act{stage: s, drill: d, out: out}).play(ctx)
	if err != nil && len(out.Findings) == 0 {
		out.Findings = append(out.Findings, err.Error())
	}
	return out, err
}

// act is one drill being rehearsed.
type act struct {
	stage *Stage
	drill *Drill
	out   *report.Drill

	run   *Run
	judge *judge.Judge
	load  *load.Load

	start, broken, mended, end time.Time
}

func (a *act) play(ctx context.Context) error {
	s := a.stage
	if err := s.rest(ctx, s.site.Nodes); err != nil {
		return fmt.Errorf("the installation is not at rest: %w", err)
	}
	if err := s.skip(ctx); err != nil {
		return err
	}
	a.prepare()
	loadCtx, stopLoad := context.WithCancel(context.WithoutCancel(ctx))
	var background sync.WaitGroup
	background.Go(func() { a.load.Run(loadCtx) })
	ctx, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	watched, stopWatch := context.WithCancel(ctx)
	background.Go(func() { a.watch(watched, abort) })
	defer background.Wait()
	defer stopWatch()
	defer stopLoad()

	a.scenes(ctx)
	if err := context.Cause(ctx); err != nil {
		a.out.Aborted = err.Error()
	}
	mend, cancel := context.WithTimeout(context.WithoutCancel(ctx), mendLimit)
	defer cancel()
	err := a.recover(mend)
	if err == nil && a.out.Aborted == "" {
		a.pause(ctx, s.cfg.For/4)
	}
	a.end = time.Now()
	stopLoad()
	stopWatch()
	background.Wait()
	if err == nil {
		err = a.verify(mend)
	}
	a.conclude(err)
	return err
}

func (a *act) prepare() {
	s := a.stage
	a.judge = judge.New(s.world.tools.All(), s.world.rights()...)
	p := &policy{site: s.site, judge: a.judge, touched: &s.touched, person: s.world.people[0].Name}
	cfg := load.Config{People: s.world.people, Tools: s.world.tools, Rates: s.cfg.Load, Judge: a.judge, Policy: p, Tolerated: a.drill.Tolerates}
	for _, n := range s.site.Nodes {
		switch url := n.MCP + "/" + Server; {
		case n.Cell == s.cfg.Cell:
			cfg.Nodes = append(cfg.Nodes, url)
		case a.drill.Cells > 1: // Where clients go when the cell has gone.
			cfg.Elsewhere = append(cfg.Elsewhere, url)
		}
	}
	a.load = load.New(cfg)
	a.start = time.Now()
	a.run = &Run{
		Site: s.site, Cell: s.cfg.Cell, Nodes: s.site.Cell(s.cfg.Cell), Canary: s.world.canary, Server: Server, For: s.cfg.For, People: s.world.people,
		load: a.load, policy: p, tell: s.cfg.Tell, began: a.start, facts: map[string]float64{}, notes: map[string]any{},
	}
	a.run.Step("%s: load %.0f decisions/s, %.0f calls/s, %.1f policy changes/s", a.drill.Name, s.cfg.Load.Decisions, s.cfg.Load.Calls, s.cfg.Load.Changes)
}

// warm is the first part of the load that is in no phase.
const warm = time.Second

// scenes goes on until it is time to mend, or until something does not hold.
func (a *act) scenes(ctx context.Context) {
	a.pause(ctx, warm+a.stage.cfg.For/4)
	if ctx.Err() != nil {
		return
	}
	a.broken = time.Now()
	a.run.Recovering()
	a.run.Step("breaking: %s", a.drill.Breaks)
	if err := a.drill.Break(ctx, a.run); err != nil {
		a.failed(ctx, "break", err)
		return
	}
	if a.drill.Observe != nil {
		if err := a.drill.Observe(ctx, a.run); err != nil {
			a.failed(ctx, "observe", err)
			return
		}
	}
	a.pause(ctx, a.stage.cfg.For/2-time.Since(a.broken))
}

func (a *act) failed(ctx context.Context, what string, err error) {
	if ctx.Err() == nil {
		a.run.Fail("%s: %v", what, err)
	}
}

func (a *act) pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// recover mends, and waits until everything serves.
func (a *act) recover(ctx context.Context) error {
	if !a.broken.IsZero() {
		a.run.Step("mending")
		if err := a.drill.Mend(ctx, a.run); err != nil {
			a.run.Fail("mend: %v", err)
			return fmt.Errorf("mend: %w", err)
		}
	}
	if err := a.stage.rest(ctx, a.stage.site.Nodes); err != nil {
		a.run.Fail("not everything serves after it was mended: %v", err)
		return err
	}
	a.mended = time.Now()
	a.run.Step("everything serves again")
	return nil
}

// watch shows how it goes and aborts when the budget is spent.
func (a *act) watch(ctx context.Context, abort context.CancelCauseFunc) {
	const look, show = 50 * time.Millisecond, 500 * time.Millisecond
	tick := time.NewTicker(look)
	defer tick.Stop()
	for shown := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		f := a.figures()
		if budget := a.stage.cfg.Budget; budget >= 0 {
			switch {
			case f.Failed > budget:
				abort(fmt.Errorf("%d calls have failed, more than the %d of the budget", f.Failed, budget))
			case f.Wrong > 0:
				abort(errors.New("a decision was wrong"))
			}
		}
		if time.Since(shown) >= show {
			shown = time.Now()
			a.stage.cfg.Live(f)
		}
	}
}

func (a *act) figures() Figures {
	f := Figures{Drill: a.drill.Name, Elapsed: time.Since(a.start), Counts: a.load.Counts(), Stale: a.run.policy.propagation()}
	f.Wrong, _ = a.judge.Wrong()
	a.run.mu.Lock()
	defer a.run.mu.Unlock()
	if f.Broken = !a.run.faultAt.IsZero(); f.Broken {
		f.Away, f.Recovered = time.Since(a.run.faultAt), !a.run.recovered.IsZero()
		if f.Recovered {
			f.Away = a.run.recovered.Sub(a.run.faultAt)
		}
	}
	return f
}

// verify looks, after the load has ended, at what remains: policy, executions, audit.
func (a *act) verify(ctx context.Context) error {
	if err := a.run.Change(ctx, a.run.Site.Nodes...); err != nil {
		a.run.Fail("a policy change after all reaches every node: %v", err)
	}
	for _, n := range a.run.Site.Nodes {
		if !a.run.Ask(n) {
			a.run.Fail("%s answers everybody after all", n.ID())
		}
	}
	if a.drill.Check != nil {
		if err := a.drill.Check(ctx, a.run); err != nil {
			a.run.Fail("%v", err)
		}
	}
	executed := a.stage.world.canary.Take()
	a.out.Executions = len(executed)
	a.judge.Executions(executed)
	audited, err := a.stage.audit(ctx, a.judge)
	if err != nil {
		a.run.Fail("the audit log can be read: %v", err)
		return err
	}
	a.out.Answers, a.out.Lost, a.out.Doubled = audited.Answers, audited.Lost, audited.Doubled
	for _, e := range audited.Examples[:min(5, len(audited.Examples))] {
		a.run.Step("audit: %s", e)
	}
	return a.stage.tidy(ctx)
}

// conclude fills in the report.
func (a *act) conclude(err error) {
	out, r := a.out, a.run
	out.Counts, out.Errors = a.load.Counts(), a.load.Errors()
	out.Failed, out.Unknown, out.Closed = out.Counts.Failed, out.Counts.Unknown, out.Counts.Closed
	out.Wrong, out.Wrongs = a.judge.Wrong()
	out.Stale = milliseconds(r.policy.propagation())
	a.phases()
	r.mu.Lock()
	defer r.mu.Unlock()
	out.Facts, out.Timeline = r.facts, r.timeline
	find := func(format string, args ...any) { r.findings = append(r.findings, fmt.Sprintf(format, args...)) }
	if !r.recovered.IsZero() {
		out.RTO = milliseconds(r.recovered.Sub(r.faultAt))
	}
	limits := a.drill.Limits
	if limits.RTO > 0 && a.out.Aborted == "" && (r.recovered.IsZero() || out.RTO > out.Limits.RTO) {
		find("%s within %s: it took %.0f ms", a.drill.Recovers, limits.RTO, out.RTO)
	}
	if limits.Failed >= 0 && out.Failed > limits.Failed {
		find("%d calls failed, at most %d may", out.Failed, limits.Failed)
	}
	if limits.Unknown >= 0 && out.Unknown > limits.Unknown {
		find("%d calls have an unknown outcome, at most %d may", out.Unknown, limits.Unknown)
	}
	if limits.Changes >= 0 && out.Counts.FailedChanges > limits.Changes {
		find("%d policy changes did not reach every connected node, at most %d may", out.Counts.FailedChanges, limits.Changes)
	}
	if out.Wrong > 0 {
		find("%d decisions were wrong", out.Wrong)
	}
	if out.Lost > 0 || out.Doubled > 0 {
		find("%d answers are not on record, %d are twice", out.Lost, out.Doubled)
	}
	if out.Aborted != "" {
		find("aborted: %s", out.Aborted)
	}
	if out.Answers == 0 && err == nil {
		find("nothing was answered")
	}
	out.Findings = append(out.Findings, r.findings...)
	out.Passed = len(out.Findings) == 0
	out.Seconds = time.Since(a.start).Seconds()
}

// phases divides the samples.
func (a *act) phases() {
	samples := a.load.Samples()
	slices.SortFunc(samples, func(x, y load.Sample) int { return x.At.Compare(y.At) })
	phase := func(from, until time.Time) (p report.Phase) {
		if from.IsZero() || !until.After(from) {
			return p
		}
		p.Seconds = until.Sub(from).Seconds()
		var took []time.Duration
		for _, s := range samples {
			if s.At.Before(from) || !s.At.Before(until) {
				continue
			}
			p.Requests++
			if s.Class == load.OK {
				took = append(took, s.Took)
			} else {
				p.NotOK++
			}
		}
		p.P50, p.P99 = milliseconds(measure.Percentile(took, 50)), milliseconds(measure.Percentile(took, 99))
		return p
	}
	a.out.Before = phase(a.start.Add(warm), a.broken)
	a.out.During = phase(a.broken, a.mended)
	a.out.After = phase(a.mended, a.end)
	var last time.Time
	for _, s := range samples {
		if s.Class != load.OK {
			continue
		}
		if at := s.At.Add(s.Took); last.IsZero() || at.After(last) {
			if !last.IsZero() {
				a.out.Gap = max(a.out.Gap, milliseconds(at.Sub(last)))
			}
			last = at
		}
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// rest waits until everything runs, every node is ready and connected, and every cell has a leader.
func (s *Stage) rest(ctx context.Context, nodes []Node) error {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	var why string
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		if why = s.restless(ctx, nodes); why == "" {
			tick.Stop()
			return nil
		}
		select {
		case <-ctx.Done():
			tick.Stop()
			return fmt.Errorf("after %s: %s", settleLimit, why)
		case <-tick.C:
		}
	}
}

// restless says what is missing.
func (s *Stage) restless(ctx context.Context, nodes []Node) string {
	resp, err := s.site.Admin.Cells.ListCells(ctx, &adminv1.ListCellsRequest{})
	if err != nil {
		return admin.Problem(err, s.site.Admin.URL).Error()
	}
	connected := map[string]bool{}
	for _, c := range resp.GetCells() {
		for _, n := range c.GetNodes() {
			connected[c.GetName()+"/"+n.GetStatus().GetNode()] = n.GetConnected()
		}
	}
	for _, n := range nodes {
		if !connected[n.ID()] {
			return n.ID() + " is not connected to the control plane"
		}
		for _, page := range []string{"/readyz", "/readyz/controlplane"} {
			if n.Pages != "" && !s.site.Page(ctx, n, page) {
				return n.ID() + " says no at " + page
			}
		}
	}
	for _, cell := range s.site.Cells() {
		if s.site.Cell(cell)[0].Pages == "" {
			continue
		}
		if _, ok := s.site.Leader(ctx, cell); !ok {
			return "no node of " + cell + " leads"
		}
	}
	return ""
}

// tidy takes away every right that a drill has left, so that the next one begins as this one did.
func (s *Stage) tidy(ctx context.Context) error {
	var newest uint64
	for _, p := range s.world.people {
		resp, err := s.site.Admin.Access.ListGrants(ctx, &adminv1.ListGrantsRequest{Tenant: s.site.Tenant, Subject: "user:" + p.Name})
		if err != nil {
			return admin.Problem(err, s.site.Admin.URL)
		}
		for _, g := range resp.GetGrants() {
			if s.world.keeps(g) {
				continue
			}
			done, err := s.site.Admin.Access.DeleteGrants(ctx, &adminv1.DeleteGrantsRequest{Tenant: s.site.Tenant, Id: g.GetId()})
			if err != nil {
				return admin.Problem(err, s.site.Admin.URL)
			}
			newest = max(newest, done.GetRevision())
		}
	}
	s.touched = false
	if newest == 0 {
		return nil
	}
	return (&policy{site: s.site}).wait(ctx, newest)
}
