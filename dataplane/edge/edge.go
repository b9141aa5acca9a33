// Package edge is the front door: HTTP listeners with the limits that a public endpoint needs, for HTTP/1.1 in the clear
// (loopback only), HTTP/1.1 and HTTP/2 over TLS 1.3, and HTTP/3 over QUIC on the same port. It knows nothing of what it
// serves.
//
// It promises that a slow or oversized request costs a bounded time and memory, that streams are never cut by a write
// timeout, and that at the end it stops accepting, lets requests finish within the grace and only then closes what is
// left.
package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Config configures a Server. Zero values take the defaults named.
type Config struct {
	// Name is for the log: "http", "tls".
	Name string
	// TLS makes the listener speak TLS 1.3; nil is plain HTTP, which binds loopback addresses only.
	TLS *tls.Config
	// VerifyClient judges the certificates of clients that show one; nil asks for none.
	VerifyClient VerifyClient
	// Front is the server of HTTP/1.1: FrontFast.
	Front Front
	// HeaderTimeout bounds the reading of a header: 5 s. IdleTimeout bounds the pause between requests: 60 s. WriteTimeout
	// bounds the wait for a client that does not read, where a handler has set no deadline: 10 s.
	HeaderTimeout, IdleTimeout, WriteTimeout time.Duration
	// MaxHeader bounds a header block: 32 KiB. MaxFields bounds its fields: 100.
	MaxHeader, MaxFields int
	// MaxStreams bounds the requests under way on one HTTP/2 connection: 256.
	MaxStreams int
	// MaxConns bounds the connections of one address: 1,000. More are accepted and closed.
	MaxConns int
	// Grace is how long requests may take to finish at the end: 10 s.
	Grace time.Duration
	// Refused is told of each request that was not taken, with its status and one word for why; it may be nil.
	Refused func(from net.Addr, status int, reason string)
	// Dropped is told of connections, handshakes and streams that did not get as far as a request, with one word for why,
	// often and from many goroutines. from is nil where nobody has proved an address. It may be nil.
	Dropped func(from net.Addr, reason string)
	// OnDrain is called when the grace begins, so that streams without an end can be ended; it may be nil.
	OnDrain func()
	// Cut is the cause that requests find in their contexts when the grace is over, so that they can tell their callers;
	// they have half a second for that. Nil is context.Canceled.
	Cut error
}

// lastWords is the time for answers after the grace.
const lastWords = 500 * time.Millisecond

// ErrNotLoopback refuses plain HTTP on an address that others can reach.
var ErrNotLoopback = errors.New("plain HTTP is served on loopback addresses only: configure TLS")

// Server is one listener with its handler.
type Server struct {
	cfg    Config
	log    *slog.Logger
	ln     net.Listener
	fronts *fronts
	// drain ends the contexts of the requests that are left when the grace is over.
	drain context.CancelCauseFunc
}

