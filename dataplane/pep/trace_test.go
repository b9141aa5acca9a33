package pep_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	"github.com/mcpvault/mcpvault/kit/tele"
	"github.com/mcpvault/mcpvault/snapshot"
)

const (
	bodyTrace   = "4bf92f3577b34da6a3ce929d0e0e4736"
	bodyParent  = "00-" + bodyTrace + "-00f067aa0ba902b7-01"
	outerTrace  = "0af7651916cd43dd8448eb211c80319c"
	outerParent = "00-" + outerTrace + "-b7ad6b7169203331-01"
)

// tracing is payments with spans that are kept in memory.
func tracing(t *testing.T) (*gateway, *scripted, *tracetest.InMemoryExporter) {
	t.Helper()
	up, spans := newScripted(t), tracetest.NewInMemoryExporter()
	g := assembled(t, pep.Config{}, func(p *pep.Parts) { p.Traces = tele.NewTracesTo(spans) }, []snapshot.Grant{
		{ID: "g1", Subject: "user:alice", Server: "pay", Tool: "balance"},
		{ID: "g3", Subject: "user:alice", Server: "pay", Tool: "refund", When: &snapshot.Cond{
			Op: snapshot.OpLt, Arg: "amount", Value: snapshot.Value{Type: snapshot.TypeNumber, Int: 100},
		}},
	}, catalogueServer("pay", up.url, allEras(), plainTool("balance", read), plainTool("refund", destructive), plainTool("secret", read)))
	return g, up, spans
}

// traced calls a tool with trace context in the message, the headers, or both.
func (g *gateway) traced(tool, inBody, inHeader string, header ...string) *answer {
	g.t.Helper()
	m := meta
	if inBody != "" {
		m = strings.Replace(meta, `"_meta":{`, `"_meta":{"traceparent":"`+inBody+`","tracestate":"rojo=1","baggage":"k=v",`, 1)
	}
	body := `{"jsonrpc":"2.0","id":"req-7","method":"tools/call","params":{"name":"` + tool + `","arguments":{"pin":"4711"},` + m + `}}`
	header = append(header, "MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", tool, "Traceparent", inHeader)
	return g.post("/mcp/pay", "alice", body, header...)
}

// spansOf waits until the request's own span has ended, and returns all of them by kind.
func spansOf(t *testing.T, e *tracetest.InMemoryExporter) map[trace.SpanKind]tracetest.SpanStub {
	t.Helper()
	all := map[trace.SpanKind]tracetest.SpanStub{}
	until(t, "the request's span", func() bool {
		for _, s := range e.GetSpans() {
			all[s.SpanKind] = s
		}
		_, ended := all[trace.SpanKindServer]
		return ended
	})
	return all
}

func attr(s tracetest.SpanStub, key string) string {
	for _, kv := range s.Attributes {
		if kv.Key == attribute.Key(key) {
			return kv.Value.String()
		}
	}
	return ""
}

