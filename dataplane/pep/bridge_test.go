package pep_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	"github.com/mcpvault/mcpvault/snapshot"
)

func names(t *testing.T, a *answer) (out []string, next string) {
	t.Helper()
	var r struct {
		Tools      []struct{ Name string }
		NextCursor string
	}
	if err := json.Unmarshal(a.Result, &r); err != nil {
		t.Fatal(err, a.body)
	}
	for _, tool := range r.Tools {
		out = append(out, tool.Name)
	}
	return out, r.NextCursor
}

func TestTheAggregateShowsAllServersUnderTheirNames(t *testing.T) {
	t.Parallel()
	up := newScripted(t)
	g := newGateway(t, pep.Config{PageSize: 2}, []snapshot.Grant{
		{ID: "g1", Subject: "user:alice", Server: "pay"}, {ID: "g2", Subject: "user:alice", Server: "demo", Tool: "echo"},
	},
		catalogueServer("pay", up.url, allEras(), plainTool("balance", read), plainTool("refund", destructive)),
		catalogueServer("demo", up.url, allEras(), plainTool("echo", read), plainTool("hidden", read), plainTool("demo__twice", read)),
	)
	page, next := names(t, g.modern("/mcp", "alice", "tools/list", "", ""))
	rest, end := names(t, g.modern("/mcp", "alice", "tools/list", "", `"cursor":"`+next+`"`))
	if got := fmt.Sprint(page, rest); got != "[demo__echo pay__balance] [pay__refund]" || end != "" {
		t.Fatalf("%s %q", got, end)
	}
	for _, user := range []string{"bob", "root"} {
		if a := g.modern("/mcp", user, "tools/list", "", `"cursor":"`+next+`"`); a.code() != -32602 {
			t.Errorf("B27: %s used alice's cursor: %s", user, a.body)
		}
	}
	if a := g.modern("/mcp/pay", "alice", "tools/list", "", `"cursor":"`+next+`"`); a.code() != -32602 {
		t.Errorf("B27: a cursor of another list: %s", a.body)
	}
	g.publish()
	if a := g.modern("/mcp", "alice", "tools/list", "", `"cursor":"`+next+`"`); a.code() != -32602 {
		t.Errorf("B27: a cursor of another generation: %s", a.body)
	}
	a := g.call("/mcp", "alice", "demo__echo", `{"a":1e400}`)
	sent, h := up.last()
	if string(a.Result) != oddResult || !strings.Contains(sent, `"params":{"name":"echo","arguments":{"a":1e400},`) || h.Get("Mcp-Name") != "echo" {
		t.Errorf("%s; upstream saw %s %v", a.body, sent, h)
	}
	calls := up.calls()
	for _, name := range []string{"demo__hidden", "echo", "demo__nope", "nope__echo", "demo__demo__twice", "demo__twice"} {
		if a := g.call("/mcp", "alice", name, `{}`); a.code() != -32602 || !strings.Contains(a.Error.Message, `unknown tool "`+name+`"`) {
			t.Errorf("%s: %s", name, a.body)
		}
	}
	if up.calls() != calls {
		t.Error("called")
	}
	if a := g.call("/mcp", "root", "demo__twice", `{}`); string(a.Result) != oddResult {
		t.Errorf("prefixed twice: %s", a.body)
	}
	if empty, _ := names(t, g.modern("/mcp", "bob", "tools/list", "", "")); len(empty) != 0 {
		t.Errorf("bob sees %v", empty)
	}
}

func TestTheAggregateLeadsItsOwnSessions(t *testing.T) {
	t.Parallel()
	up := newScripted(t)
	g := newGateway(t, pep.Config{}, nil, catalogueServer("pay", up.url, []string{"2025-06-18"}, plainTool("balance", read)))
	id := g.legacy("/mcp", "root")
	if n := len(up.seen); n != 0 {
		t.Fatalf("initialize went upstream: %v", up.seen)
	}
	h := []string{"Mcp-Session-Id", id, "MCP-Protocol-Version", "2025-11-25"}
	if a := g.post("/mcp", "root", `{"jsonrpc":"2.0","method":"notifications/initialized"}`, h...); a.status != 202 {
		t.Errorf("%d", a.status)
	}
	if a := g.post("/mcp", "root", `{"jsonrpc":"2.0","id":1,"method":"ping"}`, h...); string(a.Result) != "{}" {
		t.Errorf("%s", a.body)
	}
	if a := g.post("/mcp", "root", `{"jsonrpc":"2.0","id":1,"method":"tasks/list"}`, h...); a.code() != -32601 || a.status != 200 {
		t.Errorf("B16: %d %s", a.status, a.body)
	}
	if a := g.post("/mcp", "root", `{"jsonrpc":"2.0","id":1,"result":{}}`, h...); a.status != 400 {
		t.Errorf("C27: %d", a.status)
	}
	for range 2 {
		a := g.post("/mcp", "root", strings.Replace(legacyCall, "balance", "pay__balance", 1), h...)
		if _, sent := up.last(); string(a.Result) != oddResult || sent.Get("Mcp-Session-Id") != "upstream-session" {
			t.Fatalf("%s %v", a.body, sent)
		}
	}
	if len(up.seen) != 4 {
		t.Errorf("the upstream's session was not kept: %v", up.seen)
	}
	if a := g.do(g.request(t.Context(), http.MethodDelete, "/mcp", "root", "", "Mcp-Session-Id", id)); a.status != 204 {
		t.Errorf("%d", a.status)
	}
	until(t, "the end of the upstream's session", func() bool {
		last, _ := up.last()
		return last == "DELETE "
	})
}

