package pep_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

func TestA15ARequestWithoutOriginIsNormal(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	if a := g.call("/mcp/pay", "alice", "balance", "{}"); string(a.Result) != oddResult || up.calls() != 1 {
		t.Errorf("A15: %d %s", a.status, a.body)
	}
}

func TestB25WideAndUnknownMetaIsBoundedAndPassesAsItIs(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	call := func(more string) *answer {
		m := strings.Replace(meta, `"_meta":{`, `"_meta":{`+more, 1)
		return g.post("/mcp/pay", "alice", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"balance","arguments":{},`+m+`}}`,
			"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "balance")
	}
	var wide strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&wide, `"k%d":1,`, i)
	}
	g.refused(t, up, "B25", call(wide.String()), 400, -32600, "too_many_keys")
	const unknown = `"io.modelcontextprotocol/nextYear":{"a":9007199254740993},"com.example/x":[1.50],`
	if a := call(unknown); string(a.Result) != oddResult {
		t.Errorf("B25: %s", a.body)
	}
	if up.calls() != 1 || !strings.Contains(up.seen[0], unknown) {
		t.Errorf("B25: the server saw %v", up.seen)
	}
	g.book.forget()
	many := strings.Repeat("x", 1<<20+1)
	if a := call(`"big":"` + many + `",`); a.status != 400 || a.code() != -32602 {
		t.Errorf("B25: %d %.200s", a.status, a.body)
	}
}

// Two callers use one progress token at once, on one server and one path; each gets what is told of their own call.
func TestB26ProgressGoesToTheRequestAndNotToItsToken(t *testing.T) {
	t.Parallel()
	for _, versions := range [][]string{allEras(), {"2025-11-25"}} {
		t.Run(versions[0], func(t *testing.T) {
			t.Parallel()
			up := newScripted(t)
			g := newGateway(t, pep.Config{}, []snapshot.Grant{{ID: "g", Subject: snapshot.Everyone, Server: "pay", Tool: "balance"}},
				catalogueServer("pay", up.url, versions, plainTool("balance", read)))
			both := make(chan struct{}, 2)
			release := make(chan struct{})
			up.script(func(w http.ResponseWriter, _ *http.Request, body string) {
				var m struct {
					ID     json.RawMessage
					Method string
					Params struct {
						Arguments struct{ Who string }
						Meta      struct {
							ProgressToken json.RawMessage
						} `json:"_meta"`
					}
				}
				_ = json.Unmarshal([]byte(body), &m)
				switch {
				case m.Method == "initialize":
					w.Header().Set("Content-Type", "application/json")
					w.Header().Set("Mcp-Session-Id", "s")
					_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"u","version":"1"}}}`)
					return
				case m.ID == nil:
					w.WriteHeader(http.StatusAccepted)
					return
				}
				both <- struct{}{}
				<-release
				w.Header().Set("Content-Type", "text/event-stream")
				who := m.Params.Arguments.Who
				_, _ = fmt.Fprintf(w, "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{\"progressToken\":%s,\"progress\":1,\"message\":\"of %s\"}}\n\n", m.Params.Meta.ProgressToken, who)
				_, _ = fmt.Fprintf(w, "data: {\"jsonrpc\":\"2.0\",\"id\":%s,\"result\":{\"content\":[],\"for\":%q,\"resultType\":\"complete\"}}\n\n", m.ID, who)
			})
			got := map[string]chan *answer{"alice": make(chan *answer, 1), "bob": make(chan *answer, 1)}
			for who, c := range got {
				m := strings.Replace(meta, `"_meta":{`, `"_meta":{"progressToken":"same",`, 1)
				req := g.request(t.Context(), http.MethodPost, "/mcp/pay", who,
					`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"balance","arguments":{"who":"`+who+`"},`+m+`}}`,
					"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "balance")
				go func() { c <- g.do(req) }()
			}
			<-both
			<-both
			close(release)
			for who, c := range got {
				a := <-c
				if !strings.Contains(a.body, `"message":"of `+who+`"`) || strings.Count(a.body, `"message":"of `) != 1 ||
					!strings.Contains(a.body, `"progressToken":"same"`) || !strings.Contains(string(a.Result), `"for":"`+who+`"`) {
					t.Errorf("B26: %s got %s", who, a.body)
				}
			}
		})
	}
}

