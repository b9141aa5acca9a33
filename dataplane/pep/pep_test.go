package pep_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

func TestAnAllowedCallIsTheSameBytesBothWays(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	body := `{ "method":"tools/call","params":{"arguments":{"a":1e400,"__proto__":{"z":-0}},"name":"bal\u0061nce","x":null,` + meta + `},"id":"q\u0041","jsonrpc":"2.0" }`
	a := g.post("/mcp/pay", "alice", body, "MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "balance", "Mcp-Param-Region", "eu")
	sent, header := up.last()
	if sent != "POST "+body {
		t.Errorf("upstream saw %s", sent)
	}
	if string(a.Result) != oddResult || string(a.ID) != `"q\u0041"` {
		t.Errorf("the client got %s", a.body)
	}
	if header.Get("Mcp-Param-Region") != "eu" || header.Get("Authorization") != "" {
		t.Errorf("headers %v", header)
	}
	for h, want := range map[string]string{
		"MCPVault-Snapshot": "1.1", "MCPVault-Cell": "c1/n1", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
	} {
		if a.header.Get(h) != want {
			t.Errorf("%s is %q", h, a.header.Get(h))
		}
	}
	if !strings.HasPrefix(a.header.Get("Server-Timing"), "decision;dur=") {
		t.Errorf("the time of the decision is missing: %v", a.header)
	}
	rec := g.book.of(a.decision())
	if len(rec) != 1 || rec[0].GetDecision() != auditv1.Decision_DECISION_ALLOW || rec[0].GetOutcome() != "ok" ||
		rec[0].GetPrincipal().GetName() != "alice" || rec[0].GetServer() != "pay" || rec[0].GetTarget() != "balance" || rec[0].GetArgumentsMac() == nil {
		t.Errorf("record %v", rec)
	}
}

func TestUnknownAndHiddenToolsLookTheSame(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	hidden, unknown := g.call("/mcp/pay", "alice", "secret", "{}"), g.call("/mcp/pay", "alice", "secrex", "{}")
	same := func(a *answer) string {
		return fmt.Sprint(a.status, strings.NewReplacer(a.decision(), "ID", "secrex", "secret").Replace(a.body))
	}
	if same(hidden) != same(unknown) || hidden.code() != -32602 || hidden.status != http.StatusOK || !strings.Contains(hidden.Error.Message, `unknown tool "secret"`) {
		t.Fatalf("B24: %s / %s", hidden.body, unknown.body)
	}
	if up.calls() != 0 {
		t.Fatal("a hidden tool was called")
	}
	if hidden.header.Get("Server-Timing")+unknown.header.Get("Server-Timing") != "" {
		t.Error("the time of the decision tells what is hidden from what does not exist")
	}
	if r := g.book.of(hidden.decision())[0].GetReason(); r != "no_grant" {
		t.Errorf("recorded as %s", r)
	}
	if r := g.book.of(unknown.decision())[0].GetReason(); r != "unknown_tool" {
		t.Errorf("recorded as %s", r)
	}
}

func TestUnknownAndHiddenServersLookTheSame(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	for _, method := range []string{"tools/list", "server/discover", "prompts/list"} {
		hidden, unknown := g.modern("/mcp/pay", "bob", method, "", ""), g.modern("/mcp/nope", "bob", method, "", "")
		same := func(a *answer) string { return fmt.Sprint(a.status, strings.ReplaceAll(a.body, a.decision(), "ID")) }
		if same(hidden) != same(unknown) || hidden.status != http.StatusNotFound {
			t.Errorf("%s: %s / %s", method, hidden.body, unknown.body)
		}
	}
	call := g.call("/mcp/pay", "bob", "balance", "{}")
	if nope := g.call("/mcp/nope", "bob", "balance", "{}"); call.status != nope.status || call.Error.Message != nope.Error.Message {
		t.Errorf("%s / %s", call.body, nope.body)
	}
	if g.call("/mcp/pay", "gone", "balance", "{}").status != http.StatusNotFound {
		t.Error("a disabled principal sees something")
	}
	if up.calls() != 0 {
		t.Error("called")
	}
}

func TestAVisibleDenialSaysWhy(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	for args, reason := range map[string]string{
		`{"amount":500}`: "condition", `{}`: "argument_type", `{"amount":"5"}`: "argument_type", `{"Amount":5}`: "argument_type",
	} {
		a := g.call("/mcp/pay", "alice", "refund", args)
		var r struct {
			IsError           bool
			Content           []struct{ Text string }
			StructuredContent struct {
				DecisionID, Reason, Hint string
				Retryable                bool
			}
			ResultType string
		}
		if err := json.Unmarshal(a.Result, &r); err != nil {
			t.Fatal(err, a.body)
		}
		if !r.IsError || r.StructuredContent.Reason != reason || r.StructuredContent.DecisionID != a.decision() || r.ResultType != "complete" || r.Content[0].Text == "" {
			t.Errorf("%s: %s", args, a.body)
		}
	}
	if up.calls() != 0 {
		t.Error("a denied call arrived")
	}
	if a := g.call("/mcp/pay", "alice", "refund", `{"amount":5}`); string(a.Result) != oddResult {
		t.Errorf("the allowed amount: %s", a.body)
	}
}

func TestCallsWithEffectsAreRecordedBeforeAndAfter(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	var before int
	up.script(func(w http.ResponseWriter, _ *http.Request, body string) {
		g.book.mu.Lock()
		before = len(g.book.records)
		g.book.mu.Unlock()
		up.answer(w, body)
	})
	a := g.call("/mcp/pay", "alice", "refund", `{"amount":5}`)
	rec := g.book.of(a.decision())
	if before != 1 || len(rec) != 2 || rec[0].GetKind() != auditv1.RecordKind_RECORD_KIND_INTENT ||
		rec[1].GetKind() != auditv1.RecordKind_RECORD_KIND_OUTCOME || rec[1].GetIntentId() != rec[0].GetId() || rec[1].GetOutcome() != "ok" {
		t.Fatalf("before the call %d, records %v", before, rec)
	}
}

func TestACallRefusedForItsIntentIsRecordedAsRefused(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	g.book.noIntents = true
	a := g.call("/mcp/pay", "alice", "refund", `{"amount":5}`)
	rec := g.book.of(a.decision())
	if len(rec) != 1 || rec[0].GetKind() != auditv1.RecordKind_RECORD_KIND_CALL || rec[0].GetDecision() != auditv1.Decision_DECISION_DENY ||
		rec[0].GetReason() != "audit_unavailable" || up.calls() != 0 {
		t.Fatalf("%d calls, records %v", up.calls(), rec)
	}
}

func TestAFullAuditDiskAllowsNothing(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	g.book.breakDisk(true)
	for _, a := range []*answer{
		g.call("/mcp/pay", "alice", "refund", `{"amount":5}`), g.call("/mcp/pay", "alice", "refund", `{"amount":500}`),
		g.modern("/mcp/pay", "alice", "tools/list", "", ""),
	} {
		if a.Result != nil || !strings.Contains(a.body, "audit_unavailable") {
			t.Errorf("%s", a.body)
		}
	}
	if up.calls() != 0 {
		t.Error("a call with effects was made without its intent")
	}
	up.script(func(w http.ResponseWriter, _ *http.Request, body string) {
		g.book.breakDisk(true)
		up.answer(w, body)
	})
	g.book.breakDisk(false)
	if a := g.call("/mcp/pay", "alice", "refund", `{"amount":5}`); a.Result != nil || !strings.Contains(a.body, `"retryable":false`) {
		t.Errorf("the outcome could not be recorded, yet: %s", a.body)
	}
}

func TestListsShowExactlyWhatMayBeCalled(t *testing.T) {
	t.Parallel()
	g, _ := payments(t)
	names := func(user string) []string {
		a := g.modern("/mcp/pay", user, "tools/list", "", "")
		var r struct{ Tools []struct{ Name string } }
		if err := json.Unmarshal(a.Result, &r); err != nil {
			t.Fatal(a.body)
		}
		var out []string
		for _, tool := range r.Tools {
			out = append(out, tool.Name)
		}
		return out
	}
	for _, user := range []string{"alice", "root"} {
		listed := strings.Join(names(user), " ")
		for _, name := range []string{"balance", "odd", "refund", "secret", "nope"} {
			a := g.call("/mcp/pay", user, name, `{"amount":5}`)
			if called := string(a.Result) == oddResult; called != strings.Contains(listed, name) {
				t.Errorf("%s: %s is listed in %q, called %v", user, name, listed, called)
			}
		}
	}
	if got := strings.Join(names("alice"), " "); got != "balance odd refund" {
		t.Errorf("order %q", got)
	}
	a := g.modern("/mcp/pay", "alice", "tools/list", "", "")
	if !strings.Contains(a.body, `{"x-vendor":1, "name":"odd","inputSchema":{"oneOf":[{"type":"object"}],"$id":"q","n":9007199254740993}}`) ||
		!strings.Contains(a.body, `"cacheScope":"private"`) || !strings.Contains(a.body, `"resultType":"complete"`) {
		t.Error(a.body)
	}
}

func TestOnlyTheWholeServersOwnersReachItsOtherSurfaces(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	for _, method := range []string{"prompts/list", "resources/list", "completion/complete", "acme/extension"} {
		denied, missing := g.modern("/mcp/pay", "alice", method, "", ""), g.modern("/mcp/pay", "alice", "no/such", "", "")
		if denied.status != http.StatusNotFound || denied.body != missing.body || denied.code() != -32601 {
			t.Errorf("%s: %d %s", method, denied.status, denied.body)
		}
		if a := g.modern("/mcp/pay", "root", method, "", ""); string(a.Result) != oddResult {
			t.Errorf("%s for root: %s", method, a.body)
		}
	}
	var r struct{ Capabilities map[string]any }
	_ = json.Unmarshal(g.modern("/mcp/pay", "alice", "server/discover", "", "").Result, &r)
	if len(r.Capabilities) != 1 || r.Capabilities["tools"] == nil {
		t.Errorf("alice is offered %v", r.Capabilities)
	}
	_ = up
}

func TestKillsWinAtOnce(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		kind    snapshotv1.KillKind
		subject string
		status  int
		want    string
	}{
		{snapshotv1.KillKind_KILL_KIND_USER, "alice", 401, "token"},
		{snapshotv1.KillKind_KILL_KIND_TOKEN, "jti-alice", 401, "token"},
		{snapshotv1.KillKind_KILL_KIND_ISSUER, "urn:mcpvault:issuer:acme", 401, "token"},
		{snapshotv1.KillKind_KILL_KIND_KEY, "k1", 401, "token"},
		{snapshotv1.KillKind_KILL_KIND_TOOL, "pay/balance", 200, `"reason":"killed"`},
		{snapshotv1.KillKind_KILL_KIND_SERVER, "pay", 200, `"reason":"killed"`},
		{snapshotv1.KillKind_KILL_KIND_VERSION, snapshot.DigestOf([]byte("pay")).String(), 200, `"reason":"killed"`},
	} {
		t.Run(tc.kind.String(), func(t *testing.T) {
			t.Parallel()
			g, up := payments(t)
			g.pdp.Kill(&snapshotv1.Kill{Kind: tc.kind, TenantId: "0192-acme", Subject: tc.subject})
			if a := g.call("/mcp/pay", "alice", "balance", "{}"); a.status != tc.status || !strings.Contains(a.body, tc.want) || up.calls() != 0 {
				t.Errorf("D17: %d %s", a.status, a.body)
			}
			if strings.Contains(g.modern("/mcp/pay", "alice", "tools/list", "", "").body, `"balance"`) {
				t.Error("a killed tool is listed")
			}
		})
	}
}

