package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"

	"github.com/mcpvault/mcpvault/controlplane/policy/syntax"
	"github.com/mcpvault/mcpvault/snapshot"
)

// operand is one side of a comparison that a native program can read.
type operand struct {
	e         *syntax.Expr
	from      snapshot.Source
	name      string // of the argument or attribute
	zone      string
	typ       snapshot.Type
	has       string // what the schema of the tool says about an argument, for messages
	instant   bool   // context.time
	open      bool   // an argument of which nobody knows the type
	shownText string
}

func (o *operand) String() string { return o.shownText }

// leaf lowers what is not joined of conditions.
func (l *lowerer) leaf(e *syntax.Expr, in known) (*snapshot.Cond, error) {
	switch v := e.N.(type) {
	case xast.NodeValue:
		b, ok := boolOf(v)
		switch {
		case !ok:
			return nil, refuse(e.At, "compare an argument or an attribute with it", "a condition is true or false, and %s is neither", shown(v.Value))
		case b:
			return &snapshot.Cond{Op: snapshot.OpTrue}, nil
		}
		return &snapshot.Cond{Op: snapshot.OpFalse}, nil
	case xast.NodeTypeAccess:
		return l.flag(e, in)
	case xast.NodeTypeIs:
		root, ok := l.entity(e.Kids[0])
		if ok {
			return typeCond(root, v.EntityType), nil
		}
	case xast.NodeTypeIsIn:
		if root, ok := l.entity(e.Kids[0]); ok {
			in, err := l.member(root, e.Kids[1])
			if err != nil {
				return nil, err
			}
			return flat(snapshot.OpAnd, typeCond(root, v.EntityType), in), nil
		}
	case xast.NodeTypeIn:
		if root, ok := l.entity(e.Kids[0]); ok {
			return l.member(root, e.Kids[1])
		}
	case xast.NodeTypeContains, xast.NodeTypeContainsAll, xast.NodeTypeContainsAny:
		return l.contains(e, in)
	case xast.NodeTypeExtensionCall:
		if v.Name == "isInRange" {
			return l.inRange(e, in)
		}
	}
	if op, ok := comparison(e.N); ok {
		return l.compare(e, op, in)
	}
	return l.foreign(e, in)
}

func comparison(n xast.IsNode) (snapshot.Op, bool) {
	sign, _, _ := syntax.Binary(n)
	op, ok := map[string]snapshot.Op{
		"==": snapshot.OpEq, "!=": snapshot.OpNe, "<": snapshot.OpLt, "<=": snapshot.OpLe, ">": snapshot.OpGt, ">=": snapshot.OpGe,
	}[sign]
	return op, ok
}

// typeCond is `principal is User` and `resource is Tool`.
func typeCond(root string, t types.EntityType) *snapshot.Cond {
	if root == "principal" {
		return fact(snapshot.OpEq, snapshot.FromPrincipal, "kind", principalTypes[t].String())
	}
	return kindCond([]snapshot.ItemKind{itemTypes[t]})
}

func kindCond(kinds []snapshot.ItemKind) *snapshot.Cond {
	c := &snapshot.Cond{Op: snapshot.OpIn, From: snapshot.FromResource, Arg: "kind"}
	for _, k := range kinds {
		c.Values = append(c.Values, text(k.String()))
	}
	if len(kinds) == 1 {
		c.Op, c.Value, c.Values = snapshot.OpEq, c.Values[0], nil
	}
	return c
}

func fact(op snapshot.Op, from snapshot.Source, name, value string) *snapshot.Cond {
	return &snapshot.Cond{Op: op, From: from, Arg: name, Value: text(value)}
}

func text(s string) snapshot.Value { return snapshot.Value{Type: snapshot.TypeString, Str: s} }

// member is `principal in Team::"a"`, `resource in Server::"b"`, and == with an entity.
func (l *lowerer) member(root string, right *syntax.Expr) (*snapshot.Cond, error) {
	if len(right.Kids) > 0 {
		each := make([]*snapshot.Cond, 0, len(right.Kids))
		for _, k := range right.Kids {
			c, err := l.member(root, k)
			if err != nil {
				return nil, err
			}
			each = append(each, c)
		}
		return flat(snapshot.OpOr, each...), nil
	}
	uid, _ := entityOf(right) // check has seen to it
	switch root {
	case "principal":
		ref, err := l.world.node(uid, right.At)
		return &snapshot.Cond{Op: snapshot.OpMember, Arg: string(ref)}, err
	case "action":
		return kindCond([]snapshot.ItemKind{actions[uid.ID]}), nil
	}
	return l.scope(uid, right.At)
}

