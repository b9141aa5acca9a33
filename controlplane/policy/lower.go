package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"sort"
	"strconv"
	"strings"

	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/snapshot"
)

// lowerer turns one expression into conditions, for one tool.
type lowerer struct {
	text  string
	tool  Schema
	nodes int
}

// known holds the optional arguments that are certainly present where an expression is evaluated.
type known map[string]bool

// facts are the optional arguments that are present after an expression came out true, or false.
type facts struct{ yes, no known }

var comparisons = map[string]struct{ op, flipped snapshot.Op }{
	"==": {snapshot.OpEq, snapshot.OpEq},
	"!=": {snapshot.OpNe, snapshot.OpNe},
	"<":  {snapshot.OpLt, snapshot.OpGt},
	"<=": {snapshot.OpLe, snapshot.OpGe},
	">":  {snapshot.OpGt, snapshot.OpLt},
	">=": {snapshot.OpGe, snapshot.OpLe},
}

func (l *lowerer) lower(n node, in known, depth int) (*snapshot.Cond, facts, error) {
	l.nodes++
	if depth > maxDepth || l.nodes > 4*snapshot.MaxCondNodes {
		return nil, facts{}, tooLong()
	}
	if len(n) != 1 {
		return nil, facts{}, l.refuse("", "the condition has a form that is not known", "compare an argument with a constant")
	}
	for op, raw := range n {
		switch op {
		case "&&", "||":
			return l.join(op, raw, in, depth)
		case "!":
			return l.not(raw, in, depth)
		case "if-then-else":
			return l.ifThenElse(raw, in, depth)
		case "has":
			return l.has(raw)
		case "contains":
			c, err := l.contains(raw, in)
			return c, facts{}, err
		case "Value":
			c, err := l.constant(raw)
			return c, facts{}, err
		case ".":
			c, err := l.flag(n, in)
			return c, facts{}, err
		}
		if cmp, ok := comparisons[op]; ok {
			c, err := l.compare(op, cmp.op, cmp.flipped, raw, in)
			return c, facts{}, err
		}
		return nil, facts{}, l.unsupported(op)
	}
	return nil, facts{}, nil
}

type pair struct {
	Left  node `json:"left"`
	Right node `json:"right"`
}

func (l *lowerer) join(op string, raw json.RawMessage, in known, depth int) (*snapshot.Cond, facts, error) {
	var p pair
	if err := json.Unmarshal(raw, &p); err != nil {
		return nil, facts{}, l.unsupported(op)
	}
	left, lf, err := l.lower(p.Left, in, depth+1)
	if err != nil {
		return nil, facts{}, err
	}
	if op == "&&" {
		right, rf, err := l.lower(p.Right, both(in, lf.yes), depth+1)
		if err != nil {
			return nil, facts{}, err
		}
		f := facts{yes: both(lf.yes, rf.yes), no: either(lf.no, both(lf.yes, rf.no))}
		return flat(snapshot.OpAnd, left, right), f, nil
	}
	right, rf, err := l.lower(p.Right, both(in, lf.no), depth+1)
	if err != nil {
		return nil, facts{}, err
	}
	f := facts{yes: either(lf.yes, both(lf.no, rf.yes)), no: both(lf.no, rf.no)}
	return flat(snapshot.OpOr, left, right), f, nil
}

// flat keeps chains of one operator in one node: order and short circuit stay as they were.
func flat(op snapshot.Op, left, right *snapshot.Cond) *snapshot.Cond {
	var kids []*snapshot.Cond
	for _, k := range []*snapshot.Cond{left, right} {
		if k.Op == op {
			kids = append(kids, k.Kids...)
		} else {
			kids = append(kids, k)
		}
	}
	return &snapshot.Cond{Op: op, Kids: kids}
}

func (l *lowerer) not(raw json.RawMessage, in known, depth int) (*snapshot.Cond, facts, error) {
	var u struct {
		Arg node `json:"arg"`
	}
	if err := json.Unmarshal(raw, &u); err != nil {
		return nil, facts{}, l.unsupported("!")
	}
	c, f, err := l.lower(u.Arg, in, depth+1)
	if err != nil {
		return nil, facts{}, err
	}
	return &snapshot.Cond{Op: snapshot.OpNot, Kids: []*snapshot.Cond{c}}, facts{yes: f.no, no: f.yes}, nil
}

