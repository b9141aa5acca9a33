// Package authz measures the decision alone: no network, no token, one process.
//
// The world is tenants of 10,000 users each, in units, teams, groups and roles, with 2,920 grants on 40 servers of 50
// tools, a third of them conditional. It starts as the control plane's rows, goes through the product's own compiler and
// a cell's own disk, and is decided on as a cell decides. Everything in it follows from fixed seeds.
package authz

import (
	"math/rand/v2"
	"os"
	"runtime"

	"github.com/mcpvault/mcpvault/bench/measure"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// Config says how much is measured. Zeros take the defaults.
type Config struct {
	// Users is a multiple of TenantUsers, up to 100 tenants.
	Users int
	// Rounds of Calls each are measured of every kind of decision.
	Rounds, Calls int
	// Shards is how many different tenants are compiled at least, and Million how many are opened for a million users.
	Shards, Million int
	// Size is that of every tenant.
	Size Size
	// Note is told what is going on.
	Note func(format string, args ...any)
}

const (
	maxTenants = 100 // a million users
	rounds     = 5
	calls      = 100_000
	shards     = 10
)

// Run makes the world and measures it.
func Run(c Config) (*Figures, error) {
	if c.Users < TenantUsers || c.Users%TenantUsers != 0 || c.Users > maxTenants*TenantUsers {
		return nil, problem.Newf(problem.Invalid, "give 10000, 100000 or 1000000", "%d users are not 1 to 100 tenants of 10,000 users", c.Users)
	}
	c.Rounds, c.Calls, c.Shards, c.Million = or(c.Rounds, rounds), or(c.Calls, calls), or(c.Shards, shards), or(c.Million, maxTenants)
	if c.Size == (Size{}) {
		c.Size = Full()
	}
	dir, err := os.MkdirTemp("", "mcpvault-bench")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	r := &run{
		Config: c, tenants: c.Users / TenantUsers,
		figures: &Figures{Machine: measure.Machine(), Users: c.Users, Tenants: c.Users / TenantUsers},
	}
	if err := r.compile(dir); err != nil {
		return nil, err
	}
	defer func() { _ = r.disk.Close() }()
	if err := r.open(); err != nil {
		return nil, err
	}
	r.decide()
	if err := r.delta(); err != nil {
		return nil, err
	}
	return r.figures, nil
}

func or(n, otherwise int) int {
	if n == 0 {
		return otherwise
	}
	return n
}

// decide measures decisions and lists.
func (r *run) decide() {
	r.Note("deciding")
	rng := rand.New(rand.NewPCG(3, 3))
	r.live(rng)
	r.cold(rng)
	r.list()
}

// live keeps as many views as a busy node has sessions at work.
func (r *run) live(rng *rand.Rand) {
	f := r.figures
	questions := Questions(r.indexes, 4096, rng)
	views := make([]index.View, len(questions))
	var conditional []int
	allowed := 0
	for i := range questions {
		q := &questions[i]
		views[i] = r.indexes[q.Tenant].View(q.Principal, q.Server)
		d := decide(&views[i], q)
		if d.Program != 0 {
			conditional = append(conditional, i)
		}
		if d.Allow {
			allowed++
		}
	}
	f.ConditionalShare = float64(len(conditional)) / float64(len(questions))
	f.AllowedShare = float64(allowed) / float64(len(questions))
	call := func(i int) {
		i %= len(questions)
		decide(&views[i], &questions[i])
	}
	f.ViewP50, f.ViewP99 = r.percentiles(call)
	f.ViewMean, f.ViewAllocs = measure.Mean(r.Rounds, r.Calls, call)
	if len(conditional) > 0 {
		f.ConditionalP50, f.ConditionalP99 = r.percentiles(func(i int) { call(conditional[i%len(conditional)]) })
	}
}

// cold asks each question once a round.
func (r *run) cold(rng *rand.Rand) {
	f := r.figures
	sweep := make([]byte, 256<<20)
	var p50, p99, mean []float64
	for round := range r.Rounds {
		questions := Questions(r.indexes, r.Calls, rng)
		call := func(i int) { questions[i].Decide(r.indexes) }
		sweepCaches(sweep, byte(round))
		d := measure.Each(len(questions), call)
		p50 = append(p50, float64(measure.Percentile(d, 50).Nanoseconds()))
		p99 = append(p99, float64(measure.Percentile(d, 99).Nanoseconds()))
		sweepCaches(sweep, byte(round))
		ns, allocs := measure.Mean(1, len(questions), call)
		mean = append(mean, ns)
		if round == 0 || allocs < f.ColdAllocs {
			f.ColdAllocs = allocs
		}
	}
	f.ColdP50, f.ColdP99, f.ColdMean = measure.Median(p50), measure.Median(p99), measure.Median(mean)
}

// sweepCaches writes over more memory than the processor's caches hold.
func sweepCaches(b []byte, with byte) {
	for i := 0; i < len(b); i += 64 {
		b[i] = with
	}
	runtime.KeepAlive(b)
}

func (r *run) percentiles(call func(i int)) (p50, p99 float64) {
	var a, b []float64
	for range r.Rounds {
		d := measure.Each(r.Calls, call)
		a = append(a, float64(measure.Percentile(d, 50).Nanoseconds()))
		b = append(b, float64(measure.Percentile(d, 99).Nanoseconds()))
	}
	return measure.Median(a), measure.Median(b)
}
