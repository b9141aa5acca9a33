package load

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Session is what became of a request of a client that keeps sessions.
type Session struct {
	ID     string
	Status int
	Took   time.Duration
	// RetryAfter is the header of that name; "" when there is none.
	RetryAfter string
}

// Open asks a node for a session, as clients before revision 2026-07-28 do.
func (l *Load) Open(ctx context.Context, node string, p Person) (Session, error) {
	return l.inSession(ctx, node, p, "",
		`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"drill","version":"1"}}}`)
}

// Use lists tools in a session.
func (l *Load) Use(ctx context.Context, node string, p Person, id string) (Session, error) {
	return l.inSession(ctx, node, p, id, `{"jsonrpc":"2.0","id":2,"method":"tools/list"}`)
}

func (l *Load) inSession(ctx context.Context, node string, p Person, id, body string) (s Session, err error) {
	begin := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, node, strings.NewReader(body))
	if err != nil {
		return s, err
	}
	req.Host = p.Host
	h := req.Header
	h.Set("Content-Type", "application/json")
	h.Set("Accept", "application/json, text/event-stream")
	h.Set("Authorization", "Bearer "+p.Token)
	if id != "" {
		h.Set("Mcp-Session-Id", id)
		h.Set("MCP-Protocol-Version", "2025-11-25")
	}
	resp, err := l.client.Do(req)
	if err != nil {
		return s, err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer)); err != nil {
		return s, fmt.Errorf("read the answer: %w", err)
	}
	return Session{resp.Header.Get("Mcp-Session-Id"), resp.StatusCode, time.Since(begin), resp.Header.Get("Retry-After")}, nil
}
