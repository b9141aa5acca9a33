package pep_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/pep"
	"github.com/mcpvault/mcpvault/dataplane/session"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

const legacyInit = `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`

func TestNoSessionWithoutAQuorumAndAClearAnswer(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	id := g.legacy("/mcp/pay", "alice")
	g.cell.Agree(false)
	seen := len(up.seen)
	a := g.post("/mcp/pay", "alice", legacyInit)
	if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" || a.header.Get("Mcp-Session-Id") != "" ||
		a.code() != mcp.CodeServer || !strings.Contains(a.body, `"reason":"session_no_quorum"`) || !strings.Contains(a.body, `"retryable":true`) {
		t.Errorf("%d %v %s", a.status, a.header, a.body)
	}
	if len(up.seen) != seen {
		t.Error("the upstream was asked for a session that cannot be")
	}
	if rec := g.book.of(a.decision()); len(rec) != 1 || rec[0].GetReason() != "session_no_quorum" || rec[0].GetDecision() != auditv1.Decision_DECISION_DENY {
		t.Errorf("recorded as %v", rec)
	}
	if a := g.post("/mcp/pay", "alice", legacyCall, "Mcp-Session-Id", id); string(a.Result) != oddResult {
		t.Errorf("a session that is open does not go on: %s", a.body)
	}
	if a := g.call("/mcp/pay", "root", "balance", "{}"); string(a.Result) != oddResult {
		t.Errorf("a client without sessions needs a quorum: %s", a.body)
	}
}

func TestMoreSessionsThanAllowedAreRefusedAndRecorded(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	g.cat.Settings.SessionsPerPrincipal, g.cat.Settings.SessionsPerTenant = 2, 3
	g.publish()
	first := g.legacy("/mcp/pay", "alice")
	g.legacy("/mcp", "alice")
	seen := len(up.seen)
	a := g.post("/mcp/pay", "alice", legacyInit)
	if a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") == "" || !strings.Contains(a.body, `"reason":"too_many_sessions"`) {
		t.Errorf("%d %s", a.status, a.body)
	}
	if rec := g.book.of(a.decision()); len(rec) != 1 || rec[0].GetReason() != "too_many_sessions" || rec[0].GetHttpStatus() != 429 {
		t.Errorf("recorded as %v", rec)
	}
	if len(up.seen) != seen {
		t.Error("the upstream was asked for a session that may not be")
	}
	g.legacy("/mcp/pay", "root")
	if a := g.post("/mcp/pay", "root", legacyInit); a.status != http.StatusTooManyRequests || !strings.Contains(a.body, `"reason":"tenant_sessions_full"`) {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := g.do(g.request(t.Context(), http.MethodDelete, "/mcp/pay", "alice", "", "Mcp-Session-Id", first)); a.status != 204 {
		t.Fatal(a.status)
	}
	g.legacy("/mcp/pay", "alice")
}

