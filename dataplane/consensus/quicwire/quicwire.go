// Package quicwire carries connections of the cell's log over QUIC (RFC 9000): one QUIC connection to each peer, and a stream of
// it for each connection that is asked for. Who the peer is, the caller's TLS configuration decides in the handshake.
//
// No session is resumed and nothing is sent before the handshake has ended (no 0-RTT): each connection proves its identity. One
// that is not answered for IdleLimit ends.
//
// It is the door of this side of the house to quic-go; dataplane/edge is the other.
package quicwire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

const (
	// KeepAlive is how often an idle connection is heard.
	KeepAlive = time.Second
	// IdleLimit is the silence after which a connection ends.
	IdleLimit = 4 * time.Second
	// maxStreams is how many streams a peer may have open: Raft pools three, and sends votes, heartbeats and a snapshot beside.
	maxStreams = 64
	// maxUnproven is how many handshakes may be under way before a stranger has to prove its address first (RFC 9000, 8.1.2).
	maxUnproven = 16
	// maxHandshakes bounds those that have proved it, or not yet: beyond it new ones are refused.
	maxHandshakes = 256
	// gone is the error code of what was ended here; the peer needs no reason.
	gone = 0
)

// Endpoint is one UDP socket, for the connections in both directions. It is safe for concurrent use.
type Endpoint struct {
	socket    *net.UDPConn
	transport *quic.Transport
	listener  *quic.Listener
	conf      *quic.Config
	opening   atomic.Int64
}

// Listen takes the socket. Those who connect are held to the TLS configuration, and have the time given for it; refused hears
// of each who does not come through.
func Listen(bind string, server *tls.Config, handshake time.Duration, refused func(from net.Addr, why error)) (*Endpoint, error) {
	addr, err := net.ResolveUDPAddr("udp", bind)
	if err != nil {
		return nil, err
	}
	socket, err := net.ListenUDP("udp", addr)
	if err != nil {
		return nil, err
	}
	e := &Endpoint{socket: socket, conf: &quic.Config{
		Versions:             []quic.Version{quic.Version1},
		HandshakeIdleTimeout: handshake, KeepAlivePeriod: KeepAlive, MaxIdleTimeout: IdleLimit,
		MaxIncomingStreams: maxStreams, MaxIncomingUniStreams: -1,
	}}
	e.transport = &quic.Transport{
		Conn:                socket,
		VerifySourceAddress: func(net.Addr) bool { return e.opening.Load() >= maxUnproven },
		ConnContext: func(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
			if e.opening.Add(1) > maxHandshakes {
				e.opening.Add(-1)
				return nil, errBusy
			}
			a := &arrival{opened: sync.OnceFunc(func() { e.opening.Add(-1) })}
			context.AfterFunc(ctx, func() {
				a.opened()
				if !a.in.Load() {
					refused(info.RemoteAddr, context.Cause(ctx))
				}
			})
			return context.WithValue(ctx, arrivalKey{}, a), nil
		},
	}
	if e.listener, err = e.transport.Listen(server, e.conf); err != nil {
		return nil, errors.Join(err, e.transport.Close(), socket.Close())
	}
	return e, nil
}

// Addr is where it listens.
func (e *Endpoint) Addr() net.Addr { return e.socket.LocalAddr() }

// Accept returns the next connection whose handshake has ended well. The error is net.ErrClosed after Close.
func (e *Endpoint) Accept(ctx context.Context) (*Conn, error) {
	c, err := e.listener.Accept(ctx)
	if errors.Is(err, quic.ErrServerClosed) || errors.Is(err, quic.ErrTransportClosed) {
		err = net.ErrClosed
	}
	if err != nil {
		return nil, err
	}
	if a, ok := c.Context().Value(arrivalKey{}).(*arrival); ok {
		a.in.Store(true)
		a.opened()
	}
	return &Conn{c}, nil
}

// arrival is a connection that somebody has begun.
type arrival struct {
	opened func()
	in     atomic.Bool // its handshake has ended well
}

type arrivalKey struct{}

var errBusy = errors.New("too many connections")

// Dial connects to host:port, from the same socket.
func (e *Endpoint) Dial(ctx context.Context, addr string, client *tls.Config) (*Conn, error) {
	to, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, err
	}
	if client.ServerName == "" {
		// Certificates are judged by their SPIFFE ID; the name is only asked for by the library.
		client = client.Clone()
		client.ServerName, _, _ = net.SplitHostPort(addr)
	}
	c, err := e.transport.Dial(ctx, to, client, e.conf)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return &Conn{c}, nil
}

// Close ends the socket and every connection.
func (e *Endpoint) Close() error {
	return errors.Join(e.listener.Close(), e.transport.Close(), e.socket.Close())
}

// Conn is a connection to one peer.
type Conn struct{ c *quic.Conn }

// TLS is what the handshake has found.
func (c *Conn) TLS() tls.ConnectionState { return c.c.ConnectionState().TLS }

// RemoteAddr is the peer's.
func (c *Conn) RemoteAddr() net.Addr { return c.c.RemoteAddr() }

// Context ends with the connection.
func (c *Conn) Context() context.Context { return c.c.Context() }

// Open opens a stream to the peer, which hears of it with the first byte.
func (c *Conn) Open(ctx context.Context) (net.Conn, error) {
	s, err := c.c.OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	return &stream{s, c.c}, nil
}

// Accept returns the next stream that the peer has opened.
func (c *Conn) Accept(ctx context.Context) (net.Conn, error) {
	s, err := c.c.AcceptStream(ctx)
	if err != nil {
		return nil, err
	}
	return &stream{s, c.c}, nil
}

// Close ends the connection and its streams at once.
func (c *Conn) Close() error { return c.c.CloseWithError(gone, "") }

// stream is a net.Conn.
type stream struct {
	*quic.Stream
	c *quic.Conn
}

// LocalAddr implements net.Conn.
func (s *stream) LocalAddr() net.Addr { return s.c.LocalAddr() }

// RemoteAddr implements net.Conn.
func (s *stream) RemoteAddr() net.Addr { return s.c.RemoteAddr() }

// Close ends both directions: QUIC's own Close leaves reading open.
func (s *stream) Close() error {
	s.CancelRead(gone)
	return s.Stream.Close()
}
