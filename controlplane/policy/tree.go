package policy

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"
)

// expr is an expression of Cedar with the places of its parts, which cedar-go does not keep.
type expr struct {
	n    xast.IsNode
	kids []*expr
	// start is where the expression begins, at where its own word stands: the operator, the attribute, the literal.
	start, at place
}

// place is a position in a text, both 1-based; the zero value is not known.
type place struct{ line, column int }

func (p place) String() string {
	if p.line == 0 {
		return ""
	}
	return fmt.Sprintf("%d:%d: ", p.line, p.column)
}

func (p place) or(q place) place {
	if p.line == 0 {
		return q
	}
	return p
}

// locator finds the words of expressions in the text that they were parsed from. Expressions are met in the order in which
// they stand there, so that each word is the next one that looks like it. A word that is not found is not known, which
// costs a message its place and nothing else.
type locator struct {
	words []token
	next  int
}

func (l *locator) find(kind tokenKind, text string) place {
	for i := l.next; i < len(l.words); i++ {
		if w := l.words[i]; w.kind == kind && w.text == text {
			l.next = i + 1
			return w.at
		}
	}
	return place{}
}

// attribute stands as .name, as ["name"] or behind has.
func (l *locator) attribute(name string) place {
	for i := l.next; i < len(l.words); i++ {
		if w := l.words[i]; (w.kind == aWord || w.kind == aString) && w.text == name {
			l.next = i + 1
			return w.at
		}
	}
	return place{}
}

// locate makes the tree of an expression.
func (l *locator) locate(n xast.IsNode) *expr {
	e := &expr{n: n}
	switch v := n.(type) {
	case xast.NodeTypeVariable:
		e.at = l.find(aWord, string(v.Name))
	case xast.NodeValue:
		e.at = l.value(v.Value)
	case xast.NodeTypeAccess:
		e.kid(l, v.Arg)
		e.at = l.attribute(string(v.Value))
	case xast.NodeTypeHas:
		if l.next < len(l.words) && l.words[l.next].text == "." {
			// `x has a.b` was read as x has a && x.a has b, of which the second x stands nowhere.
			e.kid(&locator{}, v.Arg)
		} else {
			e.kid(l, v.Arg)
		}
		e.at = l.attribute(string(v.Value))
	case xast.NodeTypeLike:
		e.kid(l, v.Arg)
		e.at = l.find(aWord, "like")
	case xast.NodeTypeIs:
		e.kid(l, v.Left)
		e.at = l.find(aWord, "is")
	case xast.NodeTypeIsIn:
		e.kid(l, v.Left)
		e.at = l.find(aWord, "is")
		e.kid(l, v.Entity)
	case xast.NodeTypeIfThenElse:
		e.at = l.find(aWord, "if")
		e.kid(l, v.If, v.Then, v.Else)
	case xast.NodeTypeSet:
		e.at = l.find(aSign, "[")
		e.kid(l, v.Elements...)
	case xast.NodeTypeRecord:
		e.at = l.find(aSign, "{")
		for _, m := range v.Elements {
			e.kid(l, m.Value)
		}
	case xast.NodeTypeExtensionCall:
		l.call(e, v)
	case xast.NodeTypeNot:
		e.at = l.find(aSign, "!")
		e.kid(l, v.Arg)
	case xast.NodeTypeNegate:
		e.at = l.find(aSign, "-")
		e.kid(l, v.Arg)
	case xast.NodeTypeIsEmpty:
		e.kid(l, v.Arg)
		e.at = l.find(aWord, "isEmpty")
	default:
		l.binary(e)
	}
	e.start = e.at
	if len(e.kids) > 0 && !prefixed(n) {
		e.start = e.kids[0].start.or(e.at)
	}
	e.at = e.at.or(e.start)
	return e
}

func (e *expr) kid(l *locator, ns ...xast.IsNode) {
	for _, n := range ns {
		e.kids = append(e.kids, l.locate(n))
	}
}

// prefixed reports whether an expression begins with its own word.
func prefixed(n xast.IsNode) bool {
	switch v := n.(type) {
	case xast.NodeTypeIfThenElse, xast.NodeTypeSet, xast.NodeTypeRecord, xast.NodeTypeNot, xast.NodeTypeNegate:
		return true
	case xast.NodeTypeExtensionCall:
		return isConstructor(v.Name)
	}
	return false
}

func isConstructor(name types.Path) bool {
	return name == "ip" || name == "decimal" || name == "datetime" || name == "duration"
}

