// Package upstream is the client towards MCP servers: an HTTP/1.1 client of its own over pooled connections, and
// HTTP/2 for the servers that speak nothing else. It sends a body that is whole in memory, once, and bounds everything that
// comes back: time to connect, bytes of a head, of an answer, of an event. Headers cross in both directions by allow-list
// only; a caller's credentials, cookies and proxy headers never do.
//
// It follows no redirect and sends nothing twice: what is tried again, within a budget, is a request of which not one byte
// was written. Each server's trouble is kept from the others with a bulkhead and a circuit breaker, and an address that
// fails again and again is left out where a host has others. Which addresses may be dialled at all is the dialer's business.
//
// An answer is read strictly: where two readers of the same bytes could disagree on where it ends, it is refused, and so is
// one that more bytes follow. Its connection is then closed, as it is whenever anything of an answer was left unread.
package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/kit/broken"
	"github.com/mcpvault/mcpvault/kit/egress"
	"github.com/mcpvault/mcpvault/kit/poll"
)

// The ways a call can fail. ErrUnavailable, ErrBusy, ErrRefused and ErrIdentity mean that nothing was sent; after the
// others the outcome of the call is not known. When the context ends, its error is returned in place of these.
var (
	ErrUnavailable = errors.New("the upstream cannot be reached")
	ErrBusy        = errors.New("too many calls to the upstream are under way")
	ErrRefused     = errors.New("the upstream failed repeatedly and is left alone for a moment")
	ErrIdentity    = errors.New("the upstream did not prove who it is")
	ErrBroken      = errors.New("the connection to the upstream broke")
	ErrTooLarge    = errors.New("the upstream's answer is too large")
	ErrRedirect    = errors.New("the upstream answered with a redirect")
	ErrProtocol    = errors.New("the upstream did not answer in the protocol")
)

// Config configures a Client. Zero values take the defaults named.
type Config struct {
	// Dial connects to an address, "ip:port"; it is where destinations are checked. Required.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Resolve gives the addresses of a host, those to be preferred first: the system's resolver.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// TLS chooses the configuration for a host and the identity that the request demands of it, "" for none. It is TLS 1.3
	// whatever the configuration says; without ServerName, the host's is verified. Nil verifies the host's name by the
	// system's roots and serves no identity.
	TLS func(host, identity string) (*tls.Config, error)
	// ConnectTimeout bounds resolving and connecting, over all addresses: 1 s. HandshakeTimeout: 2 s.
	ConnectTimeout, HandshakeTimeout time.Duration
	// MaxAnswer bounds a JSON answer: 8 MiB.
	MaxAnswer int64
	// MaxEvent bounds one event of a stream: 8 MiB.
	MaxEvent int
	// MaxCalls bounds the calls under way to one upstream: 512. Long streams do not count; MaxStreams bounds them: 16,384.
	MaxCalls, MaxStreams int
	// StreamIdle ends a stream on which no byte came for so long: 30 minutes. StreamRate is how many bytes a second are
	// taken from a stream once it has used up those of its largest event: 4 MiB.
	StreamIdle time.Duration
	StreamRate int
	// MaxIdle bounds the idle connections of one upstream: 128, each closed after IdleTimeout: 60 s.
	MaxIdle     int
	IdleTimeout time.Duration
	Now         func() time.Time
	// Registerer takes the metrics; it may be nil.
	Registerer prometheus.Registerer
}