func TestC24TooManySubscriptionsInOneRequestAreRefused(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	uris := `"file:///a"` + strings.Repeat(`,"file:///a"`, 9_999)
	a := g.modern("/mcp/pay", "root", "subscriptions/listen", "", `"notifications":{"resourceSubscriptions":[`+uris+`]}`)
	g.refused(t, up, "C24", a, 400, -32602, "subscriptions_invalid")
}

func TestC26AnAnswerToWhatWasNotAskedIsRefused(t *testing.T) {
	t.Parallel()
	g, _ := asked(t, pep.Config{}, nil)
	state := stateOf(t, g.round("root", ""))
	a := g.post("/mcp/pay", "root", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"refund","arguments":{},`+askable+
		`,"inputResponses":{"q9":{"action":"accept"}},"requestState":"`+state+`"}}`,
		"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "refund")
	recs := g.book.of(a.decision())
	if a.status != 400 || a.code() != -32602 || len(recs) == 0 || recs[len(recs)-1].GetDetail() != "input_unasked" {
		t.Errorf("C26: %d %s, %v", a.status, a.body, recs)
	}
	if b := g.round("root", state); string(b.Result) != `{"resultType":"complete","content":[]}` {
		t.Errorf("C26: the call that waits is lost: %s", b.body)
	}
}

func TestD22WhoActsForAnotherIsJudgedAndBothAreRecorded(t *testing.T) {
	t.Parallel()
	up := newScripted(t)
	g := newGateway(t, pep.Config{}, []snapshot.Grant{
		{ID: "g", Subject: "user:alice", Server: "pay", Tool: "balance", When: &snapshot.Cond{Op: snapshot.OpEq, From: snapshot.FromContext, Arg: "actor", Value: snapshot.Value{Type: snapshot.TypeString, Str: "bot"}}},
	}, catalogueServer("pay", up.url, allEras(), plainTool("balance", read)))
	act := func(names ...string) map[string]any {
		var a map[string]any
		for i := len(names) - 1; i >= 0; i-- {
			next := map[string]any{"sub": names[i]}
			if a != nil {
				next["act"] = a
			}
			a = next
		}
		return map[string]any{"act": a}
	}
	expired := act("bot")
	expired["exp"] = time.Now().Add(-61 * time.Second).Unix()
	for name, tc := range map[string]struct {
		change map[string]any
		status int
		reason string
		actor  string
	}{
		"themselves":        {act("alice"), 403, "impersonation_denied", "alice"},
		"a chain of three":  {act("bot", "script", "job"), 403, "impersonation_denied", "bot"},
		"without the right": {act("mallory"), 200, "condition", "mallory"},
		"expired":           {expired, 401, "token_expired", ""},
		"a supervisor":      {act("bot"), 200, "allowed", "bot"},
		"and their program": {act("bot", "script"), 200, "allowed", "bot"},
	} {
		before := up.calls()
		a := g.callAs(g.tokenWith("alice", tc.change))
		recs := g.book.of(a.decision())
		if a.status != tc.status || len(recs) != 1 || recs[0].GetReason() != tc.reason {
			t.Errorf("D22 %s: %d %s, %v", name, a.status, a.body, recs)
			continue
		}
		if tc.actor != "" && (recs[0].GetActor().GetName() != tc.actor || recs[0].GetPrincipal().GetName() != "alice") {
			t.Errorf("D22 %s: recorded as %v for %v", name, recs[0].GetActor(), recs[0].GetPrincipal())
		}
		if ran := up.calls() > before; ran != (tc.reason == "allowed") {
			t.Errorf("D22 %s: executed: %v", name, ran)
		}
		if tc.status == 403 && a.header.Get("WWW-Authenticate") != "" {
			t.Errorf("D22 %s: another token would not help: %v", name, a.header)
		}
	}
}

// D23 and D25 cannot occur here: a cell is a resource server, and has no authorization endpoint, no token endpoint, no
// clients and no consent of its own. What there is instead is nothing, at each of their usual places.
func TestD23D25TheGatewayIsNoAuthorizationServer(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	for _, path := range []string{
		"/authorize?response_type=code&client_id=x&redirect_uri=https%3A%2F%2Fevil.example%2F", "/token", "/register", "/consent", "/oauth/authorize", "/oauth/token",
		"/login", "/callback?code=x&state=y", "/mcp/authorize", "/.well-known/oauth-authorization-server", "/.well-known/oauth-authorization-server/mcp",
		"/.well-known/openid-configuration", "/.well-known/oauth-protected-resource/authorize",
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			req := g.request(t.Context(), method, path, "", "grant_type=authorization_code&code=x", "Cookie", "consent=yes", "Content-Type", "application/x-www-form-urlencoded")
			client := *http.DefaultClient
			client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode < 400 || resp.StatusCode >= 500 || resp.Header.Get("Location") != "" || resp.Header.Get("Set-Cookie") != "" {
				t.Errorf("D23, D25: %s %s: %d %v", method, path, resp.StatusCode, resp.Header)
			}
		}
	}
	if up.calls() != 0 {
		t.Error("D23: something was executed")
	}
}

func TestE17LineBreaksInWhatAServerEchoesStayInTheirString(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	up := newScripted(t)
	g := assembled(t, pep.Config{}, func(p *pep.Parts) { p.Log = slog.New(slog.NewJSONHandler(&logged, nil)) },
		[]snapshot.Grant{{ID: "g", Subject: "user:alice", Server: "pay", Tool: "balance"}}, catalogueServer("pay", up.url, allEras(), plainTool("balance", read)))
	say := func(body string) *answer {
		up.script(func(w http.ResponseWriter, _ *http.Request, _ string) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, body)
		})
		return g.call("/mcp/pay", "alice", "balance", "{}")
	}
	const escaped = `{"code":-32000,"message":"no \r\nSet-Cookie: a=b\r\n\r\n{\"level\":\"ERROR\"}"}`
	a := say(`{"jsonrpc":"2.0","id":1,"error":` + escaped + `}`)
	if !strings.Contains(a.body, escaped) || a.header.Get("Set-Cookie") != "" || strings.ContainsAny(a.body, "\r\n") {
		t.Errorf("E17: %v %q", a.header, a.body)
	}
	if a = say("{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":1,\"message\":\"raw\r\nbreak\"}}"); !strings.Contains(a.body, "upstream_protocol") || strings.ContainsAny(a.body, "\r\n") {
		t.Errorf("E17: a raw line break in a string: %q", a.body)
	}
	if a = say("{\"jsonrpc\":\"2.0\",\"id\":\"1\\r\\nX: y\",\"result\":{}}"); !strings.Contains(a.body, "upstream_protocol") {
		t.Errorf("E17: an id that is not the request's: %q", a.body)
	}
	a = g.post("/mcp/pay", "alice", `{"jsonrpc":"2.0","id":"i\r\nd","method":"tools/call","params":{"name":"a\r\nb","arguments":{},`+meta+`}}`,
		"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "=?base64?YQ0KYg==?=")
	if a.code() != -32602 && a.code() != -32600 || strings.ContainsAny(a.body, "\r\n") {
		t.Errorf("E17: a name with a line break: %d %q", a.status, a.body)
	}
	for line := range bytes.Lines(logged.Bytes()) {
		if !json.Valid(line) {
			t.Errorf("E17: a line of the log is %q", line)
		}
	}
	if logged.Len() == 0 {
		t.Error("E17: nothing was logged")
	}
	for _, r := range g.book.all() {
		if r.GetDecision() == auditv1.Decision_DECISION_UNSPECIFIED {
			t.Errorf("E17: recorded as %v", r)
		}
	}
}