func (l *locator) call(e *expr, v xast.NodeTypeExtensionCall) {
	if isConstructor(v.Name) || len(v.Args) == 0 {
		e.at = l.find(aWord, string(v.Name))
		e.kid(l, v.Args...)
		return
	}
	e.kid(l, v.Args[0])
	e.at = l.find(aWord, string(v.Name))
	e.kid(l, v.Args[1:]...)
}

func (l *locator) value(v types.Value) place {
	switch v := v.(type) {
	case types.Boolean:
		return l.find(aWord, v.String())
	case types.Long:
		return l.find(aNumber, strings.TrimPrefix(v.String(), "-"))
	case types.String:
		return l.find(aString, string(v))
	case types.EntityUID:
		first, _, _ := strings.Cut(string(v.Type), "::")
		at := l.find(aWord, first)
		l.find(aString, string(v.ID))
		return at
	}
	return place{}
}

func (l *locator) binary(e *expr) {
	sign, left, right := binary(e.n)
	if left == nil {
		return
	}
	e.kid(l, left)
	if isWord(sign[0]) {
		e.at = l.find(aWord, sign)
	} else {
		e.at = l.find(aSign, sign)
	}
	e.kid(l, right)
}

// binary takes an operator with two sides apart; nothing when it is none.
func binary(n xast.IsNode) (sign string, left, right xast.IsNode) {
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

// chain reads variable.a.b as its root and its members, outermost first.
func (e *expr) chain() (root string, parts []*expr, ok bool) {
	switch v := e.n.(type) {
	case xast.NodeTypeVariable:
		return string(v.Name), nil, true
	case xast.NodeTypeAccess:
		if root, parts, ok = e.kids[0].chain(); ok {
			return root, append(parts, e), true
		}
	}
	return "", nil, false
}

// attr is the member that an access or a has names.
func (e *expr) attr() string {
	switch v := e.n.(type) {
	case xast.NodeTypeAccess:
		return string(v.Value)
	case xast.NodeTypeHas:
		return string(v.Value)
	}
	return ""
}

func names(parts []*expr) []string {
	out := make([]string, len(parts))
	for i, p := range parts {
		out[i] = p.attr()
	}
	return out
}

type tokenKind uint8

const (
	aWord tokenKind = iota
	aString
	aNumber
	aSign
)

// token is one word of a text of Cedar. A string is without its quotes and escapes.
type token struct {
	kind tokenKind
	text string
	at   place
}

// tokens takes a text apart. It is lenient: whether the text is Cedar, the parser has said.
func tokens(text string, line, column int) []token {
	var out []token
	at := place{line, column}
	for i := 0; i < len(text); {
		end, kind := tokenEnd(text, i)
		word := text[i:end]
		switch {
		case strings.TrimSpace(word) == "" || strings.HasPrefix(word, "//"):
		case kind == aString:
			out = append(out, token{aString, unquote(word), at})
		default:
			out = append(out, token{kind, word, at})
		}
		for _, r := range word {
			if at.column++; r == '\n' {
				at = place{at.line + 1, 1}
			}
		}
		i = end
	}
	return out
}

func tokenEnd(text string, i int) (int, tokenKind) {
	run := func(from int, in func(byte) bool) int {
		for from < len(text) && in(text[from]) {
			from++
		}
		return from
	}
	switch c := text[i]; {
	case strings.HasPrefix(text[i:], "//"):
		return run(i, func(c byte) bool { return c != '\n' }), aSign
	case c == '"':
		return stringEnd(text, i), aString
	case c >= '0' && c <= '9':
		return run(i, func(c byte) bool { return c >= '0' && c <= '9' }), aNumber
	case isWord(c):
		return run(i, isWord), aWord
	}
	for _, sign := range []string{"::", "&&", "||", "==", "!=", "<=", ">="} {
		if strings.HasPrefix(text[i:], sign) {
			return i + 2, aSign
		}
	}
	_, n := utf8.DecodeRuneInString(text[i:])
	return i + n, aSign
}

// unquote reads the escapes of a string of Cedar that the parser has accepted.
func unquote(quoted string) string {
	body := strings.TrimSuffix(strings.TrimPrefix(quoted, `"`), `"`)
	if !strings.Contains(body, `\`) {
		return body
	}
	var u types.EntityUID
	// An entity's id is a string like any other, and the only one whose reader cedar-go exports.
	if err := u.UnmarshalCedar([]byte(`T::` + quoted)); err != nil {
		return body
	}
	return string(u.ID)
}

func stringEnd(text string, i int) int {
	for i++; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(text)
}

func isWord(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