func (c Config) withDefaults() Config {
	orTime := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	orInt := func(n *int, v int) {
		if *n <= 0 {
			*n = v
		}
	}
	orTime(&c.ConnectTimeout, time.Second)
	orTime(&c.HandshakeTimeout, 2*time.Second)
	orTime(&c.StreamIdle, 30*time.Minute)
	orTime(&c.IdleTimeout, 60*time.Second)
	orInt(&c.MaxEvent, 8<<20)
	orInt(&c.StreamRate, 4<<20)
	orInt(&c.MaxCalls, 512)
	orInt(&c.MaxStreams, 16384)
	orInt(&c.MaxIdle, 128)
	if c.MaxAnswer <= 0 {
		c.MaxAnswer = 8 << 20
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Resolve == nil {
		c.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	return c
}

// Client sends requests to upstreams.
type Client struct {
	cfg    Config
	book   book
	parked poll.Poller // streams
}

// New makes a client; it connects to nothing yet. It panics when its metrics are registered already, which only a mistake
// in the wiring can bring about.
func New(cfg Config) *Client {
	c := &Client{cfg: cfg.withDefaults()}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(collector{c})
	}
	return c
}

// Close closes the idle connections; those in use close when their exchanges end. Nobody who has parked a stream is woken any
// more.
func (c *Client) Close() {
	c.book.close()
	c.parked.Close()
}

// Request is one message for an upstream.
type Request struct {
	URL    string
	Method string
	// Identity is the SPIFFE ID that the server must show, "" for one that its host name is enough for.
	Identity string
	// Header is the caller's: only what Forwarded allows crosses.
	Header http.Header
	// Set replaces or adds headers after that: session, version, and what an injection adds. An empty value removes one.
	// How a request is framed cannot be set.
	Set  http.Header
	Body []byte
	// Long is for streams that stay open: they take no place in the bulkhead of the calls.
	Long bool
}

// Response is an upstream's answer: either Body or Events. Close must be called.
type Response struct {
	Status  int
	Session string
	// Body is a whole answer that is no stream; JSON says whether it claims to be JSON. It stays good after Close.
	Body   []byte
	JSON   bool
	Events *mcp.EventReader
	close  func()
	park   func(wake func()) bool
	// overdue is nil for what cannot be parked.
	overdue func() bool
}

// Close ends the exchange; a stream that was not read to its end takes its connection along. It may be called while the
// stream is read, which then fails.
func (r *Response) Close() {
	if r.close != nil {
		r.close()
	}
}

// Park lets go of the stream until there is something to read: the end, an event, a part of one. Then wake is called, once, on a
// goroutine that must not be held up, and the reading goes on with Events.Next. In between the stream takes neither a
// goroutine nor a buffer. Whoever has parked it looks after its end: that of the context does not wake, nor does a silence that
// is too long, for which Overdue has to be asked now and then, and Close still has to be called.
//
// The answer is false when the stream cannot be parked, or not now because more of it was read already: read on.
func (r *Response) Park(wake func()) bool { return r.park != nil && r.park(wake) }

// Overdue reports whether nothing has come for longer than a stream may be silent since it was parked: it is to be closed.
func (r *Response) Overdue() bool { return r.overdue != nil && r.overdue() }

// Forwarded reports whether a caller's header, in canonical form, crosses to an upstream.
func Forwarded(name string) bool {
	switch name {
	case mcp.HeaderVersion, mcp.HeaderMethod, mcp.HeaderName, mcp.HeaderLastEventID, "Traceparent", "Tracestate", "Baggage":
		return true
	}
	return strings.HasPrefix(name, mcp.HeaderParamPrefix)
}

// Do sends a request once. The context bounds everything, the reading of a stream included.
func (c *Client) Do(ctx context.Context, req *Request) (*Response, error) {
	t, err := c.target(req)
	if err != nil {
		return nil, err
	}
	d := t.dest
	buf := buffers.Get().(*[]byte)
	defer putBuffer(buf)
	head, more, err := t.appendRequest((*buf)[:0], req)
	if err != nil {
		return nil, err
	}
	*buf = head[:cap(head)]
	d.retries.earn()
	probe, err := d.gate.enter(c.cfg.Now(), req.Long)
	if err != nil {
		d.count(err)
		return nil, err
	}
	x := call{d: d, ctx: ctx, req: req, probe: probe}
	if broken.Is("double-send") && c.cfg.Now().UnixMilli()%20 == 0 {
		_, _ = x.do(head, more, nil)
	}
	resp, err := x.do(head, more, *buf)
	if resp == nil || resp.Events == nil {
		x.leave(err)
	}
	return resp, err
}

// call is one exchange under way.
type call struct {
	d     *destination
	ctx   context.Context
	req   *Request
	probe bool
	// verdict is what the answer's status said, if there was one.
	verdict verdict
}

func (x *call) do(head, more, buf []byte) (*Response, error) {
	if x.d.onlyHTTP2.Load() {
		return x.http2()
	}
	again := false
	for {
		if err := x.ctx.Err(); err != nil {
			return nil, err
		}
		c := x.d.pool.get()
		if c == nil {
			var err error
			if c, err = x.d.dial(x.ctx, protocolHTTP1); err != nil {
				if errors.Is(err, errOnlyHTTP2) {
					x.d.onlyHTTP2.Store(true)
					return x.http2()
				}
				return nil, err
			}
		}
		resp, err := x.on(c, head, more, buf)
		unsent := errors.Is(err, errUnsent)
		if !unsent && !errors.Is(err, errStale) {
			return resp, err
		}
		// Nothing was sent. A connection that was seen to be closed costs nothing; one that failed on writing is a retry.
		x.d.stale.Add(1)
		if unsent && (again || !x.d.retry()) {
			return nil, fmt.Errorf("%w (%w)", ErrUnavailable, err)
		}
		again = again || unsent
	}
}

// on makes the exchange on a connection, and gives it back or closes it.
func (x *call) on(c *conn, head, more, buf []byte) (*Response, error) {
	fresh := !c.used
	stop := afterwards(x.ctx, c.abort)
	n, sent, err := c.exchange(head, more, buf)
	if err != nil {
		stop()
		_ = c.nc.Close()
		return nil, x.failed(c, err, sent, fresh)
	}
	r := headReader{src: c.nc, buf: buf, n: n}
	h, rest, err := r.read()
	if err != nil {
		stop()
		_ = c.nc.Close()
		return nil, x.failed(c, err, true, fresh)
	}
	c.addr.served()
	x.verdict = judge(h.status)
	if h.media == mediaEvents && h.status == http.StatusOK {
		return x.stream(c, h, rest, stop), nil
	}
	b := body{src: c.nc, rest: rest, framing: h.framing, left: h.length}
	resp := &Response{Status: h.status, Session: h.session, JSON: h.media == mediaJSON}
	if h.status >= 300 && h.status < 400 {
		err = ErrRedirect
	} else {
		resp.Body, err = b.all(x.d.c.cfg.MaxAnswer)
	}
	if !stop() || err != nil || !h.keep {
		_ = c.nc.Close()
	} else {
		x.d.pool.put(c, x.d.c.cfg.Now(), x.d.c.cfg.MaxIdle)
	}
	if err != nil {
		return nil, x.cut(err)
	}
	return resp, nil
}

// afterwards is context.AfterFunc. A context that has such a method of its own is spared the one that would be derived.
func afterwards(ctx context.Context, f func()) (stop func() bool) {
	if own, ok := ctx.(interface {
		AfterFunc(f func()) (stop func() bool)
	}); ok {
		return own.AfterFunc(f)
	}
	return context.AfterFunc(ctx, f)
}

// failed says what it means that no head came.
func (x *call) failed(c *conn, err error, sent, fresh bool) error {
	switch {
	case errors.Is(err, errStale), errors.Is(err, errUnsent):
		return err
	case x.ctx.Err() != nil:
		if errors.Is(x.ctx.Err(), context.DeadlineExceeded) {
			x.d.hurt(c.addr)
		}
		return x.ctx.Err()
	case errors.Is(err, ErrProtocol):
		return err
	case fresh && c.tls != nil && refusedCertificate(err):
		return fmt.Errorf("%w (%w)", ErrIdentity, err)
	}
	x.d.hurt(c.addr)
	if !sent {
		return fmt.Errorf("%w (%w)", ErrUnavailable, err)
	}
	return fmt.Errorf("%w (%w)", ErrBroken, err)
}

// refusedCertificate reports whether the server ended the handshake over our certificate. In TLS 1.3 it may do so after our
// side of it is over, and then it has not read the request.
func refusedCertificate(err error) bool {
	s := err.Error()
	return strings.Contains(s, "remote error: tls:") && strings.Contains(s, "certificate")
}

// cut says what it means that a body did not come to its end.
func (x *call) cut(err error) error {
	switch {
	case errors.Is(err, ErrTooLarge), errors.Is(err, ErrRedirect), errors.Is(err, ErrProtocol):
		return err
	case x.ctx.Err() != nil:
		return x.ctx.Err()
	}
	return fmt.Errorf("%w (%w)", ErrBroken, err)
}

// judge is what a status tells of a server's health. A server that answers 500 to one request is alive, and one caller's
// requests must not close it to all others.
func judge(status int) verdict {
	switch status {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return failing
	}
	return alive
}

// leave counts the call and tells the gate how it went.
func (x *call) leave(err error) {
	v := x.verdict
	switch {
	case err == nil, errors.Is(err, ErrTooLarge), errors.Is(err, ErrRedirect):
	case errors.Is(err, context.Canceled), errors.Is(err, egress.ErrBlocked):
		v = unproven
	case errors.Is(err, ErrProtocol) && v == alive:
	default:
		v = failing
	}
	x.d.gate.leave(x.d.c.cfg.Now(), x.req.Long, x.probe, v)
	x.d.count(err)
}

// buffers are for what a call reads and writes besides its body.
var buffers = sync.Pool{New: func() any { b := make([]byte, 8<<10); return &b }}

func putBuffer(b *[]byte) {
	if cap(*b) <= 2*inline {
		buffers.Put(b)
	}
}
