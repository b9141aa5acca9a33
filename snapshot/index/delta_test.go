package index_test

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

// edit changes a policy as an administrator would, leaving servers as they are.
func edit(t *rapid.T, p *snapshot.Policy, next *snapshot.Policy) {
	switch rapid.IntRange(0, 5).Draw(t, "edit") {
	case 0: // other grants
		p.Grants = keepGrants(p, next.Grants)
	case 1: // one grant less
		if len(p.Grants) > 0 {
			i := rapid.IntRange(0, len(p.Grants)-1).Draw(t, "grant")
			p.Grants = append(append([]snapshot.Grant(nil), p.Grants[:i]...), p.Grants[i+1:]...)
		}
	case 2: // one grant more, under a name of its own
		if more := keepGrants(p, next.Grants); len(more) > 0 {
			g := more[0]
			g.ID = "more" + rapid.StringMatching("[a-z]{12}").Draw(t, "id")
			p.Grants = append(append([]snapshot.Grant(nil), p.Grants...), g)
		}
	case 3: // somebody comes, or changes
		u := snapshot.Principal{Name: rapid.SampledFrom([]string{"u0", "u1", "new", "newer"}).Draw(t, "name"), Clearance: 2, Region: "eu"}
		for _, n := range p.Nodes {
			if rapid.Bool().Draw(t, "member") && n.Ref != snapshot.Everyone {
				u.Nodes = append(u.Nodes, n.Ref)
			}
		}
		list := []snapshot.Principal{u}
		for _, o := range p.Principals {
			if o.Name != u.Name {
				list = append(list, o)
			}
		}
		p.Principals = list
	case 4: // somebody goes
		list := slices.Clone(p.Principals[1:])
		if len(list) > 0 {
			p.Principals = list
			p.Grants = keepGrants(p, p.Grants)
			p.Nodes = keepNodes(p)
		}
	case 5: // a node hangs elsewhere
		if len(p.Nodes) > 1 {
			nodes := append([]snapshot.Node(nil), p.Nodes...)
			i := rapid.IntRange(0, len(nodes)-1).Draw(t, "node")
			nodes[i].Parents = nil
			p.Nodes = nodes
		}
	}
}

// known are the refs that a policy defines.
func known(p *snapshot.Policy) map[snapshot.Ref]bool {
	refs := map[snapshot.Ref]bool{snapshot.Everyone: true}
	for _, n := range p.Nodes {
		refs[n.Ref] = true
	}
	for _, u := range p.Principals {
		refs[snapshot.Ref("user:"+u.Name)] = true
	}
	return refs
}

func keepNodes(p *snapshot.Policy) []snapshot.Node {
	refs := known(p)
	var out []snapshot.Node
	for _, n := range p.Nodes {
		var up []snapshot.Ref
		for _, r := range n.Parents {
			if refs[r] {
				up = append(up, r)
			}
		}
		out = append(out, snapshot.Node{Ref: n.Ref, Parents: up})
	}
	return out
}

// keepGrants are those of a list that the policy can hold.
func keepGrants(p *snapshot.Policy, list []snapshot.Grant) []snapshot.Grant {
	refs := known(p)
	var fits func(c *snapshot.Cond) bool
	fits = func(c *snapshot.Cond) bool {
		if c == nil {
			return true
		}
		if c.Op == snapshot.OpMember && !refs[snapshot.Ref(c.Arg)] {
			return false
		}
		for _, k := range c.Kids {
			if !fits(k) {
				return false
			}
		}
		return true
	}
	var out []snapshot.Grant
	for _, g := range list {
		if refs[g.Subject] && fits(g.When) {
			out = append(out, g)
		}
	}
	return out
}

func built(t *rapid.T, p *snapshot.Policy) *index.Index {
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

// Base and deltas are the policy, whatever was done to it: they have the state of a fresh build, decide as the twin does,
// show the same, and name the same grants.
func TestBaseAndDeltasAreAFreshBuild(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := snapshottest.Policies().Draw(t, "policy")
		live := built(t, p)
		base := live
		for range rapid.IntRange(1, 6).Draw(t, "deltas") {
			edit(t, p, snapshottest.Policies().Draw(t, "other"))
			fresh := built(t, p)
			d, err := index.Diff(live, fresh)
			if err != nil {
				t.Fatalf("diff: %v", err)
			}
			wire, err := proto.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			d = &snapshotv1.Delta{}
			if err := proto.Unmarshal(wire, d); err != nil {
				t.Fatal(err)
			}
			next, err := index.Apply(live, d)
			if err != nil {
				t.Fatalf("apply: %v", err)
			}
			if next.StateHash() != fresh.StateHash() {
				t.Fatalf("state %v, want %v", next.StateHash(), fresh.StateHash())
			}
			if again, err := index.Diff(next, fresh); err != nil || size(again) != 0 {
				t.Fatalf("after the delta there is still something to do: %v %v", again, err)
			}
			agree(t, p, next, fresh)
			live = next
		}
		_ = base.StateHash()
	})
}

func size(d *snapshotv1.Delta) int {
	return len(d.GetPrograms()) + len(d.GetNodes()) + len(d.GetGrants()) + len(d.GetCells()) + len(d.GetUsers())
}

func agree(t *rapid.T, p *snapshot.Policy, x, fresh *index.Index) {
	twin := snapshottest.Twin{Policy: p}
	for range 8 {
		c := snapshottest.Calls(p, true).Draw(t, "call")
		who, ok := x.Principal(c.Principal)
		s, okS := x.Server(c.Server)
		item, okI := x.Item(s, c.Item)
		if !ok || !okS || !okI {
			t.Fatalf("%+v is not in the index", c)
		}
		v := x.View(who, s)
		got := authz.Decide(&v, item, &c.Request)
		got.Program = 0
		if want := twin.Decide(c.Principal, c.Server, c.Item, &c.Request); got != want {
			t.Fatalf("%+v args %s: index %+v, twin %+v", c, c.Request.Args, got, want)
		}
		if got, want := authz.Visible(&v, item, &c.Request), twin.Visible(c.Principal, c.Server, c.Item, &c.Request); got != want {
			t.Fatalf("%+v: index shows %v, twin %v", c, got, want)
		}
		other, _ := fresh.Principal(c.Principal)
		w := fresh.View(other, s)
		if got, want := rules(x, &v, item), rules(fresh, &w, item); got != want {
			t.Fatalf("%+v: rules %s, fresh build has %s", c, got, want)
		}
	}
}

func rules(x *index.Index, v *index.View, item index.ItemID) string {
	all := map[string]bool{}
	for r := range x.Rules(v, item) {
		all[fmt.Sprintf("%s via %s deny %v cond %v", r.Grant, r.Via, r.Deny, r.Cond != 0)] = true
	}
	return fmt.Sprint(all)
}
