package policy

import (
	"errors"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"

	"github.com/mcpvault/mcpvault/controlplane/policy/syntax"
	"github.com/mcpvault/mcpvault/snapshot"
)

// scope reads what stands in the brackets of a policy: who, what is done, and to what.
type scope struct {
	l     *lowerer
	find  *syntax.Locator
	grant snapshot.Grant
	// parts are what the scope asks for beyond the grant's own fields.
	parts []*snapshot.Cond
	// kinds are the items that the action and the resource leave.
	kinds []snapshot.ItemKind
	at    syntax.Place // of the resource
}

func (s *scope) read(p *Policy) error {
	s.find.Find(syntax.Sign, "(")
	s.find.Find(syntax.Word, "principal")
	if err := s.principal(p.ast.Principal); err != nil {
		return err
	}
	s.find.Find(syntax.Word, "action")
	if err := s.action(p.ast.Action); err != nil {
		return err
	}
	s.at = s.find.Find(syntax.Word, "resource")
	if err := s.resource(p.ast.Resource); err != nil {
		return err
	}
	if len(s.kinds) == 0 {
		return refuse(s.at, "a Tool is called, a Prompt is got, a Resource is read", "the action cannot be done to the resource: the policy reaches nothing")
	}
	if _, one := snapshot.KindOf(s.grant.Tool); len(s.kinds) < 4 && one == "" {
		s.parts = append(s.parts, kindCond(s.kinds))
	}
	s.l.kinds = s.kinds
	s.find.Find(syntax.Sign, ")")
	s.arguments()
	return nil
}

func (s *scope) principal(n xast.IsPrincipalScopeNode) error {
	in := func(uid types.EntityUID) error {
		ref, err := s.l.world.node(uid, s.find.Value(uid))
		s.grant.Subject = ref
		return err
	}
	is := func(t types.EntityType) error {
		if err := s.l.checkType("principal", t, s.find.Find(syntax.Word, string(t))); err != nil {
			return err
		}
		s.parts = append(s.parts, typeCond("principal", t))
		return nil
	}
	switch v := n.(type) {
	case xast.ScopeTypeEq:
		if _, ok := principalTypes[v.Entity.Type]; !ok {
			return refuse(s.find.Value(v.Entity), "write principal in "+v.Entity.String(), "a principal is never a %s itself", v.Entity.Type)
		}
		return in(v.Entity)
	case xast.ScopeTypeIn:
		return in(v.Entity)
	case xast.ScopeTypeIs:
		return is(v.Type)
	case xast.ScopeTypeIsIn:
		if err := is(v.Type); err != nil {
			return err
		}
		return in(v.Entity)
	}
	return nil
}

func (s *scope) action(n xast.IsActionScopeNode) error {
	var list []types.EntityUID
	switch v := n.(type) {
	case xast.ScopeTypeEq:
		list = append(list, v.Entity)
	case xast.ScopeTypeIn:
		list = append(list, v.Entity)
	case xast.ScopeTypeInSet:
		list = v.Entities
	default:
		s.kinds = []snapshot.ItemKind{snapshot.ItemTool, snapshot.ItemPrompt, snapshot.ItemResource, snapshot.ItemRest}
		return nil
	}
	for _, uid := range list {
		if err := checkAction(uid, s.find.Value(uid)); err != nil {
			return err
		}
		if k := actions[uid.ID]; !slices.Contains(s.kinds, k) {
			s.kinds = append(s.kinds, k)
		}
	}
	slices.Sort(s.kinds)
	return nil
}

func (s *scope) resource(n xast.IsResourceScopeNode) error {
	switch v := n.(type) {
	case xast.ScopeTypeEq:
		if !isItem(v.Entity.Type) {
			return refuse(s.find.Value(v.Entity), "write resource in "+v.Entity.String(), "a resource is never a %s itself", v.Entity.Type)
		}
		return s.within(v.Entity)
	case xast.ScopeTypeIn:
		return s.within(v.Entity)
	case xast.ScopeTypeIs:
		return s.is(v.Type)
	case xast.ScopeTypeIsIn:
		if err := s.is(v.Type); err != nil {
			return err
		}
		return s.within(v.Entity)
	}
	return nil
}