// scope is a resource's belonging to an entity. A resource that touches no endpoint is in none, without an error.
func (l *lowerer) scope(uid types.EntityUID, at syntax.Place) (*snapshot.Cond, error) {
	switch uid.Type {
	case "Server":
		return fact(snapshot.OpEq, snapshot.FromResource, "server", string(uid.ID)), nil
	case "Endpoint":
		return flat(snapshot.OpAnd, &snapshot.Cond{Op: snapshot.OpHas, From: snapshot.FromResource, Arg: "endpoints"},
			fact(snapshot.OpContains, snapshot.FromResource, "endpoints", string(uid.ID))), nil
	}
	server, item, err := l.world.item(uid, at)
	if err != nil {
		return nil, err
	}
	kind, name := snapshot.KindOf(item)
	return flat(snapshot.OpAnd, fact(snapshot.OpEq, snapshot.FromResource, "server", server), kindCond([]snapshot.ItemKind{kind}),
		fact(snapshot.OpEq, snapshot.FromResource, "name", name)), nil
}

// operand reads an expression as one side of a native comparison; nil when it is no such thing. What may be absent must be
// known to be there.
func (l *lowerer) operand(e *syntax.Expr, in known) (*operand, error) {
	root, parts, ok := e.Chain()
	if !ok || len(parts) == 0 {
		return nil, nil
	}
	path := syntax.Names(parts)
	o := &operand{e: e, name: path[0], shownText: root + "." + strings.Join(path, ".")}
	switch {
	case root == "principal":
		o.from, o.typ = snapshot.FromPrincipal, snapshot.TypeString
		if path[0] == "clearance" {
			o.typ = snapshot.TypeNumber
		}
	case root == "resource":
		o.from, o.name, o.typ = snapshot.FromResource, strings.Join(path, "."), snapshot.TypeString
		if path[0] != "labels" {
			o.typ = resourceTypes[path[0]]
		}
		if l.deny && !l.world.Lenient && optional(path[0]) && !in["resource."+o.name] {
			return nil, refuse(e.At, "write "+presence("resource", path)+" && ...",
				"resource.%s may be absent, and then this forbid would deny whatever lacks it", o.name)
		}
	case path[0] == "args":
		return l.argument(e, o, path[1:], in)
	case path[0] == "clock":
		o.from, o.name, o.zone, o.typ = snapshot.FromClock, path[2], path[1], snapshot.TypeNumber
	case path[0] == "time":
		o.instant = true
	case path[0] == "ip":
		o.from, o.typ = snapshot.FromContext, snapshot.TypeIP
	default:
		o.from, o.typ = snapshot.FromContext, snapshot.TypeString
	}
	return o, nil
}

func presence(root string, path []string) string {
	if len(path) == 2 {
		return root + "." + path[0] + " has " + name(path[1])
	}
	return root + " has " + name(path[0])
}

// argument types an argument of the tool; nil for one that is a member of another, or a list.
func (l *lowerer) argument(e *syntax.Expr, o *operand, path []string, in known) (*operand, error) {
	if l.tool.Open {
		if len(path) > 1 {
			return nil, nil
		}
		o.from, o.name, o.open = snapshot.FromArgs, path[0], true
		return o, nil
	}
	if err := l.present(e, path, in); err != nil {
		return nil, err
	}
	a := l.tool.Args[path[0]]
	if len(path) > 1 || a.Type == snapshot.TypeInvalid && (a.Items != snapshot.TypeInvalid || a.Members != nil) {
		return nil, nil
	}
	if a.Type == snapshot.TypeInvalid {
		return nil, refuse(e.At, "use an argument that is a string, a boolean, a number or a list of them",
			"%s has %s as %s, not as one string, boolean or number", l.tool.Tool, path[0], a.Has)
	}
	o.from, o.name, o.typ = snapshot.FromArgs, path[0], a.Type
	o.has = fmt.Sprintf("%s has %s as %s", l.tool.Tool, path[0], a.Has)
	return o, nil
}

// present refuses an argument that a call may leave away.
func (l *lowerer) present(e *syntax.Expr, path []string, in known) error {
	members := l.tool.Args
	for i, n := range path {
		if a := members[n]; a.Required || in[argKey(path[:i+1])] {
			members = a.Members
			continue
		}
		of := "context.args"
		for _, outer := range path[:i] {
			of += "." + outer
		}
		return refuse(e.At, fmt.Sprintf("write %s has %s && ..., or use a required argument", of, name(n)),
			"%s may be called without %s, which is optional in its schema", l.tool.Tool, strings.Join(path[:i+1], "."))
	}
	return nil
}

func argKey(path []string) string { return "args." + strings.Join(path, "\x00") }

// flag is an operand that stands alone: it must be a boolean.
func (l *lowerer) flag(e *syntax.Expr, in known) (*snapshot.Cond, error) {
	o, err := l.operand(e, in)
	if err != nil {
		return nil, err
	}
	if o == nil {
		return l.foreign(e, in)
	}
	if o.typ != snapshot.TypeBool && !o.open {
		return nil, refuse(e.At, "compare it with a constant", "%s is a %s, not a boolean", o, o.word())
	}
	return o.cond(snapshot.OpEq, snapshot.Value{Type: snapshot.TypeBool, Bool: true}), nil
}

func (o *operand) cond(op snapshot.Op, v snapshot.Value) *snapshot.Cond {
	return &snapshot.Cond{Op: op, From: o.from, Arg: o.name, Zone: o.zone, Value: v}
}

func (o *operand) word() string {
	if o.instant {
		return "time"
	}
	return word(o.typ)
}