// ifThenElse becomes (a && b) || (!a && c), which is true, false and an error exactly when the if is.
func (l *lowerer) ifThenElse(raw json.RawMessage, in known, depth int) (*snapshot.Cond, facts, error) {
	var x struct {
		If   node `json:"if"`
		Then node `json:"then"`
		Else node `json:"else"`
	}
	if err := json.Unmarshal(raw, &x); err != nil {
		return nil, facts{}, l.unsupported("if")
	}
	a, af, err := l.lower(x.If, in, depth+1)
	if err != nil {
		return nil, facts{}, err
	}
	b, bf, err := l.lower(x.Then, both(in, af.yes), depth+1)
	if err != nil {
		return nil, facts{}, err
	}
	c, cf, err := l.lower(x.Else, both(in, af.no), depth+1)
	if err != nil {
		return nil, facts{}, err
	}
	if 2*count(a)+count(b)+count(c) > snapshot.MaxCondNodes {
		return nil, facts{}, tooLong()
	}
	not := &snapshot.Cond{Op: snapshot.OpNot, Kids: []*snapshot.Cond{a}}
	cond := &snapshot.Cond{Op: snapshot.OpOr, Kids: []*snapshot.Cond{
		{Op: snapshot.OpAnd, Kids: []*snapshot.Cond{a, b}},
		{Op: snapshot.OpAnd, Kids: []*snapshot.Cond{not, c}},
	}}
	f := facts{
		yes: either(both(af.yes, bf.yes), both(af.no, cf.yes)),
		no:  either(both(af.yes, bf.no), both(af.no, cf.no)),
	}
	return cond, f, nil
}

func (l *lowerer) has(raw json.RawMessage) (*snapshot.Cond, facts, error) {
	var h struct {
		Left node   `json:"left"`
		Attr string `json:"attr"`
	}
	if err := json.Unmarshal(raw, &h); err != nil {
		return nil, facts{}, l.unsupported("has")
	}
	if path, ok := pathOf(h.Left); !ok || strings.Join(path, ".") != "context.args" {
		return nil, facts{}, l.refuse("has", "only an argument's presence can be asked for", "write context.args has "+name(h.Attr))
	}
	if _, err := l.argument(h.Attr); err != nil {
		return nil, facts{}, err
	}
	return &snapshot.Cond{Op: snapshot.OpHas, Arg: h.Attr}, facts{yes: known{h.Attr: true}}, nil
}

func (l *lowerer) constant(raw json.RawMessage) (*snapshot.Cond, error) {
	switch string(raw) {
	case "true":
		return &snapshot.Cond{Op: snapshot.OpTrue}, nil
	case "false":
		return &snapshot.Cond{Op: snapshot.OpFalse}, nil
	}
	return nil, l.refuse("", "a condition is true or false, and "+short(raw)+" is neither", "compare an argument with it")
}

// flag is an argument that stands alone: it must be a boolean.
func (l *lowerer) flag(n node, in known) (*snapshot.Cond, error) {
	arg, typ, err := l.read(n, in)
	if err != nil {
		return nil, err
	}
	if typ != snapshot.TypeBool {
		return nil, l.refuse(arg, fmt.Sprintf("context.args.%s is a %s, not a boolean", arg, word(typ)), "compare it with a constant")
	}
	return &snapshot.Cond{Op: snapshot.OpEq, Arg: arg, Value: snapshot.Value{Type: snapshot.TypeBool, Bool: true}}, nil
}

func (l *lowerer) compare(sign string, op, flipped snapshot.Op, raw json.RawMessage, in known) (*snapshot.Cond, error) {
	var p pair
	if err := json.Unmarshal(raw, &p); err != nil {
		return nil, l.unsupported(sign)
	}
	argument, other := p.Left, p.Right
	if isLiteral(p.Left) {
		argument, other, op = p.Right, p.Left, flipped
	}
	arg, typ, err := l.read(argument, in)
	if err != nil {
		return nil, err
	}
	v, err := l.value(other, arg, typ)
	if err != nil {
		return nil, err
	}
	if typ != snapshot.TypeNumber && op != snapshot.OpEq && op != snapshot.OpNe {
		return nil, l.refuse(sign, fmt.Sprintf("%s orders numbers only, and context.args.%s is a %s", sign, arg, word(typ)), "use == or !=")
	}
	return &snapshot.Cond{Op: op, Arg: arg, Value: v}, nil
}