// New makes a server for h on a listener that is already bound, so that whoever starts the process learns of a taken
// port at once. The server owns the listener from here on.
func New(cfg Config, ln net.Listener, h http.Handler, log *slog.Logger) (*Server, error) {
	cfg = cfg.withDefaults()
	if cfg.TLS == nil && !loopback(ln.Addr()) {
		return nil, fmt.Errorf("%s on %s: %w", cfg.Name, ln.Addr(), ErrNotLoopback)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	counted := newCounted(ln, cfg)
	f, err := newFronts(ctx, cfg, counted, h, log)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	return &Server{cfg: cfg, log: log, drain: cancel, fronts: f, ln: counted}, nil
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// Run serves until the context ends, and then drains: no new connection, no new request on an old one, and what is under
// way has the grace to finish.
func (s *Server) Run(ctx context.Context) error {
	defer s.drain(nil)
	failed := make(chan error, 1)
	go func() { failed <- s.fronts.serve() }()
	defer s.watchHolders()()
	select {
	case err := <-failed:
		s.fronts.close()
		return fmt.Errorf("serve %s: %w", s.cfg.Name, err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Grace)
	defer cancel()
	if s.cfg.OnDrain != nil {
		s.cfg.OnDrain()
	}
	if err := s.fronts.shutdown(grace); err != nil {
		s.log.Warn("requests were cut off at the end of the grace", "listener", s.cfg.Name)
		s.drain(s.cfg.Cut)
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
		defer cancel()
		if s.fronts.shutdown(last) != nil {
			s.fronts.close()
		}
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		s.log.Warn("the listener ended by itself", "listener", s.cfg.Name, "error", err)
	}
	return nil
}

// watchHolders judges the certificates of live connections until it is told to stop.
func (s *Server) watchHolders() (stop func()) {
	return background(s.fronts.holders.run)
}

// background runs f until stop, which waits for it.
func background(f func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { f(ctx) })
	return func() { cancel(); wg.Wait() }
}

func loopback(a net.Addr) bool {
	ap, err := netip.ParseAddrPort(a.String())
	return err == nil && ap.Addr().Unmap().IsLoopback()
}

func (c Config) withDefaults() Config {
	or := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	or(&c.HeaderTimeout, 5*time.Second)
	or(&c.IdleTimeout, 60*time.Second)
	or(&c.Grace, 10*time.Second)
	or(&c.WriteTimeout, 10*time.Second)
	if c.MaxHeader <= 0 {
		c.MaxHeader = 32 << 10
	}
	if c.MaxFields <= 0 {
		c.MaxFields = 100
	}
	if c.Front == "" {
		c.Front = FrontFast
	}
	if c.MaxStreams <= 0 {
		c.MaxStreams = 256
	}
	if c.MaxConns <= 0 {
		c.MaxConns = 1000
	}
	return c
}

// dropped tells of what was not taken.
func (c *Config) dropped(from net.Addr, reason string) {
	if c.Dropped != nil {
		c.Dropped(from, reason)
	}
}

// Why something was not taken below HTTP; net/http's words for errors of HTTP/2 come after "http2_".
const (
	tooManyConns = "too_many_connections"
	tooMany      = "too_many_handshakes"
	rapidReset   = "rapid_reset"
	badHandshake = "tls_handshake"
	mustProve    = "quic_retry"
)

// counted closes at once what one address opens beyond its bound.
type counted struct {
	net.Listener
	cfg  Config
	from *places
}

func newCounted(ln net.Listener, cfg Config) *counted {
	return &counted{Listener: ln, cfg: cfg, from: newPlaces(cfg.MaxConns)}
}

// Accept returns the next connection that is within its address's bound.
func (l *counted) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		ap, err := netip.ParseAddrPort(c.RemoteAddr().String())
		if err != nil {
			return c, nil //nolint:nilerr // no address of IP: there is nobody to count it for
		}
		from := ap.Addr().Unmap()
		if !l.from.enter(from) {
			l.cfg.dropped(c.RemoteAddr(), tooManyConns)
			_ = c.Close()
			continue
		}
		return &conn{Conn: c, leave: sync.OnceFunc(func() { l.from.leave(from) })}, nil
	}
}

type conn struct {
	net.Conn
	leave func()
	gone  atomic.Bool
}

// NetConn is the connection below.
func (c *conn) NetConn() net.Conn { return c.Conn }

// hangUp ends the connection in both directions and leaves it to whoever serves it to close it: a server that waits for the
// client, or watches for its leaving, is told so, which closing would not do.
func (c *conn) hangUp() {
	tcp, ok := c.Conn.(*net.TCPConn)
	if !ok {
		_ = c.Close()
		return
	}
	_, _ = tcp.CloseWrite(), tcp.CloseRead()
}

// Close closes the connection and frees its place.
func (c *conn) Close() error {
	c.gone.Store(true)
	c.leave()
	return c.Conn.Close()
}