func TestACallHasASpanByTheConventionsAndOneForTheUpstream(t *testing.T) {
	t.Parallel()
	g, up, spans := tracing(t)
	a := g.traced("balance", bodyParent, outerParent, "Baggage", "a=b")
	if a.status != 200 {
		t.Fatal(a.status, a.body)
	}
	all := spansOf(t, spans)
	server, client := all[trace.SpanKindServer], all[trace.SpanKindClient]
	for key, want := range map[string]string{
		"mcp.method.name": "tools/call", "gen_ai.tool.name": "balance", "gen_ai.operation.name": "execute_tool", "jsonrpc.request.id": "req-7",
		"mcp.protocol.version": "2026-07-28", "network.transport": "tcp", "network.protocol.name": "http", "network.protocol.version": "1.1",
		"client.address": "127.0.0.1", "server.address": "127.0.0.1", "error.type": "", "mcpvault.decision": "allow",
		"mcpvault.decision.id": a.decision(), "mcpvault.org": "acme", "mcpvault.server": "pay", "mcpvault.cell": "c1",
	} {
		if got := attr(server, key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	if server.Name != "tools/call balance" || client.Name != "tools/call balance" || server.Status.Code != codes.Unset {
		t.Errorf("names %q and %q, status %v", server.Name, client.Name, server.Status)
	}
	// The message's context is the parent, that of the headers a link.
	if server.Parent.TraceID().String() != bodyTrace || server.Parent.SpanID().String() != "00f067aa0ba902b7" || server.Parent.TraceState().Get("rojo") != "1" {
		t.Errorf("parent: %v", server.Parent)
	}
	if len(server.Links) != 1 || server.Links[0].SpanContext.TraceID().String() != outerTrace {
		t.Errorf("links: %v", server.Links)
	}
	if client.Parent.SpanID() != server.SpanContext.SpanID() || attr(client, "mcp.method.name") != "tools/call" || attr(client, "server.port") == "" {
		t.Errorf("the upstream's span: parent %v, %v", client.Parent, client.Attributes)
	}
	decide := all[trace.SpanKindInternal]
	if decide.Name != "mcpvault.authz.decide" || decide.Parent.SpanID() != server.SpanContext.SpanID() {
		t.Errorf("the decision's span: %q of %v", decide.Name, decide.Parent)
	}
	// What the upstream is given is the context of the call to it, in both places, and the baggage as it came.
	handed := "00-" + bodyTrace + "-" + client.SpanContext.SpanID().String() + "-01"
	body, h := up.last()
	if h.Get("Traceparent") != handed || h.Get("Tracestate") != "rojo=1" || h.Get("Baggage") != "a=b" {
		t.Errorf("upstream headers %v, want %s", h, handed)
	}
	if !strings.Contains(body, `"traceparent":"`+handed+`","tracestate":"rojo=1","baggage":"k=v"`) || !strings.Contains(body, `{"pin":"4711"}`) {
		t.Errorf("upstream body %s", body)
	}
	if rec := g.book.of(a.decision()); rec[0].GetTraceId() != bodyTrace {
		t.Errorf("the record names trace %q", rec[0].GetTraceId())
	}
	if got := a.header.Get("Traceparent"); !strings.Contains(got, server.SpanContext.SpanID().String()) {
		t.Errorf("the caller is told %q", got)
	}
}

func TestWithoutContextInTheMessageThatOfTheHeadersIsTheParent(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{outerParent: outerTrace, "": "", "00-zz": "", "00-" + strings.Repeat("0", 32) + "-b7ad6b7169203331-01": ""} {
		g, up, spans := tracing(t)
		g.traced("balance", "", in)
		server := spansOf(t, spans)[trace.SpanKindServer]
		if got := server.Parent.TraceID(); want == "" && server.Parent.IsValid() || want != "" && got.String() != want {
			t.Errorf("%q: parent %v", in, server.Parent)
		}
		body, _ := up.last()
		if strings.Contains(body, "traceparent") {
			t.Errorf("%q: the message was changed: %s", in, body)
		}
	}
	g, _, spans := tracing(t)
	g.traced("balance", "00-garbage", outerParent)
	if server := spansOf(t, spans)[trace.SpanKindServer]; server.Parent.TraceID().String() != outerTrace {
		t.Errorf("garbage in the message: parent %v", server.Parent)
	}
}

func TestRefusalsAndErrorsHaveTheirTypeInTheSpan(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		what, tool string
		reply      string
		do         func(*gateway)
		want       string
		client     bool
	}{
		{what: "hidden", do: func(g *gateway) { g.traced("secret", "", "") }, want: "-32602"},
		{what: "condition", do: func(g *gateway) { g.call("/mcp/pay", "alice", "refund", `{"amount":500}`) }, want: "condition"},
		{what: "no token", do: func(g *gateway) { g.call("/mcp/pay", "", "balance", `{}`) }, want: "-32000"},
		{what: "bad JSON", do: func(g *gateway) { g.post("/mcp/pay", "alice", "{") }, want: "-32700"},
		{what: "bad host", do: func(g *gateway) { g.post("/mcp/pay", "alice", "{}", "Host", "evil.example") }, want: "-32600"},
		{what: "upstream's error", reply: `{"jsonrpc":"2.0","id":"req-7","error":{"code":-32055,"message":"no"}}`, do: func(g *gateway) { g.traced("balance", "", "") }, want: "-32055", client: true},
		{what: "tool error", reply: `{"jsonrpc":"2.0","id":"req-7","result":{"content":[],"isError":true}}`, do: func(g *gateway) { g.traced("balance", "", "") }, want: "tool_error", client: true},
	} {
		t.Run(tc.what, func(t *testing.T) {
			t.Parallel()
			g, up, spans := tracing(t)
			if tc.reply != "" {
				up.script(func(w http.ResponseWriter, _ *http.Request, _ string) {
					w.Header().Set("Content-Type", "application/json")
					_, _ = io.WriteString(w, tc.reply)
				})
			}
			tc.do(g)
			all := spansOf(t, spans)
			server := all[trace.SpanKindServer]
			if got := attr(server, "error.type"); got != tc.want || server.Status.Code != codes.Error {
				t.Errorf("error.type %q, want %q; status %v", got, tc.want, server.Status)
			}
			client, asked := all[trace.SpanKindClient]
			if asked != tc.client || asked && attr(client, "error.type") != tc.want {
				t.Errorf("the upstream's span: %t %v", asked, client.Attributes)
			}
		})
	}
}

func TestSpansHoldNoSecretsAndNoArguments(t *testing.T) {
	t.Parallel()
	g, up, spans := tracing(t)
	up.script(func(w http.ResponseWriter, r *http.Request, body string) { up.answer(w, body) })
	id := g.legacy("/mcp/pay", "alice")
	token := g.token("alice")
	g.traced("balance", bodyParent, outerParent)
	g.post("/mcp/pay", "alice", strings.Replace(legacyCall, `"arguments":{}`, `"arguments":{"pin":"4711"}`, 1), "Mcp-Session-Id", id)
	g.modern("/mcp/pay", "root", "resources/read", "https://u:hunter2@x.example/a?token=hunter2", `"uri":"https://u:hunter2@x.example/a?token=hunter2"`)
	until(t, "all spans", func() bool {
		n := 0
		for _, s := range spans.GetSpans() {
			if s.SpanKind == trace.SpanKindServer {
				n++
			}
		}
		return n == 4
	})
	all := spans.GetSpans()
	hashes := 0
	for _, s := range all {
		text := fmt.Sprintf("%s %+v %+v %+v", s.Name, s.Attributes, s.Events, s.Status)
		for _, secret := range []string{"4711", "hunter2", id, token, "Bearer", "alice", "k=v", "upstream-session"} {
			if strings.Contains(text, secret) {
				t.Errorf("%q is in the span %s", secret, text)
			}
		}
		if len(attr(s, "mcp.session.id")) == 32 {
			hashes++
		}
	}
	if hashes != 2 {
		t.Errorf("%d spans have the session's hash, want those of initialize and of the call in the session", hashes)
	}
}

func TestSpansReachAnOTLPReceiver(t *testing.T) {
	t.Parallel()
	got := make(chan *coltrace.ExportTraceServiceRequest, 8)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		m := &coltrace.ExportTraceServiceRequest{}
		if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(b, m) != nil {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		got <- m
	}))
	defer receiver.Close()
	traces, err := tele.NewTraces(t.Context(), tele.TraceConfig{Service: "mcpvault-cell", Version: "v1", Endpoint: receiver.URL})
	if err != nil {
		t.Fatal(err)
	}
	up := newScripted(t)
	g := assembled(t, pep.Config{}, func(p *pep.Parts) { p.Traces = traces }, []snapshot.Grant{{ID: "g", Subject: "user:alice", Server: "pay"}},
		catalogueServer("pay", up.url, allEras(), plainTool("balance", read)))
	body := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"balance",` + strings.Replace(meta, `{`, `{"traceparent":"`+bodyParent+`",`, 1) + `}}`
	r := g.request(t.Context(), http.MethodPost, "/mcp/pay", "alice", body, "MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "balance")
	g.pep.ServeHTTP(httptest.NewRecorder(), r)
	if err := traces.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(got)
	var seen []string
	for m := range got {
		for _, rs := range m.GetResourceSpans() {
			if s := rs.GetResource().String(); !strings.Contains(s, "mcpvault-cell") {
				t.Errorf("resource %s", s)
			}
			for _, s := range rs.GetScopeSpans()[0].GetSpans() {
				if fmt.Sprintf("%x", s.GetTraceId()) != bodyTrace {
					t.Errorf("span %s is in trace %x", s.GetName(), s.GetTraceId())
				}
				seen = append(seen, s.GetName()+" "+s.GetKind().String())
			}
		}
	}
	slices.Sort(seen)
	if want := []string{"mcpvault.authz.decide SPAN_KIND_INTERNAL", "tools/call balance SPAN_KIND_CLIENT", "tools/call balance SPAN_KIND_SERVER"}; !slices.Equal(seen, want) {
		t.Errorf("received %v", seen)
	}
}
