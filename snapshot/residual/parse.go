package residual

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Where the rewritten expression finds what it reads. No name of ours can be said in the original: the variables are
// refused unless one of their known members is named.
const (
	valuesKey    = "value"
	hasKey       = "has"
	principalKey = "principal"
)

// Unmarshal gives the expression that a text stands for, within the bounds.
func Unmarshal(est string) (xast.IsNode, error) {
	if len(est) > MaxText {
		return nil, fmt.Errorf("expression of %d bytes: at most %d", len(est), MaxText)
	}
	v := jsontext.Value(est)
	if !v.IsValid() || v.Kind() != '{' {
		return nil, errors.New("expression is not a strict JSON object")
	}
	// Each level of an expression is at most three of JSON; cedar-go's reader recurses, so it is bounded before it starts.
	if deeper([]byte(est), 3*MaxDepth) {
		return nil, fmt.Errorf("expression nests deeper than %d", MaxDepth)
	}
	const before, after = `{"effect":"permit","principal":{"op":"All"},"action":{"op":"All"},"resource":{"op":"All"},"conditions":[{"kind":"when","body":`, `}]}`
	var p cedar.Policy
	if err := p.UnmarshalJSON([]byte(before + est + after)); err != nil {
		return nil, fmt.Errorf("expression: %w", err)
	}
	return p.AST().Conditions[0].Body, nil
}

// Marshal writes an expression in the form that Parse and Fold read; the same expression gives the same text.
func Marshal(n xast.IsNode) (string, error) {
	p := policyOf(n)
	raw, err := p.MarshalJSON()
	if err != nil {
		return "", fmt.Errorf("expression: %w", err)
	}
	var form struct {
		Conditions []struct {
			Body jsontext.Value `json:"body"`
		} `json:"conditions"`
	}
	if err := json.Unmarshal(raw, &form); err != nil {
		return "", fmt.Errorf("expression: %w", err)
	}
	return string(form.Conditions[0].Body), nil
}

// parser checks an expression and turns what it reads into members of one flat record, so that a path is either there or
// in error as a whole.
type parser struct{ reads reads }

func (p *parser) expr(n xast.IsNode, depth int) (xast.IsNode, error) {
	if depth >= MaxDepth {
		return nil, fmt.Errorf("expression nests deeper than %d", MaxDepth)
	}
	switch v := n.(type) {
	case xast.NodeTypeVariable:
		return nil, whole(v.Name)
	case xast.NodeTypeAccess:
		if root, parts, ok := chain(v); ok {
			return p.access(root, parts)
		}
		if isNever(v) {
			return v, nil
		}
		return nil, errors.New("a member can only be read of an argument that is named: context.args.NAME.MEMBER")
	case xast.NodeTypeHas:
		if root, parts, ok := chain(v.Arg); ok {
			return p.presence(root, parts, string(v.Value))
		}
		return nil, errors.New("has can only be asked of an argument that is named: context.args.NAME has MEMBER")
	case xast.NodeTypeIn, xast.NodeTypeIs, xast.NodeTypeIsIn, xast.NodeTypeGetTag, xast.NodeTypeHasTag:
		return nil, errors.New("membership, types and tags of entities cannot stand inside another expression: write principal in ... as a condition of its own")
	case xast.NodeValue:
		if valueKind(v.Value) == recordKind {
			return nil, errors.New("an entity or an object cannot stand in an expression that runs in a cell")
		}
	case xast.NodeTypeRecord:
		return nil, errors.New("an object cannot stand in an expression that runs in a cell: compare its members one by one")
	case xast.NodeTypeExtensionCall:
		if want, ok := arity(v.Name); !ok || len(v.Args) != want {
			return nil, fmt.Errorf("%s takes %d operands, not %d", v.Name, want, len(v.Args))
		}
	}
	out, err := mapKids(n, func(k xast.IsNode) (xast.IsNode, error) { return p.expr(k, depth+1) })
	if err != nil {
		return nil, err
	}
	return out, p.compare(n)
}

