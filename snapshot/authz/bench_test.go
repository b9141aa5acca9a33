package authz_test

import (
	"math/rand/v2"
	"testing"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

var args = []byte(`{"amount":50,"region":"eu","note":"for the books"}`)

type target struct {
	p    index.PrincipalID
	s    index.ServerID
	item index.ItemID
}

// targets are calls spread over all users; half of them go where some grant leads.
func targets(x *index.Index, n int) []target {
	r := rand.New(rand.NewPCG(7, 7))
	out := make([]target, 0, n)
	for len(out) < n {
		t := target{p: index.PrincipalID(r.IntN(x.Principals())), s: index.ServerID(r.IntN(x.Servers()))}
		t.item = index.ItemID(r.IntN(x.ItemCount(t.s)))
		if len(out)%2 == 0 {
			for range 400 {
				s := index.ServerID(r.IntN(x.Servers()))
				v := x.View(t.p, s)
				if authz.VisibleMask(&v, 0, &authz.Request{NowMS: snapshottest.Now}) != 0 {
					t.s, t.item = s, index.ItemID(r.IntN(x.ItemCount(s)))
					break
				}
			}
		}
		out = append(out, t)
	}
	return out
}

func BenchmarkDecideView(b *testing.B) {
	x := build(b, snapshottest.Large(10_000))
	r := &authz.Request{NowMS: snapshottest.Now, Args: args}
	byKind := map[string][]target{}
	for _, t := range targets(x, 20_000) {
		v := x.View(t.p, t.s)
		d := authz.Decide(&v, t.item, r)
		kind := "plain"
		if d.Program != 0 {
			kind = "conditional"
		}
		byKind[kind] = append(byKind[kind], t)
	}
	for _, kind := range []string{"plain", "conditional"} {
		b.Run(kind, func(b *testing.B) {
			ts := byKind[kind][:min(64, len(byKind[kind]))]
			views := make([]index.View, len(ts))
			for i, t := range ts {
				views[i] = x.View(t.p, t.s)
			}
			b.ReportAllocs()
			b.ResetTimer()
			i := 0
			for b.Loop() {
				authz.Decide(&views[i], ts[i].item, r)
				if i++; i == len(ts) {
					i = 0
				}
			}
		})
	}
}

func BenchmarkDecideCold(b *testing.B) {
	p := snapshottest.Large(10_000)
	x := build(b, p)
	r := &authz.Request{NowMS: snapshottest.Now, Args: args}
	ts := targets(x, 50_000)
	b.Run("ids", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			v := x.View(ts[i].p, ts[i].s)
			authz.Decide(&v, ts[i].item, r)
			if i++; i == len(ts) {
				i = 0
			}
		}
	})
	b.Run("names", func(b *testing.B) {
		type names struct{ p, s, item string }
		ns := make([]names, len(ts))
		for i, t := range ts {
			ns[i] = names{x.PrincipalName(t.p), x.ServerName(t.s), x.ItemName(t.s, t.item)}
		}
		b.ReportAllocs()
		b.ResetTimer()
		i := 0
		for b.Loop() {
			p, _ := x.Principal(ns[i].p)
			s, _ := x.Server(ns[i].s)
			item, _ := x.Item(s, ns[i].item)
			v := x.View(p, s)
			authz.Decide(&v, item, r)
			if i++; i == len(ns) {
				i = 0
			}
		}
	})
}

func BenchmarkList50(b *testing.B) {
	p := snapshottest.Large(10_000)
	p.Servers[0].Items = p.Servers[0].Items[:0]
	for i := range 50 {
		p.Servers[0].Items = append(p.Servers[0].Items, "tool_"+string(rune('a'+i/26))+string(rune('a'+i%26)))
	}
	for i := range p.Grants {
		if p.Grants[i].Server == p.Servers[0].Name {
			p.Grants[i].Tool = ""
		}
	}
	p.Grants = append(p.Grants, snapshot.Grant{ID: "zz", Subject: snapshot.Everyone, Server: p.Servers[0].Name})
	x := build(b, p)
	v := x.View(17, 0)
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		for range authz.VisibleItems(&v, &authz.Request{NowMS: snapshottest.Now}) {
			n++
		}
		if n < 50 {
			b.Fatal(n)
		}
	}
}

func TestDecisionDoesNotAllocate(t *testing.T) {
	x := build(t, snapshottest.Large(500))
	r := &authz.Request{NowMS: snapshottest.Now, Args: args}
	ts := targets(x, 500)
	if n := testing.AllocsPerRun(5, func() {
		for _, t := range ts {
			v := x.View(t.p, t.s)
			authz.Decide(&v, t.item, r)
			authz.VisibleMask(&v, 0, &authz.Request{NowMS: r.NowMS})
		}
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}