func (s *scope) is(t types.EntityType) error {
	if err := s.l.checkType("resource", t, s.find.Find(syntax.Word, string(t))); err != nil {
		return err
	}
	s.only(itemTypes[t])
	return nil
}

func (s *scope) only(kind snapshot.ItemKind) {
	s.kinds = slices.DeleteFunc(s.kinds, func(k snapshot.ItemKind) bool { return k != kind })
}

func (s *scope) within(uid types.EntityUID) error {
	at := s.find.Value(uid)
	switch {
	case uid.Type == "Server":
		s.grant.Server = string(uid.ID)
		return s.l.world.server(string(uid.ID), at)
	case uid.Type == "Endpoint":
		c, err := s.l.scope(uid, at)
		s.parts = append(s.parts, c)
		if err != nil {
			return err
		}
		return s.l.world.endpoint(string(uid.ID), at)
	case !isItem(uid.Type):
		return refuse(at, "name a Server, an Endpoint, a Tool, a Prompt or a Resource", "%s is no resource and nothing that a resource belongs to", uid.Type)
	}
	server, item, err := s.l.world.item(uid, at)
	if err != nil {
		return err
	}
	s.only(itemTypes[uid.Type])
	if s.grant.Server = server; item != snapshot.ItemOther {
		s.grant.Tool = item
	}
	return nil
}

// arguments settles whether context.args can be named.
func (s *scope) arguments() {
	if s.l.world.Lenient {
		return
	}
	if !slices.Equal(s.kinds, []snapshot.ItemKind{snapshot.ItemTool}) {
		s.l.noArgs = "only a call has arguments, and this policy is about more: they are not known there"
		s.l.noArgsFix = `write action == Action::"call", or make a policy of its own for calls`
		return
	}
	if s.grant.Server == "*" {
		s.l.noArgs = "not all tools have the same arguments"
		s.l.noArgsFix = `name a tool, resource == Tool::"SERVER/NAME", or a server`
	}
}

// tools are the schemas that arguments are typed against, one of each shape.
func (s *scope) tools() []Schema {
	w := s.l.world
	if s.l.noArgs != "" {
		return []Schema{{}}
	}
	if w.Servers == nil || s.grant.Server == "*" {
		return []Schema{{Tool: "the tool", Open: true}}
	}
	tools := w.Servers[s.grant.Server].Tools
	if s.grant.Tool != "" {
		if tool, ok := tools[s.grant.Tool]; ok {
			return []Schema{tool}
		}
		return []Schema{{Tool: s.grant.Server + "/" + s.grant.Tool, Problem: "it is not published"}}
	}
	if len(tools) == 0 {
		return []Schema{{Tool: s.grant.Server, Problem: "it has no published tools"}}
	}
	var out []Schema
	seen := map[string]bool{}
	for _, name := range keys(tools) {
		shape := tools[name].Shape()
		if shape == "" || !seen[shape] {
			out = append(out, tools[name])
		}
		seen[shape] = true
	}
	return out
}

// everyTool adds to a refusal that the policy reaches more than one tool: each of them must have the arguments.
func (s *scope) everyTool(err error) error {
	var r *Refusal
	server := s.grant.Server
	if !errors.As(err, &r) || s.grant.Tool != "" || s.l.noArgs != "" || !strings.Contains(r.What, s.l.tool.Tool) || len(s.l.world.Servers[server].Tools) < 2 {
		return err
	}
	more := *r
	more.Fix += "; the policy must fit every tool of " + server + ", or name one: resource == Tool::" + quote(server+"/NAME")
	return &more
}
