package main

import (
	"fmt"
	"iter"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"

	"github.com/mcpvault/mcpvault/snapshot"
)

// cedarWorld is a policy as Cedar: who belongs where as entities, each grant a policy.
type cedarWorld struct {
	entities cedar.EntityMap
	whole    *cedar.PolicySet
	policies map[cedar.PolicyID]*cedar.Policy
	// by finds the policies that can speak about a principal's node and a server; above are the nodes of a principal.
	by    map[[2]string][]cedar.PolicyID
	above map[string][]string
}

func uid(kind, id string) cedar.EntityUID {
	return cedar.NewEntityUID(cedar.EntityType(kind), cedar.String(id))
}

// suspended is the node of everybody who is switched off.
const suspended = "suspended"

func newCedar(p *snapshot.Policy) (*cedarWorld, error) {
	w := &cedarWorld{
		entities: cedar.EntityMap{}, whole: cedar.NewPolicySet(), policies: map[cedar.PolicyID]*cedar.Policy{},
		by: map[[2]string][]cedar.PolicyID{}, above: map[string][]string{},
	}
	parents := map[string][]string{}
	for _, n := range p.Nodes {
		for _, up := range n.Parents {
			parents[string(n.Ref)] = append(parents[string(n.Ref)], string(up))
		}
		w.entity("Node", string(n.Ref), parents[string(n.Ref)])
	}
	for _, u := range p.Principals {
		direct := []string{string(snapshot.Everyone), "user:" + u.Name}
		for _, r := range u.Nodes {
			direct = append(direct, string(r))
		}
		if u.Disabled {
			direct = append(direct, suspended)
		}
		w.entity("User", u.Name, direct)
		w.above[u.Name] = closure(direct, parents)
	}
	for _, s := range p.Servers {
		for _, it := range s.Items {
			item := uid("Item", s.Name+"/"+it)
			w.entities[item] = cedar.Entity{UID: item, Parents: cedar.NewEntityUIDSet(uid("Server", s.Name))}
		}
	}
	w.add("suspended", suspended, "*", ast.Forbid().PrincipalIn(uid("Node", suspended)))
	for _, g := range p.Grants {
		if err := w.grant(g); err != nil {
			return nil, fmt.Errorf("grant %s as Cedar: %w", g.ID, err)
		}
	}
	return w, nil
}

func (w *cedarWorld) entity(kind, name string, parents []string) {
	var up []cedar.EntityUID
	for _, p := range parents {
		up = append(up, uid("Node", p))
	}
	e := uid(kind, name)
	w.entities[e] = cedar.Entity{UID: e, Parents: cedar.NewEntityUIDSet(up...)}
}

// closure is a list of nodes and all that is above them.
func closure(direct []string, parents map[string][]string) (all []string) {
	seen := map[string]bool{}
	for todo := direct; len(todo) > 0; todo = todo[1:] {
		if !seen[todo[0]] {
			seen[todo[0]] = true
			all = append(all, todo[0])
			todo = append(todo[:len(todo):len(todo)], parents[todo[0]]...)
		}
	}
	return all
}

func (w *cedarWorld) grant(g snapshot.Grant) error {
	pol := ast.Permit()
	if g.Deny {
		pol = ast.Forbid()
	}
	pol = pol.PrincipalIn(uid("Node", string(g.Subject)))
	switch {
	case g.Server != "*" && g.Tool != "":
		pol = pol.ResourceEq(uid("Item", g.Server+"/"+g.Tool))
	case g.Server != "*":
		pol = pol.ResourceIn(uid("Server", g.Server))
	case g.Tool != "":
		return fmt.Errorf("one tool of every server is not in the shared subset")
	}
	if g.When != nil {
		pol = pol.When(cedarNode(g.When))
	}
	w.add(g.ID, string(g.Subject), g.Server, pol)
	return nil
}

func (w *cedarWorld) add(id, node, server string, pol *ast.Policy) {
	name, compiled := cedar.PolicyID(id), cedar.NewPolicyFromAST(pol)
	w.policies[name] = compiled
	w.whole.Add(name, compiled)
	at := [2]string{node, server}
	w.by[at] = append(w.by[at], name)
}

