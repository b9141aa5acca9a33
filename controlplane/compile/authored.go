package compile

import (
	"slices"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/policy"
	"github.com/mcpvault/mcpvault/snapshot"
)

// Policy is one text of Cedar policies.
type Policy struct{ Name, Text string }

// World is what there is in a tenant, so that a text can be checked before it becomes law. An error means that a stored
// surface cannot be read.
func World(in Input) (*policy.World, error) {
	c := newCompiler(in)
	if _, err := c.catalogue(); err != nil {
		return nil, err
	}
	return c.world(newGraph(in)), nil
}

func (c *compiler) world(who *graph) *policy.World {
	w := &policy.World{
		Nodes: make(map[snapshot.Ref]bool, len(who.nodes)), Kinds: make(map[string]snapshot.PrincipalKind, len(who.principals)),
		Servers: make(map[string]policy.Surface, len(c.servers)), Endpoints: make(map[string]bool, len(c.endpoints)),
	}
	for _, n := range who.nodes {
		w.Nodes[n.Ref] = true
	}
	for _, p := range who.principals {
		w.Nodes["user:"+snapshot.Ref(p.Name)] = true
		w.Kinds[p.Name] = p.Kind
	}
	for name, s := range c.servers {
		tools, _ := s.schemas(controlplane.AllTools)
		w.Servers[name] = policy.Surface{Tools: tools, Prompts: append([]string{}, s.prompts...)}
	}
	for name := range c.endpoints {
		w.Endpoints[name] = true
	}
	return w
}

// authored lowers the texts. What was valid when it was written may name what is gone by now: a name reaches nobody and
// nothing then, as in Cedar. A condition that can no longer be typed never allows and always denies.
func (c *compiler) authored(who *graph) []snapshot.Grant {
	if len(c.in.Policies) == 0 {
		return nil
	}
	w := c.world(who)
	w.Lenient = true
	var out []snapshot.Grant
	for _, row := range sorted(c.in.Policies, func(p Policy) string { return p.Name }) {
		doc, err := policy.Parse(row.Name, row.Text)
		if err != nil {
			// Nobody can tell what it forbids.
			id := policy.GrantID(row.Name, "unreadable")
			c.note(id, "the policy cannot be read, so that everything is denied: %v", err)
			out = append(out, snapshot.Grant{ID: id, Deny: true, Subject: snapshot.Everyone, Server: "*"})
			continue
		}
		for _, p := range doc.Policies {
			if g, ok := c.authoredGrant(p, w, who); ok {
				out = append(out, g)
			}
		}
	}
	return out
}

func (c *compiler) authoredGrant(p *policy.Policy, w *policy.World, who *graph) (snapshot.Grant, bool) {
	g, err := p.Lower(w)
	switch {
	case err != nil && p.Deny:
		c.note(g.ID, "the condition cannot be evaluated, so that it always denies: %v", err)
	case err != nil:
		c.note(g.ID, "the condition cannot be evaluated, so that it never allows: %v", err)
		return g, false
	}
	if !who.has(string(g.Subject)) {
		c.note(g.ID, "%s does not exist (any more): the policy reaches nobody", g.Subject)
		return g, false
	}
	c.notice(&Grant{ID: g.ID, Target: controlplane.Target{Server: g.Server, Item: g.Tool}})
	return g, true
}

// settle makes a rule what builder.Build takes: nobody belongs to what does not exist, and what no cell could evaluate fails
// closed.
func (c *compiler) settle(g *snapshot.Grant, who *graph) {
	gone := slices.DeleteFunc(policy.Members(g.When), who.has)
	if len(gone) > 0 {
		slices.Sort(gone)
		for _, ref := range slices.Compact(gone) {
			c.note(g.ID, "%s does not exist (any more): nobody belongs to it", ref)
		}
		g.When = withoutMembers(g.When, who)
	}
	if err := g.When.Validate(); err != nil {
		c.note(g.ID, "the condition cannot be evaluated, so that it fails closed: %v", err)
		if g.When = nil; !g.Deny {
			g.When = &snapshot.Cond{Op: snapshot.OpFalse}
		}
	}
}

// withoutMembers is a copy: conditions are shared between grants.
func withoutMembers(cond *snapshot.Cond, who *graph) *snapshot.Cond {
	if cond.Op == snapshot.OpMember && !who.has(cond.Arg) {
		return &snapshot.Cond{Op: snapshot.OpFalse}
	}
	out := *cond
	out.Kids = make([]*snapshot.Cond, len(cond.Kids))
	for i, k := range cond.Kids {
		out.Kids[i] = withoutMembers(k, who)
	}
	return &out
}