func (l *lowerer) compare(e *syntax.Expr, op snapshot.Op, in known) (*snapshot.Cond, error) {
	left, right := e.Kids[0], e.Kids[1]
	if root, ok := l.entity(left); ok {
		c, err := l.member(root, right)
		if err == nil && op == snapshot.OpNe {
			c = not(c)
		}
		return c, err
	}
	lo, err := l.operand(left, in)
	if err != nil {
		return nil, err
	}
	ro, err := l.operand(right, in)
	if err != nil {
		return nil, err
	}
	switch {
	case lo != nil && ro != nil:
		return l.compareTwo(e, op, lo, ro, in)
	case lo == nil && ro == nil:
		if isConstant(left) && isConstant(right) {
			return nil, refuse(e.At, "compare context.args.NAME, or an attribute, with a constant", "both sides are constants")
		}
		return l.foreign(e, in)
	case lo == nil:
		lo, right, op = ro, left, op.Flipped()
	}
	return l.compareConstant(e, op, lo, right, in)
}

// compareConstant lowers a comparison with a constant; any other right side is Cedar's.
func (l *lowerer) compareConstant(e *syntax.Expr, op snapshot.Op, o *operand, right *syntax.Expr, in known) (*snapshot.Cond, error) {
	if o.instant {
		if ms, ok := instant(right); ok {
			return timeCond(op, ms), nil
		}
		return l.foreign(e, in)
	}
	if o.typ == snapshot.TypeIP {
		return l.compareIP(e, op, o, right, in)
	}
	v, ok := constant(right)
	if !ok {
		return l.foreign(e, in)
	}
	if err := l.takes(o, v, right); err != nil {
		return nil, err
	}
	if v.Type != snapshot.TypeNumber && op != snapshot.OpEq && op != snapshot.OpNe {
		sign, _, _ := syntax.Binary(e.N)
		return nil, refuse(e.At, "use == or !=", "%s orders numbers only, and %s is a %s", sign, o, o.word())
	}
	return o.cond(op, v), nil
}

// takes checks that a constant is of the operand's type, and one of its words when it has but a few.
func (l *lowerer) takes(o *operand, v snapshot.Value, at *syntax.Expr) error {
	if v.Type != o.typ && !o.open {
		what := fmt.Sprintf("%s is a %s, and %s is a %s", o, o.word(), shownValue(v), word(v.Type))
		if o.from == snapshot.FromArgs {
			what = fmt.Sprintf("%s, and %s is a %s", o.has, shownValue(v), word(v.Type))
		}
		return refuse(at.Start, "compare it with a "+o.word(), "%s", what)
	}
	words := enumeration(o.from, o.name)
	if words == nil || l.world.Lenient || slices.Contains(words, v.Str) {
		return nil
	}
	return refuse(at.Start, "it is one of "+strings.Join(words, ", "), "%s is never %s", o, shownValue(v))
}

// enumeration lists the words of an attribute that has only these; nil for any other.
func enumeration(from snapshot.Source, name string) []string {
	switch {
	case from == snapshot.FromPrincipal && name == "kind":
		return []string{snapshot.KindPerson.String(), snapshot.KindServiceAccount.String(), snapshot.KindWorkload.String()}
	case from == snapshot.FromResource && name == "kind":
		return []string{snapshot.ItemTool.String(), snapshot.ItemPrompt.String(), snapshot.ItemResource.String(), snapshot.ItemRest.String()}
	case from == snapshot.FromResource && name == "effect":
		return []string{"read", "write", "destructive"}
	}
	return nil
}

// compareTwo compares a fact with what is known of a decision, or two texts; what else two sides can be is Cedar's.
func (l *lowerer) compareTwo(e *syntax.Expr, op snapshot.Op, a, b *operand, in known) (*snapshot.Cond, error) {
	if a.open || b.open {
		return l.foreign(e, in)
	}
	if a.typ != b.typ || a.instant != b.instant {
		return nil, refuse(e.At, "compare two of one type", "%s is a %s, and %s is a %s", a, a.word(), b, b.word())
	}
	simple := func(o *operand) bool {
		return !o.instant && o.from != snapshot.FromArgs && o.from != snapshot.FromClock && o.typ != snapshot.TypeIP && o.typ != snapshot.TypeSet
	}
	isFact := a.from == snapshot.FromResource || b.from == snapshot.FromResource
	equality := op == snapshot.OpEq || op == snapshot.OpNe
	ordered := a.typ == snapshot.TypeNumber
	if !equality && !ordered && a.typ != snapshot.TypeIP && !a.instant {
		sign, _, _ := syntax.Binary(e.N)
		return nil, refuse(e.At, "use == or !=", "%s orders numbers only, and %s is a %s", sign, a, a.word())
	}
	if !simple(a) || !simple(b) || !isFact && (!equality || a.typ != snapshot.TypeString) {
		return l.foreign(e, in)
	}
	c := a.cond(op, snapshot.Value{})
	c.With = &snapshot.Operand{From: b.from, Arg: b.name}
	return c, nil
}