func TestAnEndThatSomebodyElseDecidedClosesTheUpstreamsSession(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	id := g.legacy("/mcp/pay", "alice")
	all, _, err := g.cell.Node(0).Disk.List("0192-acme", 10, everyLease)
	if err != nil || len(all) != 1 || all[0].GetUpstream() != "upstream-session" || all[0].GetClient() != "t 1" || all[0].GetServer() != "pay" {
		t.Fatal(all, err)
	}
	// As an administrator's end and the leader's sweep do.
	g.cell.Node(0).End(t.Context(), session.LeaseID(all[0].GetId()), false)
	until(t, "the end of the upstream's session", func() bool {
		last, h := up.last()
		return last == "DELETE " && h.Get("Mcp-Session-Id") == "upstream-session"
	})
	if a := g.post("/mcp/pay", "alice", legacyCall, "Mcp-Session-Id", id); a.status != 404 {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestSessionsOfOneCallerShareAnUpstreamSessionUntilTheLastEnds(t *testing.T) {
	t.Parallel()
	up := newScripted(t)
	g := newGateway(t, pep.Config{}, nil, catalogueServer("pay", up.url, allEras()[1:], plainTool("balance", read)))
	call := strings.Replace(legacyCall, "balance", "pay__balance", 1)
	one, two := g.legacy("/mcp", "root"), g.legacy("/mcp", "root")
	for _, id := range []string{one, two, one} {
		if a := g.post("/mcp", "root", call, "Mcp-Session-Id", id); string(a.Result) != oddResult {
			t.Fatal(a.body)
		}
	}
	count := func(what string) (n int) {
		up.mu.Lock()
		defer up.mu.Unlock()
		for _, s := range up.seen {
			if strings.Contains(s, what) {
				n++
			}
		}
		return n
	}
	if n := count(`"initialize"`); n != 1 {
		t.Errorf("%d upstream sessions for two sessions of one caller", n)
	}
	end := func(id string) {
		if a := g.do(g.request(t.Context(), http.MethodDelete, "/mcp", "root", "", "Mcp-Session-Id", id)); a.status != 204 {
			t.Fatal(a.status)
		}
	}
	end(one)
	if a := g.post("/mcp", "root", call, "Mcp-Session-Id", two); string(a.Result) != oddResult || count(`"initialize"`) != 1 || count("DELETE") != 0 {
		t.Errorf("the end of one session took the upstream's away from the other: %s", a.body)
	}
	end(two)
	until(t, "the end of the upstream's session", func() bool { return count("DELETE") == 1 })
}

func everyLease(*cellv1.SessionLease) bool { return true }

// clocked is a gateway whose time stands still.
func clocked(t *testing.T, now func() time.Time) (*gateway, *scripted) {
	t.Helper()
	up := newScripted(t)
	return newGateway(t, pep.Config{Now: now}, nil, catalogueServer("pay", up.url, allEras(), plainTool("balance", read))), up
}

// resumable is an upstream whose stream says what it was asked to go on from.
func resumable(w http.ResponseWriter, r *http.Request, _ string) {
	w.Header().Set("Content-Type", "text/event-stream")
	from, _ := json.Marshal(r.Header.Get("Last-Event-Id") + "@" + r.Header.Get("Mcp-Session-Id"))
	_, _ = fmt.Fprintf(w, "id: 9\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{\"level\":\"info\",\"data\":%s}}\n\n", from)
}

func TestALastEventIDNamesEventsOfItsOwnSessionOnly(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	id := g.legacy("/mcp/pay", "root")
	up.script(resumable)
	resume := func(user, sessionID, event string) *answer {
		return g.do(g.request(t.Context(), http.MethodGet, "/mcp/pay", user, "", "Mcp-Session-Id", sessionID, "Accept", "text/event-stream", "Last-Event-Id", event))
	}
	if a := resume("root", id, "8"); a.status != 200 || !strings.Contains(a.body, `"8@upstream-session"`) {
		t.Errorf("C21 own: %d %s", a.status, a.body)
	}
	seen := len(up.seen)
	if a := resume("alice", id, "8"); a.status != 404 {
		t.Errorf("C21 another user's: %d %s", a.status, a.body)
	}
	for _, bad := range []string{strings.Repeat("9", 1025), "9\t9", "é"} {
		if a := resume("root", id, bad); a.status != 400 {
			t.Errorf("C21 %.10q: %d %s", bad, a.status, a.body)
		}
	}
	if len(up.seen) != seen {
		t.Error("C21: the upstream was asked")
	}
	// Where the upstream cannot tell sessions apart, the stream begins now.
	up.script(func(w http.ResponseWriter, _ *http.Request, _ string) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprint(w, `{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"s","version":"1"}}}`)
	})
	stateless := g.legacy("/mcp/pay", "root")
	up.script(resumable)
	if a := resume("root", stateless, "1000000000"); a.status != 200 || !strings.Contains(a.body, `"data":"@"`) {
		t.Errorf("C21 without an upstream session: %d %s", a.status, a.body)
	}
	up.script(nil)
	m := g.post("/mcp/pay", "alice", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"balance",`+meta+`}}`,
		"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "balance", "Last-Event-Id", "8", "Mcp-Session-Id", id)
	if _, h := up.last(); m.status != 200 || h.Get("Last-Event-Id") != "" || h.Get("Mcp-Session-Id") != "" || m.header.Get("Mcp-Session-Id") != "" {
		t.Errorf("C20: %d %v", m.status, h)
	}
}

func TestReconnectsAreBounded(t *testing.T) {
	t.Parallel()
	now := time.Now()
	g, up := clocked(t, func() time.Time { return now })
	id, other := g.legacy("/mcp/pay", "root"), g.legacy("/mcp/pay", "root")
	up.script(resumable)
	count := map[int]int{}
	get := func(id string) *answer {
		return g.do(g.request(t.Context(), http.MethodGet, "/mcp/pay", "root", "", "Mcp-Session-Id", id, "Accept", "text/event-stream", "Last-Event-Id", "8"))
	}
	for range 100 {
		a := get(id)
		count[a.status]++
		if a.status == 429 && a.header.Get("Retry-After") != "1" {
			t.Fatalf("C22: %v", a.header)
		}
	}
	if count[200] != 10 || count[429] != 90 {
		t.Errorf("C22: %v", count)
	}
	if a := get(other); a.status != 200 {
		t.Errorf("C22: another session has to wait: %d", a.status)
	}
	rec := 0
	g.book.mu.Lock()
	for _, r := range g.book.records {
		if r.GetReason() == "too_many_resumes" {
			rec++
		}
	}
	g.book.mu.Unlock()
	if rec != 90 {
		t.Errorf("C22: %d of 90 refusals are recorded", rec)
	}
}

func TestA65thStreamOfOnePrincipalIsRefused(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	up.script(nil)
	id := g.legacy("/mcp/pay", "root")
	up.script(func(w http.ResponseWriter, r *http.Request, _ string) {
		w.Header().Set("Content-Type", "text/event-stream")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 64 {
		req := g.request(ctx, http.MethodGet, "/mcp/pay", "root", "", "Mcp-Session-Id", id, "Accept", "text/event-stream")
		wg.Go(func() {
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				if ctx.Err() == nil {
					t.Error(err)
				}
				return
			}
			<-ctx.Done()
			_ = resp.Body.Close()
		})
	}
	until(t, "64 streams", func() bool { return g.pep.Streams() == 64 })
	a := g.do(g.request(t.Context(), http.MethodGet, "/mcp/pay", "root", "", "Mcp-Session-Id", id, "Accept", "text/event-stream"))
	if a.status != 429 || a.code() != mcp.CodeServer || a.header.Get("Retry-After") == "" {
		t.Errorf("C23: %d %s", a.status, a.body)
	}
	cancel()
	wg.Wait()
	until(t, "their places", func() bool { return g.pep.Streams() == 0 })
}

func TestGuessedAndBorrowedIDsAreUnknown(t *testing.T) {
	t.Parallel()
	g, _ := payments(t)
	id := g.legacy("/mcp/pay", "alice")
	unknown := g.post("/mcp/pay", "alice", legacyCall, "Mcp-Session-Id", "AAAA")
	for i := range 200 { // C15 in full is the seal's, which no lookup stands behind: session_test.go
		b := []byte(id)
		b[i%len(b)] ^= byte(1 + i%5)
		if !session.WellFormed(string(b)) {
			continue
		}
		if a := g.post("/mcp/pay", "alice", legacyCall, "Mcp-Session-Id", string(b)); a.status != 404 || a.body != unknown.body {
			t.Fatalf("C15: %d %s", a.status, a.body)
		}
	}
	for _, bad := range []string{"a b", "é", strings.Repeat("a", 4096)} {
		if a := g.post("/mcp/pay", "alice", legacyCall, "Mcp-Session-Id", bad); a.status != 400 {
			t.Errorf("C16 %.8q: %d", bad, a.status)
		}
	}
}
