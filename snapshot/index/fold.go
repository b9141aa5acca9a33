package index

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/residual"
)

// What a condition comes to once the facts of an item are known.
type verdict uint8

const (
	undecided verdict = iota
	certain           // true
	never             // false
	broken            // an error
)

// folded is what is left of a condition for an item.
type folded struct {
	verdict verdict
	rest    *snapshot.Cond // of undecided
	prog    uint32         // number of its program + 1
}

// factsOf looks facts up by name; those of every item are among them.
type factsOf func(name string) (snapshot.Fact, bool)

func (sp *serverPlan) lookup(item string) factsOf {
	facts := sp.facts[item]
	return func(name string) (snapshot.Fact, bool) {
		kind, shown := snapshot.KindOf(item)
		text := ""
		switch name {
		case "name":
			text = shown
		case "server":
			text = sp.name
		case "kind":
			text = kind.String()
		default:
			f, ok := facts[name]
			return f, ok
		}
		return snapshot.Fact{Value: snapshot.Value{Type: snapshot.TypeString, Str: text}}, true
	}
}

// reachOf works out which items a grant reaches, and under which program.
func (b *builder) reachOf(g *snapshot.Grant) ([]reach, error) {
	attrs := factNames(nil, g.When)
	if g.Server == "*" && g.Tool == "" && len(attrs) == 0 {
		f, err := b.fold(g, nil, nil)
		if err != nil || !f.reaches() {
			return nil, err
		}
		return []reach{{mask: ^uint64(0), page: anyPage, prog: f.prog}}, nil
	}
	var out []reach
	for _, sp := range b.order {
		if g.Server != "*" && g.Server != sp.name {
			continue
		}
		var err error
		if out, err = b.reachOn(out, g, sp, attrs); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// reachOn adds what a grant reaches on one server.
func (b *builder) reachOn(out []reach, g *snapshot.Grant, sp *serverPlan, attrs []string) ([]reach, error) {
	from, to := uint32(0), uint32(len(sp.items))
	if g.Tool != "" {
		i, ok := sp.itemID[g.Tool]
		if !ok {
			return out, nil
		}
		from, to = i, i+1
	}
	if len(attrs) == 0 {
		f, err := b.fold(g, nil, nil)
		if err != nil || !f.reaches() {
			return out, err
		}
		for pg := from / itemsPerPage; pg*itemsPerPage < to; pg++ {
			out = append(out, reach{mask: pageMask(pg, from, to), page: sp.pageBase + pg, prog: f.prog})
		}
		return out, nil
	}
	start := len(out)
	for i := from; i < to; i++ {
		f, err := b.fold(g, attrs, sp.lookup(sp.items[i]))
		if err != nil {
			return out, err
		}
		if !f.reaches() {
			continue
		}
		page, bit := sp.pageBase+i/itemsPerPage, uint64(1)<<(i%itemsPerPage)
		at := slices.IndexFunc(out[start:], func(r reach) bool { return r.page == page && r.prog == f.prog })
		if at < 0 {
			out = append(out, reach{mask: bit, page: page, prog: f.prog})
			continue
		}
		out[start+at].mask |= bit
	}
	return out, nil
}

// pageMask has the bits of the items from..to that lie on a page.
func pageMask(page, from, to uint32) uint64 {
	mask := ^uint64(0)
	if lo := page * itemsPerPage; from > lo {
		mask &= ^uint64(0) << (from - lo)
	}
	if hi := (page + 1) * itemsPerPage; to < hi {
		mask &= ^uint64(0) >> (hi - to)
	}
	return mask
}

func (f folded) reaches() bool { return f.verdict != never }

// fold settles what can be settled of a grant's condition. Grants share what they fold alike.
func (b *builder) fold(g *snapshot.Grant, attrs []string, facts factsOf) (folded, error) {
	if g.When == nil {
		return folded{verdict: certain}, nil
	}
	key := foldKey(g, attrs, facts)
	if f, ok := b.folds[key]; ok {
		return f, nil
	}
	f, err := settle(g.When, facts)
	if err != nil {
		return f, err
	}
	switch {
	case f.verdict == broken && g.Deny:
		f.verdict = certain // an error in a deny denies
	case f.verdict == broken:
		f = folded{rest: &snapshot.Cond{Op: snapshot.OpFail}}
	}
	if f.verdict == undecided {
		id, err := b.program(f.rest)
		if err != nil {
			return f, err
		}
		f.prog = id + 1
	}
	b.folds[key] = f
	return f, nil
}

// foldKey names a condition and the facts that it reads.
func foldKey(g *snapshot.Grant, attrs []string, facts factsOf) string {
	var k strings.Builder
	if g.Deny {
		k.WriteByte('!')
	}
	writeCond(&k, g.When)
	for _, a := range attrs {
		f, ok := facts(a)
		fmt.Fprintf(&k, "|%q=%v %d %q %d %t %q", a, ok, f.Type, f.Str, f.Int, f.Bool, f.Set)
	}
	return k.String()
}

// writeCond writes a condition so that different ones differ.
func writeCond(k *strings.Builder, c *snapshot.Cond) {
	fmt.Fprintf(k, "(%d %d %q %q", c.Op, c.From, c.Arg, c.Zone)
	if c.With != nil {
		fmt.Fprintf(k, " ~%d %q", c.With.From, c.With.Arg)
	}
	if c.Value.Type != snapshot.TypeInvalid {
		writeValue(k, c.Value)
	}
	for _, v := range c.Values {
		writeValue(k, v)
	}
	for _, kid := range c.Kids {
		writeCond(k, kid)
	}
	k.WriteByte(')')
}

func writeValue(k *strings.Builder, v snapshot.Value) {
	fmt.Fprintf(k, " %d:%q:%d:%t", v.Type, v.Str, v.Int, v.Bool)
}

// factNames lists the facts that a condition reads, each once, sorted.
func factNames(names []string, c *snapshot.Cond) []string {
	if c == nil {
		return names
	}
	if c.From == snapshot.FromResource && c.Arg != "" {
		names = insert(names, c.Arg)
	}
	if c.With != nil && c.With.From == snapshot.FromResource {
		names = insert(names, c.With.Arg)
	}
	if c.Op == snapshot.OpForeign {
		// What folding asks for is what the expression reads. An error comes up again when it is folded for good.
		_, _ = residual.Fold(c.Value.Str, func(name string) (snapshot.Fact, bool) {
			names = insert(names, name)
			return snapshot.Fact{}, false
		})
	}
	for _, k := range c.Kids {
		names = factNames(names, k)
	}
	return names
}

func insert(sorted []string, s string) []string {
	i, ok := slices.BinarySearch(sorted, s)
	if ok {
		return sorted
	}
	return slices.Insert(sorted, i, s)
}

// settle folds a condition. Order and errors stay as they are: what stands behind something undecided is settled only as
// far as it is reached.
func settle(c *snapshot.Cond, facts factsOf) (folded, error) {
	switch c.Op {
	case snapshot.OpTrue:
		return folded{verdict: certain}, nil
	case snapshot.OpFalse:
		return folded{verdict: never}, nil
	case snapshot.OpFail:
		return folded{verdict: broken}, nil
	case snapshot.OpNot:
		f, err := settle(c.Kids[0], facts)
		switch f.verdict {
		case certain:
			f.verdict = never
		case never:
			f.verdict = certain
		case undecided:
			f.rest = &snapshot.Cond{Op: snapshot.OpNot, Kids: []*snapshot.Cond{f.rest}}
		case broken:
		}
		return f, err
	case snapshot.OpAnd:
		return settleChain(c, certain, facts)
	case snapshot.OpOr:
		return settleChain(c, never, facts)
	case snapshot.OpForeign:
		return settleForeign(c, facts)
	}
	if c.From == snapshot.FromResource || c.With != nil && c.With.From == snapshot.FromResource {
		return settleFact(c, facts), nil
	}
	return folded{rest: c}, nil
}

// settleChain folds the kids of an And or Or, which goOn does not settle and everything else does.
func settleChain(c *snapshot.Cond, goOn verdict, facts factsOf) (folded, error) {
	constant := map[verdict]snapshot.Op{certain: snapshot.OpTrue, never: snapshot.OpFalse, broken: snapshot.OpFail}
	var rest []*snapshot.Cond
	for _, k := range c.Kids {
		f, err := settle(k, facts)
		if err != nil {
			return f, err
		}
		switch {
		case f.verdict == goOn:
			continue
		case f.verdict == undecided:
			rest = append(rest, f.rest)
			continue
		case len(rest) == 0: // nothing before it can settle anything
			return f, nil
		}
		rest = append(rest, &snapshot.Cond{Op: constant[f.verdict]})
		break
	}
	switch len(rest) {
	case 0:
		return folded{verdict: goOn}, nil
	case 1:
		return folded{rest: rest[0]}, nil
	}
	return folded{rest: &snapshot.Cond{Op: c.Op, Kids: rest}}, nil
}

func settleForeign(c *snapshot.Cond, facts factsOf) (folded, error) {
	text := c.Value.Str
	if facts != nil {
		var err error
		if text, err = residual.Fold(text, facts); err != nil {
			return folded{}, fmt.Errorf("condition: %w", err)
		}
	}
	if _, err := residual.Parse(text); err != nil {
		return folded{}, fmt.Errorf("condition: %w", err)
	}
	rest := *c
	rest.Value.Str = text
	return folded{rest: &rest}, nil
}

func truth(b bool) folded {
	if b {
		return folded{verdict: certain}
	}
	return folded{verdict: never}
}

// settleFact settles a comparison of which one side at least is a fact.
func settleFact(c *snapshot.Cond, facts factsOf) folded {
	op, left := c.Op, c.Arg
	if c.From != snapshot.FromResource {
		// The fact is on the right: it becomes the constant.
		f, ok := facts(c.With.Arg)
		if !ok || f.Type == snapshot.TypeSet {
			return folded{verdict: broken}
		}
		return typed(&snapshot.Cond{Op: op, From: c.From, Arg: c.Arg, Value: f.Value})
	}
	f, ok := facts(left)
	if op == snapshot.OpHas {
		return truth(ok)
	}
	if !ok {
		return folded{verdict: broken}
	}
	if c.With == nil {
		return settleConstant(c, f)
	}
	if c.With.From == snapshot.FromResource {
		g, ok := facts(c.With.Arg)
		if !ok || g.Type == snapshot.TypeSet {
			return folded{verdict: broken}
		}
		return settleConstant(&snapshot.Cond{Op: op, Value: g.Value}, f)
	}
	if op == snapshot.OpContains {
		if f.Type != snapshot.TypeSet {
			return folded{verdict: broken}
		}
		in := &snapshot.Cond{Op: snapshot.OpIn, From: c.With.From, Arg: c.With.Arg}
		for _, m := range f.Set {
			in.Values = append(in.Values, snapshot.Value{Type: snapshot.TypeString, Str: m})
		}
		return folded{rest: in}
	}
	if f.Type == snapshot.TypeSet {
		return folded{verdict: broken}
	}
	return typed(&snapshot.Cond{Op: flip(op), From: c.With.From, Arg: c.With.Arg, Value: f.Value})
}

// typed refuses to compare an attribute with a fact of another type.
func typed(c *snapshot.Cond) folded {
	if snapshot.AttrType(c.From, c.Arg) != c.Value.Type {
		return folded{verdict: broken}
	}
	return folded{rest: c}
}

func flip(op snapshot.Op) snapshot.Op {
	switch op {
	case snapshot.OpLt:
		return snapshot.OpGt
	case snapshot.OpLe:
		return snapshot.OpGe
	case snapshot.OpGt:
		return snapshot.OpLt
	case snapshot.OpGe:
		return snapshot.OpLe
	default:
		return op
	}
}

// settleConstant compares a fact with the constant, or the constants, of a condition.
func settleConstant(c *snapshot.Cond, f snapshot.Fact) folded {
	if c.Op == snapshot.OpContains {
		if f.Type != snapshot.TypeSet || c.Value.Type != snapshot.TypeString {
			return folded{verdict: broken}
		}
		return truth(slices.Contains(f.Set, c.Value.Str))
	}
	if c.Op == snapshot.OpIn {
		for _, v := range c.Values {
			if v.Type != f.Type {
				return folded{verdict: broken}
			}
			if v == f.Value {
				return truth(true)
			}
		}
		return truth(false)
	}
	if f.Type == snapshot.TypeSet || f.Type != c.Value.Type {
		return folded{verdict: broken}
	}
	switch c.Op {
	case snapshot.OpEq:
		return truth(f.Value == c.Value)
	case snapshot.OpNe:
		return truth(f.Value != c.Value)
	}
	if f.Type != snapshot.TypeNumber {
		return folded{verdict: broken}
	}
	a, b := f.Int, c.Value.Int
	switch c.Op {
	case snapshot.OpLt:
		return truth(a < b)
	case snapshot.OpLe:
		return truth(a <= b)
	case snapshot.OpGt:
		return truth(a > b)
	case snapshot.OpGe:
		return truth(a >= b)
	default:
		return folded{verdict: broken}
	}
}
