package policy

import (
	"fmt"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/snapshot"
)

// show writes a condition as text, so that tests compare what people can read.
func show(c *snapshot.Cond) string {
	if c == nil {
		return "always"
	}
	var kids []string
	for _, k := range c.Kids {
		kids = append(kids, show(k))
	}
	name := showOperand(c.From, c.Arg, c.Zone)
	right := showValue(c.Value)
	if c.With != nil {
		right = showOperand(c.With.From, c.With.Arg, "")
	}
	switch c.Op {
	case snapshot.OpTrue:
		return "true"
	case snapshot.OpFalse:
		return "false"
	case snapshot.OpAnd:
		return "(" + strings.Join(kids, " && ") + ")"
	case snapshot.OpOr:
		return "(" + strings.Join(kids, " || ") + ")"
	case snapshot.OpNot:
		return "!" + kids[0]
	case snapshot.OpHas:
		return "has " + name
	case snapshot.OpIn:
		var vs []string
		for _, v := range c.Values {
			vs = append(vs, showValue(v))
		}
		return name + " in " + strings.Join(vs, ",")
	case snapshot.OpMember:
		return "member of " + c.Arg
	case snapshot.OpInRange:
		return name + " within " + right
	case snapshot.OpContains:
		return name + " contains " + right
	case snapshot.OpBefore, snapshot.OpAfter:
		return map[snapshot.Op]string{snapshot.OpBefore: "before ", snapshot.OpAfter: "from "}[c.Op] + time.UnixMilli(c.Value.Int).UTC().Format("2006-01-02T15:04:05.999Z")
	case snapshot.OpForeign:
		return "cedar " + c.Value.Str
	default:
		signs := map[snapshot.Op]string{snapshot.OpEq: "==", snapshot.OpNe: "!=", snapshot.OpLt: "<", snapshot.OpLe: "<=", snapshot.OpGt: ">", snapshot.OpGe: ">="}
		return name + " " + signs[c.Op] + " " + right
	}
}

func showOperand(from snapshot.Source, name, zone string) string {
	switch from {
	case snapshot.FromContext:
		return "context." + name
	case snapshot.FromPrincipal:
		return "principal." + name
	case snapshot.FromResource:
		return "resource." + name
	case snapshot.FromClock:
		return "clock(" + zone + ")." + name
	case snapshot.FromArgs:
	}
	return name
}

func showValue(v snapshot.Value) string {
	switch v.Type {
	case snapshot.TypeString:
		return fmt.Sprintf("%q", v.Str)
	case snapshot.TypeBool:
		return fmt.Sprint(v.Bool)
	default:
		return fmt.Sprint(v.Int)
	}
}
