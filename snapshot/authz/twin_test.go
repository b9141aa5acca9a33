package authz_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

func build(t testing.TB, p *snapshot.Policy) *index.Index {
	t.Helper()
	b, err := builder.Build(p)
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func resolve(t interface{ Fatalf(string, ...any) }, x *index.Index, c snapshottest.Call) (index.View, index.ItemID) {
	p, ok1 := x.Principal(c.Principal)
	s, ok2 := x.Server(c.Server)
	item, ok3 := x.Item(s, c.Item)
	if !ok1 || !ok2 || !ok3 {
		t.Fatalf("%+v is not in the index: %v %v %v", c, ok1, ok2, ok3)
	}
	return x.View(p, s), item
}

func openOrFatal(t *rapid.T, p *snapshot.Policy) *index.Index {
	b, err := builder.Build(p)
	if err != nil {
		t.Fatalf("build: %v", err)
	}
	x, err := index.Open(b)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return x
}

func TestIndexAgreesWithTwin(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := snapshottest.Policies().Draw(t, "policy")
		x := openOrFatal(t, p)
		twin := snapshottest.Twin{Policy: p}
		for range 30 {
			c := snapshottest.Calls(p, true).Draw(t, "call")
			v, item := resolve(t, x, c)
			got := authz.Decide(&v, item, &c.Request)
			got.Program = 0
			if want := twin.Decide(c.Principal, c.Server, c.Item, &c.Request); got != want {
				t.Fatalf("%+v args %s: index %+v, twin %+v", c, c.Request.Args, got, want)
			}
			if got, want := authz.Visible(&v, item, &c.Request), twin.Visible(c.Principal, c.Server, c.Item, &c.Request); got != want {
				t.Fatalf("%+v: index shows %v, twin %v", c, got, want)
			}
			if got.Allow && (!got.Visible || !authz.Visible(&v, item, &c.Request)) {
				t.Fatalf("%+v: allowed but hidden", c)
			}
		}
	})
}

func TestVisibleItemsAreThoseThatAreVisible(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := snapshottest.Policies().Draw(t, "policy")
		x := openOrFatal(t, p)
		twin := snapshottest.Twin{Policy: p}
		for i := range x.Principals() {
			for s := range x.Servers() {
				v := x.View(index.PrincipalID(i), index.ServerID(s))
				shown := map[string]bool{}
				for item := range authz.VisibleItems(&v, &authz.Request{NowMS: snapshottest.Now}) {
					shown[x.ItemName(v.Server(), item)] = true
				}
				for _, name := range x.Items(v.Server()) {
					want := twin.Visible(x.PrincipalName(v.Principal()), x.ServerName(v.Server()), name, &authz.Request{NowMS: snapshottest.Now})
					if shown[name] != want {
						t.Fatalf("%s: shown %v, want %v", name, shown[name], want)
					}
				}
			}
		}
	})
}
