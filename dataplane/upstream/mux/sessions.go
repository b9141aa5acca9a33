package mux

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/dataplane/veneer"
)

// Opening configures Sessions. Zero values take the defaults named.
type Opening struct {
	// Open makes a connection that nobody initialized, for a request that needs one. The context bounds the opening alone.
	// Hang ends a connection.
	Open func(ctx context.Context, req *upstream.Request) (*Conn, error)
	Hang func(*Conn)
	// Shared gives all sessions one connection, which is opened again when it has ended; else each has its own.
	Shared bool
	// MaxSessions: 4,096 on a shared connection, else 16. Idle ends those that are not used: 30 minutes.
	MaxSessions int
	Idle        time.Duration
	Now         func() time.Time
}

// Sessions speaks to one server as the pipeline speaks to a server over HTTP: with initialize, session ids and their end.
type Sessions struct {
	cfg    Opening
	framer *mcp.Framer

	opening sync.Mutex // held while the shared connection is opened

	mu     sync.Mutex
	shared *Conn               // guarded by mu
	open   map[string]*session // guarded by mu
}

type session struct {
	conn *Conn
	used time.Time
}

// NewSessions opens nothing yet.
func NewSessions(cfg Opening) *Sessions {
	if cfg.MaxSessions <= 0 {
		cfg.MaxSessions = 16
		if cfg.Shared {
			cfg.MaxSessions = 4096
		}
	}
	if cfg.Idle <= 0 {
		cfg.Idle = 30 * time.Minute
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Sessions{cfg: cfg, framer: mcp.NewFramer(mcp.DefaultLimits()), open: map[string]*session{}}
}

// Do sends one message of the pipeline.
func (s *Sessions) Do(ctx context.Context, req *upstream.Request) (*upstream.Response, error) {
	id := ""
	if v := req.Set[mcp.HeaderSession]; len(v) > 0 {
		id = v[0]
	}
	switch req.Method {
	case http.MethodGet:
		return status(http.StatusMethodNotAllowed), nil
	case http.MethodDelete:
		s.end(id)
		return status(http.StatusOK), nil
	}
	m, refusal := s.framer.Frame(req.Body)
	if refusal != nil {
		return nil, fmt.Errorf("%w (%s)", upstream.ErrProtocol, refusal.Reason)
	}
	if m.Method == mcp.MethodInitialize {
		return s.initialize(ctx, req, &m)
	}
	conn, known := s.find(id)
	if !known {
		return status(http.StatusNotFound), nil
	}
	if m.Kind != mcp.KindRequest {
		if m.Method == mcp.MethodCancelled && conn != nil {
			params := m.Raw(m.Params)
			if at := mcp.Member(params, "requestId"); at.Present() {
				conn.Cancel(id, params[at.Start:at.End])
			}
		}
		return status(http.StatusAccepted), nil
	}
	if conn == nil {
		var err error
		if conn, err = s.connection(ctx, req); err != nil {
			return nil, err
		}
	}
	return conn.Call(ctx, id, &m)
}

func status(code int) *upstream.Response { return &upstream.Response{Status: code} }

// find returns a session's connection, none without a session; false when the session is over.
func (s *Sessions) find(id string) (*Conn, bool) {
	if id == "" {
		return nil, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.open[id]
	if x == nil {
		return nil, false
	}
	select {
	case <-x.conn.Ended():
		delete(s.open, id)
		return nil, false
	default:
	}
	x.used = s.cfg.Now()
	return x.conn, true
}

// connection is the one for requests without a session, and for all when it is shared.
func (s *Sessions) connection(ctx context.Context, req *upstream.Request) (*Conn, error) {
	s.opening.Lock()
	defer s.opening.Unlock()
	s.mu.Lock()
	conn := s.shared
	s.mu.Unlock()
	if conn != nil {
		select {
		case <-conn.Ended():
		default:
			return conn, nil
		}
	}
	conn, err := s.cfg.Open(ctx, req)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.shared = conn
	s.mu.Unlock()
	return conn, nil
}

// initialize gives a caller a session. What the server negotiated with the gateway is what the caller is told; revisions
// before the oldest that is spoken here are told as that one, which takes nothing from them.
func (s *Sessions) initialize(ctx context.Context, req *upstream.Request, m *mcp.Message) (*upstream.Response, error) {
	if s.full() {
		return nil, upstream.ErrBusy
	}
	open := s.cfg.Open
	if s.cfg.Shared {
		open = s.connection
	}
	conn, err := open(ctx, req)
	if err != nil {
		return nil, err
	}
	raw, err := conn.Initialize(ctx)
	if err != nil {
		if !s.cfg.Shared {
			s.cfg.Hang(conn)
		}
		return nil, err
	}
	if at := mcp.Member(raw, "protocolVersion"); at.Present() {
		r := mcp.Message{Body: raw}
		if v, _ := r.Text(at); Older(v) {
			raw = veneer.Apply(raw, veneer.Splice{At: at, With: []byte(`"` + mcp.Rev20250618 + `"`)})
		}
	}
	id := rand.Text()
	s.mu.Lock()
	s.open[id] = &session{conn, s.cfg.Now()}
	s.mu.Unlock()
	body := append([]byte(`{"jsonrpc":"2.0","id":`), m.ID...)
	body = append(append(body, `,"result":`...), raw...)
	return &upstream.Response{Status: http.StatusOK, Session: id, Body: append(body, '}'), JSON: true}, nil
}

// Older reports whether a revision is one before the oldest that is spoken here. Its messages are a subset.
func Older(revision string) bool { return revision == "2024-11-05" || revision == "2025-03-26" }

// full drops what is idle and reports whether there is no room for one more.
func (s *Sessions) full() bool {
	s.Sweep()
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open) >= s.cfg.MaxSessions
}

// Sweep ends the sessions that were not used for long, or whose connection has ended.
func (s *Sessions) Sweep() {
	s.mu.Lock()
	var gone []string
	for id, x := range s.open {
		select {
		case <-x.conn.Ended():
			gone = append(gone, id)
			continue
		default:
		}
		if s.cfg.Now().Sub(x.used) > s.cfg.Idle {
			gone = append(gone, id)
		}
	}
	s.mu.Unlock()
	for _, id := range gone {
		s.end(id)
	}
}

func (s *Sessions) end(id string) {
	s.mu.Lock()
	x := s.open[id]
	delete(s.open, id)
	s.mu.Unlock()
	if x != nil && !s.cfg.Shared {
		s.cfg.Hang(x.conn)
	}
}

// Close ends every session and connection.
func (s *Sessions) Close() {
	s.mu.Lock()
	conns := map[*Conn]bool{}
	for _, x := range s.open {
		conns[x.conn] = true
	}
	if s.shared != nil {
		conns[s.shared] = true
	}
	s.open, s.shared = map[string]*session{}, nil
	s.mu.Unlock()
	for c := range conns {
		s.cfg.Hang(c)
	}
}
