// Package syntax is Cedar as text: where the words of an expression stand, which cedar-go does not keep, and what a reader
// of texts has to know before it is parsed.
package syntax

import (
	"fmt"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"
)

// Expr is an expression of Cedar with the places of its parts, which cedar-go does not keep.
type Expr struct {
	N    xast.IsNode
	Kids []*Expr
	// start is where the expression begins, at where its own word stands: the operator, the attribute, the literal.
	Start, At Place
}

// Place is a position in a text, both 1-based; the zero value is not known.
type Place struct{ Line, Column int }

func (p Place) String() string {
	if p.Line == 0 {
		return ""
	}
	return fmt.Sprintf("%d:%d: ", p.Line, p.Column)
}

// Or is p, or q when p is not known.
func (p Place) Or(q Place) Place {
	if p.Line == 0 {
		return q
	}
	return p
}

// Locator finds the words of expressions in the text that they were parsed from. Expressions are met in the order in which
// they stand there, so that each word is the next one that looks like it. A word that is not found is not known, which
// costs a message its Place and nothing else.
type Locator struct {
	words []token
	next  int
}

// NewLocator makes a locator for a text that begins at a place.
func NewLocator(text string, at Place) *Locator { return &Locator{words: tokens(text, at)} }

// Find goes to the next word of a kind and says where it is.
func (l *Locator) Find(kind Kind, text string) Place {
	for i := l.next; i < len(l.words); i++ {
		if w := l.words[i]; w.kind == kind && w.text == text {
			l.next = i + 1
			return w.at
		}
	}
	return Place{}
}

// folded reports whether what comes next was written once and read twice: `x has a.b` is x has a && x.a has b, of which
// neither the && nor the second x stands anywhere.
func (l *Locator) folded() bool {
	return l.next < len(l.words) && l.words[l.next].kind == Sign && l.words[l.next].text == "."
}

// attribute stands as .name, as ["name"] or behind has.
func (l *Locator) attribute(name string) Place {
	for i := l.next; i < len(l.words); i++ {
		if w := l.words[i]; (w.kind == Word || w.kind == String) && w.text == name {
			l.next = i + 1
			return w.at
		}
	}
	return Place{}
}

// Locate makes the tree of an expression.
func (l *Locator) Locate(n xast.IsNode) *Expr {
	e := &Expr{N: n}
	switch v := n.(type) {
	case xast.NodeTypeVariable:
		e.At = l.Find(Word, string(v.Name))
	case xast.NodeValue:
		e.At = l.Value(v.Value)
	case xast.NodeTypeAccess:
		e.kid(l, v.Arg)
		e.At = l.attribute(string(v.Value))
	case xast.NodeTypeHas:
		if l.folded() {
			e.kid(&Locator{}, v.Arg)
		} else {
			e.kid(l, v.Arg)
		}
		e.At = l.attribute(string(v.Value))
	case xast.NodeTypeLike:
		e.kid(l, v.Arg)
		e.At = l.Find(Word, "like")
	case xast.NodeTypeIs:
		e.kid(l, v.Left)
		e.At = l.Find(Word, "is")
	case xast.NodeTypeIsIn:
		e.kid(l, v.Left)
		e.At = l.Find(Word, "is")
		e.kid(l, v.Entity)
	case xast.NodeTypeIfThenElse:
		e.At = l.Find(Word, "if")
		e.kid(l, v.If, v.Then, v.Else)
	case xast.NodeTypeSet:
		e.At = l.Find(Sign, "[")
		e.kid(l, v.Elements...)
	case xast.NodeTypeRecord:
		e.At = l.Find(Sign, "{")
		for _, m := range v.Elements {
			e.kid(l, m.Value)
		}
	case xast.NodeTypeExtensionCall:
		l.call(e, v)
	case xast.NodeTypeNot:
		e.At = l.Find(Sign, "!")
		e.kid(l, v.Arg)
	case xast.NodeTypeNegate:
		e.At = l.Find(Sign, "-")
		e.kid(l, v.Arg)
	case xast.NodeTypeIsEmpty:
		e.kid(l, v.Arg)
		e.At = l.Find(Word, "isEmpty")
	default:
		l.binary(e)
	}
	e.Start = e.At
	if len(e.Kids) > 0 && !prefixed(n) {
		e.Start = e.Kids[0].Start.Or(e.At)
	}
	e.At = e.At.Or(e.Start)
	return e
}

func (e *Expr) kid(l *Locator, ns ...xast.IsNode) {
	for _, n := range ns {
		e.Kids = append(e.Kids, l.Locate(n))
	}
}

// prefixed reports whether an expression begins with its own word.
func prefixed(n xast.IsNode) bool {
	switch v := n.(type) {
	case xast.NodeTypeIfThenElse, xast.NodeTypeSet, xast.NodeTypeRecord, xast.NodeTypeNot, xast.NodeTypeNegate:
		return true
	case xast.NodeTypeExtensionCall:
		return IsConstructor(v.Name)
	}
	return false
}

