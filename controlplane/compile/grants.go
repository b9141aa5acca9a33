package compile

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/policy"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/snapshot"
)

// asked is what the lowered condition of a grant depends on, besides its times: most tenants have a few of them on many
// grants.
type asked struct {
	controlplane.Target
	condition string
	limits    controlplane.Limits
}

// shaped is a condition that is put on tools with these arguments: most tools of a server take the same ones.
type shaped struct{ condition, shape string }

type lowered struct {
	when *snapshot.Cond
	err  error
}

// grant fails closed: an allow that cannot be evaluated never allows, a deny always denies.
func (c *compiler) grant(g *Grant) snapshot.Grant {
	out := snapshot.Grant{ID: g.ID, Deny: g.Deny, Subject: snapshot.Ref(g.Subject), Server: g.Server, Tool: g.Item}
	if g.Item == controlplane.AllTools || g.Item == controlplane.AllPrompts {
		out.Tool = ""
	}
	key := asked{g.Target, g.Condition, g.Limits}
	res, ok := c.lowered[key]
	if !ok {
		var written *snapshot.Cond
		if written, res.err = c.read(g); res.err == nil {
			res.when, res.err = together(g.Target, g.Limits, written)
		}
		c.lowered[key] = res
	}
	switch {
	case res.err == nil:
		out.When = res.when
	case g.Deny:
		c.note(g.ID, "the condition cannot be evaluated, so that it always denies: %v", res.err)
		out.When = all(reaches(g.Target), circumstances(g.Limits))
	default:
		c.note(g.ID, "the condition cannot be evaluated, so that it never allows: %v", res.err)
		out.When = &snapshot.Cond{Op: snapshot.OpFalse}
	}
	// The cell's own clock begins and ends it: no control plane is needed for a grant to run out.
	out.When = all(at(snapshot.OpAfter, g.NotBefore), at(snapshot.OpBefore, g.ExpiresAt), out.When)
	return out
}

// read lowers the condition that somebody wrote.
func (c *compiler) read(g *Grant) (*snapshot.Cond, error) {
	if g.Condition == "" {
		return nil, nil
	}
	var schemas map[string]policy.Schema
	key := shaped{condition: g.Condition}
	if s := c.servers[g.Server]; s != nil {
		schemas, key.shape = s.schemas(g.Item)
	}
	if when, ok := c.written[key]; ok && key.shape != "" {
		return when, nil
	}
	when, err := LowerFor(g.Condition, g.Target, schemas)
	if err == nil {
		c.written[key] = when
	}
	return when, err
}

// Lower turns what a grant asks for, its times left out, into a condition. Every argument is typed against the schemas of
// the tools that the grant reaches; its error is a problem. nil asks for nothing.
func Lower(t controlplane.Target, condition string, limits controlplane.Limits, schemas map[string]policy.Schema) (*snapshot.Cond, error) {
	var written *snapshot.Cond
	if condition != "" {
		var err error
		if written, err = LowerFor(condition, t, schemas); err != nil {
			return nil, err
		}
	}
	return together(t, limits, written)
}

func together(t controlplane.Target, limits controlplane.Limits, written *snapshot.Cond) (*snapshot.Cond, error) {
	when := all(reaches(t), circumstances(limits), written)
	// Two places are left for the times.
	if count(when) > snapshot.MaxCondNodes-3 {
		return nil, problem.Newf(problem.Invalid, "split it into several grants", "the grant asks for more than %d things at once", snapshot.MaxCondNodes-3)
	}
	return when, nil
}

// reaches is what narrows a target beyond its server and item. What a fact is not known of is not reached.
func reaches(t controlplane.Target) *snapshot.Cond {
	var parts []*snapshot.Cond
	if t.Version != 0 {
		parts = append(parts, fact(snapshot.OpEq, "version", number(int64(t.Version))))
	}
	if t.Item == controlplane.AllPrompts {
		parts = append(parts, fact(snapshot.OpEq, "kind", text(snapshot.ItemPrompt.String())))
	}
	terms := t.Terms()
	if t.Item == controlplane.AllTools || len(terms) > 0 && terms[0].Fact != controlplane.FactEndpoint {
		parts = append(parts, fact(snapshot.OpEq, "kind", text(snapshot.ItemTool.String())))
	}
	for _, term := range terms {
		parts = append(parts, lowerTerm(term)...)
	}
	return all(parts...)
}

func lowerTerm(t controlplane.Term) []*snapshot.Cond {
	name, value, op := t.Fact, text(t.Value), snapshot.OpEq
	if slices.Contains(controlplane.Hints(), t.Fact) {
		value = snapshot.Value{Type: snapshot.TypeBool, Bool: t.Value == "true"}
	}
	if key, ok := t.Label(); ok {
		name = factLabel + key
	}
	if endpoint, pattern := endpointOf(t); endpoint != "" {
		name, value, op = factEndpoints, text(endpoint), snapshot.OpContains
		if pattern != "" {
			name, value = factAccess, text(endpoint+":"+pattern)
		}
	}
	return []*snapshot.Cond{fact(snapshot.OpHas, name, snapshot.Value{}), fact(op, name, value)}
}

// endpointOf is the endpoint that a term asks for, and the pattern, which may be "".
func endpointOf(t controlplane.Term) (name, pattern string) {
	if t.Fact != controlplane.FactEndpoint {
		return "", ""
	}
	name, pattern, _ = strings.Cut(t.Value, "/")
	return name, pattern
}

