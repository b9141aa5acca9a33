package authz_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/ast"
	"pgregory.net/rapid"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

// oracle decides with Cedar. What it must not do is skip a deny in error: there MCPVault departs from Cedar.
type oracle struct {
	policies *cedar.PolicySet
	entities cedar.EntityMap
	deny     map[cedar.PolicyID]bool
}

func uid(kind, id string) cedar.EntityUID {
	return cedar.NewEntityUID(cedar.EntityType(kind), cedar.String(id))
}

func newOracle(p *snapshot.Policy) *oracle {
	o := &oracle{policies: cedar.NewPolicySet(), entities: cedar.EntityMap{}, deny: map[cedar.PolicyID]bool{}}
	entity := func(u cedar.EntityUID, parents ...cedar.EntityUID) {
		old := o.entities[u]
		all := slices.Concat(parents, old.Parents.Slice())
		o.entities[u] = cedar.Entity{UID: u, Parents: cedar.NewEntityUIDSet(all...)}
	}
	node := func(r snapshot.Ref) cedar.EntityUID { return uid("Node", string(r)) }
	for _, n := range p.Nodes {
		for _, up := range n.Parents {
			entity(node(n.Ref), node(up))
		}
	}
	for _, u := range p.Principals {
		me := uid("User", u.Name)
		entity(me, node(snapshot.Everyone), node("user:"+snapshot.Ref(u.Name)))
		for _, r := range u.Nodes {
			entity(me, node(r))
		}
	}
	for _, s := range p.Servers {
		for _, it := range append([]string{snapshot.ItemOther}, s.Items...) {
			entity(uid("Item", s.Name+"/"+it), uid("Server", s.Name), uid("Name", it))
		}
	}
	for _, g := range p.Grants {
		pol := ast.Permit()
		if g.Deny {
			pol = ast.Forbid()
		}
		pol = pol.PrincipalIn(node(g.Subject))
		switch {
		case g.Server != "*" && g.Tool != "":
			pol = pol.ResourceEq(uid("Item", g.Server+"/"+g.Tool))
		case g.Server != "*":
			pol = pol.ResourceIn(uid("Server", g.Server))
		case g.Tool != "":
			pol = pol.ResourceIn(uid("Name", g.Tool))
		}
		if g.When != nil {
			pol = pol.When(cedarNode(g.When))
		}
		o.policies.Add(cedar.PolicyID(g.ID), cedar.NewPolicyFromAST(pol))
		o.deny[cedar.PolicyID(g.ID)] = g.Deny
	}
	return o
}

func cedarNode(c *snapshot.Cond) ast.Node {
	args := ast.Context().Access("args")
	now := ast.Context().Access("now")
	arg := func() ast.Node { return args.Access(cedar.String(c.Arg)) }
	switch c.Op {
	case snapshot.OpTrue:
		return ast.True()
	case snapshot.OpFalse:
		return ast.False()
	case snapshot.OpNot:
		return ast.Not(cedarNode(c.Kids[0]))
	case snapshot.OpAnd, snapshot.OpOr:
		n := cedarNode(c.Kids[0])
		for _, k := range c.Kids[1:] {
			if c.Op == snapshot.OpAnd {
				n = n.And(cedarNode(k))
			} else {
				n = n.Or(cedarNode(k))
			}
		}
		return n
	case snapshot.OpBefore:
		return now.LessThan(ast.Long(c.Value.Int))
	case snapshot.OpAfter:
		return now.GreaterThanOrEqual(ast.Long(c.Value.Int))
	case snapshot.OpHas:
		return args.Has(cedar.String(c.Arg))
	case snapshot.OpEq:
		return arg().Equal(cedarConst(c.Value))
	case snapshot.OpNe:
		return arg().NotEqual(cedarConst(c.Value))
	case snapshot.OpLt:
		return arg().LessThan(cedarConst(c.Value))
	case snapshot.OpLe:
		return arg().LessThanOrEqual(cedarConst(c.Value))
	case snapshot.OpGt:
		return arg().GreaterThan(cedarConst(c.Value))
	case snapshot.OpGe:
		return arg().GreaterThanOrEqual(cedarConst(c.Value))
	case snapshot.OpIn:
		var members []ast.Node
		for _, v := range c.Values {
			members = append(members, cedarConst(v))
		}
		return ast.Set(members...).Contains(arg())
	default:
		panic("unknown operator")
	}
}

func cedarConst(v snapshot.Value) ast.Node {
	switch v.Type {
	case snapshot.TypeBool:
		return ast.Boolean(cedar.Boolean(v.Bool))
	case snapshot.TypeString:
		return ast.String(cedar.String(v.Str))
	default:
		return ast.Long(v.Int)
	}
}

func (o *oracle) allows(t *rapid.T, c snapshottest.Call) bool {
	args := cedar.RecordMap{}
	if c.Args != nil {
		var raw map[string]json.RawMessage
		if err := json.Unmarshal(c.Args, &raw); err != nil {
			t.Fatalf("args %s: %v", c.Args, err)
		}
		for k, v := range raw {
			args[cedar.String(k)] = cedarValue(t, v)
		}
	}
	decision, diag := cedar.Authorize(o.policies, o.entities, cedar.Request{
		Principal: uid("User", c.Principal), Action: uid("Action", "call"), Resource: uid("Item", c.Server+"/"+c.Item),
		Context: cedar.NewRecord(cedar.RecordMap{"args": cedar.NewRecord(args), "now": cedar.Long(c.NowMS)}),
	})
	for _, e := range diag.Errors {
		if o.deny[e.PolicyID] {
			return false
		}
	}
	return decision == cedar.Allow
}

func cedarValue(t *rapid.T, raw json.RawMessage) cedar.Value {
	var v any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("value %s: %v", raw, err)
	}
	switch v := v.(type) {
	case string:
		return cedar.String(v)
	case bool:
		return cedar.Boolean(v)
	case json.Number:
		n, err := v.Int64()
		if err != nil {
			t.Fatalf("number %s: %v", v, err)
		}
		return cedar.Long(n)
	}
	t.Fatalf("value %s of a type that Cedar lacks", raw)
	return nil
}

func TestIndexAgreesWithCedar(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := snapshottest.Policies().Draw(t, "policy")
		for i := range p.Principals {
			p.Principals[i].Disabled = false
		}
		x := openOrFatal(t, p)
		o := newOracle(p)
		for range 20 {
			c := snapshottest.Calls(p, false).Draw(t, "call")
			v, item := resolve(t, x, c)
			got := authz.Decide(&v, item, &authz.Request{NowMS: c.NowMS, Args: c.Args})
			if want := o.allows(t, c); got.Allow != want {
				t.Fatalf("%+v args %s: index %+v, Cedar allows %v", c, c.Args, got, want)
			}
		}
	})
}

func BenchmarkCedarWholeSet(b *testing.B) {
	p := snapshottest.Large(1000)
	o := newOracle(p)
	req := cedar.Request{
		Principal: uid("User", p.Principals[5].Name), Action: uid("Action", "call"),
		Resource: uid("Item", p.Servers[1].Name+"/"+p.Servers[1].Items[1]),
		Context: cedar.NewRecord(cedar.RecordMap{
			"args": cedar.NewRecord(cedar.RecordMap{"amount": cedar.Long(50), "region": cedar.String("eu")}), "now": cedar.Long(snapshottest.Now),
		}),
	}
	b.ReportAllocs()
	for b.Loop() {
		_, _ = cedar.Authorize(o.policies, o.entities, req)
	}
}