// IsConstructor reports whether a function of Cedar makes a value of a string.
func IsConstructor(name types.Path) bool {
	return name == "ip" || name == "decimal" || name == "datetime" || name == "duration"
}

func (l *Locator) call(e *Expr, v xast.NodeTypeExtensionCall) {
	if IsConstructor(v.Name) || len(v.Args) == 0 {
		e.At = l.Find(Word, string(v.Name))
		e.kid(l, v.Args...)
		return
	}
	e.kid(l, v.Args[0])
	e.At = l.Find(Word, string(v.Name))
	e.kid(l, v.Args[1:]...)
}

// Value goes to the next word that stands for a value.
func (l *Locator) Value(v types.Value) Place {
	switch v := v.(type) {
	case types.Boolean:
		return l.Find(Word, v.String())
	case types.Long:
		return l.Find(Number, strings.TrimPrefix(v.String(), "-"))
	case types.String:
		return l.Find(String, string(v))
	case types.EntityUID:
		first, _, _ := strings.Cut(string(v.Type), "::")
		at := l.Find(Word, first)
		l.Find(String, string(v.ID))
		return at
	}
	return Place{}
}

func (l *Locator) binary(e *Expr) {
	sign, left, right := Binary(e.N)
	if left == nil {
		return
	}
	e.kid(l, left)
	switch {
	case sign == "&&" && l.folded():
	case IsWord(sign[0]):
		e.At = l.Find(Word, sign)
	default:
		e.At = l.Find(Sign, sign)
	}
	e.kid(l, right)
}

// Binary takes an operator with two sides apart; nothing when it is none.
func Binary(n xast.IsNode) (sign string, left, right xast.IsNode) {
	of := func(sign string, b xast.BinaryNode) (string, xast.IsNode, xast.IsNode) { return sign, b.Left, b.Right }
	switch v := n.(type) {
	case xast.NodeTypeAnd:
		return of("&&", v.BinaryNode)
	case xast.NodeTypeOr:
		return of("||", v.BinaryNode)
	case xast.NodeTypeEquals:
		return of("==", v.BinaryNode)
	case xast.NodeTypeNotEquals:
		return of("!=", v.BinaryNode)
	case xast.NodeTypeLessThan:
		return of("<", v.BinaryNode)
	case xast.NodeTypeLessThanOrEqual:
		return of("<=", v.BinaryNode)
	case xast.NodeTypeGreaterThan:
		return of(">", v.BinaryNode)
	case xast.NodeTypeGreaterThanOrEqual:
		return of(">=", v.BinaryNode)
	case xast.NodeTypeAdd:
		return of("+", v.BinaryNode)
	case xast.NodeTypeSub:
		return of("-", v.BinaryNode)
	case xast.NodeTypeMult:
		return of("*", v.BinaryNode)
	case xast.NodeTypeIn:
		return of("in", v.BinaryNode)
	case xast.NodeTypeContains:
		return of("contains", v.BinaryNode)
	case xast.NodeTypeContainsAll:
		return of("containsAll", v.BinaryNode)
	case xast.NodeTypeContainsAny:
		return of("containsAny", v.BinaryNode)
	case xast.NodeTypeGetTag:
		return of("getTag", v.BinaryNode)
	case xast.NodeTypeHasTag:
		return of("hasTag", v.BinaryNode)
	}
	return "", nil, nil
}

// Chain reads variable.a.b as its root and its members, outermost first.
func (e *Expr) Chain() (root string, parts []*Expr, ok bool) {
	switch v := e.N.(type) {
	case xast.NodeTypeVariable:
		return string(v.Name), nil, true
	case xast.NodeTypeAccess:
		if root, parts, ok = e.Kids[0].Chain(); ok {
			return root, append(parts, e), true
		}
	}
	return "", nil, false
}

// Attr is the member that an access or a has names.
func (e *Expr) Attr() string {
	switch v := e.N.(type) {
	case xast.NodeTypeAccess:
		return string(v.Value)
	case xast.NodeTypeHas:
		return string(v.Value)
	}
	return ""
}

// Names are the members of a chain.
func Names(parts []*Expr) []string {
	out := make([]string, len(parts))
	for i, p := range parts {
		out[i] = p.Attr()
	}
	return out
}

// Paths tells every variable.a.b in an expression, and what has asks for.
func (e *Expr) Paths(f func(root string, path []string)) {
	if root, parts, ok := e.Chain(); ok {
		if len(parts) > 0 {
			f(root, Names(parts))
		}
		return
	}
	if _, ok := e.N.(xast.NodeTypeHas); ok {
		if root, parts, ok := e.Kids[0].Chain(); ok {
			f(root, append(Names(parts), e.Attr()))
			return
		}
	}
	for _, k := range e.Kids {
		k.Paths(f)
	}
}