// circumstances lowers limits.
func circumstances(l controlplane.Limits) *snapshot.Cond {
	if l.IsZero() {
		return nil
	}
	var networks []*snapshot.Cond
	for _, n := range controlplane.List(l.Networks) {
		networks = append(networks, &snapshot.Cond{Op: snapshot.OpInRange, From: snapshot.FromContext, Arg: "ip", Value: text(n)})
	}
	parts := []*snapshot.Cond{anyOf(networks...), window(l)}
	if regions := controlplane.List(l.Regions); len(regions) > 0 {
		in := &snapshot.Cond{Op: snapshot.OpIn, From: snapshot.FromContext, Arg: "region"}
		for _, r := range regions {
			in.Values = append(in.Values, text(r))
		}
		parts = append(parts, in)
	}
	if l.Clearance {
		within := fact(snapshot.OpLe, factClass, snapshot.Value{})
		within.With = &snapshot.Operand{From: snapshot.FromPrincipal, Arg: "clearance"}
		parts = append(parts, within)
	}
	if l.NotActing {
		acting := &snapshot.Cond{Op: snapshot.OpHas, From: snapshot.FromContext, Arg: "actor"}
		parts = append(parts, &snapshot.Cond{Op: snapshot.OpNot, Kids: []*snapshot.Cond{acting}})
	}
	return all(parts...)
}

// window is the hours and days. One that goes over midnight belongs to the day on which it begins.
func window(l controlplane.Limits) *snapshot.Cond {
	if l.Zone == "" {
		return nil
	}
	clock := func(op snapshot.Op, field string, v int64) *snapshot.Cond {
		return &snapshot.Cond{Op: op, From: snapshot.FromClock, Arg: field, Zone: l.Zone, Value: number(v)}
	}
	on := func(mask uint8) *snapshot.Cond {
		in := &snapshot.Cond{Op: snapshot.OpIn, From: snapshot.FromClock, Arg: "weekday", Zone: l.Zone}
		for d := range 7 {
			if mask&(1<<d) != 0 {
				in.Values = append(in.Values, number(int64(d+1)))
			}
		}
		if len(in.Values) == 7 {
			return nil
		}
		return in
	}
	var from, to *snapshot.Cond
	if l.From > 0 {
		from = clock(snapshot.OpGe, "minute", int64(l.From))
	}
	if l.To < 24*60 {
		to = clock(snapshot.OpLt, "minute", int64(l.To))
	}
	if l.From < l.To {
		return all(on(l.Weekdays), from, to)
	}
	next := (l.Weekdays<<1 | l.Weekdays>>6) & (1<<7 - 1)
	return anyOf(all(on(l.Weekdays), from), all(on(next), to))
}

func fact(op snapshot.Op, name string, v snapshot.Value) *snapshot.Cond {
	return &snapshot.Cond{Op: op, From: snapshot.FromResource, Arg: name, Value: v}
}

func text(s string) snapshot.Value { return snapshot.Value{Type: snapshot.TypeString, Str: s} }

func number(n int64) snapshot.Value { return snapshot.Value{Type: snapshot.TypeNumber, Int: n} }

// at compares the decision's time; nil for no time.
func at(op snapshot.Op, when time.Time) *snapshot.Cond {
	if when.IsZero() {
		return nil
	}
	return &snapshot.Cond{Op: op, Value: number(when.UnixMilli())}
}

// all is every part that there is; nil when there is none.
func all(parts ...*snapshot.Cond) *snapshot.Cond { return joined(snapshot.OpAnd, parts) }

func anyOf(parts ...*snapshot.Cond) *snapshot.Cond { return joined(snapshot.OpOr, parts) }

// joined lists the kids of a part that joins in the same way, so that conditions stay flat.
func joined(op snapshot.Op, parts []*snapshot.Cond) *snapshot.Cond {
	var kids []*snapshot.Cond
	for _, p := range parts {
		switch {
		case p == nil:
		case p.Op == op:
			kids = append(kids, p.Kids...)
		default:
			kids = append(kids, p)
		}
	}
	switch len(kids) {
	case 0:
		return nil
	case 1:
		return kids[0]
	}
	return &snapshot.Cond{Op: op, Kids: kids}
}

func count(c *snapshot.Cond) int {
	if c == nil {
		return 0
	}
	n := 1
	for _, k := range c.Kids {
		n += count(k)
	}
	return n
}

// LowerFor types a condition against everything that its grant would reach: one tool, or every tool of a server. What it
// returns is the same for each of them. A condition on every server, on a prompt or on a resource can name no argument.
func LowerFor(condition string, t controlplane.Target, schemas map[string]policy.Schema) (*snapshot.Cond, error) {
	if t.Server == "*" {
		return policy.Lower(condition, policy.Schema{Tool: "every server", Problem: "not all tools have the same arguments; name a server and a tool"})
	}
	kind, name := snapshot.KindOf(t.Item)
	switch {
	case t.Item == "" || t.Item == controlplane.AllTools:
	case kind != snapshot.ItemTool:
		return policy.Lower(condition, policy.Schema{Tool: t.String(), Problem: "only tools have arguments that a condition can name"})
	default:
		schema, ok := schemas[name]
		if !ok {
			schema = policy.Schema{Tool: t.Server + "/" + name, Problem: "the published version of " + t.Server + " has no such tool"}
		}
		return policy.Lower(condition, schema)
	}
	if len(schemas) == 0 {
		return policy.Lower(condition, policy.Schema{Tool: t.Server, Problem: "it has no published tools"})
	}
	var when *snapshot.Cond
	seen := map[string]bool{}
	for _, n := range slices.Sorted(maps.Keys(schemas)) {
		shape := schemas[n].Shape()
		if shape != "" && seen[shape] {
			continue
		}
		seen[shape] = true
		var err error
		if when, err = policy.Lower(condition, schemas[n]); err != nil {
			return nil, err
		}
	}
	return when, nil
}
