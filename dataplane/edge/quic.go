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
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

const (
	// retryAbove is the number of handshakes under way from which on a new one must first prove its address with a Retry
	// (RFC 9000, 8.1.2), for which nothing is kept here.
	retryAbove = 512
	// maxHandshakes is the number of handshakes under way, proven addresses included, beyond which new ones are refused.
	maxHandshakes = 8192
	// maxUniStreams: a client of HTTP/3 has a control stream and two of QPACK; the others are for what it may try.
	maxUniStreams = 8
	// The windows bound what a connection may have us hold unread.
	streamWindow, maxStreamWindow = 256 << 10, 1 << 20
	connWindow, maxConnWindow     = 512 << 10, 4 << 20
	// udpBuffer is the socket buffer that the library wants; a smaller one loses packets under load.
	udpBuffer = 7 << 20
)

// QUIC is one UDP socket on which the handler is served as HTTP/3 (RFC 9114), under the bounds that a Server has.
type QUIC struct {
	cfg       Config
	log       *slog.Logger
	socket    *net.UDPConn
	transport *quic.Transport
	listener  *quic.Listener
	http      *http3.Server
	// base ends, with a cause, when the requests that are left at the end of the grace are cut off; drain ends it.
	base  context.Context
	drain context.CancelCauseFunc

	holders *holders
	opening atomic.Int64 // handshakes under way
	from    *places
	serving atomic.Int64 // requests in the handler
	served  atomic.Int64 // when the last one left it, in nanoseconds since 1970
}

// NewQUIC makes a server for h on a socket that is already bound. It owns the socket from here on.
//
// There is no 0-RTT: no session ticket is issued, so that a request cannot arrive before the handshake has ended, nor twice.
func NewQUIC(cfg Config, socket *net.UDPConn, h http.Handler, log *slog.Logger) (*QUIC, error) {
	cfg = cfg.withDefaults()
	if cfg.TLS == nil {
		return nil, errors.Join(fmt.Errorf("%s on %s: QUIC needs TLS", cfg.Name, socket.LocalAddr()), socket.Close())
	}
	base, drain := context.WithCancelCause(context.Background())
	s := &QUIC{cfg: cfg, log: log, socket: socket, base: base, drain: drain, from: newPlaces(cfg.MaxConns), holders: newHolders(cfg.VerifyClient)}
	s.growBuffers()
	s.transport = &quic.Transport{
		Conn: socket,
		VerifySourceAddress: func(net.Addr) bool {
			if s.opening.Load() < retryAbove {
				return false
			}
			cfg.dropped(nil, mustProve)
			return true
		},
		ConnContext: s.open,
	}
	t := http3.ConfigureTLSConfig(cfg.tls("h3"))
	ln, err := s.transport.Listen(t, &quic.Config{
		Versions:                       []quic.Version{quic.Version1, quic.Version2},
		HandshakeIdleTimeout:           cfg.HeaderTimeout,
		MaxIdleTimeout:                 cfg.IdleTimeout,
		MaxIncomingStreams:             int64(cfg.MaxStreams),
		MaxIncomingUniStreams:          maxUniStreams,
		InitialStreamReceiveWindow:     streamWindow,
		MaxStreamReceiveWindow:         maxStreamWindow,
		InitialConnectionReceiveWindow: connWindow,
		MaxConnectionReceiveWindow:     maxConnWindow,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s on %s: %w", cfg.Name, socket.LocalAddr(), err), s.transport.Close(), socket.Close())
	}
	s.listener = ln
	s.http = &http3.Server{
		Handler: s.serve(h), MaxHeaderBytes: cfg.MaxHeader, ConnContext: s.accepted,
		Logger: slog.New(debugOnly{log.Handler()}),
	}
	return s, nil
}

// Addr is where the server listens.
func (s *QUIC) Addr() net.Addr { return s.socket.LocalAddr() }

// Run serves until the context ends, and then drains: GOAWAY, no new connection, no new request on an old one, and what is
// under way has the grace to finish.
func (s *QUIC) Run(ctx context.Context) error {
	defer s.drain(nil)
	defer background(s.holders.run)()
	failed := make(chan error, 1)
	go func() { failed <- s.http.ServeListener(arrivals{s.listener, s}) }()
	select {
	case err := <-failed:
		return errors.Join(fmt.Errorf("serve %s: %w", s.cfg.Name, err), s.close())
	case <-ctx.Done():
	}
	_ = s.listener.Close()
	if s.cfg.OnDrain != nil {
		s.cfg.OnDrain()
	}
	// The library waits for the clients to hang up, and cuts at the end: an idle client that does not must not hold up the
	// end, and one that waits for an answer is to get it.
	end, hangUp := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Grace+lastWords)
	defer hangUp()
	cut := time.AfterFunc(s.cfg.Grace, func() {
		s.log.Warn("requests were cut off at the end of the grace", "listener", s.cfg.Name)
		s.drain(s.cfg.Cut)
	})
	go s.whenServed(end, hangUp)
	_ = s.http.Shutdown(end)
	cut.Stop()
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		s.log.Warn("the listener ended by itself", "listener", s.cfg.Name, "error", err)
	}
	return s.close()
}

