package policy

import (
	"strconv"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"

	"github.com/mcpvault/mcpvault/controlplane/policy/syntax"
	"github.com/mcpvault/mcpvault/snapshot"
)

// constant is the value of a literal that a native program can hold.
func constant(e *syntax.Expr) (snapshot.Value, bool) {
	v, ok := e.N.(xast.NodeValue)
	if !ok {
		return snapshot.Value{}, false
	}
	switch v := v.Value.(type) {
	case types.String:
		return text(string(v)), true
	case types.Boolean:
		return snapshot.Value{Type: snapshot.TypeBool, Bool: bool(v)}, true
	case types.Long:
		return snapshot.Value{Type: snapshot.TypeNumber, Int: int64(v)}, true
	}
	return snapshot.Value{}, false
}

func isConstant(e *syntax.Expr) bool {
	_, ok := e.N.(xast.NodeValue)
	return ok
}

// instant reads datetime("...").
func instant(e *syntax.Expr) (int64, bool) {
	arg, ok := constructed(e, "datetime")
	if !ok {
		return 0, false
	}
	d, err := types.ParseDatetime(arg)
	return d.Milliseconds(), err == nil
}

func constructed(e *syntax.Expr, name types.Path) (string, bool) {
	v, ok := e.N.(xast.NodeTypeExtensionCall)
	if !ok || v.Name != name || len(e.Kids) != 1 {
		return "", false
	}
	return stringOf(e.Kids[0])
}

// timeCond compares the time of a decision; there are instants before and at or after, and nothing else.
func timeCond(op snapshot.Op, ms int64) *snapshot.Cond {
	at := func(op snapshot.Op, ms int64) *snapshot.Cond {
		return &snapshot.Cond{Op: op, Value: snapshot.Value{Type: snapshot.TypeNumber, Int: ms}}
	}
	switch op {
	case snapshot.OpLt:
		return at(snapshot.OpBefore, ms)
	case snapshot.OpLe:
		return at(snapshot.OpBefore, ms+1)
	case snapshot.OpGt:
		return at(snapshot.OpAfter, ms+1)
	case snapshot.OpGe:
		return at(snapshot.OpAfter, ms)
	case snapshot.OpNe:
		return flat(snapshot.OpOr, at(snapshot.OpBefore, ms), at(snapshot.OpAfter, ms+1))
	default:
		return flat(snapshot.OpAnd, at(snapshot.OpAfter, ms), at(snapshot.OpBefore, ms+1))
	}
}

// inRange is context.ip.isInRange(ip("10.0.0.0/8")); every other use of it is Cedar's.
func (l *lowerer) inRange(e *syntax.Expr, in known) (*snapshot.Cond, error) {
	if len(e.Kids) != 2 {
		return nil, refuse(e.At, `write context.ip.isInRange(ip("10.0.0.0/8"))`, "isInRange takes one network")
	}
	o, err := l.operand(e.Kids[0], in)
	if err != nil {
		return nil, err
	}
	network, ok := constructed(e.Kids[1], "ip")
	if o == nil || o.typ != snapshot.TypeIP || !ok {
		return l.foreign(e, in)
	}
	return network4(o, network)
}

func network4(o *operand, network string) (*snapshot.Cond, error) {
	p, err := parseIP(network)
	if err != nil || p.Addr().Is4In6() {
		return nil, refuse(o.e.At, "write an IPv4 network as such", "%s is no network that a caller's address can lie in", quote(network))
	}
	return o.cond(snapshot.OpInRange, text(p.String())), nil
}

// compareIP lowers equality with one address: a network of one.
func (l *lowerer) compareIP(e *syntax.Expr, op snapshot.Op, o *operand, right *syntax.Expr, in known) (*snapshot.Cond, error) {
	one, ok := constructed(right, "ip")
	if !ok || op != snapshot.OpEq && op != snapshot.OpNe {
		if v, ok := constant(right); ok {
			return nil, refuse(right.Start, `write ip("...")`, "%s is an address, and %s is none", o, shownValue(v))
		}
		return l.foreign(e, in)
	}
	if strings.Contains(one, "/") {
		return nil, refuse(right.Start, "write context.ip.isInRange(...)", "an address is never equal to a network")
	}
	c, err := network4(o, one)
	if err == nil && op == snapshot.OpNe {
		c = not(c)
	}
	return c, err
}

func word(t snapshot.Type) string {
	switch t {
	case snapshot.TypeString:
		return "string"
	case snapshot.TypeBool:
		return "boolean"
	case snapshot.TypeNumber:
		return "number"
	case snapshot.TypeSet:
		return "list"
	case snapshot.TypeIP:
		return "address"
	default:
		return "value"
	}
}

func shown(v types.Value) string {
	s := string(v.MarshalCedar())
	if len(s) > 40 {
		s = s[:40] + "..."
	}
	return s
}

func shownValue(v snapshot.Value) string {
	switch v.Type {
	case snapshot.TypeString:
		return shown(types.String(v.Str))
	case snapshot.TypeBool:
		return strconv.FormatBool(v.Bool)
	default:
		return strconv.FormatInt(v.Int, 10)
	}
}

func list(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	if len(names) > 8 {
		return strings.Join(names[:8], ", ") + " and more"
	}
	return strings.Join(names, ", ")
}

// name quotes an attribute when it is not an identifier.
func name(attr string) string {
	for i := range len(attr) {
		if !syntax.IsWord(attr[i]) {
			return strconv.Quote(attr)
		}
	}
	return attr
}
