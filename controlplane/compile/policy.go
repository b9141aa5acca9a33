package compile

import (
	"slices"

	"github.com/mcpvault/mcpvault/controlplane/policy"
	"github.com/mcpvault/mcpvault/snapshot"
)

func (c *compiler) policy() *snapshot.Policy {
	who := newGraph(c.in)
	p := &snapshot.Policy{Tenant: c.in.Tenant.ID, Principals: who.principals, Nodes: who.nodes}
	for _, s := range sorted(c.in.Servers, func(s Server) string { return s.Name }) {
		items := []string{snapshot.ItemOther}
		for _, t := range c.surfaces[s.Name].GetTools() {
			items = append(items, t.GetName())
		}
		p.Servers = append(p.Servers, snapshot.Server{Name: s.Name, Items: items})
	}
	for _, g := range sorted(c.in.Grants, func(g Grant) string { return g.ID }) {
		if !who.has(g.Subject) {
			c.note(g.ID, "%s does not exist (any more): the grant reaches nobody", g.Subject)
			continue
		}
		p.Grants = append(p.Grants, c.grant(g))
	}
	return p
}

func (c *compiler) grant(g Grant) snapshot.Grant {
	out := snapshot.Grant{ID: g.ID, Deny: g.Deny, Subject: snapshot.Ref(g.Subject), Server: g.Server, Tool: g.Tool}
	if g.Server != "*" && c.surfaces[g.Server] == nil {
		c.note(g.ID, "server %s has no published version: the grant reaches nothing", g.Server)
	} else if _, ok := c.schemas[g.Server][g.Tool]; g.Tool != "" && !ok && g.Server != "*" {
		c.note(g.ID, "server %s has no tool %s in its published version: the grant reaches nothing", g.Server, g.Tool)
	}
	out.When = c.condition(g)
	if !g.ExpiresAt.IsZero() {
		// The cell's own clock ends it: no control plane is needed for a grant to run out.
		before := &snapshot.Cond{Op: snapshot.OpBefore, Value: snapshot.Value{Type: snapshot.TypeNumber, Int: g.ExpiresAt.UnixMilli()}}
		if out.When == nil {
			out.When = before
		} else {
			out.When = &snapshot.Cond{Op: snapshot.OpAnd, Kids: []*snapshot.Cond{before, out.When}}
		}
	}
	return out
}

// condition fails closed: an allow that cannot be evaluated never allows, a deny always denies.
func (c *compiler) condition(g Grant) *snapshot.Cond {
	if g.Condition == "" {
		return nil
	}
	// Conditions repeat, and so do the arguments of tools: most tenants have a few texts on many grants.
	key := lowering{g.Condition, c.shapes[g.Server]}
	if g.Tool != "" {
		key.shape = c.schemas[g.Server][g.Tool].Shape()
	}
	if when, ok := c.lowered[key]; ok {
		return when
	}
	when, err := LowerFor(g.Condition, g.Server, g.Tool, c.schemas[g.Server])
	if err == nil {
		c.lowered[key] = when
		return when
	}
	if g.Deny {
		c.note(g.ID, "the condition cannot be evaluated, so that it always denies: %v", err)
		return nil
	}
	c.note(g.ID, "the condition cannot be evaluated, so that it never allows: %v", err)
	return &snapshot.Cond{Op: snapshot.OpFalse}
}

// LowerFor types a condition against everything that its grant would reach: one tool, or every tool of a server. What it
// returns is the same for each of them. A condition on every server can name no argument.
func LowerFor(condition, server, tool string, schemas map[string]policy.Schema) (*snapshot.Cond, error) {
	if server == "*" {
		return policy.Lower(condition, policy.Schema{Tool: "every server", Problem: "not all tools have the same arguments; name a server and a tool"})
	}
	if tool != "" {
		schema, ok := schemas[tool]
		if !ok {
			schema = policy.Schema{Tool: server + "/" + tool, Problem: "the published version of " + server + " has no such tool"}
		}
		return policy.Lower(condition, schema)
	}
	if len(schemas) == 0 {
		return policy.Lower(condition, policy.Schema{Tool: server, Problem: "it has no published tools"})
	}
	var when *snapshot.Cond
	seen := map[string]bool{}
	names := make([]string, 0, len(schemas))
	for n := range schemas {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
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
