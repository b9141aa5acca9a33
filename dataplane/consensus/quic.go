package consensus

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"sync"

	"github.com/mcpvault/mcpvault/dataplane/consensus/quicwire"
)

// overQUIC is the wire with one connection to each peer, and a stream for each that Raft asks for.
type overQUIC struct {
	end *quicwire.Endpoint

	mu    sync.Mutex // guards links
	links map[string]*link
}

// link is the connection to one peer; whoever makes it holds the lock.
type link struct {
	mu   sync.Mutex
	addr string
	conn *quicwire.Conn // nil before the first
}

func listenQUIC(bind string, server *tls.Config, log *slog.Logger) (*overQUIC, error) {
	end, err := quicwire.Listen(bind, server, handshakeLimit, func(from net.Addr, why error) {
		log.Warn("a connection to the log was refused", "remote", from.String(), "error", why)
	})
	if err != nil {
		return nil, err
	}
	return &overQUIC{end: end, links: map[string]*link{}}, nil
}

func (w *overQUIC) addr() net.Addr { return w.end.Addr() }
func (w *overQUIC) close() error   { return w.end.Close() }

func (w *overQUIC) accept(s *stream) {
	for {
		conn, err := w.end.Accept(s.life)
		if err != nil {
			return
		}
		s.wg.Go(func() { w.serve(s, conn) })
	}
}

// serve hands on the streams of a member's connection, until that ends.
func (w *overQUIC) serve(s *stream, conn *quicwire.Conn) {
	t := s.track("", func() { _ = conn.Close() })
	if t == nil {
		return
	}
	s.name(t, conn.TLS())
	defer t.abandon()
	for {
		stream, err := conn.Accept(s.life)
		if err != nil {
			return
		}
		s.hand(stream)
	}
}

func (w *overQUIC) dial(ctx context.Context, s *stream, node, addr string, cfg *tls.Config) (net.Conn, error) {
	w.mu.Lock()
	l := w.links[node]
	if l == nil {
		l = &link{}
		w.links[node] = l
	}
	w.mu.Unlock()
	conn, err := l.open(ctx, w, s, node, addr, cfg)
	if err != nil {
		return nil, err
	}
	return conn.Open(ctx)
}

// open returns the connection that there is, or makes one.
func (l *link) open(ctx context.Context, w *overQUIC, s *stream, node, addr string, cfg *tls.Config) (*quicwire.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil && l.addr == addr {
		select {
		case <-l.conn.Context().Done():
		default:
			return l.conn, nil
		}
	}
	conn, err := w.end.Dial(ctx, addr, cfg)
	if err != nil {
		return nil, err
	}
	t := s.track(node, func() { _ = conn.Close() })
	if t == nil {
		return nil, net.ErrClosed
	}
	s.name(t, conn.TLS())
	context.AfterFunc(conn.Context(), t.forget)
	l.conn, l.addr = conn, addr
	return conn, nil
}
