// Package upstream is the client towards MCP servers. It sends a body that is whole in memory, once, over pooled
// connections, and bounds everything that comes back: time to connect, bytes of an answer, bytes of an event. Headers
// cross in both directions by allow-list only; a caller's credentials, cookies and proxy headers never do.
//
// It follows no redirect, retries nothing and keeps one server's trouble from the others with a bulkhead and a circuit
// breaker each. Which addresses may be dialled at all is the dialer's business.
package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
)

// The ways a call can fail. ErrUnavailable, ErrBusy and ErrRefused mean that nothing was sent; after the others the
// outcome of the call is not known.
var (
	ErrUnavailable = errors.New("the upstream cannot be reached")
	ErrBusy        = errors.New("too many calls to the upstream are under way")
	ErrRefused     = errors.New("the upstream failed repeatedly and is left alone for a moment")
	ErrBroken      = errors.New("the connection to the upstream broke")
	ErrTooLarge    = errors.New("the upstream's answer is too large")
	ErrRedirect    = errors.New("the upstream answered with a redirect")
	ErrProtocol    = errors.New("the upstream did not answer in the protocol")
)

// Config configures a Client. Zero values take the defaults named.
type Config struct {
	// Dial connects; it is where destinations are checked. Required.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	TLS  *tls.Config
	// ConnectTimeout: 1 s.
	ConnectTimeout time.Duration
	// MaxAnswer bounds a JSON answer: 8 MiB.
	MaxAnswer int64
	// MaxEvent bounds one event of a stream: 8 MiB.
	MaxEvent int
	// MaxCalls bounds the calls under way to one upstream: 512. Long streams do not count.
	MaxCalls int
	Now      func() time.Time
}

// Client sends requests to upstreams.
type Client struct {
	cfg Config
	rt  *http.Transport

	mu    sync.Mutex
	gates map[string]*gate // guarded by mu; by scheme and host
}

// New makes a client; it connects to nothing yet.
func New(cfg Config) *Client {
	if cfg.ConnectTimeout <= 0 {
		cfg.ConnectTimeout = time.Second
	}
	if cfg.MaxAnswer <= 0 {
		cfg.MaxAnswer = 8 << 20
	}
	if cfg.MaxEvent <= 0 {
		cfg.MaxEvent = 8 << 20
	}
	if cfg.MaxCalls <= 0 {
		cfg.MaxCalls = 512
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	c := &Client{cfg: cfg, gates: map[string]*gate{}}
	c.rt = &http.Transport{
		DialContext:            c.dial,
		TLSClientConfig:        cfg.TLS,
		TLSHandshakeTimeout:    2 * time.Second,
		MaxIdleConns:           1024,
		MaxIdleConnsPerHost:    128,
		IdleConnTimeout:        60 * time.Second,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 32 << 10,
		ForceAttemptHTTP2:      true,
		WriteBufferSize:        16 << 10,
		ReadBufferSize:         16 << 10,
	}
	return c
}

// dialError marks what failed before a byte was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return "connect: " + e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

func (c *Client) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.ConnectTimeout)
	defer cancel()
	conn, err := c.cfg.Dial(ctx, network, addr)
	if err != nil {
		return nil, &dialError{err}
	}
	return conn, nil
}

// Close closes the idle connections.
func (c *Client) Close() { c.rt.CloseIdleConnections() }

// Request is one message for an upstream.
type Request struct {
	URL    string
	Method string
	// Header is the caller's: only what Forwarded allows crosses.
	Header http.Header
	// Set replaces or adds headers after that: session, version, and what an injection adds.
	Set  http.Header
	Body []byte
	// Long is for streams that stay open: they take no place in the bulkhead.
	Long bool
}

// Response is an upstream's answer: either Body or Events. Close must be called.
type Response struct {
	Status  int
	Session string
	// Body is a whole answer that is no stream; JSON says whether it claims to be JSON.
	Body   []byte
	JSON   bool
	Events *mcp.EventReader
	close  func()
}

