package sse_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/dataplane/upstream/sse"
)

const odd = `{"content":[{"type":"hologram","n":12345678901234567890}],"isError":false}`

// legacy is a server of 2024-11-05.
type legacy struct {
	url, endpoint string
	streams       atomic.Int32
	mu            sync.Mutex
	out           map[string]chan string
	seen          []http.Header
}

func newLegacy(t *testing.T) *legacy {
	t.Helper()
	l := &legacy{endpoint: "/messages?s=%d", out: map[string]chan string{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /sse", func(w http.ResponseWriter, r *http.Request) {
		n := l.streams.Add(1)
		out := make(chan string, 8)
		l.mu.Lock()
		l.out[fmt.Sprint(n)] = out
		l.seen = append(l.seen, r.Header.Clone())
		l.mu.Unlock()
		w.Header().Set("Content-Type", "text/event-stream")
		endpoint := l.endpoint
		if strings.Contains(endpoint, "%d") {
			endpoint = fmt.Sprintf(endpoint, n)
		}
		_, _ = fmt.Fprintf(w, "event: endpoint\ndata: %s\n\n", endpoint)
		w.(http.Flusher).Flush()
		for {
			select {
			case m := <-out:
				if m == "" {
					return
				}
				_, _ = fmt.Fprintf(w, "event: message\ndata: %s\n\n", m)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	mux.HandleFunc("POST /messages", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		var m struct {
			ID     json.RawMessage
			Method string
			Params struct{ Name string }
		}
		_ = json.Unmarshal(b, &m)
		l.mu.Lock()
		out := l.out[r.URL.Query().Get("s")]
		l.seen = append(l.seen, r.Header.Clone())
		l.mu.Unlock()
		w.WriteHeader(http.StatusAccepted)
		switch {
		case m.Method == "initialize":
			out <- `{"jsonrpc":"2.0","id":` + string(m.ID) + `,"result":{"protocolVersion":"2024-11-05","capabilities":{},"serverInfo":{"name":"l","version":"1"}}}`
		case m.Params.Name == "hang up":
			out <- ""
		case m.Method == "tools/call":
			out <- `{"jsonrpc":"2.0","id":` + string(m.ID) + `,"result":` + odd + `}`
		}
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	l.url = s.URL
	return l
}

func client(t *testing.T) *sse.Client {
	t.Helper()
	up := upstream.New(upstream.Config{Dial: (&net.Dialer{}).DialContext})
	c := sse.New(up, "1")
	t.Cleanup(func() { c.Close(); up.Close() })
	return c
}

func do(t *testing.T, c *sse.Client, l *legacy, session, body string) (*upstream.Response, error) {
	t.Helper()
	set := http.Header{"Authorization": {"Bearer injected"}, mcp.HeaderVersion: {"2025-06-18"}}
	if session != "" {
		set[mcp.HeaderSession] = []string{session}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return c.Do(ctx, &upstream.Request{URL: sse.Scheme + l.url + "/sse", Method: http.MethodPost, Body: []byte(body), Set: set})
}

const initialize = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"c","version":"1"}}}`

func TestASessionHasAStreamAndResultsComeByteForByte(t *testing.T) {
	t.Parallel()
	l, c := newLegacy(t), client(t)
	for i := range 2 {
		resp, err := do(t, c, l, "", initialize)
		if err != nil || resp.Session == "" || !strings.Contains(string(resp.Body), `"protocolVersion":"2025-06-18"`) {
			t.Fatalf("%+v %v", resp, err)
		}
		resp, err = do(t, c, l, resp.Session, `{"jsonrpc":"2.0","id":9007199254740993,"method":"tools/call","params":{"name":"odd"}}`)
		if err != nil {
			t.Fatal(err)
		}
		if want := `{"jsonrpc":"2.0","id":9007199254740993,"result":` + odd + `}`; string(resp.Body) != want {
			t.Errorf("%s\nwant %s", resp.Body, want)
		}
		if got := l.streams.Load(); got != int32(i+1) {
			t.Errorf("%d streams", got)
		}
	}
	for _, h := range l.seen {
		if h.Get("Authorization") != "Bearer injected" || h.Get("Mcp-Session-Id") != "" {
			t.Errorf("sent %v", h)
		}
	}
}

func TestAnEndpointOfAnotherOriginIsNotPostedTo(t *testing.T) {
	t.Parallel()
	var reached atomic.Bool
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Store(true) }))
	t.Cleanup(other.Close)
	for _, endpoint := range []string{other.URL + "/messages", "//" + strings.TrimPrefix(other.URL, "http://"), "https://evil.example/", "data:x", ""} {
		l, c := newLegacy(t), client(t)
		l.endpoint = endpoint
		if _, err := do(t, c, l, "", initialize); !errors.Is(err, upstream.ErrProtocol) || reached.Load() {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
}

func TestAStreamThatEndsFailsItsCallsAndEndsItsSession(t *testing.T) {
	t.Parallel()
	l, c := newLegacy(t), client(t)
	resp, err := do(t, c, l, "", initialize)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := do(t, c, l, resp.Session, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"hang up"}}`); !errors.Is(err, upstream.ErrBroken) {
		t.Errorf("%v", err)
	}
	if again, err := do(t, c, l, resp.Session, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"odd"}}`); err != nil || again.Status != http.StatusNotFound {
		t.Errorf("%+v %v", again, err)
	}
}

// FuzzEndpoint: whatever a server names, what is posted to is of its own origin.
func FuzzEndpoint(f *testing.F) {
	for _, s := range []string{"/messages", "//evil.example/x", "http://a.example:80@evil/", "https://a.example/x", "\\\\evil\\x", "http:/x", "?s=1"} {
		f.Add(s)
	}
	base, _ := url.Parse("http://a.example/sse")
	f.Fuzz(func(t *testing.T, data string) {
		got, err := sse.Endpoint(base, mcp.Event{Raw: []byte("event: endpoint\n"), Data: []byte(data)})
		if err != nil {
			return
		}
		u, err := url.Parse(got)
		if err != nil || u.Scheme != "http" || !strings.EqualFold(u.Host, "a.example") || u.User != nil {
			t.Errorf("%q leads to %q", data, got)
		}
	})
}
