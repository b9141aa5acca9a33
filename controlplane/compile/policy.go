package compile

import (
	"slices"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/snapshot"
)

// policy is the one form that rows lower to. The catalogue was made before it.
func (c *compiler) policy() *snapshot.Policy {
	c.readAhead()
	who := newGraph(c.in)
	p := &snapshot.Policy{Tenant: c.in.Tenant.ID, Principals: who.principals, Nodes: who.nodes}
	for _, g := range inOrder(c.in.Grants, func(g *Grant) string { return g.ID }) {
		c.notice(&g)
		if !who.has(g.Subject) {
			c.note(g.ID, "%s does not exist (any more): the grant reaches nobody", g.Subject)
			continue
		}
		p.Grants = append(p.Grants, c.grant(&g))
	}
	p.Grants = append(p.Grants, c.authored(who)...)
	for i := range p.Grants {
		c.settle(&p.Grants[i], who)
	}
	for _, s := range sorted(c.in.Servers, func(s Server) string { return s.Name }) {
		srv := c.servers[s.Name]
		items, facts := srv.items()
		p.Servers = append(p.Servers, snapshot.Server{Name: s.Name, Items: items, Facts: facts})
	}
	return p
}

// notice makes an item of the prompt or the resource pattern that a grant names, and notes what reaches nothing.
func (c *compiler) notice(g *Grant) {
	if g.Server == "*" {
		for _, t := range g.Terms() {
			if name, _ := endpointOf(t); name != "" && c.endpoints[name] == nil {
				c.note(g.ID, "endpoint %s does not exist (any more): the grant reaches nothing", name)
			}
		}
		return
	}
	s := c.servers[g.Server]
	if s == nil {
		c.note(g.ID, "server %s has no published version: the grant reaches nothing", g.Server)
		return
	}
	if g.Version != 0 && g.Version != s.shown.GetVersion() {
		c.note(g.ID, "version %d of server %s is not the published one: the grant reaches nothing", g.Version, g.Server)
	}
	switch kind, name := snapshot.KindOf(g.Item); {
	case g.Item == "" || g.Item == controlplane.AllTools || g.Item == controlplane.AllPrompts:
	case kind == snapshot.ItemTool && s.tool(name) == nil:
		c.note(g.ID, "server %s has no tool %s in its published version: the grant reaches nothing", g.Server, name)
	case kind == snapshot.ItemPrompt && !slices.Contains(s.prompts, name):
		c.note(g.ID, "server %s has no prompt %s in its published version", g.Server, name)
		s.extra = append(s.extra, g.Item)
	case kind == snapshot.ItemResource:
		s.extra = append(s.extra, g.Item)
	}
}
