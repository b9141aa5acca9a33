// Package canary is an MCP server that counts: how often each call was executed, by an id that its caller gave it. Behind a gateway
// it shows what really came through. It can be made slow, and made to hang.
package canary

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// Tool is one tool of the server.
type Tool struct {
	Name string
	// Effects says that it changes something; others only read.
	Effects bool
}

// Server counts what it is asked to execute.
type Server struct {
	url   string
	tools []Tool
	http  *http.Server
	ended chan error

	mu    sync.Mutex // Guards what is below.
	count map[string]int
	delay time.Duration
}

// maxBody bounds a request.
const maxBody = 1 << 20

// Start serves the tools on an address, "" for any free one on loopback, until Stop.
func Start(address string, tools []Tool) (*Server, error) {
	if address == "" {
		address = "127.0.0.1:0"
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("start the canary: %w", err)
	}
	s := &Server{url: "http://" + l.Addr().String() + "/mcp", tools: tools, ended: make(chan error, 1), count: map[string]int{}}
	s.http = &http.Server{Handler: http.HandlerFunc(s.serve), ReadHeaderTimeout: 5 * time.Second}
	go func() { s.ended <- s.http.Serve(l) }()
	return s, nil
}

// Stop ends the server.
func (s *Server) Stop() error {
	err := s.http.Close()
	if e := <-s.ended; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}

// URL is where it answers.
func (s *Server) URL() string { return s.url }

// Delay makes each call take as long before it is answered; 0 makes the server quick again. Calls are counted at once.
func (s *Server) Delay(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay = d
}

// Take returns the counts by call id, and begins anew.
func (s *Server) Take() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.count
	s.count = map[string]int{}
	return taken
}

type message struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
	Params struct {
		Name      string `json:"name"`
		Arguments struct {
			Call string `json:"call"`
		} `json:"arguments"`
	} `json:"params"`
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodDelete {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return // The caller has gone.
	}
	var m message
	if err := json.Unmarshal(body, &m); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if len(m.ID) == 0 {
		w.WriteHeader(http.StatusAccepted)
		return
	}
	if m.Method == "initialize" {
		w.Header().Set("Mcp-Session-Id", rand.Text())
	}
	var out bytes.Buffer
	if result := s.answer(r.Context(), &m); result != nil {
		fmt.Fprintf(&out, `{"jsonrpc":"2.0","id":%s,"result":%s}`, m.ID, result)
	} else {
		fmt.Fprintf(&out, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no such method"}}`, m.ID)
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(out.Bytes()) // The caller may have gone.
}

func (s *Server) answer(ctx context.Context, m *message) []byte {
	const info = `{"name":"drill-canary","version":"1"}`
	switch m.Method {
	case "initialize":
		return []byte(`{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":` + info + `}`)
	case "server/discover":
		return []byte(`{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"ttlMs":0,"cacheScope":"private","_meta":{"io.modelcontextprotocol/serverInfo":` + info + `}}`)
	case "tools/list":
		return s.list()
	case "tools/call":
		s.execute(ctx, m.Params.Arguments.Call)
		text, err := json.Marshal(m.Params.Arguments.Call)
		if err != nil {
			return nil
		}
		return fmt.Appendf(nil, `{"resultType":"complete","content":[{"type":"text","text":%s}]}`, text)
	case "ping":
		return []byte(`{}`)
	}
	return nil
}

func (s *Server) list() []byte {
	var b bytes.Buffer
	b.WriteString(`{"resultType":"complete","ttlMs":0,"cacheScope":"private","tools":[`)
	for i, t := range s.tools {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"name":%q,"description":"Counts the call.","inputSchema":{"type":"object","properties":{"call":{"type":"string"}},"required":["call"]},`+
			`"annotations":{"readOnlyHint":%t,"destructiveHint":false,"idempotentHint":false,"openWorldHint":false}}`, t.Name, !t.Effects)
	}
	b.WriteString(`]}`)
	return b.Bytes()
}

func (s *Server) execute(ctx context.Context, id string) {
	s.mu.Lock()
	s.count[id]++
	delay := s.delay
	s.mu.Unlock()
	if delay > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
	}
}
