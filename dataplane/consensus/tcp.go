package consensus

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"
)

// tcp is the wire with a connection of its own for each that Raft asks for.
type tcp struct {
	ln     net.Listener
	server *tls.Config
	slots  chan struct{}
}

func listenTCP(ctx context.Context, bind string, server *tls.Config) (*tcp, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", bind)
	if err != nil {
		return nil, err
	}
	return &tcp{ln, server, make(chan struct{}, maxHandshakes)}, nil
}

func (w *tcp) addr() net.Addr { return w.ln.Addr() }
func (w *tcp) close() error   { return w.ln.Close() }

func (w *tcp) accept(s *stream) {
	for {
		conn, err := w.ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of file descriptors, most likely: do not spin.
			select {
			case <-s.life.Done():
				return
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		select {
		case w.slots <- struct{}{}:
			s.wg.Go(func() {
				defer func() { <-w.slots }()
				w.handshake(s, conn)
			})
		case <-s.life.Done():
			_ = conn.Close()
			return
		}
	}
}

// handshake lets a member in. Until it is over the connection can hold nothing but one of the slots.
func (w *tcp) handshake(s *stream, raw net.Conn) {
	ctx, cancel := context.WithTimeout(s.life, handshakeLimit)
	defer cancel()
	conn := s.tcpConn(tls.Server(raw, w.server), "")
	if conn == nil {
		return
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		s.log.Warn("a connection to the log was refused", "remote", raw.RemoteAddr().String(), "error", err)
		_ = conn.Close()
		return
	}
	s.name(conn.t, conn.ConnectionState())
	s.hand(conn)
}

func (w *tcp) dial(ctx context.Context, s *stream, node, addr string, cfg *tls.Config) (net.Conn, error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn := s.tcpConn(tls.Client(raw, cfg), node)
	if conn == nil {
		return nil, net.ErrClosed
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	s.name(conn.t, conn.ConnectionState())
	return conn, nil
}

// tcpConn is a connection that is tracked until it is closed.
type tcpConn struct {
	*tls.Conn
	t *tracked
}

func (c *tcpConn) Close() error {
	c.t.forget()
	return c.Conn.Close()
}

// tcpConn returns nil when the stream is closed already.
func (s *stream) tcpConn(conn *tls.Conn, node string) *tcpConn {
	t := s.track(node, func() {
		_ = conn.NetConn().Close()
		_ = conn.Close()
	})
	if t == nil {
		return nil
	}
	return &tcpConn{conn, t}
}
