package residual

import (
	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/ast"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"
)

func policyOf(n xast.IsNode) *cedar.Policy {
	return cedar.NewPolicyFromAST((*ast.Policy)(xast.Permit().When(xast.NewNode(n))))
}

// mapKids rebuilds a node with its direct parts changed by f.
func mapKids(n xast.IsNode, f func(xast.IsNode) (xast.IsNode, error)) (xast.IsNode, error) {
	m := mapper{f: f}
	out := m.node(n)
	return out, m.err
}

type mapper struct {
	f   func(xast.IsNode) (xast.IsNode, error)
	err error
}

func (m *mapper) kid(n xast.IsNode) xast.IsNode {
	if m.err != nil {
		return n
	}
	out, err := m.f(n)
	if err != nil {
		m.err = err
		return n
	}
	return out
}

func (m *mapper) two(b xast.BinaryNode) xast.BinaryNode {
	return xast.BinaryNode{Left: m.kid(b.Left), Right: m.kid(b.Right)}
}

func (m *mapper) one(u xast.UnaryNode) xast.UnaryNode { return xast.UnaryNode{Arg: m.kid(u.Arg)} }

func (m *mapper) many(ns []xast.IsNode) []xast.IsNode {
	out := make([]xast.IsNode, len(ns))
	for i, n := range ns {
		out[i] = m.kid(n)
	}
	return out
}

func (m *mapper) node(n xast.IsNode) xast.IsNode {
	switch v := n.(type) {
	case xast.NodeTypeIfThenElse:
		return xast.NodeTypeIfThenElse{If: m.kid(v.If), Then: m.kid(v.Then), Else: m.kid(v.Else)}
	case xast.NodeTypeAccess:
		return xast.NodeTypeAccess{StrOpNode: xast.StrOpNode{Arg: m.kid(v.Arg), Value: v.Value}}
	case xast.NodeTypeHas:
		return xast.NodeTypeHas{StrOpNode: xast.StrOpNode{Arg: m.kid(v.Arg), Value: v.Value}}
	case xast.NodeTypeLike:
		return xast.NodeTypeLike{Arg: m.kid(v.Arg), Value: v.Value}
	case xast.NodeTypeIs:
		return xast.NodeTypeIs{Left: m.kid(v.Left), EntityType: v.EntityType}
	case xast.NodeTypeIsIn:
		return xast.NodeTypeIsIn{NodeTypeIs: xast.NodeTypeIs{Left: m.kid(v.Left), EntityType: v.EntityType}, Entity: m.kid(v.Entity)}
	case xast.NodeTypeSet:
		return xast.NodeTypeSet{Elements: m.many(v.Elements)}
	case xast.NodeTypeRecord:
		out := make([]xast.RecordElementNode, len(v.Elements))
		for i, e := range v.Elements {
			out[i] = xast.RecordElementNode{Key: e.Key, Value: m.kid(e.Value)}
		}
		return xast.NodeTypeRecord{Elements: out}
	case xast.NodeTypeExtensionCall:
		return xast.NodeTypeExtensionCall{Name: v.Name, Args: m.many(v.Args)}
	case xast.NodeTypeNot:
		return xast.NodeTypeNot{UnaryNode: m.one(v.UnaryNode)}
	case xast.NodeTypeNegate:
		return xast.NodeTypeNegate{UnaryNode: m.one(v.UnaryNode)}
	case xast.NodeTypeIsEmpty:
		return xast.NodeTypeIsEmpty{UnaryNode: m.one(v.UnaryNode)}
	}
	return m.binary(n)
}

func (m *mapper) binary(n xast.IsNode) xast.IsNode {
	switch v := n.(type) {
	case xast.NodeTypeAnd:
		return xast.NodeTypeAnd{BinaryNode: m.two(v.BinaryNode)}
	case xast.NodeTypeOr:
		return xast.NodeTypeOr{BinaryNode: m.two(v.BinaryNode)}
	case xast.NodeTypeEquals:
		return xast.NodeTypeEquals{BinaryNode: m.two(v.BinaryNode)}
	case xast.NodeTypeNotEquals:
		return xast.NodeTypeNotEquals{BinaryNode: m.two(v.BinaryNode)}
	case xast.NodeTypeLessThan:
		return xast.NodeTypeLessThan{BinaryNode: m.two(v.BinaryNode)}
	case xast.NodeTypeLessThanOrEqual:
		return xast.NodeTypeLessThanOrEqual{BinaryNode: m.two(v.BinaryNode)}
	case xast.NodeTypeGreaterThan:
		return xast.NodeTypeGreaterThan{BinaryNode: m.two(v.BinaryNode)}
	case xast.NodeTypeGreaterThanOrEqual:
		return xast.NodeTypeGreaterThanOrEqual{BinaryNode: m.two(v.BinaryNode)}
	case xast.NodeTypeAdd:
		return xast.NodeTypeAdd{BinaryNode: m.two(v.BinaryNode)}
	case xast.NodeTypeSub:
		return xast.NodeTypeSub{BinaryNode: m.two(v.BinaryNode)}
	case xast.NodeTypeMult:
		return xast.NodeTypeMult{BinaryNode: m.two(v.BinaryNode)}
	case xast.NodeTypeIn:
		return xast.NodeTypeIn{BinaryNode: m.two(v.BinaryNode)}
	case xast.NodeTypeContains:
		return xast.NodeTypeContains{BinaryNode: m.two(v.BinaryNode)}
	case xast.NodeTypeContainsAll:
		return xast.NodeTypeContainsAll{BinaryNode: m.two(v.BinaryNode)}
	case xast.NodeTypeContainsAny:
		return xast.NodeTypeContainsAny{BinaryNode: m.two(v.BinaryNode)}
	case xast.NodeTypeGetTag:
		return xast.NodeTypeGetTag{BinaryNode: m.two(v.BinaryNode)}
	case xast.NodeTypeHasTag:
		return xast.NodeTypeHasTag{BinaryNode: m.two(v.BinaryNode)}
	}
	return n // a value or a variable
}
