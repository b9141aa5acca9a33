package pep_test

import (
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// TestHostileArgumentsNeverTurnADenialIntoAnAllow sends, to a tool on which the callers have an allow or a deny with a
// condition, arguments that no reading makes good: nothing may come through to the upstream.
func TestHostileArgumentsNeverTurnADenialIntoAnAllow(t *testing.T) {
	t.Parallel()
	number := func(op snapshot.Op, n int64) *snapshot.Cond {
		return &snapshot.Cond{Op: op, Arg: "amount", Value: snapshot.Value{Type: snapshot.TypeNumber, Int: n}}
	}
	text := func(op snapshot.Op) *snapshot.Cond {
		return &snapshot.Cond{Op: op, Arg: "region", Value: snapshot.Value{Type: snapshot.TypeString, Str: "eu"}}
	}
	not := func(c *snapshot.Cond) *snapshot.Cond {
		return &snapshot.Cond{Op: snapshot.OpNot, Kids: []*snapshot.Cond{c}}
	}
	both := &snapshot.Cond{Op: snapshot.OpAnd, Kids: []*snapshot.Cond{number(snapshot.OpLt, 100), text(snapshot.OpEq)}}
	either := &snapshot.Cond{Op: snapshot.OpOr, Kids: []*snapshot.Cond{number(snapshot.OpGe, 100), text(snapshot.OpNe)}}
	policies := map[string][]snapshot.Grant{
		"an allow":           {{When: number(snapshot.OpLt, 100)}},
		"an allow of both":   {{When: both}},
		"a negated allow":    {{When: not(number(snapshot.OpGe, 100))}},
		"a deny":             {{}, {Deny: true, When: number(snapshot.OpGe, 100)}},
		"a deny of either":   {{}, {Deny: true, When: either}},
		"a negated deny":     {{}, {Deny: true, When: not(number(snapshot.OpLt, 100))}},
		"a deny, with allow": {{When: number(snapshot.OpLt, 1000)}, {Deny: true, When: number(snapshot.OpGe, 100)}},
	}
	for name, grants := range policies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := newScripted(t)
			for i := range grants {
				grants[i].ID, grants[i].Subject, grants[i].Server, grants[i].Tool = "g"+string(rune('0'+i)), "user:alice", "pay", "refund"
			}
			g := newGateway(t, pep.Config{}, grants, catalogueServer("pay", up.url, allEras(), plainTool("refund", destructive)))
			if a := g.call("/mcp/pay", "alice", "refund", `{"amount":99.5,"region":"eu"}`); a.code() != 0 || up.calls() != 1 {
				t.Fatalf("good arguments: %s", a.body)
			}
			for _, args := range hostileArguments() {
				a := g.call("/mcp/pay", "alice", "refund", args)
				rec := g.book.of(a.decision())
				if up.calls() != 1 || len(rec) != 1 || rec[0].GetDecision() != auditv1.Decision_DECISION_DENY {
					t.Fatalf("%s came through: %d %s", args, a.status, a.body)
				}
			}
		})
	}
}

// hostileArguments are good by no condition above: the amount is not a number below 100.
func hostileArguments() []string {
	amount := func(v string) string { return `{"region":"eu","amount":` + v + `}` }
	list := []string{
		`{}`, `null`, `[]`, `"amount"`, `{"region":"eu"}`,
		// In the place of a number.
		amount(`"5"`), amount(`"99"`), amount(`null`), amount(`true`), amount(`[5]`), amount(`{"amount":5}`), amount(`[]`), amount(`{}`), amount(`""`),
		// Numbers that are 100 and more, however they are written.
		amount(`100`), amount(`100.0`), amount(`1e2`), amount(`1E+2`), amount(`1000e-1`), amount(`0.1e3`), amount(`100.000000000000000000000000000000000001`),
		amount(`9223372036854775807`), amount(`9223372036854775808`), amount(`18446744073709551616`), amount(`1e308`), amount(`1e400`), amount(`1e999999999`),
		amount(`1` + strings.Repeat("0", 400)),
		// What is no number of JSON.
		amount(`NaN`), amount(`"NaN"`), amount(`Infinity`), amount(`-Infinity`), amount(`"-Infinity"`), amount(`0x10`), amount(`+5`), amount(`05`), amount(`5.`),
		amount(`.5`), amount(`5e`), amount(`1_0`), amount("\u0665"), amount("\uff15"),
		// Elsewhere, twice, or under a name that only looks the same.
		`{"region":"eu","args":{"amount":5}}`, `{"region":"eu","amount":{"value":5},"value":5}`,
		`{"region":"eu","amount":5,"amount":500}`, `{"region":"eu","amount":500,"amount":5}`, `{"region":"eu","amount":5,"\u0061mount":500}`,
		`{"region":"eu","amount":500,"Amount":5}`, `{"region":"eu","amount":5,"AMOUNT":500}`, `{"region":"eu","Amount":5}`, `{"region":"eu","amount ":5}`,
		`{"region":"eu"," amount":5}`, `{"region":"eu","amount\u0000":5}`, `{"region":"eu","amount\u200b":5}`, `{"region":"eu","\u0430mount":5}`,
		`{"region":"eu","\uff41mount":5}`, `{"region":"eu","am\u00adount":5}`, `{"region":"eu","amoun\u0074\u0301":5}`,
		"{\"region\":\"eu\",\"amount\xff\":5}", `{"region":"eu","\ud800amount":5}`,
		// Not to be read to the end.
		amount(strings.Repeat(`[`, 200) + strings.Repeat(`]`, 200)), `{"region":"eu","amount":5`, amount(`5}`), amount(`5],[`),
	}
	return list
}
