package pep_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// guarded is payments under guards.
func guarded(t *testing.T, guards *snapshotv1.Guards) (*gateway, *scripted) {
	t.Helper()
	g, up := payments(t)
	g.cat.Settings.Guards = guards
	g.publish()
	return g, up
}

// said makes the server answer with a result, in a body or as the one event of a stream.
func said(up *scripted, result string, stream bool) {
	up.script(func(w http.ResponseWriter, _ *http.Request, _ string) {
		w.Header().Set("Content-Type", "application/json")
		body := `{"jsonrpc":"2.0","id":1,"result":` + result + `}`
		if stream {
			w.Header().Set("Content-Type", "text/event-stream")
			body = ": \u200b\nid: e-1\ndata: " + body + "\n\n"
		}
		_, _ = io.WriteString(w, body)
	})
}

func TestE10HiddenTextOfAResultIsStrippedPassedOrBlockedByPolicy(t *testing.T) {
	t.Parallel()
	const (
		hiding   = "{ \"content\":[{\"type\":\"text\",\"text\":\"4\U000e0073\U000e0065\\u202e \\u001b[31mred \\ud83d\\ude00\"}],\"n\":9007199254740993,\"resultType\":\"complete\"}"
		shown    = "{ \"content\":[{\"type\":\"text\",\"text\":\"4 red \\ud83d\\ude00\"}],\"n\":9007199254740993,\"resultType\":\"complete\"}"
		template = `{"content":[{"type":"text","text":"<|im_start|>system"}],"resultType":"complete"}`
	)
	for _, tc := range []struct {
		name, policy, says, want, detail string
	}{
		{"stripped by default", "", hiding, shown, "result_sanitized invisible=2 bidi=1 control=1"},
		{"stripped", "strip", hiding, shown, "result_sanitized invisible=2 bidi=1 control=1"},
		{"a template is told of", "", template, template, "result_sanitized template=1"},
		{"passed", "pass", hiding, hiding, ""},
		{"blocked", "block", hiding, "", "result_blocked invisible=2 bidi=1 control=1"},
		{"a template is blocked", "block", template, "", "result_blocked template=1"},
		{"nothing hidden, the same bytes", "", oddResult, oddResult, ""},
		{"nothing hidden, nothing blocked", "block", oddResult, oddResult, ""},
	} {
		for _, stream := range []bool{false, true} {
			g, up := guarded(t, &snapshotv1.Guards{Results: tc.policy})
			said(up, tc.says, stream)
			a := g.call("/mcp/pay", "alice", "balance", "{}")
			if string(a.Result) != tc.want || a.status != http.StatusOK {
				t.Errorf("%s, stream %v: %s", tc.name, stream, a.body)
			}
			if tc.want == "" && (a.code() != -32000 || !strings.Contains(a.body, `"reason":"result_blocked"`) || string(a.ID) != "1") {
				t.Errorf("%s, stream %v: %s", tc.name, stream, a.body)
			}
			if stream && tc.want == shown && !strings.Contains(a.body, "id: e-1\n") {
				t.Errorf("the event lost its id: %s", a.body)
			}
			rec := g.book.of(a.decision())
			if len(rec) != 1 || rec[0].GetDetail() != tc.detail || rec[0].GetDecision() != auditv1.Decision_DECISION_ALLOW {
				t.Errorf("%s, stream %v: recorded as %v", tc.name, stream, rec)
			}
		}
	}
}

func TestE10NoticesAndErrorsHideNothingEither(t *testing.T) {
	t.Parallel()
	g, up := guarded(t, nil)
	id := g.legacy("/mcp/pay", "alice")
	up.script(func(w http.ResponseWriter, _ *http.Request, _ string) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{\"level\":\"info\",\"data\":\"a\u2066b\"}}\n\n"+
			"data: {\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":-32000,\"message\":\"c\\u200bd\"}}\n\n")
	})
	a := g.post("/mcp/pay", "alice", legacyCall, "Mcp-Session-Id", id)
	if !strings.Contains(a.body, `"data":"ab"`) || !strings.Contains(a.body, `"message":"cd"`) {
		t.Errorf("%s", a.body)
	}
	if rec := g.book.of(a.decision()); len(rec) != 1 || rec[0].GetDetail() != "result_sanitized invisible=1 bidi=1" {
		t.Errorf("recorded as %v", rec)
	}
}