// Close ends the exchange; a stream that was not read to its end takes its connection along.
func (r *Response) Close() {
	if r.close != nil {
		r.close()
	}
}

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
	u, err := url.Parse(req.URL)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return nil, fmt.Errorf("%w: its address is malformed", ErrUnavailable)
	}
	g := c.gate(u.Scheme + "://" + u.Host)
	if err := g.enter(c.cfg.Now(), req.Long); err != nil {
		return nil, err
	}
	out := &http.Request{
		Method: req.Method, URL: u, Host: u.Host, Header: header(req), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		ContentLength: int64(len(req.Body)),
	}
	if len(req.Body) > 0 {
		out.Body = io.NopCloser(bytes.NewReader(req.Body))
		out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(req.Body)), nil }
	}
	ctx, cancel := context.WithCancel(ctx)
	resp, err := c.rt.RoundTrip(out.WithContext(ctx))
	if err != nil {
		canceled := ctx.Err() != nil
		cause := ctx.Err()
		cancel()
		g.leave(c.cfg.Now(), req.Long, canceled && errors.Is(cause, context.Canceled))
		return nil, failure(err, cause)
	}
	r, err := c.receive(resp)
	done := sync.OnceFunc(func() {
		cancel()
		_ = resp.Body.Close()
		g.leave(c.cfg.Now(), req.Long, err == nil && resp.StatusCode < http.StatusInternalServerError)
	})
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		done()
		return nil, err
	}
	if resp.StatusCode < http.StatusInternalServerError {
		g.alive()
	}
	r.close = done
	if r.Events == nil {
		done()
	}
	return r, nil
}

func failure(err, cause error) error {
	var de *dialError
	switch {
	case errors.As(err, &de):
		return fmt.Errorf("%w (%w)", ErrUnavailable, de)
	case cause != nil:
		return cause
	}
	return fmt.Errorf("%w (%w)", ErrBroken, err)
}

func header(req *Request) http.Header {
	h := make(http.Header, 10)
	for k, v := range req.Header {
		if Forwarded(k) {
			h[k] = v
		}
	}
	h["Accept"] = []string{"application/json, text/event-stream"}
	if req.Method == http.MethodGet {
		h["Accept"] = []string{"text/event-stream"}
	}
	h["User-Agent"] = []string{"mcpvault"}
	if len(req.Body) > 0 {
		h["Content-Type"] = []string{"application/json"}
	}
	for k, v := range req.Set {
		if len(v) == 0 {
			delete(h, k)
			continue
		}
		h[k] = v
	}
	return h
}

func (c *Client) receive(resp *http.Response) (*Response, error) {
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		return nil, ErrRedirect
	}
	r := &Response{Status: resp.StatusCode, Session: resp.Header.Get(mcp.HeaderSession)}
	media, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	media = strings.ToLower(strings.TrimSpace(media))
	if media == "text/event-stream" && resp.StatusCode == http.StatusOK {
		r.Events = mcp.NewEventReader(resp.Body, c.cfg.MaxEvent)
		return r, nil
	}
	r.JSON = media == "application/json"
	if resp.ContentLength > c.cfg.MaxAnswer {
		return nil, ErrTooLarge
	}
	var buf bytes.Buffer
	if resp.ContentLength > 0 {
		buf.Grow(int(resp.ContentLength) + bytes.MinRead)
	}
	n, err := buf.ReadFrom(io.LimitReader(resp.Body, c.cfg.MaxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w (%w)", ErrBroken, err)
	case n > c.cfg.MaxAnswer:
		return nil, ErrTooLarge
	}
	r.Body = buf.Bytes()
	return r, nil
}

func (c *Client) gate(host string) *gate {
	c.mu.Lock()
	defer c.mu.Unlock()
	g, ok := c.gates[host]
	if !ok {
		g = &gate{max: c.cfg.MaxCalls}
		c.gates[host] = g
	}
	return g
}