// compare types the operators for which Cedar has an answer whatever the types are.
func (p *parser) compare(n xast.IsNode) error {
	switch v := n.(type) {
	case xast.NodeTypeEquals:
		return p.agree(v.Left, v.Right, false)
	case xast.NodeTypeNotEquals:
		return p.agree(v.Left, v.Right, false)
	case xast.NodeTypeContains:
		return p.agree(v.Left, v.Right, true)
	case xast.NodeTypeContainsAll:
		return p.agree(v.Left, v.Right, false)
	case xast.NodeTypeContainsAny:
		return p.agree(v.Left, v.Right, false)
	case xast.NodeTypeSet:
		for i := 1; i < len(v.Elements); i++ {
			if err := p.agree(v.Elements[0], v.Elements[i], false); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *parser) access(root string, parts []string) (xast.IsNode, error) {
	switch root {
	case "principal":
		if len(parts) != 1 || !principalHas(parts[0]) {
			return nil, unknown(root, parts)
		}
		p.reads.principal = true
		return member(member(xast.NewContextNode(), principalKey), parts[0]), nil
	case "context":
		if parts[0] == "args" && len(parts) > 1 {
			at := pathOf(parts[1:])
			p.reads.values = add(p.reads.values, at)
			return member(member(xast.NewContextNode(), valuesKey), at.String()), nil
		}
		if len(parts) != 1 || !contextHas(parts[0]) {
			return nil, unknown(root, parts)
		}
		p.reads.context[parts[0]] = true
		return member(xast.NewContextNode(), parts[0]), nil
	}
	return nil, whole(types.String(root))
}

// presence turns `has` into a boolean that is itself absent when the answer is an error: a null argument is neither there
// nor not.
func (p *parser) presence(root string, parts []string, attr string) (xast.IsNode, error) {
	all := slices.Concat(parts, []string{attr})
	switch {
	case root == "principal" && len(parts) == 0 && principalHas(attr):
		p.reads.principal = true
		return has(member(xast.NewContextNode(), principalKey), attr), nil
	case root == "context" && len(parts) == 0 && attr == "args":
		return xast.NodeValue{Value: types.True}, nil
	case root == "context" && len(parts) == 0 && contextHas(attr):
		p.reads.context[attr] = true
		return has(xast.NewContextNode(), attr), nil
	case root == "context" && len(parts) > 0 && parts[0] == "args":
		at := pathOf(all[1:])
		p.reads.has = add(p.reads.has, at)
		return member(member(xast.NewContextNode(), hasKey), at.String()), nil
	case root == "principal" || root == "context":
		return nil, unknown(root, all)
	}
	return nil, whole(types.String(root))
}

func principalHas(attr string) bool {
	return attr == "name" || attr == "kind" || attr == "clearance" || attr == "region"
}

func contextHas(attr string) bool {
	return attr == "time" || attr == "ip" || attr == "region" || attr == "actor"
}

func whole(variable types.String) error {
	switch variable {
	case "context":
		return errors.New("context cannot be used as a whole: name one member of it")
	case "principal":
		return errors.New("principal cannot be used as a whole: name one of its attributes name, kind, clearance and region")
	}
	return fmt.Errorf("%s is not known where this expression runs", variable)
}

func unknown(root string, parts []string) error {
	at := root + "." + strings.Join(parts, ".")
	switch {
	case root == "context" && parts[0] == "args":
		return errors.New("context.args cannot be used as a whole: name one argument")
	case root == "context" && parts[0] == "clock":
		return errors.New("context.clock can only be compared with a constant, as a condition of its own")
	}
	return fmt.Errorf("%s is not known where this expression runs", at)
}

// path names an argument: its members from the outside in, and how it is written.
type path struct {
	names []string
	text  string
}

func (p path) String() string { return p.text }

func pathOf(names []string) path {
	var b strings.Builder
	b.WriteString("context.args")
	for _, s := range names {
		if isIdent(s) {
			b.WriteString("." + s)
		} else {
			b.WriteString("[" + strconv.Quote(s) + "]")
		}
	}
	return path{names, b.String()}
}

func isIdent(s string) bool {
	for i := range len(s) {
		if c := s[i]; c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9' || i == 0) {
			return false
		}
	}
	return s != ""
}

func add(to []path, p path) []path {
	for _, q := range to {
		if q.String() == p.String() {
			return to
		}
	}
	return append(to, p)
}

// chain reads variable.a.b as its root and its members.
func chain(n xast.IsNode) (root string, parts []string, ok bool) {
	switch v := n.(type) {
	case xast.NodeTypeVariable:
		return string(v.Name), nil, true
	case xast.NodeTypeAccess:
		if root, parts, ok = chain(v.Arg); ok {
			return root, append(parts, string(v.Value)), true
		}
	}
	return "", nil, false
}

func member(of xast.IsNode, name string) xast.IsNode {
	return xast.NodeTypeAccess{StrOpNode: xast.StrOpNode{Arg: of, Value: types.String(name)}}
}

func has(of xast.IsNode, name string) xast.IsNode {
	return xast.NodeTypeHas{StrOpNode: xast.StrOpNode{Arg: of, Value: types.String(name)}}
}

// arity counts the operands of a function of Cedar, the receiver of a method included.
func arity(name types.Path) (int, bool) {
	switch name {
	case "ip", "decimal", "datetime", "duration", "isIpv4", "isIpv6", "isLoopback", "isMulticast",
		"toDate", "toTime", "toDays", "toHours", "toMinutes", "toSeconds", "toMilliseconds":
		return 1, true
	case "lessThan", "lessThanOrEqual", "greaterThan", "greaterThanOrEqual", "isInRange", "offset", "durationSince":
		return 2, true
	}
	return 0, false
}
