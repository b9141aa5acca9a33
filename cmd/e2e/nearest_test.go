package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/mcpvault/mcpvault/bench/devrun"
	"github.com/mcpvault/mcpvault/kit/nearest"
)

// canary is an MCP server that counts how often each call is carried out.
type canary struct {
	url  string
	mu   sync.Mutex
	done map[string]int
}

func newCanary(t *testing.T) *canary {
	t.Helper()
	c := &canary{done: map[string]int{}}
	s := mcp.NewServer(&mcp.Implementation{Name: "canary", Version: "1"}, nil)
	type call struct {
		ID string `json:"id"`
	}
	mcp.AddTool(s, &mcp.Tool{Name: "effect"}, func(_ context.Context, _ *mcp.CallToolRequest, in call) (*mcp.CallToolResult, any, error) {
		c.mu.Lock()
		c.done[in.ID]++
		c.mu.Unlock()
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: "done"}}}, nil, nil
	})
	srv := httptest.NewServer(mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return s }, &mcp.StreamableHTTPOptions{Stateless: true}))
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	c.url = srv.URL
	return c
}

func (c *canary) count(id string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done[id]
}

// effect makes one call through the client and says which node has answered; whatever the answer is, it is never made again by
// whoever asks.
func effect(client *http.Client, base, token, id string) (node string, err error) {
	body := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"effect","arguments":{"id":%q},%s}}`, id, meta)
	req, err := http.NewRequest(http.MethodPost, base+"/canary", strings.NewReader(body))
	if err != nil {
		return "", err
	}
	for k, v := range map[string]string{
		"Content-Type": "application/json", "Accept": "application/json, text/event-stream", "Mcp-Protocol-Version": "2026-07-28",
		"Mcp-Method": "tools/call", "Mcp-Name": "effect", "Authorization": "Bearer " + token,
	} {
		req.Header.Set(k, v)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	node = resp.Header.Get("Mcpvault-Cell")
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return node, err
	}
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(raw), "done") {
		return node, fmt.Errorf("%w: %d %s", errRefused, resp.StatusCode, raw)
	}
	return node, nil
}

var errRefused = errors.New("refused")

func near(t *testing.T, d *devrun.Dev, seeds ...string) *nearest.Transport {
	t.Helper()
	tr, err := nearest.New(nearest.Config{Seeds: seeds})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tr.Close() })
	return tr
}

// cellOf is the base URL's cell: the first three nodes are of the first.
func cellOf(t *testing.T, d *devrun.Dev, base string) int {
	t.Helper()
	for i, u := range d.MCPURLs {
		if strings.HasPrefix(u, base+"/") {
			return i / 3
		}
	}
	t.Fatalf("%q is no node", base)
	return -1
}

// TestACellIsLostUnderLoad kills every node of the cell that clients use, with calls under way, and the control plane before
// it: from then on the nodes alone say which cells there are.
func TestACellIsLostUnderLoad(t *testing.T) {
	t.Parallel()
	d := start(t, "--cells", "2")
	c := newCanary(t)
	must(t, d, 0, "server", "add", "canary", "--url", c.url)
	must(t, d, 0, "server", "approve", "canary", "--effect", "write")
	must(t, d, 0, "grant", "alice", "canary/effect")
	netcheckSees(t, d, 2)
	eventually(t, "every node knows both cells", func() bool {
		for _, u := range d.MCPURLs {
			p, err := nearest.Ask(t.Context(), http.DefaultTransport, strings.TrimSuffix(u, "/mcp"), "")
			if err != nil || p.Document == nil || len(p.Document.Cells) != 2 || !p.Document.Cells[0].Healthy || !p.Document.Cells[1].Healthy {
				return false
			}
		}
		return true
	})
	kill(t, d.PIDs.ControlPlane)

	tr := near(t, d, d.MCPURLs[0]) // one address of one cell is all that the client knows
	client := &http.Client{Transport: tr, Timeout: 30 * time.Second}
	token := d.Tokens["alice"]
	if _, err := effect(client, d.MCPURLs[0], token, "first"); err != nil {
		t.Fatal(err)
	}
	used := cellOf(t, d, tr.Current())
	next := []string{"cell2/", "local/"}[used]
	legacy := legacySession(t, d, tr)

	type outcome struct {
		id   string
		node string
		err  error
		at   time.Time
	}
	var mu sync.Mutex
	var all []outcome
	var stop atomic.Bool
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := 0; !stop.Load(); i++ {
				id := fmt.Sprintf("w%d-%d", w, i)
				node, err := effect(client, d.MCPURLs[0], token, id)
				mu.Lock()
				all = append(all, outcome{id, node, err, time.Now()})
				mu.Unlock()
			}
		})
	}
	calls := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(all)
	}
	eventually(t, "calls are under way", func() bool { return calls() > 50 })
	lost := time.Now()
	for n := range 3 {
		kill(t, d.PIDs.Nodes[3*used+n])
	}
	eventually(t, "calls go on in the other cell", func() bool {
		mu.Lock()
		defer mu.Unlock()
		good := 0
		for _, o := range all {
			if o.err == nil && strings.HasPrefix(o.node, next) {
				good++
			}
		}
		return good > 50
	})
	stop.Store(true)
	wg.Wait()

	if now := cellOf(t, d, tr.Current()); now == used {
		t.Errorf("the client still uses cell %d", now)
	}
	first := time.Duration(0)
	unknown, none, doubles := 0, 0, 0
	for _, o := range all {
		n := c.count(o.id)
		switch {
		case n > 1:
			doubles++
			t.Errorf("%s was carried out %d times", o.id, n)
		case o.err == nil && n != 1:
			t.Errorf("%s was answered and not carried out", o.id)
		case o.err != nil && errors.Is(o.err, nearest.ErrUnknownOutcome):
			unknown++
		case o.err != nil && errors.Is(o.err, nearest.ErrNoCell):
			none++
			if n != 0 {
				t.Errorf("%s is said not to have been sent, and was carried out", o.id)
			}
		case o.err != nil:
			t.Errorf("%s: %v", o.id, o.err)
		}
		if o.err == nil && strings.HasPrefix(o.node, next) && (first == 0 || o.at.Sub(lost) < first) {
			first = o.at.Sub(lost)
		}
	}
	t.Logf("figure: first success in the next cell %s after the kill; %d calls, %d of unknown outcome, %d not sent, %d doubles", first.Round(time.Millisecond), len(all), unknown, none, doubles)
	if first > 3*time.Second {
		t.Errorf("the first success in the next cell came after %s", first)
	}
	legacyGoesOn(t, d, tr, legacy)
	out, errs := must(t, d, 0, "mcp", "call", "demo/echo", "message=hi", "--as", "alice")
	if !strings.Contains(out, "hi") {
		t.Errorf("%s%s", out, errs)
	}
	netcheckSees(t, d, 1)
}

// netcheckSees wants the command to reach as many cells.
func netcheckSees(t *testing.T, d *devrun.Dev, want int) {
	t.Helper()
	eventually(t, "netcheck reaches the cells", func() bool {
		out, _, status := cli(t, d, "netcheck", "-o", "json")
		var r struct {
			Nearest string
			UDP     string
			Ways    []struct {
				Cell, Health string
				QUIC         float64 `json:"quic_ms"`
			}
		}
		if json.Unmarshal([]byte(out), &r) != nil || status != 0 {
			return false
		}
		serving := map[string]bool{}
		for _, w := range r.Ways {
			if w.Health == "serving" && w.QUIC > 0 {
				serving[w.Cell] = true
			}
		}
		return len(serving) == want && serving[r.Nearest] && r.UDP == "open"
	})
}

// legacyClient is go-sdk's, of a revision with sessions.
func legacyClient(t *testing.T, d *devrun.Dev, rt http.RoundTripper) (*mcp.ClientSession, error) {
	t.Helper()
	c := mcp.NewClient(&mcp.Implementation{Name: "legacy", Version: "1"}, nil)
	return c.Connect(t.Context(), &mcp.StreamableClientTransport{
		Endpoint: d.MCPURLs[0] + "/canary", MaxRetries: -1,
		HTTPClient: &http.Client{Transport: withToken{rt, d.Tokens["alice"]}},
	}, &mcp.ClientSessionOptions{ProtocolVersion: "2025-11-25"})
}

type withToken struct {
	next  http.RoundTripper
	token string
}

func (w withToken) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+w.token)
	return w.next.RoundTrip(r)
}

func legacySession(t *testing.T, d *devrun.Dev, rt http.RoundTripper) *mcp.ClientSession {
	t.Helper()
	s, err := legacyClient(t, d, rt)
	if err != nil {
		t.Fatal(err)
	}
	if s.ID() == "" {
		t.Fatal("a legacy client has no session")
	}
	if _, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: "effect", Arguments: map[string]any{"id": "legacy-1"}}); err != nil {
		t.Fatal(err)
	}
	return s
}

// legacyGoesOn: the other cell does not know the session and says so; opened anew, the client goes on there.
func legacyGoesOn(t *testing.T, d *devrun.Dev, rt http.RoundTripper, s *mcp.ClientSession) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, d.MCPURLs[0]+"/canary", strings.NewReader(`{"jsonrpc":"2.0","id":9,"method":"tools/list"}`))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{
		"Content-Type": "application/json", "Accept": "application/json, text/event-stream", "Mcp-Protocol-Version": "2025-11-25", "Mcp-Session-Id": s.ID(),
	} {
		req.Header.Set(k, v)
	}
	resp, err := withToken{rt, d.Tokens["alice"]}.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("a session of the lost cell is answered %d, want 404", resp.StatusCode)
	}
	if _, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: "effect", Arguments: map[string]any{"id": "legacy-2"}}); err == nil {
		t.Error("a session went on in a cell that does not know it")
	}
	again, err := legacyClient(t, d, rt)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := again.CallTool(t.Context(), &mcp.CallToolParams{Name: "effect", Arguments: map[string]any{"id": "legacy-3"}}); err != nil {
		t.Error(err)
	}
}
