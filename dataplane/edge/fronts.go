package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/edge/http1"
)

// Front chooses the server of HTTP/1.1. Both give the same answers.
type Front string

// The fronts. HTTP/2 is served by net/http in either case.
const (
	FrontFast    Front = "fast"
	FrontNetHTTP Front = "nethttp"
)

// Valid reports whether there is such a front; "" is FrontFast.
func (f Front) Valid() bool { return f == "" || f == FrontFast || f == FrontNetHTTP }

// netHTTPSlack is what net/http reads beyond its limit of a header.
const netHTTPSlack = 4 << 10

// fronts are the servers behind one listener, one for each protocol.
type fronts struct {
	cfg    Config
	ln     net.Listener
	fast   *http1.Server // nil when net/http serves HTTP/1.1
	std    *http.Server  // HTTP/2, and HTTP/1.1 when fast is nil
	toStd  *handoff
	limits http1.Limits
	// holders are those of the connections whose clients have shown certificates.
	holders *holders

	mu      sync.Mutex
	greeted map[net.Conn]struct{} // guarded by mu; those in the handshake; nil when no more are taken
}

func newFronts(base context.Context, cfg Config, ln net.Listener, h http.Handler, log *slog.Logger) (*fronts, error) {
	if !cfg.Front.Valid() {
		return nil, fmt.Errorf("there is no front %q", cfg.Front)
	}
	f := &fronts{
		cfg: cfg, ln: ln, toStd: newHandoff(ln), greeted: map[net.Conn]struct{}{}, holders: newHolders(cfg.VerifyClient),
		limits: http1.Limits{MaxHeader: cfg.MaxHeader, MaxFields: cfg.MaxFields, HeaderTimeout: cfg.HeaderTimeout, Refused: cfg.Refused},
	}
	if cfg.Front == FrontFast {
		f.fast = http1.New(http1.Config{
			Handler: h, Base: base, HeaderTimeout: cfg.HeaderTimeout, IdleTimeout: cfg.IdleTimeout, WriteTimeout: cfg.WriteTimeout,
			MaxHeader: cfg.MaxHeader, MaxFields: cfg.MaxFields, Refused: cfg.Refused, Log: log,
		})
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(cfg.TLS != nil)
	f.std = &http.Server{
		Handler:           h,
		ReadHeaderTimeout: cfg.HeaderTimeout,
		IdleTimeout:       cfg.IdleTimeout,
		MaxHeaderBytes:    max(cfg.MaxHeader-netHTTPSlack, 1),
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: cfg.MaxStreams, WriteByteTimeout: cfg.WriteTimeout, CountError: func(why string) { cfg.dropped(nil, "http2_"+why) }},
		Protocols:         &protocols,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return base },
	}
	if cfg.TLS != nil {
		f.std.TLSConfig = cfg.tls("h2", "http/1.1")
		cfg.guard(f.std)
	}
	return f, nil
}

// serve accepts until the listener is closed.
func (f *fronts) serve() error {
	if f.cfg.TLS == nil && f.fast != nil {
		return f.fast.Serve(f.ln)
	}
	done := make(chan error, 1)
	go func() { done <- f.std.Serve(f.toStd) }()
	err := f.accept()
	_ = f.toStd.Close()
	if stdErr := <-done; errors.Is(stdErr, http.ErrServerClosed) {
		return stdErr
	}
	return err
}

func (f *fronts) accept() error {
	for pause := time.Duration(0); ; {
		nc, err := f.ln.Accept()
		switch {
		case err == nil && f.cfg.TLS == nil:
			f.toStd.push(http1.NewStrict(&timedConn{Conn: nc, timeout: f.cfg.WriteTimeout}, f.limits))
			pause = 0
		case err == nil:
			pause = 0
			go f.greet(nc)
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			// Out of descriptors, most likely: some will be given back.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			select {
			case <-time.After(pause):
			case <-f.toStd.done:
				return err
			}
		}
	}
}