func (l *lowerer) contains(raw json.RawMessage, in known) (*snapshot.Cond, error) {
	var p pair
	if err := json.Unmarshal(raw, &p); err != nil {
		return nil, l.unsupported("contains")
	}
	set, ok := p.Left["Set"]
	if !ok {
		return nil, l.refuse("contains", "contains works on a list of constants", `write ["a", "b"].contains(context.args.NAME)`)
	}
	var items []node
	if err := json.Unmarshal(set, &items); err != nil {
		return nil, l.unsupported("contains")
	}
	arg, typ, err := l.read(p.Right, in)
	if err != nil {
		return nil, err
	}
	if len(items) == 0 || len(items) > snapshot.MaxCondNodes {
		return nil, l.refuse("contains", fmt.Sprintf("the list has %d values", len(items)),
			fmt.Sprintf("give between 1 and %d", snapshot.MaxCondNodes))
	}
	values := make([]snapshot.Value, 0, len(items))
	for _, it := range items {
		v, err := l.value(it, arg, typ)
		if err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	return &snapshot.Cond{Op: snapshot.OpIn, Arg: arg, Values: values}, nil
}

// value reads a constant that is compared with arg.
func (l *lowerer) value(n node, arg string, typ snapshot.Type) (snapshot.Value, error) {
	raw, ok := n["Value"]
	if !ok {
		return snapshot.Value{}, l.notConstant(n, arg)
	}
	v, ok := scalarValue(raw)
	if !ok {
		return snapshot.Value{}, l.refuse("", short(raw)+" is not a string, a boolean or a whole number", "compare with one of these")
	}
	if v.Type != typ {
		return v, l.refuse(arg, fmt.Sprintf("%s has %s as %s, and %s is a %s", l.tool.Tool, arg, l.tool.Args[arg].Has, short(raw), word(v.Type)),
			"compare it with a "+word(typ))
	}
	return v, nil
}

func scalarValue(raw json.RawMessage) (snapshot.Value, bool) {
	var s string
	if json.Unmarshal(raw, &s) == nil && string(raw) != "null" {
		return snapshot.Value{Type: snapshot.TypeString, Str: s}, true
	}
	var b bool
	if json.Unmarshal(raw, &b) == nil && string(raw) != "null" {
		return snapshot.Value{Type: snapshot.TypeBool, Bool: b}, true
	}
	i, err := strconv.ParseInt(string(raw), 10, 64)
	return snapshot.Value{Type: snapshot.TypeNumber, Int: i}, err == nil
}

func isLiteral(n node) bool {
	_, ok := n["Value"]
	return ok
}

// read checks that n names an argument whose value is certainly there, and gives its type.
func (l *lowerer) read(n node, in known) (string, snapshot.Type, error) {
	path, ok := pathOf(n)
	if !ok {
		return "", 0, l.notArgument(n)
	}
	arg, err := l.argumentName(path)
	if err != nil {
		return "", 0, err
	}
	a, err := l.argument(arg)
	if err != nil {
		return "", 0, err
	}
	if a.Type == snapshot.TypeInvalid {
		return "", 0, l.refuse(arg, fmt.Sprintf("%s has %s as %s, not as one string, boolean or number", l.tool.Tool, arg, a.Has),
			"use an argument that is a string, a boolean or a number")
	}
	if !a.Required && !in[arg] {
		return "", 0, l.refuse(arg, fmt.Sprintf("%s may be called without %s, which is optional in its schema", l.tool.Tool, arg),
			fmt.Sprintf("write context.args has %s && ..., or use a required argument", name(arg)))
	}
	return arg, a.Type, nil
}

func (l *lowerer) argument(arg string) (Arg, error) {
	if l.tool.Problem != "" {
		return Arg{}, l.refuse(arg, fmt.Sprintf("no condition can be put on %s: %s", l.tool.Tool, l.tool.Problem), "grant the tool without a condition, or not at all")
	}
	a, ok := l.tool.Args[arg]
	if ok {
		return a, nil
	}
	fix := "it takes " + list(l.tool.Names())
	if near := Nearest(arg, l.tool.Names()); near != "" {
		fix = "did you mean " + near + "?"
	}
	return Arg{}, l.refuse(arg, fmt.Sprintf("context.args.%s: %s has no argument %s", arg, l.tool.Tool, arg), fix)
}

func (l *lowerer) refuse(at, what, fix string) error {
	where := ""
	if at != "" {
		where = place(l.text, at)
	}
	return problem.New(problem.Invalid, where+what, fix)
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

func word(t snapshot.Type) string {
	switch t {
	case snapshot.TypeString:
		return "string"
	case snapshot.TypeBool:
		return "boolean"
	case snapshot.TypeNumber:
		return "number"
	default:
		return "value"
	}
}

func list(names []string) string {
	if len(names) == 0 {
		return "no arguments"
	}
	sort.Strings(names)
	if len(names) > 8 {
		return strings.Join(names[:8], ", ") + " and more"
	}
	return strings.Join(names, ", ")
}

// name quotes an attribute when it is not an identifier.
func name(attr string) string {
	for i := range len(attr) {
		if !isWord(attr[i]) {
			return strconv.Quote(attr)
		}
	}
	return attr
}

func short(raw []byte) string {
	if len(raw) > 40 {
		return string(raw[:40]) + "..."
	}
	return string(raw)
}
