package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/mcpvault/mcpvault/bench/authz"
	"github.com/mcpvault/mcpvault/bench/measure"
	"github.com/mcpvault/mcpvault/controlplane/compile"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// engine answers a call.
type engine interface {
	allows(c *call) (bool, error)
}

// ours is a decision by ids: the principal was not seen before and nothing of it is kept.
type ours struct{ indexes []*index.Index }

func (o ours) allows(c *call) (bool, error) { return c.question.Decide(o.indexes).Allow, nil }

// ratios say how many times longer a peer takes.
type ratios struct {
	CedarSliced float64 `json:"ratio_cedar_sliced"`
	OPA         float64 `json:"ratio_opa"`
	CedarWhole  float64 `json:"ratio_cedar_whole"`
	// PeersAt is the size of the world that each peer was measured in, and our own decision beside it.
	PeersAt map[string]int `json:"peers_at"`
	// MeanNS are the mean times of the median round.
	MeanNS map[string]float64 `json:"mean_ns"`
	// Answers counts the questions that all engines answered alike before anything was timed.
	Answers int `json:"answers_checked_equal"`
	Rounds  int `json:"rounds"`
}

func (r *ratios) rows() []authz.Row {
	row := func(what string, value, bound float64) authz.Row {
		return authz.Row{What: what, Value: fmt.Sprintf("%.0f x", value), Bound: fmt.Sprintf("at least %g x", bound)}
	}
	return []authz.Row{
		row("cedar-go, sliced", r.CedarSliced, 40), row("OPA, prepared query", r.OPA, 300), row("cedar-go, whole set", r.CedarWhole, 10_000),
	}
}

const (
	questions = 2048
	rounds    = 7
)

// contender is an engine and how many calls a round of it has.
type contender struct {
	name  string
	calls int
	engine
}

// compare measures all engines on one tenant.
func compare(ctx context.Context, note func(string, ...any)) (*ratios, error) {
	note("preparing the peers")
	w, err := newWorld(0, authz.Full())
	if err != nil {
		return nil, err
	}
	qs := authz.Questions(w.ours.indexes, questions, rand.New(rand.NewPCG(4, 4)))
	engines, calls, err := w.engines(ctx, qs)
	if err != nil {
		return nil, err
	}
	contenders := []contender{
		{"mcpvault", 400_000, w.ours},
		{"cedar_sliced", 20_000, engines["cedar_sliced"]},
		{"opa", 2_000, engines["opa"]},
		{"cedar_whole", 64, engines["cedar_whole"]},
	}
	note("comparing the answers to %d questions", len(calls))
	if err := agree(contenders, calls); err != nil {
		return nil, err
	}
	r := &ratios{PeersAt: map[string]int{}, MeanNS: map[string]float64{}, Answers: len(calls), Rounds: rounds}
	took, ratio := map[string][]float64{}, map[string][]float64{}
	for round := range rounds {
		note("round %d of %d", round+1, rounds)
		mean := map[string]float64{}
		for _, c := range contenders {
			if mean[c.name], err = c.round(calls, round); err != nil {
				return nil, err
			}
			took[c.name] = append(took[c.name], mean[c.name])
			ratio[c.name] = append(ratio[c.name], mean[c.name]/mean["mcpvault"])
		}
	}
	for _, c := range contenders {
		r.MeanNS[c.name] = measure.Median(took[c.name])
		if c.name != "mcpvault" {
			r.PeersAt[c.name] = authz.TenantUsers
		}
	}
	r.CedarSliced, r.OPA, r.CedarWhole = measure.Median(ratio["cedar_sliced"]), measure.Median(ratio["opa"]), measure.Median(ratio["cedar_whole"])
	return r, nil
}

// round is the mean time of a call in nanoseconds. A round that does not ask every question begins where the last ended.
func (c *contender) round(calls []*call, round int) (float64, error) {
	runtime.GC()
	at := round * c.calls
	begin := time.Now()
	for i := range c.calls {
		if _, err := c.allows(calls[(at+i)%len(calls)]); err != nil {
			return 0, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return float64(time.Since(begin).Nanoseconds()) / float64(c.calls), nil
}

// agree asks every engine every question.
func agree(all []contender, calls []*call) error {
	allowed, err := alike(all, calls)
	if err == nil && (allowed == 0 || allowed == len(calls)) {
		err = fmt.Errorf("all %d answers are alike: the questions prove nothing", len(calls))
	}
	return err
}

// alike fails at the first question that two engines answer differently, and counts the calls that are allowed.
func alike(all []contender, calls []*call) (allowed int, err error) {
	for i, c := range calls {
		want, err := all[0].allows(c)
		if err != nil {
			return 0, err
		}
		for _, other := range all[1:] {
			got, err := other.allows(c)
			if err != nil {
				return 0, fmt.Errorf("%s: question %d: %w", other.name, i, err)
			}
			if got != want {
				return 0, fmt.Errorf("question %d, %s calls %s of %s with %s: %s allows it: %v, %s: %v", i, c.principal, c.item, c.server,
					c.question.Request.Args, all[0].name, want, other.name, got)
			}
		}
		if want {
			allowed++
		}
	}
	return allowed, nil
}

// world is a tenant as MCPVault's compiler makes it, and as Cedar has it.
type world struct {
	out    *compile.Output
	subset *subset
	ours   ours
	cedar  *cedarWorld
}

func newWorld(tenant int, size authz.Size) (*world, error) {
	rows, err := authz.Rows(tenant, size)
	if err != nil {
		return nil, err
	}
	out, err := compile.Compile(rows)
	if err != nil {
		return nil, err
	}
	x, err := index.Open(out.Index)
	if err != nil {
		return nil, err
	}
	w := &world{out: out, ours: ours{[]*index.Index{x}}}
	if w.subset, err = newSubset(out.Policy); err != nil {
		return nil, err
	}
	w.cedar, err = newCedar(out.Policy)
	return w, err
}

// engines prepares the peers for a list of questions.
func (w *world) engines(ctx context.Context, qs []authz.Question) (map[string]engine, []*call, error) {
	calls := make([]*call, len(qs))
	for i := range qs {
		var err error
		if calls[i], err = w.subset.call(w.ours.indexes, qs[i]); err != nil {
			return nil, nil, err
		}
	}
	o, err := newOPA(ctx, w.out.Policy, calls)
	if err != nil {
		return nil, nil, err
	}
	return map[string]engine{"cedar_sliced": newSliced(w.cedar, calls), "cedar_whole": wholeCedar{w.cedar}, "opa": o}, calls, nil
}
