package residual

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"

	"github.com/mcpvault/mcpvault/snapshot"
)

// Fold settles what an expression asks about the resource: resource.ATTR becomes the constant that fact gives for it, and
// `resource has ATTR` true or false. Attributes are named as in snapshot.FromResource: resource.labels.env is "labels.env".
// fact answers for "name", "server" and "kind" too. Reading an attribute that is not there becomes an expression that is
// always an error. The same facts give the same text, and an expression that reads nothing else becomes its value.
func Fold(est string, fact func(attr string) (snapshot.Fact, bool)) (string, error) {
	n, err := Unmarshal(est)
	if err != nil {
		return "", err
	}
	f := &folder{fact: fact}
	if n, err = f.expr(n, 0); err != nil {
		return "", err
	}
	if !f.open {
		n = settled(n)
	}
	return Marshal(n)
}

type folder struct {
	fact func(string) (snapshot.Fact, bool)
	// open is set when something is read that is not settled here.
	open bool
}

func (f *folder) expr(n xast.IsNode, depth int) (xast.IsNode, error) {
	if depth >= MaxDepth {
		return nil, fmt.Errorf("expression nests deeper than %d", MaxDepth)
	}
	switch v := n.(type) {
	case xast.NodeTypeVariable:
		if v.Name == "resource" {
			return nil, errors.New("resource cannot be used as a whole: name one of its attributes")
		}
		f.open = true
	case xast.NodeTypeAccess:
		if root, parts, ok := chain(v); ok && root == "resource" {
			return f.access(parts)
		}
	case xast.NodeTypeHas:
		if root, parts, ok := chain(v.Arg); ok && root == "resource" {
			return f.presence(append(parts[:len(parts):len(parts)], string(v.Value)))
		}
	case xast.NodeTypeIs:
		if root, parts, ok := chain(v.Left); ok && root == "resource" && len(parts) == 0 {
			return truth(f.is(v.EntityType)), nil
		}
	case xast.NodeTypeIsIn:
		return f.expr(xast.NodeTypeAnd{BinaryNode: xast.BinaryNode{
			Left: v.NodeTypeIs, Right: xast.NodeTypeIn{BinaryNode: xast.BinaryNode{Left: v.Left, Right: v.Entity}},
		}}, depth)
	case xast.NodeTypeIn:
		if root, parts, ok := chain(v.Left); ok && root == "resource" && len(parts) == 0 {
			return f.in(v.Right)
		}
	}
	return mapKids(n, func(k xast.IsNode) (xast.IsNode, error) { return f.expr(k, depth+1) })
}

// attribute is the name of a fact for a chain of members.
func attribute(parts []string) (string, error) {
	switch {
	case len(parts) == 1 && parts[0] == "labels":
		return "", errors.New("resource.labels cannot be used as a whole: name one label")
	case len(parts) == 1 || len(parts) == 2 && parts[0] == "labels":
		return strings.Join(parts, "."), nil
	}
	return "", fmt.Errorf("resource.%s: only labels have members", strings.Join(parts, "."))
}

func (f *folder) access(parts []string) (xast.IsNode, error) {
	name, err := attribute(parts)
	if err != nil {
		return nil, err
	}
	v, ok := f.fact(name)
	if !ok {
		return never("resource." + name + " is absent"), nil
	}
	return constant(name, v)
}

func (f *folder) presence(parts []string) (xast.IsNode, error) {
	if len(parts) == 1 && parts[0] == "labels" {
		return truth(true), nil
	}
	name, err := attribute(parts)
	if err != nil {
		return nil, err
	}
	_, ok := f.fact(name)
	return truth(ok), nil
}

func (f *folder) is(t types.EntityType) bool {
	kind, ok := f.fact("kind")
	return ok && strings.EqualFold(kind.Str, string(t))
}

// in settles `resource in Server::"s"` and `resource in Endpoint::"e"`.
func (f *folder) in(right xast.IsNode) (xast.IsNode, error) {
	v, ok := right.(xast.NodeValue)
	if !ok {
		return nil, errors.New("resource in takes one entity")
	}
	uid, ok := v.Value.(types.EntityUID)
	if !ok {
		return nil, errors.New("resource in takes one entity")
	}
	switch uid.Type {
	case "Server":
		s, ok := f.fact("server")
		return truth(ok && s.Str == string(uid.ID)), nil
	case "Endpoint":
		e, ok := f.fact("endpoints")
		return truth(ok && slices.Contains(e.Set, string(uid.ID))), nil
	}
	return nil, fmt.Errorf("resource in %s: a resource belongs to a Server and to Endpoints", uid.Type)
}

func truth(b bool) xast.IsNode { return xast.NodeValue{Value: types.Boolean(b)} }

// never is an expression that is always an error, which says why.
func never(why string) xast.IsNode {
	return xast.NodeTypeAccess{StrOpNode: xast.StrOpNode{Arg: xast.NodeTypeRecord{}, Value: types.String(why)}}
}

func isNever(n xast.NodeTypeAccess) bool {
	r, ok := n.Arg.(xast.NodeTypeRecord)
	return ok && len(r.Elements) == 0
}

func constant(name string, v snapshot.Fact) (xast.IsNode, error) {
	switch v.Type {
	case snapshot.TypeString:
		return xast.NodeValue{Value: types.String(v.Str)}, nil
	case snapshot.TypeBool:
		return truth(v.Bool), nil
	case snapshot.TypeNumber:
		return xast.NodeValue{Value: types.Long(v.Int)}, nil
	case snapshot.TypeSet:
		s := xast.NodeTypeSet{Elements: []xast.IsNode{}}
		for _, m := range v.Set {
			s.Elements = append(s.Elements, xast.NodeValue{Value: types.String(m)})
		}
		return s, nil
	case snapshot.TypeIP:
		return xast.NodeTypeExtensionCall{Name: "ip", Args: []xast.IsNode{xast.NodeValue{Value: types.String(v.Str)}}}, nil
	case snapshot.TypeInvalid:
	}
	return nil, fmt.Errorf("resource.%s has no type", name)
}

// settled is the value of an expression that reads nothing; one in error stays as it is.
func settled(n xast.IsNode) xast.IsNode {
	set := cedar.NewPolicySet()
	set.Add("", policyOf(n))
	d, diag := cedar.Authorize(set, nil, cedar.Request{})
	if len(diag.Errors) > 0 {
		return n
	}
	return truth(d == cedar.Allow)
}
