package policy

import (
	"maps"

	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"

	"github.com/mcpvault/mcpvault/controlplane/policy/syntax"
	"github.com/mcpvault/mcpvault/snapshot"
)

// lowerer turns one expression into conditions, for one tool.
type lowerer struct {
	world *World
	tool  Schema
	// noArgs says why no argument can be named, "" when one can.
	noArgs, noArgsFix string
	// deny makes it refuse attributes of the resource that may be absent: an error there would deny everything else.
	deny bool
	// kinds are the items that the condition can be about; nil for all.
	kinds []snapshot.ItemKind
	nodes int
}

// known holds what may be absent and is certainly there where an expression is evaluated: arguments as "args.NAME",
// attributes of the resource as "resource.NAME".
type known map[string]bool

// facts are what is there after an expression came out true, or false.
type facts struct{ yes, no known }

// condition checks and lowers a whole expression.
func (l *lowerer) condition(e *syntax.Expr) (*snapshot.Cond, error) {
	if err := l.check(e); err != nil {
		return nil, err
	}
	l.nodes = 0
	c, _, err := l.lower(e, known{}, 0)
	return c, err
}

func (l *lowerer) lower(e *syntax.Expr, in known, depth int) (*snapshot.Cond, facts, error) {
	l.nodes++
	if depth > maxDepth || l.nodes > 4*snapshot.MaxCondNodes {
		return nil, facts{}, tooLong()
	}
	switch e.N.(type) {
	case xast.NodeTypeAnd, xast.NodeTypeOr:
		return l.join(e, in, depth)
	case xast.NodeTypeNot:
		c, f, err := l.lower(e.Kids[0], in, depth+1)
		return not(c), facts{yes: f.no, no: f.yes}, err
	case xast.NodeTypeIfThenElse:
		return l.ifThenElse(e, in, depth)
	case xast.NodeTypeHas:
		return l.has(e, in)
	}
	c, err := l.leaf(e, in)
	return c, facts{}, err
}

func (l *lowerer) join(e *syntax.Expr, in known, depth int) (*snapshot.Cond, facts, error) {
	_, and := e.N.(xast.NodeTypeAnd)
	left, lf, err := l.lower(e.Kids[0], in, depth+1)
	if err != nil {
		return nil, facts{}, err
	}
	if and {
		right, rf, err := l.lower(e.Kids[1], both(in, lf.yes), depth+1)
		if err != nil {
			return nil, facts{}, err
		}
		f := facts{yes: both(lf.yes, rf.yes), no: either(lf.no, both(lf.yes, rf.no))}
		return flat(snapshot.OpAnd, left, right), f, nil
	}
	right, rf, err := l.lower(e.Kids[1], both(in, lf.no), depth+1)
	if err != nil {
		return nil, facts{}, err
	}
	f := facts{yes: either(lf.yes, both(lf.no, rf.yes)), no: both(lf.no, rf.no)}
	return flat(snapshot.OpOr, left, right), f, nil
}

// ifThenElse becomes (a && b) || (!a && c), which is true, false and an error exactly when the if is.
func (l *lowerer) ifThenElse(e *syntax.Expr, in known, depth int) (*snapshot.Cond, facts, error) {
	a, af, err := l.lower(e.Kids[0], in, depth+1)
	if err != nil {
		return nil, facts{}, err
	}
	b, bf, err := l.lower(e.Kids[1], both(in, af.yes), depth+1)
	if err != nil {
		return nil, facts{}, err
	}
	c, cf, err := l.lower(e.Kids[2], both(in, af.no), depth+1)
	if err != nil {
		return nil, facts{}, err
	}
	if 2*count(a)+count(b)+count(c) > snapshot.MaxCondNodes {
		return nil, facts{}, tooLong()
	}
	cond := &snapshot.Cond{Op: snapshot.OpOr, Kids: []*snapshot.Cond{
		{Op: snapshot.OpAnd, Kids: []*snapshot.Cond{a, b}},
		{Op: snapshot.OpAnd, Kids: []*snapshot.Cond{not(a), c}},
	}}
	f := facts{
		yes: either(both(af.yes, bf.yes), both(af.no, cf.yes)),
		no:  either(both(af.yes, bf.no), both(af.no, cf.no)),
	}
	return cond, f, nil
}

