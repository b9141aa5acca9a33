// Package fold settles what the facts of an item settle of a condition, before anybody asks. What is left is a condition
// over the arguments, the caller and the circumstances alone, or none at all.
//
// It promises the order and the errors of the condition: what stands behind something that is not settled stays where it
// is, so that a condition that would be an error still is one.
package fold

import (
	"fmt"
	"slices"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/residual"
)

// Verdict is what is certain of a condition.
type Verdict uint8

// The verdicts.
const (
	Undecided Verdict = iota
	Certain           // true, whoever asks
	Never             // false
	Broken            // an error
)

// Result is a verdict and, when nothing is certain, the condition that is left.
type Result struct {
	Verdict Verdict
	Rest    *snapshot.Cond
}

// Facts looks the facts of an item up by name.
type Facts func(name string) (snapshot.Fact, bool)

// Names lists the facts that a condition reads, each once, sorted.
func Names(names []string, c *snapshot.Cond) []string {
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
		names = Names(names, k)
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

// Settle folds a condition. Order and errors stay as they are: what stands behind something Undecided is settled only as
// far as it is reached.
func Settle(c *snapshot.Cond, facts Facts) (Result, error) {
	switch c.Op {
	case snapshot.OpTrue:
		return Result{Verdict: Certain}, nil
	case snapshot.OpFalse:
		return Result{Verdict: Never}, nil
	case snapshot.OpFail:
		return Result{Verdict: Broken}, nil
	case snapshot.OpNot:
		f, err := Settle(c.Kids[0], facts)
		switch f.Verdict {
		case Certain:
			f.Verdict = Never
		case Never:
			f.Verdict = Certain
		case Undecided:
			f.Rest = &snapshot.Cond{Op: snapshot.OpNot, Kids: []*snapshot.Cond{f.Rest}}
		case Broken:
		}
		return f, err
	case snapshot.OpAnd:
		return settleChain(c, Certain, facts)
	case snapshot.OpOr:
		return settleChain(c, Never, facts)
	case snapshot.OpForeign:
		return settleForeign(c, facts)
	default: // the others read one operand, or two
	}
	if c.From == snapshot.FromResource || c.With != nil && c.With.From == snapshot.FromResource {
		return settleFact(c, facts), nil
	}
	return Result{Rest: c}, nil
}

// settleChain folds the kids of an And or Or, which goOn does not settle and everything else does.
func settleChain(c *snapshot.Cond, goOn Verdict, facts Facts) (Result, error) {
	constant := map[Verdict]snapshot.Op{Certain: snapshot.OpTrue, Never: snapshot.OpFalse, Broken: snapshot.OpFail}
	var rest []*snapshot.Cond
	for _, k := range c.Kids {
		f, err := Settle(k, facts)
		if err != nil {
			return f, err
		}
		switch {
		case f.Verdict == goOn:
			continue
		case f.Verdict == Undecided:
			rest = append(rest, f.Rest)
			continue
		case len(rest) == 0: // nothing before it can settle anything
			return f, nil
		}
		rest = append(rest, &snapshot.Cond{Op: constant[f.Verdict]})
		break
	}
	switch len(rest) {
	case 0:
		return Result{Verdict: goOn}, nil
	case 1:
		return Result{Rest: rest[0]}, nil
	}
	return Result{Rest: &snapshot.Cond{Op: c.Op, Kids: rest}}, nil
}

func settleForeign(c *snapshot.Cond, facts Facts) (Result, error) {
	text := c.Value.Str
	if facts != nil {
		var err error
		if text, err = residual.Fold(text, facts); err != nil {
			return Result{}, fmt.Errorf("condition: %w", err)
		}
	}
	if _, err := residual.Parse(text); err != nil {
		return Result{}, fmt.Errorf("condition: %w", err)
	}
	rest := *c
	rest.Value.Str = text
	return Result{Rest: &rest}, nil
}

func truth(b bool) Result {
	if b {
		return Result{Verdict: Certain}
	}
	return Result{Verdict: Never}
}

// unless makes an error of a verdict.
func (r Result) unless(bad bool) Result {
	if bad {
		return Result{Verdict: Broken}
	}
	return r
}

// settleFact settles a comparison of which one side at least is a fact.
func settleFact(c *snapshot.Cond, facts Facts) Result {
	op, left := c.Op, c.Arg
	if c.From != snapshot.FromResource {
		// The fact is on the right: it becomes the constant.
		f, ok := facts(c.With.Arg)
		if !ok || f.Type == snapshot.TypeSet {
			return Result{Verdict: Broken}
		}
		return typed(&snapshot.Cond{Op: op, From: c.From, Arg: c.Arg, Value: f.Value})
	}
	f, ok := facts(left)
	if op == snapshot.OpHas {
		return truth(ok)
	}
	if !ok {
		return Result{Verdict: Broken}
	}
	if c.With == nil {
		return settleConstant(c, f)
	}
	if c.With.From == snapshot.FromResource {
		g, ok := facts(c.With.Arg)
		if !ok || g.Type == snapshot.TypeSet {
			return Result{Verdict: Broken}
		}
		return settleConstant(&snapshot.Cond{Op: op, Value: g.Value}, f)
	}
	if op == snapshot.OpContains {
		if f.Type != snapshot.TypeSet {
			return Result{Verdict: Broken}
		}
		in := &snapshot.Cond{Op: snapshot.OpIn, From: c.With.From, Arg: c.With.Arg}
		for _, m := range f.Set {
			in.Values = append(in.Values, snapshot.Value{Type: snapshot.TypeString, Str: m})
		}
		return Result{Rest: in}
	}
	if f.Type == snapshot.TypeSet {
		return Result{Verdict: Broken}
	}
	return typed(&snapshot.Cond{Op: op.Flipped(), From: c.With.From, Arg: c.With.Arg, Value: f.Value})
}

// typed refuses to compare an attribute with a fact of another type.
func typed(c *snapshot.Cond) Result {
	if snapshot.AttrType(c.From, c.Arg) != c.Value.Type {
		return Result{Verdict: Broken}
	}
	return Result{Rest: c}
}

// settleConstant compares a fact with the constant, or the constants, of a condition.
func settleConstant(c *snapshot.Cond, f snapshot.Fact) Result {
	if c.Op == snapshot.OpContains {
		if f.Type != snapshot.TypeSet || c.Value.Type != snapshot.TypeString {
			return Result{Verdict: Broken}
		}
		return truth(slices.Contains(f.Set, c.Value.Str))
	}
	if c.Op == snapshot.OpIn {
		for _, v := range c.Values {
			if v.Type != f.Type {
				return Result{Verdict: Broken}
			}
			if v == f.Value {
				return truth(true)
			}
		}
		return truth(false)
	}
	if f.Type == snapshot.TypeSet || f.Type != c.Value.Type {
		return Result{Verdict: Broken}
	}
	a, b, ordered := f.Int, c.Value.Int, f.Type == snapshot.TypeNumber
	switch c.Op {
	case snapshot.OpEq:
		return truth(f.Value == c.Value)
	case snapshot.OpNe:
		return truth(f.Value != c.Value)
	case snapshot.OpLt:
		return truth(a < b).unless(!ordered)
	case snapshot.OpLe:
		return truth(a <= b).unless(!ordered)
	case snapshot.OpGt:
		return truth(a > b).unless(!ordered)
	case snapshot.OpGe:
		return truth(a >= b).unless(!ordered)
	default:
		return Result{Verdict: Broken}
	}
}
