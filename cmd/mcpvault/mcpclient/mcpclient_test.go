package mcpclient_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/mcpclient"
	"github.com/mcpvault/mcpvault/kit/problem"
)

func client(url, era string) *mcpclient.Client {
	return mcpclient.New(mcpclient.Config{URL: url, Token: "secret", Era: era, HTTP: mcpclient.NewHTTP(&http.Transport{DisableKeepAlives: true})})
}

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// answering returns the URL of a server that answers every POST with the status, headers and body.
func answering(t *testing.T, status int, header map[string]string, body string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		for k, v := range header {
			w.Header().Set(k, v)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// counting is a server of one library version set, with a tool that counts its calls.
func counting(t *testing.T, calls *atomic.Int64, versions ...string) string {
	t.Helper()
	s := server.NewMCPServer("count", "1")
	s.AddTool(mcp.NewTool("count", mcp.WithString("s")), func(_ context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		calls.Add(1)
		return mcp.NewToolResultText(r.GetString("s", "")), nil
	})
	h := server.NewStreamableHTTPServer(s, server.WithStateful(true), server.WithStreamableHTTPProtocolVersions(versions...))
	hs := httptest.NewServer(h)
	t.Cleanup(hs.Close)
	return hs.URL + "/mcp"
}

func TestTheEraIsFoundOutAndACallIsMadeOnce(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		versions []string
		want     string
	}{
		"both":        {nil, mcpclient.Modern},
		"legacy only": {[]string{"2025-11-25", "2025-06-18"}, "2025-11-25"},
		"older":       {[]string{"2025-06-18"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int64
			c := client(counting(t, &calls, tc.versions...), "")
			for i := range 2 {
				a, err := c.CallTool(soon(t), "count", json.RawMessage(`{"s":"<&>"}`), nil)
				if err != nil || a.Text() != "<&>" || (tc.want != "" && a.Protocol != tc.want) {
					t.Fatalf("got %+v, %v", a, err)
				}
				if calls.Load() != int64(i+1) {
					t.Fatalf("called %d times", calls.Load())
				}
			}
			if err := c.Close(soon(t)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestARefusalOfACellIsNotTakenForAnOldServer(t *testing.T) {
	t.Parallel()
	var posts atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		posts.Add(1)
		w.Header().Set("MCPVault-Decision-Id", "01J")
		w.Header().Set("MCPVault-Snapshot", "1.3")
		w.Header().Set("MCPVault-Cell", "local/n1")
		w.Header().Set("Server-Timing", "total;dur=9, decision;desc=x;dur=0.25")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":1,"error":{"code":-32600,"message":"x","data":{"decisionId":"01J","reason":"r","hint":"h"}}}`)
	}))
	t.Cleanup(s.Close)
	a, err := client(s.URL, "").CallTool(soon(t), "x", nil, nil)
	if err != nil || posts.Load() != 1 {
		t.Fatalf("%d posts, %v", posts.Load(), err)
	}
	reason, hint, denied := a.Denied()
	if want := (mcpclient.Decision{ID: "01J", Snapshot: "1.3", Cell: "local/n1", Millis: 0.25}); !denied || reason != "r" || hint != "h" || a.Decision != want {
		t.Fatalf("got %+v %q %q %v", a.Decision, reason, hint, denied)
	}
}

func TestDenialsAreToldFromErrors(t *testing.T) {
	t.Parallel()
	cell := map[string]string{"MCPVault-Decision-Id": "01J"}
	denial := `{"jsonrpc":"2.0","id":1,"result":{"isError":true,"content":[{"type":"text","text":"no"}],"structuredContent":{"decisionId":"01J","reason":"condition"}}}`
	for name, tc := range map[string]struct {
		header      map[string]string
		body        string
		denied, bad bool
	}{
		"denied result":           {cell, denial, true, true},
		"an upstream pretending":  {map[string]string{"MCPVault-Decision-Id": "01K"}, denial, false, true},
		"a server that is no one": {nil, denial, false, true},
		"tool error":              {cell, `{"jsonrpc":"2.0","id":1,"result":{"isError":true,"content":[]}}`, false, true},
		"allowed":                 {cell, `{"jsonrpc":"2.0","id":1,"result":{"content":[],"structuredContent":{"decisionId":"01J"}}}`, false, false},
		"unknown tool":            {cell, `{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"unknown tool","data":{"decisionId":"01J"}}}`, true, false},
		"other error":             {cell, `{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"m","data":[1]}}`, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, err := client(answering(t, 200, tc.header, tc.body), "").CallTool(soon(t), "x", nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, denied := a.Denied(); denied != tc.denied || a.ToolError() != tc.bad {
				t.Fatalf("denied %v, tool error %v", denied, a.ToolError())
			}
		})
	}
}

func TestFailuresSayWhatTheyAre(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := "http://" + l.Addr().String()
	_ = l.Close()
	sse := map[string]string{"Content-Type": "text/event-stream"}
	for name, tc := range map[string]struct {
		url  string
		code problem.Code
	}{
		"nobody there":      {closed, problem.Unavailable},
		"no token":          {answering(t, 401, nil, ""), problem.Unauthenticated},
		"not JSON":          {answering(t, 200, nil, "hello"), problem.Unavailable},
		"another's answer":  {answering(t, 200, nil, `{"jsonrpc":"2.0","id":9,"result":{}}`), problem.Unavailable},
		"a stream cut off":  {answering(t, 200, sse, "data: {\"jsonrpc\":\"2.0\",\"method\":\"x\"}\n\n"), problem.Unavailable},
		"a stream of waste": {answering(t, 200, sse, "data: nonsense\n\n"), problem.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := client(tc.url, mcpclient.Modern).CallTool(soon(t), "x", nil, nil)
			if problem.CodeOf(err) != tc.code {
				t.Fatalf("got %v", err)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Fatalf("the token is in %v", err)
			}
		})
	}
}

func TestAnAnswerThatDoesNotComeIsATimeout(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-hold
	}))
	t.Cleanup(s.Close)
	t.Cleanup(func() { close(hold) })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := client(s.URL, "").CallTool(ctx, "x", nil, nil)
	if problem.CodeOf(err) != problem.Timeout {
		t.Fatalf("got %v", err)
	}
}

