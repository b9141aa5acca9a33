package authz_test

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"slices"
	"testing"
	"time"

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
	attrs    map[cedar.EntityUID]cedar.Record
	zones    map[string]bool
	deny     map[cedar.PolicyID]bool
}

func cedarFact(f snapshot.Fact) cedar.Value {
	switch f.Type {
	case snapshot.TypeBool:
		return cedar.Boolean(f.Bool)
	case snapshot.TypeNumber:
		return cedar.Long(f.Int)
	case snapshot.TypeSet:
		var members []cedar.Value
		for _, m := range f.Set {
			members = append(members, cedar.String(m))
		}
		return cedar.NewSet(members...)
	default:
		return cedar.String(f.Str)
	}
}

func uid(kind, id string) cedar.EntityUID {
	return cedar.NewEntityUID(cedar.EntityType(kind), cedar.String(id))
}

func newOracle(p *snapshot.Policy) *oracle {
	o := &oracle{
		policies: cedar.NewPolicySet(), entities: cedar.EntityMap{}, deny: map[cedar.PolicyID]bool{},
		attrs: map[cedar.EntityUID]cedar.Record{}, zones: map[string]bool{},
	}
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
		attrs := cedar.RecordMap{
			"name": cedar.String(u.Name), "kind": cedar.String(u.Kind.String()), "clearance": cedar.Long(u.Clearance),
		}
		if u.Region != "" {
			attrs["region"] = cedar.String(u.Region)
		}
		o.attrs[me] = cedar.NewRecord(attrs)
		entity(me, node(snapshot.Everyone), node("user:"+snapshot.Ref(u.Name)))
		for _, r := range u.Nodes {
			entity(me, node(r))
		}
	}
	for _, s := range p.Servers {
		for _, it := range append([]string{snapshot.ItemOther}, s.Items...) {
			item := uid("Item", s.Name+"/"+it)
			entity(item, uid("Server", s.Name), uid("Name", it))
			kind, name := snapshot.KindOf(it)
			attrs := cedar.RecordMap{"name": cedar.String(name), "server": cedar.String(s.Name), "kind": cedar.String(kind.String())}
			for k, f := range s.Facts[it] {
				attrs[cedar.String(k)] = cedarFact(f)
			}
			o.attrs[item] = cedar.NewRecord(attrs)
		}
	}
	for u, attrs := range o.attrs {
		e := o.entities[u]
		e.UID, e.Attributes = u, attrs
		o.entities[u] = e
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
			pol = pol.When(o.node(g.When))
		}
		o.policies.Add(cedar.PolicyID(g.ID), cedar.NewPolicyFromAST(pol))
		o.deny[cedar.PolicyID(g.ID)] = g.Deny
	}
	return o
}

func (o *oracle) node(c *snapshot.Cond) ast.Node {
	now := ast.Context().Access("now")
	record := o.record(c.From, c.Zone)
	arg := func() ast.Node { return record.Access(cedar.String(c.Arg)) }
	right := func() ast.Node {
		if c.With != nil {
			return o.record(c.With.From, "").Access(cedar.String(c.With.Arg))
		}
		return cedarConst(c.Value)
	}
	switch c.Op {
	case snapshot.OpMember:
		return ast.Principal().In(ast.Value(uid("Node", c.Arg)))
	case snapshot.OpInRange:
		return arg().IsInRange(ast.IPExtensionCall(ast.String(cedar.String(c.Value.Str))))
	case snapshot.OpContains:
		return arg().Contains(right())
	case snapshot.OpTrue:
		return ast.True()
	case snapshot.OpFalse:
		return ast.False()
	case snapshot.OpNot:
		return ast.Not(o.node(c.Kids[0]))
	case snapshot.OpAnd, snapshot.OpOr:
		n := o.node(c.Kids[0])
		for _, k := range c.Kids[1:] {
			if c.Op == snapshot.OpAnd {
				n = n.And(o.node(k))
			} else {
				n = n.Or(o.node(k))
			}
		}
		return n
	case snapshot.OpBefore:
		return now.LessThan(ast.Long(c.Value.Int))
	case snapshot.OpAfter:
		return now.GreaterThanOrEqual(ast.Long(c.Value.Int))
	case snapshot.OpHas:
		return record.Has(cedar.String(c.Arg))
	case snapshot.OpEq:
		return arg().Equal(right())
	case snapshot.OpNe:
		return arg().NotEqual(right())
	case snapshot.OpLt:
		return arg().LessThan(right())
	case snapshot.OpLe:
		return arg().LessThanOrEqual(right())
	case snapshot.OpGt:
		return arg().GreaterThan(right())
	case snapshot.OpGe:
		return arg().GreaterThanOrEqual(right())
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

// record is where an operand is read from.
func (o *oracle) record(from snapshot.Source, zone string) ast.Node {
	switch from {
	case snapshot.FromContext:
		return ast.Context()
	case snapshot.FromClock:
		o.zones[zone] = true
		return ast.Context().Access("clock").Access(cedar.String(zone))
	case snapshot.FromPrincipal:
		return ast.Principal()
	case snapshot.FromResource:
		return ast.Resource()
	default:
		return ast.Context().Access("args")
	}
}

func (o *oracle) context(r *authz.Request, args cedar.RecordMap) cedar.Record {
	clocks := cedar.RecordMap{}
	for z := range o.zones {
		loc, err := time.LoadLocation(z)
		if err != nil {
			panic(err)
		}
		t := time.UnixMilli(r.NowMS).In(loc)
		clocks[cedar.String(z)] = cedar.NewRecord(cedar.RecordMap{
			"minute": cedar.Long(t.Hour()*60 + t.Minute()), "hour": cedar.Long(t.Hour()), "weekday": cedar.Long((t.Weekday()+6)%7 + 1),
			"day": cedar.Long(t.Day()), "month": cedar.Long(t.Month()), "year": cedar.Long(t.Year()),
		})
	}
	ctx := cedar.RecordMap{"args": cedar.NewRecord(args), "now": cedar.Long(r.NowMS), "clock": cedar.NewRecord(clocks)}
	if r.Region != "" {
		ctx["region"] = cedar.String(r.Region)
	}
	if r.Actor != "" {
		ctx["actor"] = cedar.String(r.Actor)
	}
	if ip := r.IP.Unmap(); ip.IsValid() {
		ctx["ip"] = cedar.IPAddr(netip.PrefixFrom(ip, ip.BitLen()))
	}
	return cedar.NewRecord(ctx)
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
	if c.Request.Args != nil {
		var raw map[string]json.RawMessage
		if err := json.Unmarshal(c.Request.Args, &raw); err != nil {
			t.Fatalf("args %s: %v", c.Request.Args, err)
		}
		for k, v := range raw {
			args[cedar.String(k)] = cedarValue(t, v)
		}
	}
	decision, diag := cedar.Authorize(o.policies, o.entities, cedar.Request{
		Principal: uid("User", c.Principal), Action: uid("Action", "call"), Resource: uid("Item", c.Server+"/"+c.Item),
		Context: o.context(&c.Request, args),
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
			got := authz.Decide(&v, item, &c.Request)
			if want := o.allows(t, c); got.Allow != want {
				t.Fatalf("%+v args %s: index %+v, Cedar allows %v", c, c.Request.Args, got, want)
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
