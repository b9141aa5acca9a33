// Package authz measures the decision alone: no network, no token, one process. The world is a tenant of a given number of
// users in teams and roles, with about three grants for every ten users, a third of them conditional.
package authz

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/mcpvault/mcpvault/bench/measure"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// Figures is one run. Times are nanoseconds per decision unless the name says otherwise.
type Figures struct {
	Users      int     `json:"users"`
	Grants     int     `json:"grants"`
	ViewP50    int64   `json:"view_p50_ns"`
	ViewP99    int64   `json:"view_p99_ns"`
	ViewMean   float64 `json:"view_mean_ns"`
	ViewAllocs float64 `json:"view_allocs"`
	// Conditional are the live decisions that a condition on arguments settled: their JSON is read each time.
	Conditional float64 `json:"view_conditional_mean_ns"`
	ColdP50     int64   `json:"cold_p50_ns"`
	ColdP99     int64   `json:"cold_p99_ns"`
	ColdMean    float64 `json:"cold_mean_ns"`
	// Listed is how many items that list shows: 50 tools, and what else the server has as one.
	Listed     int     `json:"listed"`
	List50     float64 `json:"list50_ns"`
	BuildMS    float64 `json:"build_ms"`
	OpenMS     float64 `json:"open_ms"`
	IndexBytes int     `json:"index_bytes"`
}

const (
	servers = 40
	tools   = 50
	rounds  = 200_000
)

// Run builds the world and measures it.
func Run(users int) (*Figures, error) {
	rng := rand.New(rand.NewPCG(1, 2)) // a fixed seed: the same world on every machine
	world := World(users, rng)
	begin := time.Now()
	raw, err := index.Build(world)
	if err != nil {
		return nil, err
	}
	f := &Figures{Users: users, Grants: len(world.Grants), IndexBytes: len(raw), BuildMS: ms(time.Since(begin))}
	begin = time.Now()
	x, err := index.Open(raw)
	if err != nil {
		return nil, err
	}
	f.OpenMS = ms(time.Since(begin))
	f.decisions(x, rng)
	return f, nil
}

type question struct {
	p    index.PrincipalID
	s    index.ServerID
	item index.ItemID
	req  authz.Request
}

func (f *Figures) decisions(x *index.Index, rng *rand.Rand) {
	questions := make([]question, 4096)
	views := make([]index.View, len(questions))
	for i := range questions {
		q := &questions[i]
		q.p = index.PrincipalID(rng.IntN(x.Principals()))
		q.s, _ = x.Server(fmt.Sprintf("server-%02d", rng.IntN(servers)))
		q.item, _ = x.Item(q.s, fmt.Sprintf("tool-%02d", rng.IntN(tools)))
		q.req = authz.Request{NowMS: 1_800_000_000_000, Args: fmt.Appendf(nil, `{"amount":%d,"region":"eu"}`, rng.IntN(200))}
		views[i] = x.View(q.p, q.s)
	}
	allowed := 0
	live := func(i int) {
		q := &questions[i%len(questions)]
		if authz.Decide(&views[i%len(questions)], q.item, &q.req).Allow {
			allowed++
		}
	}
	cold := func(i int) {
		q := &questions[i%len(questions)]
		// A stride that is no multiple of anything visits another user each time.
		v := x.View(index.PrincipalID((int(q.p)+i*7919)%x.Principals()), q.s)
		if authz.Decide(&v, q.item, &q.req).Allow {
			allowed++
		}
	}
	d := measure.Each(rounds, live)
	f.ViewP50, f.ViewP99 = measure.Percentile(d, 50).Nanoseconds(), measure.Percentile(d, 99).Nanoseconds()
	f.ViewMean, f.ViewAllocs = mean(live)
	d = measure.Each(rounds, cold)
	f.ColdP50, f.ColdP99 = measure.Percentile(d, 50).Nanoseconds(), measure.Percentile(d, 99).Nanoseconds()
	f.ColdMean, _ = mean(cold)
	var settled []int
	for i := range questions {
		if authz.Decide(&views[i], questions[i].item, &questions[i].req).Program != 0 {
			settled = append(settled, i)
		}
	}
	if len(settled) > 0 {
		f.Conditional, _ = mean(func(i int) { live(settled[i%len(settled)]) })
	}
	f.list(x)
	runtime.KeepAlive(allowed)
}

