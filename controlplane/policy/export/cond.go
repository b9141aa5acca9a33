package export

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/residual"
)

// cond writes a condition as an expression.
func (e *exporter) cond(c *snapshot.Cond) (xast.Node, error) {
	switch c.Op {
	case snapshot.OpTrue:
		return xast.True(), nil
	case snapshot.OpFalse:
		return xast.False(), nil
	case snapshot.OpNot:
		n, err := e.cond(c.Kids[0])
		return xast.Not(n), err
	case snapshot.OpAnd, snapshot.OpOr:
		return e.join(c)
	case snapshot.OpBefore:
		return xast.Context().Access("time").LessThan(instant(c.Value.Int)), nil
	case snapshot.OpAfter:
		return xast.Context().Access("time").GreaterThanOrEqual(instant(c.Value.Int)), nil
	case snapshot.OpMember:
		if snapshot.Ref(c.Arg) == snapshot.Everyone {
			return xast.True(), nil
		}
		return xast.Principal().In(xast.Value(e.entity(snapshot.Ref(c.Arg)))), nil
	case snapshot.OpForeign:
		n, err := residual.Unmarshal(c.Value.Str)
		return xast.NewNode(n), err
	case snapshot.OpFail:
		return xast.Record(nil).Access("always an error"), nil
	case snapshot.OpHas:
		return has(c.From, c.Arg), nil
	default:
		return leaf(c)
	}
}

func (e *exporter) join(c *snapshot.Cond) (xast.Node, error) {
	out, err := e.cond(c.Kids[0])
	if err != nil {
		return out, err
	}
	for _, k := range c.Kids[1:] {
		n, err := e.cond(k)
		if err != nil {
			return out, err
		}
		if c.Op == snapshot.OpAnd {
			out = out.And(n)
		} else {
			out = out.Or(n)
		}
	}
	return out, nil
}

func leaf(c *snapshot.Cond) (xast.Node, error) {
	left, right := operand(c.From, c.Arg, c.Zone), constant(c.Value)
	if c.With != nil {
		right = operand(c.With.From, c.With.Arg, "")
	}
	switch c.Op {
	case snapshot.OpEq:
		return left.Equal(right), nil
	case snapshot.OpNe:
		return left.NotEqual(right), nil
	case snapshot.OpLt:
		return left.LessThan(right), nil
	case snapshot.OpLe:
		return left.LessThanOrEqual(right), nil
	case snapshot.OpGt:
		return left.GreaterThan(right), nil
	case snapshot.OpGe:
		return left.GreaterThanOrEqual(right), nil
	case snapshot.OpIn:
		list := make([]xast.Node, 0, len(c.Values))
		for _, v := range c.Values {
			list = append(list, constant(v))
		}
		return xast.Set(list...).Contains(left), nil
	case snapshot.OpContains:
		return left.Contains(right), nil
	case snapshot.OpInRange:
		return left.IsInRange(xast.ExtensionCall("ip", right)), nil
	default:
		return xast.Node{}, fmt.Errorf("operator %d has no words in Cedar", c.Op)
	}
}

func operand(from snapshot.Source, name, zone string) xast.Node {
	switch from {
	case snapshot.FromArgs:
		return xast.Context().Access("args").Access(types.String(name))
	case snapshot.FromContext:
		return xast.Context().Access(types.String(name))
	case snapshot.FromClock:
		return xast.Context().Access("clock").Access(types.String(zone)).Access(types.String(name))
	case snapshot.FromPrincipal:
		return xast.Principal().Access(types.String(name))
	case snapshot.FromResource:
	}
	if key, ok := strings.CutPrefix(name, "labels."); ok {
		return xast.Resource().Access("labels").Access(types.String(key))
	}
	return xast.Resource().Access(types.String(name))
}

func has(from snapshot.Source, name string) xast.Node {
	switch from {
	case snapshot.FromArgs:
		return xast.Context().Access("args").Has(types.String(name))
	case snapshot.FromContext:
		return xast.Context().Has(types.String(name))
	case snapshot.FromPrincipal:
		return xast.Principal().Has(types.String(name))
	case snapshot.FromResource, snapshot.FromClock:
	}
	if key, ok := strings.CutPrefix(name, "labels."); ok {
		return xast.Resource().Access("labels").Has(types.String(key))
	}
	return xast.Resource().Has(types.String(name))
}

func constant(v snapshot.Value) xast.Node {
	switch v.Type {
	case snapshot.TypeBool:
		return xast.Boolean(v.Bool)
	case snapshot.TypeNumber:
		return xast.Long(v.Int)
	default:
		return xast.String(v.Str)
	}
}

// instant writes a time to the millisecond; one that has no date in Cedar is so far from the epoch.
func instant(ms int64) xast.Node {
	t := time.UnixMilli(ms).UTC()
	if y := t.Year(); y >= 1 && y <= 9999 {
		return xast.ExtensionCall("datetime", xast.String(t.Format("2006-01-02T15:04:05.000Z")))
	}
	epoch := xast.ExtensionCall("datetime", xast.String("1970-01-01"))
	return epoch.Offset(xast.ExtensionCall("duration", xast.String(strconv.FormatInt(ms, 10)+"ms")))
}