func TestARevocationWinsAgainstACallThatWaitsForTheDisk(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	g.book.onIntent = func() {
		g.policy.Grants = g.policy.Grants[:1]
		g.publish()
	}
	a := g.call("/mcp/pay", "alice", "refund", `{"amount":5}`)
	if a.Result != nil || up.calls() != 0 {
		t.Fatal(a.body)
	}
	rec := g.book.of(a.decision())
	if len(rec) != 2 || rec[1].GetDecision() != auditv1.Decision_DECISION_DENY || rec[1].GetOutcome() != "refused" || rec[1].GetGeneration() != 2 {
		t.Fatalf("%v", rec)
	}
}

func TestStaleNodesCloseTheClassesThatRanOut(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	g.cat.Settings.MaxStalenessWriteMs = -1
	g.publish()
	if a := g.call("/mcp/pay", "alice", "refund", `{"amount":5}`); !strings.Contains(a.body, `"reason":"stale"`) || up.calls() != 0 {
		t.Error(a.body)
	}
	if a := g.call("/mcp/pay", "alice", "balance", `{}`); string(a.Result) != oddResult {
		t.Error(a.body)
	}
}

func TestUpstreamTroubleIsToldPlainly(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	for row, tc := range map[string]struct {
		reply  func(w http.ResponseWriter, r *http.Request, body string)
		reason string
	}{
		"E05 invalid": {func(w http.ResponseWriter, _ *http.Request, _ string) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":1,"result":{}`)
		}, "upstream_protocol"},
		"E05 other id": {func(w http.ResponseWriter, _ *http.Request, _ string) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":2,"result":{}}`)
		}, "upstream_protocol"},
		"E05 two": {func(w http.ResponseWriter, _ *http.Request, _ string) {
			_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":1,"result":{}}{"jsonrpc":"2.0","id":1,"result":{}}`)
		}, "upstream_protocol"},
		"E05 stream": {func(w http.ResponseWriter, _ *http.Request, _ string) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "data: {\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{}}\n\n")
		}, "upstream_protocol"},
		"E05 cut stream": {func(w http.ResponseWriter, _ *http.Request, _ string) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, ": hi\n\n")
		}, "upstream_broken"},
		"E08": {func(w http.ResponseWriter, r *http.Request, _ string) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
		}, "upstream_redirect"},
		"401": {func(w http.ResponseWriter, _ *http.Request, _ string) {
			w.Header().Set("WWW-Authenticate", "Bearer evil")
			w.WriteHeader(http.StatusUnauthorized)
		}, "upstream_unauthorized"},
		"500": {func(w http.ResponseWriter, _ *http.Request, _ string) {
			http.Error(w, "stack trace", http.StatusInternalServerError)
		}, "upstream_unavailable"},
	} {
		up.script(tc.reply)
		a := g.call("/mcp/pay", "alice", "balance", "{}")
		if a.status != 200 || a.code() != -32000 || !strings.Contains(a.body, `"reason":"`+tc.reason+`"`) || string(a.ID) != "1" {
			t.Errorf("%s: %d %s", row, a.status, a.body)
		}
		if a.header.Get("Www-Authenticate") != "" || strings.Contains(a.body, "stack trace") {
			t.Errorf("%s: the upstream shows through: %v", row, a.header)
		}
	}
}

func TestUpstreamHeadersAreStripped(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	up.script(func(w http.ResponseWriter, _ *http.Request, body string) {
		for _, h := range []string{"Set-Cookie", "Access-Control-Allow-Origin", "Clear-Site-Data", "Alt-Svc", "Server", "Mcp-Session-Id"} {
			w.Header().Set(h, "evil")
		}
		up.answer(w, body)
	})
	a := g.call("/mcp/pay", "alice", "balance", "{}")
	for h, v := range a.header {
		if strings.Contains(strings.Join(v, ""), "evil") {
			t.Errorf("E07: %s came through", h)
		}
	}
}
