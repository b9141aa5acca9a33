package pep_test

import (
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

func TestB21ArgumentsThatBreakTheApprovedSchemaGoNoFurther(t *testing.T) {
	t.Parallel()
	up := newScripted(t)
	send := tool{"send", `{"name":"send","inputSchema":{"type":"object","properties":{"to":{"type":"string","pattern":"^[a-z]+$"},"n":{"type":"integer"}},"required":["to"],"additionalProperties":false}}`, read}
	deep := tool{"deep", `{"name":"deep","inputSchema":{"properties":{"a":{"allOf":[{"$ref":"#"},{"$ref":"#"}]}}}}`, read}
	g := newGateway(t, pep.Config{}, nil, catalogueServer("mail", up.url, allEras(), send, deep,
		tool{"broken", `{"name":"broken","inputSchema":{"type":"strang"}}`, read}, tool{"bare", `{"name":"bare"}`, read}))
	calls := func(name, args string) *answer { return g.call("/mcp/mail", "root", name, args) }
	twice := strings.Repeat(`{"a":`, 50) + "1" + strings.Repeat("}", 50)
	bad := []struct{ tool, args, reason, says string }{
		{"send", `{}`, "argument_schema", `/ does not meet`},
		{"send", `{"to":7}`, "argument_schema", `/to does not meet`},
		{"send", `{"to":"Hunter2"}`, "argument_schema", `pattern`},
		{"send", `{"to":"a","n":1.5}`, "argument_schema", `/n does not meet`},
		{"send", `{"to":"a","extra":1}`, "argument_schema", `additionalProperties`},
		{"deep", twice, "argument_cost", "too large or too deep"},
		{"broken", `{}`, "schema_unusable", "mcpvault settings set"},
	}
	for _, tc := range bad {
		if a := calls(tc.tool, tc.args); a.Result == nil {
			t.Errorf("B21: without the check %s %.80s is the server's own to refuse: %s", tc.tool, tc.args, a.body)
		}
	}
	g.cat.Settings.Guards = &snapshotv1.Guards{CheckArguments: true}
	g.publish()
	before := up.calls()
	for _, tc := range bad {
		a := calls(tc.tool, tc.args)
		rec := g.book.of(a.decision())
		if a.status != 200 || a.code() != -32602 || !strings.Contains(a.Error.Message, tc.says) || !strings.Contains(a.body, `"reason":"`+tc.reason+`"`) || strings.Contains(a.body, "Hunter2") {
			t.Errorf("B21: %s %.80s: %d %s", tc.tool, tc.args, a.status, a.body)
		}
		if len(rec) != 1 || rec[0].GetReason() != tc.reason || rec[0].GetDecision() != auditv1.Decision_DECISION_DENY || rec[0].GetItem() != tc.tool {
			t.Errorf("B21: %s recorded as %v", tc.tool, rec)
		}
	}
	if up.calls() != before {
		t.Error("B21: the server saw a call that breaks its schema")
	}
	for name, args := range map[string]string{"send": `{"to":"abc","n":2}`, "deep": `{"a":{"a":1}}`, "bare": `{"x":1}`} {
		if a := calls(name, args); string(a.Result) != oddResult {
			t.Errorf("B21: %s %s: %s", name, args, a.body)
		}
	}
	if a := g.modern("/mcp/mail", "root", "tools/call", "send", `"name":"send"`); a.code() != -32602 {
		t.Errorf("B21: no arguments at all: %s", a.body)
	}
	// Who may not know of a tool learns nothing of its schema.
	if a := g.call("/mcp/mail", "alice", "send", `{}`); strings.Contains(a.body, "schema") {
		t.Errorf("B21: %s", a.body)
	}
}