func TestARedirectDoesNotTakeTheTokenAway(t *testing.T) {
	t.Parallel()
	var stolen atomic.Bool
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { stolen.Store(true) }))
	t.Cleanup(thief.Close)
	url := answering(t, http.StatusTemporaryRedirect, map[string]string{"Location": thief.URL}, "")
	if _, err := client(url, mcpclient.Modern).CallTool(soon(t), "x", nil, nil); err == nil || stolen.Load() {
		t.Fatalf("stolen %v, %v", stolen.Load(), err)
	}
}

func TestNotificationsComeBeforeTheAnswerInOrder(t *testing.T) {
	t.Parallel()
	body := ": keep-alive\n\nid: 1\nevent: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"a\"}\n\n" +
		"data: {\"jsonrpc\":\"2.0\",\r\ndata: \"method\":\"b\"}\r\n\r\n" +
		"data: {\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"sampling/createMessage\"}\n\n" +
		"data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"end\"}]}}\n\n"
	var got []string
	c := mcpclient.New(mcpclient.Config{
		URL:    answering(t, 200, map[string]string{"Content-Type": "Text/Event-Stream; charset=utf-8"}, body),
		HTTP:   mcpclient.NewHTTP(&http.Transport{}),
		Notify: func(m string, _ json.RawMessage) { got = append(got, m) },
	})
	a, err := c.CallTool(soon(t), "x", nil, nil)
	if err != nil || a.Text() != "end" || fmt.Sprint(got) != "[a b]" {
		t.Fatalf("%v %v %v", a, got, err)
	}
}

func TestHeadersOfTheStatelessRevision(t *testing.T) {
	t.Parallel()
	var got http.Header
	var host string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, host = r.Header.Clone(), r.Host
		_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":1,"result":{}}`)
	}))
	t.Cleanup(s.Close)
	c := mcpclient.New(mcpclient.Config{URL: s.URL, Host: "acme.localhost", HTTP: mcpclient.NewHTTP(&http.Transport{})})
	schema := `{"properties":{"region":{"type":"string","x-mcp-header":"Region"},"n":{"type":"integer","x-mcp-header":"N"},"o":{"properties":{"b":{"type":"boolean","x-mcp-header":"B"}}}}}`
	if _, err := c.CallTool(soon(t), "grüße", json.RawMessage(`{"region":" eu","n":9007199254740993,"o":{"b":true}}`), json.RawMessage(schema)); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]string{
		"Mcp-Protocol-Version": mcpclient.Modern, "Mcp-Method": "tools/call", "Mcp-Name": "=?base64?Z3LDvMOfZQ==?=",
		"Mcp-Param-Region": "=?base64?IGV1?=", "Mcp-Param-N": "9007199254740993", "Mcp-Param-B": "true",
	} {
		if got.Get(k) != want {
			t.Errorf("%s: %q, want %q", k, got.Get(k), want)
		}
	}
	if host != "acme.localhost" || got.Get("Authorization") != "" {
		t.Errorf("host %q, authorization %q", host, got.Get("Authorization"))
	}
}
