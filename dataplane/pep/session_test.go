package pep_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

const legacyCall = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"balance","arguments":{}}}`

func TestALegacySessionIsSealedAndBelongsToOneCaller(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	id := g.legacy("/mcp/pay", "alice")
	if strings.Contains(id, "upstream-session") {
		t.Fatal("the upstream's session id shows")
	}
	a := g.post("/mcp/pay", "alice", legacyCall, "Mcp-Session-Id", id, "MCP-Protocol-Version", "2025-11-25")
	if _, h := up.last(); string(a.Result) != oddResult || h.Get("Mcp-Session-Id") != "upstream-session" || h.Get("Mcp-Protocol-Version") != "2025-11-25" {
		t.Fatalf("%s %v", a.body, h)
	}
	calls := up.calls()
	theirs := g.post("/mcp/pay", "root", legacyCall, "Mcp-Session-Id", id)
	unknown := g.post("/mcp/pay", "root", legacyCall, "Mcp-Session-Id", "AAAA")
	if theirs.status != 404 || theirs.body != unknown.body || up.calls() != calls {
		t.Errorf("C14: %d %s", theirs.status, theirs.body)
	}
	if r := g.book.of(theirs.decision())[0].GetReason(); r != "session_hijack" {
		t.Errorf("C14 recorded as %s", r)
	}
	if del := g.do(g.request(t.Context(), http.MethodDelete, "/mcp/pay", "root", "", "Mcp-Session-Id", id)); del.status != 404 {
		t.Errorf("C18: %d", del.status)
	}
	if a := g.post("/mcp/pay", "alice", legacyCall, "Mcp-Session-Id", id); string(a.Result) != oddResult {
		t.Errorf("the victim's session did not live on: %s", a.body)
	}
	if del := g.do(g.request(t.Context(), http.MethodDelete, "/mcp/pay", "alice", "", "Mcp-Session-Id", id)); del.status != 204 {
		t.Errorf("DELETE: %d", del.status)
	}
	if last, h := up.last(); last != "DELETE " || h.Get("Mcp-Session-Id") != "upstream-session" {
		t.Errorf("the upstream's session was not ended: %s", last)
	}
	if a := g.post("/mcp/pay", "alice", legacyCall, "Mcp-Session-Id", id); a.status != 404 {
		t.Errorf("C13 ended: %d", a.status)
	}
}

func TestASessionIsNotFixedAndNotCarriedElsewhere(t *testing.T) {
	t.Parallel()
	g, _ := payments(t)
	init := `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`
	a := g.post("/mcp/pay", "alice", init, "Mcp-Session-Id", "mine")
	if id := a.header.Get("Mcp-Session-Id"); id == "" || id == "mine" {
		t.Errorf("C17: %q", id)
	}
	if strings.Contains(a.body, "prompts") {
		t.Errorf("alice is offered prompts: %s", a.body)
	}
	if b := g.post("/mcp", "alice", legacyCall, "Mcp-Session-Id", a.header.Get("Mcp-Session-Id")); b.status != 404 {
		t.Errorf("a session of one endpoint is known at another: %d", b.status)
	}
	m := g.post("/mcp/pay", "alice", `{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{`+meta+`}}`,
		"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/list", "Mcp-Session-Id", "x y", "Last-Event-Id", "9")
	if m.status != 200 || m.header.Get("Mcp-Session-Id") != "" {
		t.Errorf("C11/C20: %d", m.status)
	}
}

func TestAnUnknownRevisionIsNegotiatedDown(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	_ = g.post("/mcp/pay", "alice", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-03-26","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`)
	if sent, _ := up.last(); !strings.Contains(sent, `"protocolVersion":"2025-11-25","capabilities":{}`) {
		t.Errorf("upstream saw %s", sent)
	}
}

func TestAnUpstreamThatForgotTheSessionEndsOurs(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	id := g.legacy("/mcp/pay", "alice")
	up.script(func(w http.ResponseWriter, _ *http.Request, _ string) {
		http.Error(w, "session not found", http.StatusNotFound)
	})
	if a := g.post("/mcp/pay", "alice", legacyCall, "Mcp-Session-Id", id); a.status != 404 || a.Result != nil {
		t.Errorf("%d %s", a.status, a.body)
	}
	up.script(nil)
	if a := g.post("/mcp/pay", "alice", legacyCall, "Mcp-Session-Id", id); a.status != 404 {
		t.Errorf("the session lives on: %d", a.status)
	}
}

