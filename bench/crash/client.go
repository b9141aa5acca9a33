package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// admin speaks the admin API as anybody can: JSON in a POST.
type admin struct{ url, token string }

// errRefused is an answer that says no: nothing was changed.
var errRefused = errors.New("refused")

func (a *admin) post(ctx context.Context, procedure string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url+"/mcpvault.admin.v1."+procedure, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+a.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	switch {
	case err != nil:
		return err
	case resp.StatusCode >= 500:
		return fmt.Errorf("%s: %d %.200s", procedure, resp.StatusCode, raw)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: %w: %d %.200s", procedure, errRefused, resp.StatusCode, raw)
	case out != nil:
		return json.Unmarshal(raw, out)
	}
	return nil
}

// canary is an MCP server of the stateless revision that counts how often each call is carried out.
type canary struct {
	url string
	srv *httptest.Server

	mu   sync.Mutex
	done map[string]int
}

func newCanary() *canary {
	c := &canary{done: map[string]int{}}
	c.srv = httptest.NewServer(http.HandlerFunc(c.serve))
	c.url = c.srv.URL + "/mcp"
	return c
}

func (c *canary) close() {
	c.srv.CloseClientConnections()
	c.srv.Close()
}

const canaryTools = `{"resultType":"complete","tools":[
 {"name":"effect","inputSchema":{"type":"object","properties":{"id":{"type":"string"}},"required":["id"]}},
 {"name":"bounded","inputSchema":{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}}],"ttlMs":1000,"cacheScope":"public"}`

func (c *canary) serve(w http.ResponseWriter, r *http.Request) {
	var m struct {
		ID     json.RawMessage `json:"id"`
		Method string          `json:"method"`
		Params struct {
			Name      string `json:"name"`
			Arguments struct {
				ID string `json:"id"`
			} `json:"arguments"`
		} `json:"params"`
	}
	raw, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil || json.Unmarshal(raw, &m) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	var result string
	switch m.Method {
	case "server/discover":
		result = `{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"serverInfo":{"name":"canary","version":"1"},"ttlMs":1000,"cacheScope":"public"}`
	case "tools/list":
		result = canaryTools
	case "tools/call":
		c.mu.Lock()
		c.done[m.Params.Name+" "+m.Params.Arguments.ID]++
		c.mu.Unlock()
		time.Sleep(2 * time.Millisecond) // so that there is something to be killed in the middle of
		result = `{"resultType":"complete","content":[{"type":"text","text":"done"}]}`
	default:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_, _ = fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no such method"}}`, orNull(m.ID))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":%s}`, orNull(m.ID), result)
}

func orNull(id json.RawMessage) string {
	if len(id) == 0 {
		return "null"
	}
	return string(id)
}

func (c *canary) count(id string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done["effect "+id]
}

func (c *canary) bounded() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done["bounded "]
}

// answer is what came back of one request to a node.
type answer struct {
	status int
	header http.Header
	body   string
	// sent is whether the node may have read it; err is why no whole answer came.
	sent bool
	err  error
	// began and ended are when.
	began, ended time.Time
}

func (a answer) done() bool   { return a.status == http.StatusOK && strings.Contains(a.body, `"done"`) }
func (a answer) hidden() bool { return strings.Contains(a.body, "-32602") }

const meta = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"crash","version":"1"}}`

// ask sends one request, once, on a connection of its own.
func ask(ctx context.Context, method, url, token, body string, header ...string) answer {
	var wrote atomic.Bool
	a := answer{began: time.Now()}
	ctx, cancel := context.WithTimeout(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { wrote.Store(true) }}), 15*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		a.err = err
		return a
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	req.Header.Set("Authorization", "Bearer "+token)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	t := &http.Transport{DisableKeepAlives: true}
	resp, err := t.RoundTrip(req)
	a.sent = wrote.Load()
	if err == nil {
		var raw []byte
		raw, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		_ = resp.Body.Close()
		a.status, a.header, a.body = resp.StatusCode, resp.Header, string(raw)
	}
	a.ended, a.err = time.Now(), err
	return a
}

// effect calls the tool that counts. The trace is how its records are found.
func effect(ctx context.Context, url, token, id, trace string) answer {
	return ask(ctx, http.MethodPost, url+"/canary", token,
		fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"effect","arguments":{"id":%q},%s}}`, id, meta),
		"Mcp-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "effect", "Traceparent", "00-"+trace+"-00f067aa0ba902b7-01")
}