// has asks for the presence of an argument, of something that surrounds the call, or of an attribute.
func (l *lowerer) has(e *syntax.Expr, in known) (*snapshot.Cond, facts, error) {
	root, parts, ok := e.Kids[0].Chain()
	if !ok {
		c, err := l.foreign(e, in)
		return c, facts{}, err
	}
	path := append(syntax.Names(parts), e.Attr())
	present := func(from snapshot.Source, name, key string) (*snapshot.Cond, facts, error) {
		return &snapshot.Cond{Op: snapshot.OpHas, From: from, Arg: name}, facts{yes: known{key: true}}, nil
	}
	switch {
	case root == "context" && len(path) == 2 && path[0] == "args":
		return present(snapshot.FromArgs, path[1], "args."+path[1])
	case root == "context" && path[0] == "args" && len(path) > 2:
		c, err := l.foreign(e, in)
		return c, facts{yes: known{argKey(path[1:]): true}}, err
	case root == "context" && (path[0] == "ip" || path[0] == "region" || path[0] == "actor"):
		return present(snapshot.FromContext, path[0], "context."+path[0])
	case root == "principal" && path[0] == "region":
		return present(snapshot.FromPrincipal, path[0], "principal."+path[0])
	case root == "resource" && path[0] == "labels" && len(path) == 2:
		return present(snapshot.FromResource, "labels."+path[1], "resource.labels."+path[1])
	case root == "resource" && len(path) == 1 && optional(path[0]):
		return present(snapshot.FromResource, path[0], "resource."+path[0])
	}
	return &snapshot.Cond{Op: snapshot.OpTrue}, facts{}, nil
}

// optional reports whether a resource may lack an attribute.
func optional(attr string) bool {
	return attr != "name" && attr != "server" && attr != "kind" && attr != "labels"
}

// flat keeps chains of one operator in one node: order and short circuit stay as they were.
func flat(op snapshot.Op, list ...*snapshot.Cond) *snapshot.Cond {
	var kids []*snapshot.Cond
	for _, k := range list {
		if k.Op == op {
			kids = append(kids, k.Kids...)
		} else {
			kids = append(kids, k)
		}
	}
	if len(kids) == 1 {
		return kids[0]
	}
	return &snapshot.Cond{Op: op, Kids: kids}
}

func not(c *snapshot.Cond) *snapshot.Cond {
	return &snapshot.Cond{Op: snapshot.OpNot, Kids: []*snapshot.Cond{c}}
}

// both is the union of two sets, either what is in each of them.
func both(a, b known) known {
	if len(a) == 0 {
		return b
	}
	c := maps.Clone(a)
	maps.Copy(c, b)
	return c
}

func either(a, b known) known {
	c := known{}
	for k := range a {
		if b[k] {
			c[k] = true
		}
	}
	return c
}

// Members are whom a condition asks to belong to, in the form of a grant's subject.
func Members(c *snapshot.Cond) []string {
	if c == nil {
		return nil
	}
	var out []string
	if c.Op == snapshot.OpMember {
		out = append(out, c.Arg)
	}
	for _, k := range c.Kids {
		out = append(out, Members(k)...)
	}
	return out
}

func depth(c *snapshot.Cond) int {
	most := 0
	for _, k := range c.Kids {
		most = max(most, depth(k))
	}
	return most + 1
}

func count(c *snapshot.Cond) int {
	n := 1
	for _, k := range c.Kids {
		n += count(k)
	}
	return n
}

// boolOf is the value of a constant that is a condition by itself.
func boolOf(n xast.IsNode) (value, ok bool) {
	v, is := n.(xast.NodeValue)
	if !is {
		return false, false
	}
	b, is := v.Value.(types.Boolean)
	return bool(b), is
}