func TestEventsAreRelayedOneByOne(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	step := make(chan struct{})
	events := []string{
		"id: s-0\ndata: \n\n",
		"event: message\nid: s-1\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{\"progress\":1}}\n\n",
		"data: {\"jsonrpc\":\"2.0\",\"id\":\"srv-1\",\"method\":\"sampling/createMessage\",\"params\":{}}\n\n",
		"data: {\"jsonrpc\":\"2.0\",\"id\":1,\ndata: \"result\":" + oddResult + "}\n\n",
	}
	id := g.legacy("/mcp/pay", "alice")
	up.script(func(w http.ResponseWriter, _ *http.Request, _ string) {
		w.Header().Set("Content-Type", "text/event-stream")
		for _, ev := range events {
			_, _ = io.WriteString(w, ev)
			_ = http.NewResponseController(w).Flush()
			<-step
		}
	})
	resp, err := http.DefaultClient.Do(g.request(t.Context(), http.MethodPost, "/mcp/pay", "alice", legacyCall, "Mcp-Session-Id", id))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.Header.Get("Content-Type") != "text/event-stream" || resp.Header.Get("X-Accel-Buffering") != "no" {
		t.Errorf("%v", resp.Header)
	}
	for _, ev := range events {
		got := make([]byte, len(ev))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != ev {
			t.Fatalf("got %q, %v", got, err)
		}
		step <- struct{}{}
	}
	rec := g.book.of(resp.Header.Get("MCPVault-Decision-Id"))
	if len(rec) != 1 || rec[0].GetOutcome() != "ok" {
		t.Errorf("%v", rec)
	}
}

// until polls what another goroutine brings about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain: " + what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestALeavingClientCancelsTheUpstream(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	entered, gone := make(chan struct{}), make(chan struct{})
	up.script(func(_ http.ResponseWriter, r *http.Request, _ string) {
		close(entered)
		<-r.Context().Done()
		close(gone)
	})
	ctx, cancel := context.WithCancel(t.Context())
	body := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"balance",` + meta + `}}`
	done := make(chan struct{})
	req := g.request(ctx, http.MethodPost, "/mcp/pay", "alice", body, "MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "balance")
	go func() {
		defer close(done)
		_, _ = http.DefaultClient.Do(req)
	}()
	<-entered
	cancel()
	<-gone
	<-done
	until(t, "the record", func() bool {
		g.book.mu.Lock()
		defer g.book.mu.Unlock()
		return len(g.book.records) == 1 && g.book.records[0].GetOutcome() == "canceled"
	})
}

func TestACallThatIsNotAnsweredTimesOut(t *testing.T) {
	t.Parallel()
	up := newScripted(t)
	g := newGateway(t, pep.Config{CallTimeout: 50 * time.Millisecond}, nil, catalogueServer("pay", up.url, allEras(), plainTool("balance", destructive)))
	up.script(func(_ http.ResponseWriter, r *http.Request, _ string) { <-r.Context().Done() })
	a := g.call("/mcp/pay", "root", "balance", "{}")
	if !strings.Contains(a.body, `"reason":"upstream_timeout"`) || string(a.ID) != "1" {
		t.Errorf("E02: %s", a.body)
	}
	rec := g.book.of(a.decision())
	if len(rec) != 2 || rec[1].GetOutcome() != "timeout" || rec[1].GetKind() != auditv1.RecordKind_RECORD_KIND_OUTCOME {
		t.Errorf("%v", rec)
	}
	up.script(func(w http.ResponseWriter, r *http.Request, _ string) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(http.StatusOK)
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, "d"); err != nil || http.NewResponseController(w).Flush() != nil {
				return
			}
			select {
			case <-r.Context().Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	if a := g.call("/mcp/pay", "root", "balance", "{}"); !strings.Contains(a.body, `"reason":"upstream_timeout"`) {
		t.Errorf("E03: %s", a.body)
	}
}

func TestListeningStreamsEndWhenTheRightToThemDoes(t *testing.T) {
	t.Parallel()
	for _, drain := range []bool{false, true} {
		t.Run(fmt.Sprintf("drain=%v", drain), func(t *testing.T) { listenUntil(t, drain) })
	}
}

func listenUntil(t *testing.T, drain bool) {
	t.Parallel()
	up := newScripted(t)
	g := newGateway(t, pep.Config{MaxStreams: 1, KeepAlive: 10 * time.Millisecond}, []snapshot.Grant{{ID: "a", Subject: "user:alice", Server: "pay"}},
		catalogueServer("pay", up.url, allEras(), plainTool("balance", read)))
	id := g.legacy("/mcp/pay", "alice")
	up.script(func(w http.ResponseWriter, r *http.Request, _ string) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = fmt.Fprintf(w, "id: after-%s\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/resources/list_changed\"}\n\n", r.Header.Get("Last-Event-Id"))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	get := func() *http.Request {
		return g.request(t.Context(), http.MethodGet, "/mcp/pay", "alice", "", "Mcp-Session-Id", id, "Accept", "text/event-stream", "Last-Event-Id", "7")
	}
	resp, err := http.DefaultClient.Do(get())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	if line, _ := r.ReadString('\n'); line != "id: after-7\n" {
		t.Fatalf("%q", line)
	}
	if a := g.do(get()); a.status != http.StatusTooManyRequests {
		t.Errorf("C23: %d", a.status)
	}
	for {
		if line, err := r.ReadString('\n'); err != nil || line == ": keep-alive\n" {
			break
		}
	}
	if drain {
		g.pep.Drain()
	} else {
		g.policy.Grants = g.policy.Grants[1:]
		g.publish()
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	until(t, "the stream's place", func() bool { return g.pep.Streams() == 0 })
}
