package builder_test

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

func TestBuildDoesNotDependOnOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := snapshottest.Policies().Draw(t, "policy")
		want, err := builder.Build(p)
		if err != nil {
			t.Fatal(err)
		}
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		shuffle(r, p.Principals)
		shuffle(r, p.Nodes)
		shuffle(r, p.Servers)
		shuffle(r, p.Grants)
		for i := range p.Principals {
			shuffle(r, p.Principals[i].Nodes)
		}
		for i := range p.Nodes {
			shuffle(r, p.Nodes[i].Parents)
		}
		for i := range p.Servers {
			shuffle(r, p.Servers[i].Items)
		}
		got, err := builder.Build(p)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatal("another order gave other bytes")
		}
	})
}

func shuffle[T any](r *rand.Rand, s []T) {
	r.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
}

func TestBuildNamesTheOffender(t *testing.T) {
	t.Parallel()
	base := func() *snapshot.Policy {
		return &snapshot.Policy{
			Tenant: "t", Principals: []snapshot.Principal{{Name: "alice"}}, Nodes: []snapshot.Node{{Ref: "team:a"}},
			Servers: []snapshot.Server{{Name: "s", Items: []string{"x"}}},
			Grants:  []snapshot.Grant{{ID: "g", Subject: "team:a", Server: "s"}},
		}
	}
	for want, spoil := range map[string]func(p *snapshot.Policy){
		"tenant":                     func(p *snapshot.Policy) { p.Tenant = "" },
		`principal "alice" twice`:    func(p *snapshot.Policy) { p.Principals = append(p.Principals, p.Principals[0]) },
		`node "team:zz" does not`:    func(p *snapshot.Policy) { p.Principals[0].Nodes = []snapshot.Ref{"team:zz"} },
		`node "team:a" twice`:        func(p *snapshot.Policy) { p.Nodes = append(p.Nodes, p.Nodes[0]) },
		`parent "team:zz" does not`:  func(p *snapshot.Policy) { p.Nodes[0].Parents = []snapshot.Ref{"team:zz"} },
		`"team:a" belongs to itself`: func(p *snapshot.Policy) { p.Nodes[0].Parents = []snapshot.Ref{"team:a"} },
		`"everyone" belongs to itsel`: func(p *snapshot.Policy) {
			p.Nodes[0].Parents = []snapshot.Ref{snapshot.Everyone}
			p.Nodes = append([]snapshot.Node{{Ref: snapshot.Everyone, Parents: []snapshot.Ref{"team:a"}}}, p.Nodes...)
		},
		`"user:bob": no such`:      func(p *snapshot.Policy) { p.Nodes = append(p.Nodes, snapshot.Node{Ref: "user:bob"}) },
		`server "s" twice`:         func(p *snapshot.Policy) { p.Servers = append(p.Servers, p.Servers[0]) },
		`server "*"`:               func(p *snapshot.Policy) { p.Servers[0].Name = "*" },
		`item "x" twice`:           func(p *snapshot.Policy) { p.Servers[0].Items = []string{"x", "x"} },
		`grant "g" twice`:          func(p *snapshot.Policy) { p.Grants = append(p.Grants, p.Grants[0]) },
		`subject "user:bob"`:       func(p *snapshot.Policy) { p.Grants[0].Subject = "user:bob" },
		`tool "*other"`:            func(p *snapshot.Policy) { p.Grants[0].Tool = snapshot.ItemOther },
		`grant "g": server: empty`: func(p *snapshot.Policy) { p.Grants[0].Server = "" },
		`grant "g": unknown op`:    func(p *snapshot.Policy) { p.Grants[0].When = &snapshot.Cond{} },
		`grant "g": argument "a": order`: func(p *snapshot.Policy) {
			p.Grants[0].When = &snapshot.Cond{Op: snapshot.OpLt, Arg: "a", Value: snapshot.Value{Type: snapshot.TypeString}}
		},
		`more than 256 nodes`: func(p *snapshot.Policy) {
			c := &snapshot.Cond{Op: snapshot.OpAnd}
			for range 256 {
				c.Kids = append(c.Kids, &snapshot.Cond{Op: snapshot.OpTrue})
			}
			p.Grants[0].When = c
		},
	} {
		p := base()
		spoil(p)
		if _, err := builder.Build(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %s, got %v", want, err)
		}
	}
	if _, err := builder.Build(base()); err != nil {
		t.Error(err)
	}
}

func BenchmarkBuild10k(b *testing.B) {
	p := snapshottest.Large(10_000)
	b.ReportAllocs()
	for b.Loop() {
		raw, err := builder.Build(p)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(len(raw)), "bytes")
	}
}
