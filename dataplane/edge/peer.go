package edge

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// peer is one connection that carries several requests at once, and what it may do to us with them. A request that its
// caller takes back still costs what it has begun: without a bound, taking back is the cheapest flood there is (rapid reset,
// CVE-2023-44487).
type peer struct {
	max   int
	abort func()

	mu      sync.Mutex
	now     int // requests in the handler; guarded by mu, as is what follows
	taken   int // requests taken back since the second began
	second  time.Time
	aborted bool
	idle    *time.Timer
	after   time.Duration
}

// newPeer makes the account of a connection that may have limit requests open at once: twice as many may be in the handler,
// those taken back included, and as many be taken back in a second. abort closes it.
func newPeer(limit int, abort func()) *peer { return &peer{max: 2 * limit, abort: abort} }

// whenIdle has f called when no request has been in the handler for d.
func (p *peer) whenIdle(d time.Duration, f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.after, p.idle = d, time.AfterFunc(d, f)
}

// gone is told that the connection is closed.
func (p *peer) gone() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.aborted = true
	if p.idle != nil {
		p.idle.Stop()
	}
}

// enter begins a request; false means that the connection is closed for what it did.
func (p *peer) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.aborted {
		return false
	}
	if p.now >= p.max {
		p.stop()
		return false
	}
	if p.now++; p.idle != nil {
		p.idle.Stop()
	}
	return true
}

// leave ends a request that enter began; takenBack means that the caller did not wait for the answer.
func (p *peer) leave(takenBack bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now--; p.now == 0 && p.idle != nil && !p.aborted {
		p.idle.Reset(p.after)
	}
	if !takenBack || p.aborted {
		return
	}
	if now := time.Now(); now.Sub(p.second) >= time.Second {
		p.second, p.taken = now, 0
	}
	if p.taken++; p.taken > p.max {
		p.stop()
	}
}

// stop closes the connection. mu is held.
func (p *peer) stop() {
	p.aborted = true
	go p.abort()
}

// places count the connections of each address.
type places struct {
	max int

	mu    sync.Mutex
	conns map[netip.Addr]int // guarded by mu; no zero entries
}

func newPlaces(limit int) *places { return &places{max: limit, conns: map[netip.Addr]int{}} }

func (l *places) enter(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns[from] >= l.max {
		return false
	}
	l.conns[from]++
	return true
}

func (l *places) leave(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns[from]--; l.conns[from] <= 0 {
		delete(l.conns, from)
	}
}

type peerKey struct{}

// guard holds the callers of HTTP/2 to the bounds of a peer: net/http counts only the requests that wait for a handler.
func (c Config) guard(s *http.Server) {
	h := s.Handler
	s.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, peerKey{}, newPeer(c.MaxStreams, func() {
			_ = conn.Close()
			c.dropped(conn.RemoteAddr(), rapidReset)
		}))
	}
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p, _ := r.Context().Value(peerKey{}).(*peer); p != nil && r.ProtoMajor == 2 {
			if !p.enter() {
				panic(http.ErrAbortHandler)
			}
			defer func() { p.leave(r.Context().Err() != nil) }()
		}
		h.ServeHTTP(w, r)
	})
}
