// Package http1 serves HTTP/1.1 (RFC 9112) to an ordinary http.Handler at less than half of what net/http takes for it.
//
// It is strict where net/http is tolerant: whatever could be read in two ways is refused and the connection closed. What it
// takes, it reads as net/http does. The answer to a request whose body is small is one read and one write; nothing is
// started or set up for a request until it has lasted: one sweep over all connections looks after time-outs, and watches
// for the leaving of those clients only that have been waiting for some time.
//
// A handler may keep nothing of a request after it has returned, but for strings. There are no trailers, no hijacking and
// no upgrades.
package http1

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mcpvault/mcpvault/kit/poll"
)

// Config configures a Server. Zero values take the defaults named.
type Config struct {
	Handler http.Handler
	// Base is what the contexts of requests derive their values from. When it ends, so do they, for its cause.
	// context.Background.
	Base context.Context
	// HeaderTimeout bounds the reading of a head: 5 s. IdleTimeout bounds the pause between requests: 60 s. WriteTimeout
	// bounds the wait for a client that does not read, when the handler has set no deadline of its own: 10 s.
	HeaderTimeout, IdleTimeout, WriteTimeout time.Duration
	// MaxHeader bounds a head, in bytes: 32 KiB, 60 KiB at most. MaxFields bounds its fields: 100.
	MaxHeader, MaxFields int
	// Refused is told of each request that was not taken, with one word for why; it may be nil.
	Refused func(from net.Addr, status int, reason string)
	// Log takes what handlers do wrong.
	Log *slog.Logger
}

// Server serves connections.
type Server struct {
	cfg     Config
	tick    time.Duration
	clock   atomic.Int64 // nanoseconds since began, as of the last sweep; never 0
	began   time.Time
	date    atomic.Pointer[[]byte] // the Date line as of the last sweep
	drains  atomic.Bool
	cut     atomic.Bool // Base has ended
	uncut   func() bool
	watcher poll.Poller   // of those who may leave
	closing chan struct{} // closed by Close

	mu        sync.Mutex
	conns     []*conn        // guarded by mu
	listeners []net.Listener // guarded by mu
	sweeping  bool           // guarded by mu
	closed    bool           // guarded by mu
	empty     chan struct{}  // guarded by mu; closed when the last connection has gone, nil when nobody waits
}

// New makes a server.
func New(cfg Config) *Server {
	cfg = cfg.withDefaults()
	s := &Server{cfg: cfg, began: time.Now(), closing: make(chan struct{})}
	s.tick = max(min(100*time.Millisecond, cfg.HeaderTimeout/4, cfg.IdleTimeout/4, cfg.WriteTimeout/4), 5*time.Millisecond)
	s.setClock(s.began)
	s.uncut = context.AfterFunc(cfg.Base, s.cutAll)
	return s
}

func (c Config) withDefaults() Config {
	or := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	or(&c.HeaderTimeout, 5*time.Second)
	or(&c.IdleTimeout, 60*time.Second)
	or(&c.WriteTimeout, 10*time.Second)
	if c.MaxHeader <= 0 {
		c.MaxHeader = 32 << 10
	}
	c.MaxHeader = min(c.MaxHeader, largeBuffer-4<<10)
	if c.MaxFields <= 0 {
		c.MaxFields = 100
	}
	if c.Base == nil {
		c.Base = context.Background()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Serve serves the connections of a listener until that is closed. It returns http.ErrServerClosed after Shutdown or Close.
func (s *Server) Serve(ln net.Listener) error {
	s.mu.Lock()
	if s.drains.Load() {
		s.mu.Unlock()
		_ = ln.Close()
		return http.ErrServerClosed
	}
	s.listeners = append(s.listeners, ln)
	s.mu.Unlock()
	for pause := time.Duration(0); ; {
		nc, err := ln.Accept()
		if err == nil {
			pause = 0
			s.Take(nc)
			continue
		}
		if s.drains.Load() {
			return http.ErrServerClosed
		}
		var ne net.Error
		if !errors.As(err, &ne) || errors.Is(err, net.ErrClosed) {
			return err
		}
		// Out of descriptors, most likely: some will be given back.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.cfg.Log.Warn("accept", "error", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-s.closing:
		}
	}
}

// Take serves one connection, which the server owns from here on. A *tls.Conn must have done its handshake.
func (s *Server) Take(nc net.Conn) {
	c := newConn(s, nc)
	if !s.add(c) {
		_ = nc.Close()
		return
	}
	go c.serve()
}

func (s *Server) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drains.Load() {
		return false
	}
	if !s.sweeping {
		s.sweeping = true
		s.setClock(time.Now())
		go s.sweep()
	}
	c.since, c.slot = s.clock.Load(), len(s.conns)
	s.conns = append(s.conns, c)
	return true
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.conns[len(s.conns)-1]
	s.conns[c.slot], last.slot = last, c.slot
	s.conns[len(s.conns)-1] = nil
	s.conns = s.conns[:len(s.conns)-1]
	if len(s.conns) == 0 && s.empty != nil {
		close(s.empty)
		s.empty = nil
	}
}

func (s *Server) draining() bool { return s.drains.Load() }

// cutAll ends the requests under way, and marks those to come.
func (s *Server) cutAll() {
	s.cut.Store(true)
	s.each(func(c *conn) {
		if c.x != nil {
			c.x.requestContext.end()
		}
	})
}

// each calls f for every connection, with its lock held.
func (s *Server) each(f func(*conn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.mu.Lock()
		f(c)
		c.mu.Unlock()
	}
}

// stop closes the listeners.
func (s *Server) stop() {
	s.drains.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ln := range s.listeners {
		_ = ln.Close()
	}
	s.listeners = nil
}

// Shutdown takes no connection any more, closes those that are idle, and waits until the others have been answered or ctx
// ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	s.each(func(c *conn) {
		if c.state == stateIdle || c.state == stateParked {
			c.shut()
		}
	})
	s.mu.Lock()
	if len(s.conns) == 0 {
		s.mu.Unlock()
		s.release()
		return nil
	}
	if s.empty == nil {
		s.empty = make(chan struct{})
	}
	empty := s.empty
	s.mu.Unlock()
	select {
	case <-empty:
		s.release()
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close closes everything. It does not wait for handlers.
func (s *Server) Close() error {
	s.stop()
	s.release()
	s.each(func(c *conn) {
		if c.x != nil {
			c.x.requestContext.end()
		}
		c.shut()
	})
	return nil
}

func (s *Server) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	close(s.closing)
	s.uncut()
	s.watcher.Close()
}