// whenServed hangs up when no request has been in the handler for the time that the last answer may take to arrive.
func (s *QUIC) whenServed(ctx context.Context, hangUp func()) {
	const step = 10 * time.Millisecond
	tick := time.NewTicker(step)
	defer tick.Stop()
	// GOAWAY is to arrive first.
	for began := time.Now(); s.serving.Load() > 0 || time.Since(began) < 5*step || time.Since(time.Unix(0, s.served.Load())) < lastWords; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
	hangUp()
}

func (s *QUIC) close() error { return errors.Join(s.transport.Close(), s.socket.Close()) }

// Announce adds to h's answers, which go over TCP, where the same is served as HTTP/3 (Alt-Svc, RFC 7838): on the same host
// at the port that clients see.
func Announce(port int, h http.Handler) http.Handler {
	value := []string{`h3=":` + strconv.Itoa(port) + `"; ma=3600`}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Alt-Svc"] = value
		h.ServeHTTP(w, r)
	})
}

// caller is one connection from its first packet on.
type caller struct {
	// opened is called when the handshake has ended, either way.
	opened func()
	ip     netip.Addr
	// counted means that the connection has a place among those of its address.
	counted atomic.Bool
	*peer
}

type callerKey struct{}

// open is asked before anything is kept of a new connection. An address that is not proven may be another's, who must not
// be kept out by it: it is counted when the handshake has proved it.
func (s *QUIC) open(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	c := &caller{ip: ipOf(info.RemoteAddr)}
	if s.opening.Add(1) > maxHandshakes {
		s.opening.Add(-1)
		s.cfg.dropped(nil, tooMany)
		return nil, errBusy
	}
	if info.AddrVerified {
		if !s.from.enter(c.ip) {
			s.opening.Add(-1)
			s.cfg.dropped(info.RemoteAddr, tooManyConns)
			return nil, errBusy
		}
		c.counted.Store(true)
	}
	c.opened = sync.OnceFunc(func() { s.opening.Add(-1) })
	context.AfterFunc(ctx, func() {
		c.opened()
		if c.counted.CompareAndSwap(true, false) {
			s.from.leave(c.ip)
		}
	})
	return context.WithValue(ctx, callerKey{}, c), nil
}

var errBusy = errors.New("too many connections")

func ipOf(a net.Addr) netip.Addr {
	if u, ok := a.(*net.UDPAddr); ok {
		return u.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// arrivals are the connections whose handshake has ended and whose address has a place left.
type arrivals struct {
	*quic.Listener
	s *QUIC
}

// Accept returns the next of them.
func (l arrivals) Accept(ctx context.Context) (*quic.Conn, error) {
	for {
		conn, err := l.Listener.Accept(ctx)
		if err != nil {
			return nil, err
		}
		c, _ := conn.Context().Value(callerKey{}).(*caller)
		c.opened()
		if c.counted.Load() {
			return conn, nil
		}
		if !l.s.from.enter(c.ip) {
			_ = conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeExcessiveLoad), "too many connections")
			l.s.cfg.dropped(conn.RemoteAddr(), tooManyConns)
			continue
		}
		c.counted.Store(true)
		// The connection may have ended meanwhile, without having given back a place that it did not have yet.
		if conn.Context().Err() != nil && c.counted.CompareAndSwap(true, false) {
			l.s.from.leave(c.ip)
		}
		return conn, nil
	}
}

