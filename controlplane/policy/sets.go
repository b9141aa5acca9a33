package policy

import (
	"fmt"

	xast "github.com/cedar-policy/cedar-go/x/exp/ast"

	"github.com/mcpvault/mcpvault/controlplane/policy/syntax"
	"github.com/mcpvault/mcpvault/snapshot"
)

// contains lowers lists of constants, and the lists of a resource; any other list is Cedar's.
func (l *lowerer) contains(e *syntax.Expr, in known) (*snapshot.Cond, error) {
	left, right := e.Kids[0], e.Kids[1]
	set, err := l.operand(left, in)
	if err != nil {
		return nil, err
	}
	if set != nil && set.typ == snapshot.TypeSet && set.from == snapshot.FromResource {
		if c, err := l.factContains(e, set, right, in); c != nil || err != nil {
			return c, err
		}
		return l.foreign(e, in)
	}
	if set != nil && set.open {
		return l.foreign(e, in)
	}
	if set != nil {
		return nil, refuse(e.At, `write ["a", "b"].contains(context.args.NAME)`, "%s is a %s, not a list", set, set.word())
	}
	if _, ok := e.N.(xast.NodeTypeContains); !ok || !isSet(left) {
		return l.foreign(e, in)
	}
	o, err := l.operand(right, in)
	if err != nil {
		return nil, err
	}
	if len(left.Kids) == 0 || len(left.Kids) > snapshot.MaxCondNodes {
		return nil, refuse(left.At, fmt.Sprintf("give between 1 and %d", snapshot.MaxCondNodes), "the list has %d values", len(left.Kids))
	}
	if o == nil || o.instant || o.typ == snapshot.TypeIP || o.typ == snapshot.TypeSet {
		return l.foreign(e, in)
	}
	c := o.cond(snapshot.OpIn, snapshot.Value{})
	for _, k := range left.Kids {
		v, ok := constant(k)
		if !ok {
			return l.foreign(e, in)
		}
		if err := l.takes(o, v, k); err != nil {
			return nil, err
		}
		c.Values = append(c.Values, v)
	}
	return c, nil
}

func isSet(e *syntax.Expr) bool {
	_, ok := e.N.(xast.NodeTypeSet)
	return ok
}

// factContains asks a set of the resource's for constants, or for one text that is known of the decision; nil for others.
func (l *lowerer) factContains(e *syntax.Expr, set *operand, right *syntax.Expr, in known) (*snapshot.Cond, error) {
	op := snapshot.OpOr
	members := []*syntax.Expr{right}
	switch e.N.(type) {
	case xast.NodeTypeContainsAll:
		op, members = snapshot.OpAnd, right.Kids
	case xast.NodeTypeContainsAny:
		members = right.Kids
	default:
		o, err := l.operand(right, in)
		if err != nil {
			return nil, err
		}
		if o != nil && o.typ == snapshot.TypeString && (o.from == snapshot.FromContext || o.from == snapshot.FromPrincipal) {
			c := set.cond(snapshot.OpContains, snapshot.Value{})
			c.With = &snapshot.Operand{From: o.from, Arg: o.name}
			return c, nil
		}
	}
	var list []*snapshot.Cond
	for _, m := range members {
		v, ok := constant(m)
		if !ok {
			return nil, nil
		}
		if v.Type != snapshot.TypeString {
			return nil, refuse(m.Start, "give strings", "%s is a list of strings, and %s is none", set, shownValue(v))
		}
		list = append(list, set.cond(snapshot.OpContains, v))
	}
	if len(list) == 0 {
		return nil, nil
	}
	return flat(op, list...), nil
}