// greet does the handshake and hands the connection to the server of the protocol that was agreed on.
func (f *fronts) greet(nc net.Conn) {
	raw, _ := nc.(*conn)
	if f.fast == nil {
		nc = &timedConn{Conn: nc, timeout: f.cfg.WriteTimeout}
	}
	f.mu.Lock()
	if f.greeted == nil {
		f.mu.Unlock()
		_ = nc.Close()
		return
	}
	f.greeted[nc] = struct{}{}
	f.mu.Unlock()
	c := tls.Server(nc, f.std.TLSConfig)
	_ = c.SetDeadline(time.Now().Add(f.cfg.HeaderTimeout))
	err := c.HandshakeContext(context.Background())
	_ = c.SetDeadline(time.Time{})
	f.mu.Lock()
	delete(f.greeted, nc)
	f.mu.Unlock()
	if err == nil && raw != nil && f.cfg.VerifyClient != nil {
		cs := c.ConnectionState()
		f.holders.add(holder{from: nc.RemoteAddr(), host: cs.ServerName, chain: cs.PeerCertificates, end: raw.hangUp, ended: raw.gone.Load})
	}
	switch {
	case err != nil:
		_ = nc.Close()
		// Who leaves has said nothing wrong, and what is wrong with a certificate its judge has told.
		if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ECONNRESET) && !errors.As(err, new(*judged)) {
			f.cfg.dropped(nc.RemoteAddr(), badHandshake)
		}
	case c.ConnectionState().NegotiatedProtocol == "h2":
		f.toStd.push(c)
	case f.fast != nil:
		f.fast.Take(c)
	default:
		f.toStd.push(http1.NewStrict(c, f.limits))
	}
}

// shutdown takes no connection any more and waits until every request has been answered or ctx ends.
func (f *fronts) shutdown(ctx context.Context) error {
	f.hangUp()
	done := make(chan error, 1)
	go func() { done <- f.std.Shutdown(ctx) }()
	var err error
	if f.fast != nil {
		err = f.fast.Shutdown(ctx)
	}
	return errors.Join(err, <-done)
}

// hangUp closes those that are still in the handshake.
func (f *fronts) hangUp() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for nc := range f.greeted {
		_ = nc.Close()
	}
	f.greeted = nil
}

// close closes everything.
func (f *fronts) close() {
	f.hangUp()
	_ = f.std.Close()
	if f.fast != nil {
		_ = f.fast.Close()
	}
}

// handoff is a listener of connections that somebody else has accepted. Closing it closes the one they come from.
type handoff struct {
	under net.Listener
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newHandoff(under net.Listener) *handoff {
	return &handoff{under: under, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (h *handoff) push(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.done:
		_ = c.Close()
	}
}

// Accept returns the next connection that was pushed.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Addr is that of the listener below.
func (h *handoff) Addr() net.Addr { return h.under.Addr() }

// Close ends Accept.
func (h *handoff) Close() error {
	h.once.Do(func() {
		close(h.done)
		_ = h.under.Close()
	})
	return nil
}

// timedConn gives each write its time where nobody else has set one: net/http waits for ever for a client that does not
// read.
type timedConn struct {
	net.Conn
	timeout time.Duration

	mu  sync.Mutex
	set bool // guarded by mu; a deadline of somebody else is in force
}

// timedPiece is what has to leave within the timeout.
const timedPiece = 64 << 10

// NetConn is the connection below.
func (c *timedConn) NetConn() net.Conn { return c.Conn }

// Write writes all of p.
func (c *timedConn) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		c.mu.Lock()
		if !c.set {
			_ = c.Conn.SetWriteDeadline(time.Now().Add(c.timeout))
		}
		c.mu.Unlock()
		m, err := c.Conn.Write(p[n:min(n+timedPiece, len(p))])
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

// SetWriteDeadline bounds all writes from now on; the zero time brings the timeout of each back.
func (c *timedConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.set = !t.IsZero()
	return c.Conn.SetWriteDeadline(t)
}

// SetDeadline sets both deadlines.
func (c *timedConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}