// accepted makes the context of a connection's requests: it ends with a cause when they are cut off. A connection that has
// asked for nothing for the idle time is closed, whatever packets keep it alive.
func (s *QUIC) accepted(ctx context.Context, conn *quic.Conn) context.Context {
	c, _ := ctx.Value(callerKey{}).(*caller)
	bye := func(code http3.ErrCode, why string) {
		_ = conn.CloseWithError(quic.ApplicationErrorCode(code), why)
	}
	c.peer = newPeer(s.cfg.MaxStreams, func() {
		bye(http3.ErrCodeExcessiveLoad, "calm down")
		s.cfg.dropped(conn.RemoteAddr(), rapidReset)
	})
	c.whenIdle(s.cfg.IdleTimeout, func() { bye(http3.ErrCodeNoError, "idle") })
	cs := conn.ConnectionState().TLS
	s.holders.add(holder{
		from: conn.RemoteAddr(), host: cs.ServerName, chain: cs.PeerCertificates,
		end:   func() { bye(http3.ErrCodeNoError, "the certificate is good no more") },
		ended: func() bool { return conn.Context().Err() != nil },
	})
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.base, func() { cancel(context.Cause(s.base)) })
	context.AfterFunc(ctx, func() { stop(); c.gone() })
	return ctx
}

func (s *QUIC) serve(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _ := r.Context().Value(callerKey{}).(*caller)
		if !c.enter() {
			panic(http.ErrAbortHandler)
		}
		s.serving.Add(1)
		defer func() {
			s.served.Store(time.Now().UnixNano())
			s.serving.Add(-1)
		}()
		defer func() { c.leave(r.Context().Err() != nil && s.base.Err() == nil) }()
		h.ServeHTTP(w, r)
	})
}

var quietLibrary sync.Once

// growBuffers asks the system for buffers that hold a burst, and says what to do where it gives less. The library would say
// it on standard error.
func (s *QUIC) growBuffers() {
	quietLibrary.Do(func() { _ = os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true") })
	_, _ = s.socket.SetReadBuffer(udpBuffer), s.socket.SetWriteBuffer(udpBuffer)
	raw, err := s.socket.SyscallConn()
	if err != nil {
		return
	}
	size := udpBuffer
	_ = raw.Control(func(fd uintptr) {
		for _, opt := range []int{syscall.SO_RCVBUF, syscall.SO_SNDBUF} {
			if n, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, opt); err == nil {
				size = min(size, n)
			}
		}
	})
	if size < udpBuffer {
		s.log.Warn("the system's UDP buffers are small: HTTP/3 loses packets under load; raise net.core.rmem_max and net.core.wmem_max",
			"listener", s.cfg.Name, "got", size, "wanted", udpBuffer)
	}
}

// debugOnly passes a library's lines on as details: what a stranger's packets make it say is no news.
type debugOnly struct{ slog.Handler }

// Enabled asks for the debug level, whatever the line's own.
func (d debugOnly) Enabled(ctx context.Context, _ slog.Level) bool {
	return d.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle lowers the line's level.
func (d debugOnly) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return d.Handler.Handle(ctx, r)
}

// tls is the configuration of a listener that speaks the protocols, TLS 1.3 only.
func (c Config) tls(protocols ...string) *tls.Config {
	t := c.TLS.Clone()
	t.MinVersion = tls.VersionTLS13
	t.SessionTicketsDisabled = true
	t.NextProtos = protocols
	if c.VerifyClient != nil {
		t = asking(t, c.VerifyClient)
	}
	return t
}