// cedarNode is a condition as a Cedar expression. newSubset has refused what it does not know.
func cedarNode(c *snapshot.Cond) ast.Node {
	var operand ast.Node
	if c.From == snapshot.FromClock {
		operand = ast.Context().Access("clock").Access(types.String(c.Zone)).Access(types.String(c.Arg))
	} else {
		operand = ast.Context().Access("args").Access(types.String(c.Arg))
	}
	now := ast.Context().Access("now")
	switch c.Op {
	case snapshot.OpTrue:
		return ast.True()
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
	case snapshot.OpInRange:
		return ast.Context().Access("ip").IsInRange(ast.IPAddr(network(c.Value.Str)))
	case snapshot.OpEq:
		return operand.Equal(cedarConst(c.Value))
	case snapshot.OpNe:
		return operand.NotEqual(cedarConst(c.Value))
	case snapshot.OpLt:
		return operand.LessThan(cedarConst(c.Value))
	case snapshot.OpLe:
		return operand.LessThanOrEqual(cedarConst(c.Value))
	case snapshot.OpGt:
		return operand.GreaterThan(cedarConst(c.Value))
	case snapshot.OpGe:
		return operand.GreaterThanOrEqual(cedarConst(c.Value))
	case snapshot.OpIn:
		var members []ast.Node
		for _, v := range c.Values {
			members = append(members, cedarConst(v))
		}
		return ast.Set(members...).Contains(operand)
	default:
		return ast.False()
	}
}

func cedarConst(v snapshot.Value) ast.Node {
	switch v.Type {
	case snapshot.TypeBool:
		return ast.Boolean(types.Boolean(v.Bool))
	case snapshot.TypeString:
		return ast.String(types.String(v.Str))
	default:
		return ast.Long(v.Int)
	}
}

// request is made for each call, in the measured time: a gateway cannot have it beforehand.
func (w *cedarWorld) request(c *call) cedar.Request {
	args := make(cedar.RecordMap, len(c.args))
	for k, v := range c.args {
		switch v := v.(type) {
		case string:
			args[types.String(k)] = types.String(v)
		case bool:
			args[types.String(k)] = types.Boolean(v)
		case int64:
			args[types.String(k)] = types.Long(v)
		}
	}
	ctx := cedar.RecordMap{"args": types.NewRecord(args), "now": types.Long(c.now)}
	if c.ip != "" {
		if ip, err := types.ParseIPAddr(c.ip); err == nil {
			ctx["ip"] = ip
		}
	}
	if len(c.clocks) > 0 {
		clocks := make(cedar.RecordMap, len(c.clocks))
		for zone, parts := range c.clocks {
			local := make(cedar.RecordMap, len(parts))
			for k, v := range parts {
				local[types.String(k)] = types.Long(v)
			}
			clocks[types.String(zone)] = types.NewRecord(local)
		}
		ctx["clock"] = types.NewRecord(clocks)
	}
	return cedar.Request{
		Principal: uid("User", c.principal), Action: uid("Action", "call"), Resource: uid("Item", c.server+"/"+c.item),
		Context: types.NewRecord(ctx),
	}
}

// authorize decides as Cedar does, but that a forbid in error denies: Cedar would skip it.
func (w *cedarWorld) authorize(policies cedar.PolicyIterator, c *call) bool {
	decision, diag := cedar.Authorize(policies, w.entities, w.request(c))
	if decision != cedar.Allow {
		return false
	}
	for _, e := range diag.Errors {
		if w.policies[e.PolicyID].Effect() == cedar.Forbid {
			return false
		}
	}
	return true
}

// wholeCedar gives Cedar all policies at each call.
type wholeCedar struct{ *cedarWorld }

func (w wholeCedar) allows(c *call) (bool, error) { return w.authorize(w.whole, c), nil }

// slicedCedar gives Cedar only the policies of the principal's nodes on the server: the least anybody must do who uses it
// at such a size. Which these are is found out beforehand.
type slicedCedar struct {
	*cedarWorld
	slices map[[2]string]slice
}

type slice []struct {
	id     cedar.PolicyID
	policy *cedar.Policy
}

// All is what Authorize walks.
func (s slice) All() iter.Seq2[cedar.PolicyID, *cedar.Policy] {
	return func(yield func(cedar.PolicyID, *cedar.Policy) bool) {
		for i := range s {
			if !yield(s[i].id, s[i].policy) {
				return
			}
		}
	}
}

func newSliced(w *cedarWorld, calls []*call) slicedCedar {
	s := slicedCedar{w, map[[2]string]slice{}}
	for _, c := range calls {
		at := [2]string{c.principal, c.server}
		if _, ok := s.slices[at]; ok {
			continue
		}
		list := slice{}
		for _, node := range w.above[c.principal] {
			for _, server := range []string{c.server, "*"} {
				for _, id := range w.by[[2]string{node, server}] {
					list = append(list, struct {
						id     cedar.PolicyID
						policy *cedar.Policy
					}{id, w.policies[id]})
				}
			}
		}
		s.slices[at] = list
	}
	return s
}

func (s slicedCedar) allows(c *call) (bool, error) {
	return s.authorize(s.slices[[2]string{c.principal, c.server}], c), nil
}

// network is a constant that newSubset has read.
func network(text string) types.IPAddr {
	ip, _ := types.ParseIPAddr(text)
	return ip
}