// list filters all tools of a server for the one user who may see every one of them.
func (f *Figures) list(x *index.Index) {
	p, _ := x.Principal("user-0000000")
	s, _ := x.Server("server-00")
	view := x.View(p, s)
	seen := 0
	f.List50, _ = mean(func(int) {
		for range authz.VisibleItems(&view, &authz.Request{NowMS: 1_800_000_000_000}) {
			seen++
		}
	})
	f.Listed = seen / rounds
}

// mean times a long run as a whole: nanoseconds and allocations a call.
func mean(call func(i int)) (ns, allocs float64) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	begin := time.Now()
	for i := range rounds {
		call(i)
	}
	elapsed := time.Since(begin)
	runtime.ReadMemStats(&after)
	return float64(elapsed.Nanoseconds()) / rounds, float64(after.Mallocs-before.Mallocs) / rounds
}

// World is the policy that is measured.
func World(users int, rng *rand.Rand) *snapshot.Policy {
	p := &snapshot.Policy{Tenant: "018f0000-0000-7000-8000-000000000001"}
	for s := range servers {
		srv := snapshot.Server{Name: fmt.Sprintf("server-%02d", s), Items: []string{snapshot.ItemOther}}
		for t := range tools {
			srv.Items = append(srv.Items, fmt.Sprintf("tool-%02d", t))
		}
		p.Servers = append(p.Servers, srv)
	}
	teams := max(10, users/50)
	for t := range teams {
		n := snapshot.Node{Ref: snapshot.Ref(fmt.Sprintf("team:t%05d", t))}
		if t >= 10 {
			// A tree of five levels and more: each team lies below one with a tenth of its number.
			n.Parents = []snapshot.Ref{snapshot.Ref(fmt.Sprintf("team:t%05d", t/10))}
		}
		p.Nodes = append(p.Nodes, n)
	}
	const roles = 100
	for r := range roles {
		n := snapshot.Node{Ref: snapshot.Ref(fmt.Sprintf("role:r%03d", r))}
		if r >= 10 {
			n.Parents = []snapshot.Ref{snapshot.Ref(fmt.Sprintf("role:r%03d", r/10))}
		}
		p.Nodes = append(p.Nodes, n)
	}
	for u := range users {
		p.Principals = append(p.Principals, snapshot.Principal{
			Name: fmt.Sprintf("user-%07d", u),
			Nodes: []snapshot.Ref{
				snapshot.Ref(fmt.Sprintf("team:t%05d", rng.IntN(teams))),
				snapshot.Ref(fmt.Sprintf("role:r%03d", rng.IntN(roles))),
			},
		})
	}
	p.Grants = append(p.Grants, snapshot.Grant{ID: "all", Subject: "user:user-0000000", Server: "server-00"})
	for g := range users * 292 / 1000 {
		p.Grants = append(p.Grants, grant(g, users, teams, roles, rng))
	}
	return p
}

func grant(g, users, teams, roles int, rng *rand.Rand) snapshot.Grant {
	out := snapshot.Grant{ID: fmt.Sprintf("g%07d", g), Deny: rng.IntN(10) == 0, Server: fmt.Sprintf("server-%02d", rng.IntN(servers))}
	switch rng.IntN(4) {
	case 0:
		out.Subject = snapshot.Ref(fmt.Sprintf("user:user-%07d", rng.IntN(users)))
	case 1:
		out.Subject = snapshot.Ref(fmt.Sprintf("role:r%03d", rng.IntN(roles)))
	default:
		out.Subject = snapshot.Ref(fmt.Sprintf("team:t%05d", rng.IntN(teams)))
	}
	if rng.IntN(4) > 0 {
		out.Tool = fmt.Sprintf("tool-%02d", rng.IntN(tools))
	}
	if rng.IntN(3) == 0 {
		out.When = &snapshot.Cond{Op: snapshot.OpAnd, Kids: []*snapshot.Cond{
			{Op: snapshot.OpLt, Arg: "amount", Value: snapshot.Value{Type: snapshot.TypeNumber, Int: int64(rng.IntN(200))}},
			{Op: snapshot.OpEq, Arg: "region", Value: snapshot.Value{Type: snapshot.TypeString, Str: "eu"}},
		}}
	}
	return out
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
