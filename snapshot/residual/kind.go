package residual

import (
	"fmt"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"
)

// kind is the type of a value. Cedar finds that values of two types are not equal, and that a set does not contain what
// is of another type than its members. For a caller who chooses the arguments that is a way around a deny, so an argument
// has the type that it is compared with or reading it is an error.
type kind string

const (
	unknownKind kind = ""
	anyKind     kind = "anything" // of what is always an error
	stringKind  kind = "a string"
	boolKind    kind = "a boolean"
	longKind    kind = "an integer"
	ipKind      kind = "an address"
	decimalKind kind = "a decimal"
	timeKind    kind = "a time"
	spanKind    kind = "a duration"
	recordKind  kind = "an object"
	emptyKind   kind = "an empty list"

	setOf kind = "a list: "
)

func (k kind) set() kind {
	if k == unknownKind {
		return k
	}
	return setOf + k
}

func (k kind) member() kind {
	if m, ok := strings.CutPrefix(string(k), string(setOf)); ok {
		return kind(m)
	}
	return unknownKind
}

// fits reports whether a value of kind k may stand where want is.
func (k kind) fits(want kind) bool {
	return k == want || k == anyKind || want == anyKind ||
		k == emptyKind && strings.HasPrefix(string(want), string(setOf)) || want == emptyKind && strings.HasPrefix(string(k), string(setOf))
}

// kindOf is the kind of an expression, as far as it can be told without the arguments.
func (p *parser) kindOf(n xast.IsNode) kind {
	switch v := n.(type) {
	case xast.NodeValue:
		return valueKind(v.Value)
	case xast.NodeTypeAccess:
		root, parts, ok := chain(v)
		switch {
		case !ok:
			return anyKind // the only one that is let in: see never
		case root == "context" && len(parts) > 1:
			return p.reads.kinds[pathOf(parts[1:]).String()]
		case len(parts) == 1 && parts[0] == "ip":
			return ipKind
		case len(parts) == 1 && parts[0] == "time":
			return timeKind
		case len(parts) == 1 && parts[0] == "clearance":
			return longKind
		}
		return stringKind
	case xast.NodeTypeIfThenElse:
		if k := p.kindOf(v.Then); k != unknownKind && k != anyKind {
			return k
		}
		return p.kindOf(v.Else)
	case xast.NodeTypeSet:
		for _, e := range v.Elements {
			if k := p.kindOf(e); k != unknownKind && k != anyKind {
				return k.set()
			}
		}
		if len(v.Elements) == 0 {
			return emptyKind
		}
		return unknownKind
	case xast.NodeTypeAdd, xast.NodeTypeSub, xast.NodeTypeMult, xast.NodeTypeNegate:
		return longKind
	case xast.NodeTypeExtensionCall:
		return callKind(v.Name)
	case xast.NodeTypeRecord:
		return recordKind
	}
	return boolKind
}

func valueKind(v types.Value) kind {
	switch v.(type) {
	case types.String:
		return stringKind
	case types.Boolean:
		return boolKind
	case types.Long:
		return longKind
	case types.IPAddr:
		return ipKind
	case types.Decimal:
		return decimalKind
	case types.Datetime:
		return timeKind
	case types.Duration:
		return spanKind
	}
	return recordKind
}

func callKind(name types.Path) kind {
	switch name {
	case "ip":
		return ipKind
	case "decimal":
		return decimalKind
	case "datetime", "toDate", "offset":
		return timeKind
	case "duration", "toTime", "durationSince":
		return spanKind
	case "toDays", "toHours", "toMinutes", "toSeconds", "toMilliseconds":
		return longKind
	}
	return boolKind
}

// want makes an expression be of a kind: its arguments have to be, and anything else must be already.
func (p *parser) want(n xast.IsNode, k kind) error {
	switch v := n.(type) {
	case xast.NodeTypeIfThenElse:
		if err := p.want(v.Then, k); err != nil {
			return err
		}
		return p.want(v.Else, k)
	case xast.NodeTypeSet:
		m := k.member()
		if m == unknownKind {
			break
		}
		for _, e := range v.Elements {
			if err := p.want(e, m); err != nil {
				return err
			}
		}
		return nil
	case xast.NodeTypeAccess:
		if at, ok := argument(v); ok {
			return p.expect(at, k)
		}
	}
	if got := p.kindOf(n); !got.fits(k) {
		return fmt.Errorf("%s is compared with %s", got, k)
	}
	return nil
}

// expect settles the kind of an argument.
func (p *parser) expect(at path, k kind) error {
	name := at.String()
	switch k {
	case stringKind, boolKind, longKind, stringKind.set(), boolKind.set(), longKind.set():
	case emptyKind:
		return fmt.Errorf("%s is compared with an empty list: write %s.isEmpty()", name, name)
	case ipKind, decimalKind, timeKind, spanKind:
		return fmt.Errorf("%s is compared with %s: make one of it with ip(), decimal(), datetime() or duration()", name, k)
	default:
		return fmt.Errorf("%s is compared with %s: compare single values and lists of them", name, k)
	}
	if old := p.reads.kinds[name]; old != unknownKind && old != k {
		return fmt.Errorf("%s is used as %s and as %s", name, old, k)
	}
	p.reads.kinds[name] = k
	return nil
}

// agree makes the two sides of a comparison be of one kind; with inside, the right side is a member of the left.
func (p *parser) agree(left, right xast.IsNode, inside bool) error {
	l, r := p.kindOf(left), p.kindOf(right)
	if l == anyKind || r == anyKind {
		return nil // always an error, whatever the other side is
	}
	if inside {
		r = r.set()
	}
	k := l
	if k == unknownKind || k == emptyKind {
		k = r
	}
	if k == unknownKind {
		a, ok1 := argument(left)
		b, ok2 := argument(right)
		if !ok1 || !ok2 {
			return fmt.Errorf("it cannot be told what types are compared: compare arguments with constants or with each other")
		}
		p.reads.pairs = append(p.reads.pairs, pair{a.String(), b.String(), inside})
		return nil
	}
	if err := p.want(left, k); err != nil {
		return err
	}
	if inside {
		if k = k.member(); k == unknownKind {
			return nil // an empty list
		}
	}
	return p.want(right, k)
}

// pair is two arguments that are compared with each other.
type pair struct {
	left, right string
	inside      bool
}

// argument is the path of an expression that is nothing but an argument.
func argument(n xast.IsNode) (path, bool) {
	root, parts, ok := chain(n)
	if !ok || root != "context" || len(parts) < 2 || parts[0] != "args" {
		return path{}, false
	}
	return pathOf(parts[1:]), true
}
