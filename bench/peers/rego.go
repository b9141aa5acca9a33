package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mcpvault/mcpvault/snapshot"
)

// rules are the decision as Rego over data that is indexed by node, server and item. Conditions are rules too: holds.cN is
// defined when a condition is true, clean.cN when it is false without an error, so that a deny in error denies.
const rules = `package mcpvault

default allow := false

allow if {
	not denied
	some node in data.nodes[input.principal]
	some item in ["*", input.item]
	some c in data.allows[node][input.server][item]
	holds[c]
}

denied if {
	some node in data.nodes[input.principal]
	some item in ["*", input.item]
	some c in data.denies[node][input.server][item]
	not clean[c]
}

denied if data.suspended[input.principal]

holds.always if true

clean.never if false
`

// always is the name of no condition.
const always = "always"

// body is a list of expressions that must all be true.
type body []string

// maxBodies bounds how many rules a condition may become.
const maxBodies = 64

// regoRules writes the rules of a condition.
func regoRules(name string, c *snapshot.Cond) (string, error) {
	holds, clean := regoBodies(c)
	if len(holds) > maxBodies || len(clean) > maxBodies {
		return "", fmt.Errorf("the condition becomes more than %d rules", maxBodies)
	}
	var b strings.Builder
	for _, part := range []struct {
		rule   string
		bodies []body
	}{{"holds", holds}, {"clean", clean}} {
		for _, lines := range part.bodies {
			fmt.Fprintf(&b, "\n%s.%s if {\n\t%s\n}\n", part.rule, name, strings.Join(lines, "\n\t"))
		}
	}
	return b.String(), nil
}

// regoBodies are the ways in which a condition comes out true, and false without an error. The first error ends a
// condition, so that what stands to the right counts only when what stands to the left has a value.
func regoBodies(c *snapshot.Cond) (holds, clean []body) {
	switch c.Op {
	case snapshot.OpTrue:
		return []body{{"true"}}, nil
	case snapshot.OpFalse:
		return nil, []body{{"true"}}
	case snapshot.OpNot:
		holds, clean = regoBodies(c.Kids[0])
		return clean, holds
	case snapshot.OpAnd:
		holds, clean = regoBodies(c.Kids[0])
		for _, k := range c.Kids[1:] {
			yes, no := regoBodies(k)
			clean = append(clean, cross(holds, no)...)
			holds = cross(holds, yes)
		}
		return holds, clean
	case snapshot.OpOr:
		holds, clean = regoBodies(c.Kids[0])
		for _, k := range c.Kids[1:] {
			yes, no := regoBodies(k)
			holds = append(holds, cross(clean, yes)...)
			clean = cross(clean, no)
		}
		return holds, clean
	default:
		guard, yes, no := regoLeaf(c)
		return []body{append(slices.Clone(guard), yes)}, []body{append(slices.Clone(guard), no)}
	}
}

func cross(left, right []body) (out []body) {
	for _, l := range left {
		for _, r := range right {
			out = append(out, slices.Concat(l, r))
		}
	}
	return out
}

// regoLeaf is a comparison: what must be so for it to have a value, and the two that it can come to.
func regoLeaf(c *snapshot.Cond) (guard body, yes, no string) {
	switch c.Op {
	case snapshot.OpBefore:
		return nil, fmt.Sprintf("input.now < %d", c.Value.Int), fmt.Sprintf("input.now >= %d", c.Value.Int)
	case snapshot.OpAfter:
		return nil, fmt.Sprintf("input.now >= %d", c.Value.Int), fmt.Sprintf("input.now < %d", c.Value.Int)
	case snapshot.OpInRange:
		test := fmt.Sprintf("net.cidr_contains(%q, input.ip)", c.Value.Str)
		return body{"is_string(input.ip)"}, test, "not " + test
	default: // the others compare an operand with constants
	}
	operand := fmt.Sprintf("input.args[%q]", c.Arg)
	typ := c.Value.Type
	if c.Op == snapshot.OpIn {
		typ = c.Values[0].Type
	}
	if c.From == snapshot.FromClock {
		operand = fmt.Sprintf("input.clock[%q][%q]", c.Zone, c.Arg)
	}
	check := map[snapshot.Type]string{snapshot.TypeString: "is_string", snapshot.TypeBool: "is_boolean", snapshot.TypeNumber: "is_number"}[typ]
	guard = body{check + "(" + operand + ")"}
	if c.Op == snapshot.OpIn {
		var members []string
		for _, v := range c.Values {
			members = append(members, regoConst(v))
		}
		test := fmt.Sprintf("%s in [%s]", operand, strings.Join(members, ", "))
		return guard, test, "not " + test
	}
	signs := map[snapshot.Op][2]string{
		snapshot.OpEq: {"==", "!="}, snapshot.OpNe: {"!=", "=="}, snapshot.OpLt: {"<", ">="}, snapshot.OpLe: {"<=", ">"},
		snapshot.OpGt: {">", "<="}, snapshot.OpGe: {">=", "<"},
	}[c.Op]
	value := regoConst(c.Value)
	return guard, operand + " " + signs[0] + " " + value, operand + " " + signs[1] + " " + value
}

func regoConst(v snapshot.Value) string {
	switch v.Type {
	case snapshot.TypeBool:
		return strconv.FormatBool(v.Bool)
	case snapshot.TypeString:
		return strconv.Quote(v.Str)
	default:
		return strconv.FormatInt(v.Int, 10)
	}
}