func TestAModernClientCallsALegacyServer(t *testing.T) {
	t.Parallel()
	up := newScripted(t)
	g := newGateway(t, pep.Config{}, nil, catalogueServer("pay", up.url, []string{"2025-11-25"}, plainTool("balance", read)))
	up.script(func(w http.ResponseWriter, _ *http.Request, body string) {
		switch {
		case strings.Contains(body, "tools/call"):
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = fmt.Fprint(w, "id: 1\ndata: \n\n", `data: {"jsonrpc":"2.0","method":"notifications/vendor","params":{}}`, "\n\n",
				`data: {"jsonrpc":"2.0","id":"s1","method":"sampling/createMessage","params":{}}`, "\n\n")
			_ = http.NewResponseController(w).Flush()
			var m struct{ ID json.RawMessage }
			_ = json.Unmarshal([]byte(body), &m)
			_, _ = fmt.Fprintf(w, `data: {"jsonrpc":"2.0","id":%s,"result":{ "content":[],"big":9007199254740993}}`+"\n\n", m.ID)
		default:
			up.answer(w, body)
		}
	})
	a := g.call("/mcp/pay", "root", "balance", "{}")
	if string(a.ID) != "1" || string(a.Result) != `{"resultType":"complete", "content":[],"big":9007199254740993}` {
		t.Errorf("%s", a.body)
	}
	if !strings.Contains(a.body, "notifications/vendor") || strings.Contains(a.body, "sampling") {
		t.Errorf("the stream: %s", a.body)
	}
	declined := false
	for i, s := range up.seen {
		if strings.Contains(s, `"id":"s1","error"`) {
			declined = up.header[i].Get("Mcp-Session-Id") == "upstream-session"
		}
		if strings.Contains(s, "tools/call") && (up.header[i].Get("Mcp-Method") != "" || up.header[i].Get("Mcp-Protocol-Version") != "2025-11-25") {
			t.Errorf("headers %v", up.header[i])
		}
	}
	if !declined {
		t.Errorf("the server's request was not answered: %v", up.seen)
	}
	if a := g.modern("/mcp/pay", "root", "tasks/list", "", ""); a.status != 404 || a.code() != -32601 {
		t.Errorf("%d %s", a.status, a.body)
	}
	up.script(func(w http.ResponseWriter, _ *http.Request, _ string) {
		http.Error(w, "no session", http.StatusNotFound)
	})
	if a := g.call("/mcp/pay", "root", "balance", "{}"); !strings.Contains(a.body, "upstream_session_lost") {
		t.Errorf("%s", a.body)
	}
	up.script(nil)
	if a := g.call("/mcp/pay", "root", "balance", "{}"); string(a.Result) != oddResult {
		t.Errorf("after a lost session: %s", a.body)
	}
}

func TestALegacyClientCallsAModernServer(t *testing.T) {
	t.Parallel()
	up := newScripted(t)
	header := tool{"balance", `{"name":"balance","inputSchema":{"type":"object","properties":{"region":{"type":"string","x-mcp-header":"Region"},"n":{"type":"integer"}}}}`, read}
	g := newGateway(t, pep.Config{}, nil, catalogueServer("pay", up.url, []string{"2026-07-28"}, header))
	id := g.legacy("/mcp/pay", "root")
	for _, params := range []string{
		`{"name":"balance","arguments":{"region":"eü","n":1}}`,
		`{"_meta":{"progressToken":7},"name":"balance","arguments":{"region":"eü"}}`,
		`{"name":"balance","arguments":{"region":"eü"},"_meta":{ }}`,
	} {
		a := g.post("/mcp/pay", "root", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":`+params+`}`, "Mcp-Session-Id", id, "MCP-Protocol-Version", "2025-11-25")
		sent, h := up.last()
		var m struct {
			Params struct {
				Meta map[string]any `json:"_meta"`
			}
		}
		if err := json.Unmarshal([]byte(strings.TrimPrefix(sent, "POST ")), &m); err != nil {
			t.Fatal(err, sent)
		}
		if string(a.Result) != oddResult || m.Params.Meta["io.modelcontextprotocol/protocolVersion"] != "2026-07-28" ||
			h.Get("Mcp-Method") != "tools/call" || h.Get("Mcp-Name") != "balance" || h.Get("Mcp-Param-Region") != "=?base64?ZcO8?=" ||
			h.Get("Mcp-Session-Id") != "" {
			t.Errorf("%s; upstream saw %s %v", a.body, sent, h)
		}
	}
	up.script(func(w http.ResponseWriter, _ *http.Request, _ string) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprint(w, `{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","inputRequests":{"a":{"method":"roots/list"}}}}`)
	})
	if a := g.post("/mcp/pay", "root", legacyCall, "Mcp-Session-Id", id); !strings.Contains(a.body, "era_mismatch") {
		t.Errorf("%s", a.body)
	}
}

func TestCallersThatShareAnUpstreamSessionDoNotShareIDs(t *testing.T) {
	t.Parallel()
	up := newScripted(t)
	g := newGateway(t, pep.Config{}, nil, catalogueServer("pay", up.url, []string{"2025-11-25"}, plainTool("balance", read)))
	seen := map[string]bool{}
	for range 2 {
		a := g.call("/mcp/pay", "root", "balance", "{}")
		sent, _ := up.last()
		var m struct{ ID json.RawMessage }
		if err := json.Unmarshal([]byte(strings.TrimPrefix(sent, "POST ")), &m); err != nil || seen[string(m.ID)] || string(a.ID) != "1" {
			t.Fatalf("B20: the upstream saw id %s again, the client got %s (%v)", m.ID, a.ID, err)
		}
		seen[string(m.ID)] = true
	}
}
