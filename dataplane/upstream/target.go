package upstream

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The protocols, as TLS names them.
const (
	protocolHTTP1 = "http/1.1"
	protocolHTTP2 = "h2"
)

// inline is how large a body may be to be copied beside the head.
const inline = 32 << 10

// maxTargets bounds what is kept about addresses. More than that many cannot be in use by any policy that this was made
// for; beyond it, everything begins anew.
const maxTargets = 16384

// destination is one server: a scheme, a host, a port, and the identity that it must show. Its connections, its breaker and
// its counts are shared by all addresses at it.
type destination struct {
	c        *Client
	name     string // as the metrics show it
	https    bool
	host     string
	port     uint16
	identity string
	literal  []netip.Addr // for a host that is an address

	gate      gate
	pool      pool
	addresses addresses
	retries   budget

	onlyHTTP2 atomic.Bool
	named     atomic.Bool // it is known what it means that the server names no protocol
	h2        http2Side

	outcomes                       [outcomeCount]atomic.Int64
	connects, connectsFailed       atomic.Int64
	stale, retried, refusedRetries atomic.Int64
}

// retry reports whether something may be tried again of which nothing was sent.
func (d *destination) retry() bool {
	if !d.retries.take() {
		d.refusedRetries.Add(1)
		return false
	}
	d.retried.Add(1)
	return true
}

// hurt notes that an address failed; when it is left out for that, its idle connections go.
func (d *destination) hurt(a *address) {
	if d.addresses.failed(a, d.c.cfg.Now()) {
		d.pool.drop(func(c *conn) bool { return c.addr == a })
	}
}

// target is one address: what every request to it begins with.
type target struct {
	dest *destination
	// post is a whole head up to the content length's value; get and others lack what differs.
	post []byte
	line string // the request target and what follows it, up to and including Host and User-Agent
}

// book knows all targets and destinations.
type book struct {
	targets sync.Map // targetKey -> *target
	mu      sync.Mutex
	count   int
	dests   map[string]*destination
	closed  bool
}

type targetKey struct{ url, identity string }

func (c *Client) target(req *Request) (*target, error) {
	key := targetKey{req.URL, req.Identity}
	if t, ok := c.book.targets.Load(key); ok {
		return t.(*target), nil
	}
	t, err := c.newTarget(key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return t, nil
}

var errAddress = errors.New("its address is malformed")

func (c *Client) newTarget(key targetKey) (*target, error) {
	u, err := url.Parse(key.url)
	if err != nil || u.Host == "" || u.Hostname() == "" || (u.Scheme != "https" && u.Scheme != "http") || u.User != nil {
		return nil, errAddress
	}
	port := u.Port()
	switch {
	case port == "" && strings.HasSuffix(u.Host, ":"):
		return nil, errAddress
	case port == "" && u.Scheme == "https":
		port = "443"
	case port == "":
		port = "80"
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return nil, errAddress
	}
	host := strings.ToLower(u.Hostname())
	if key.identity != "" && u.Scheme != "https" {
		return nil, errors.New("a server without TLS has no identity")
	}
	if path := u.RequestURI(); !plainTarget(path) || !plainTarget(u.Host) {
		return nil, errAddress
	}
	t := &target{}
	t.line = u.RequestURI() + " HTTP/1.1\r\nHost: " + u.Host + "\r\n"
	t.post = []byte("POST " + t.line + userAgent + accept + contentType + contentLength)

	c.book.mu.Lock()
	defer c.book.mu.Unlock()
	t.dest = c.destination(u.Scheme == "https", host, uint16(n), key.identity)
	if c.book.count++; c.book.count > maxTargets {
		c.book.targets.Clear()
		c.book.count = 1
	}
	c.book.targets.Store(key, t)
	return t, nil
}

// plainTarget reports whether a part of a request's first lines is visible ASCII.
func plainTarget(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// destination is called with the lock held.
func (c *Client) destination(https bool, host string, port uint16, identity string) *destination {
	scheme := "http"
	if https {
		scheme = "https"
	}
	name := scheme + "://" + hostPort(host, port)
	key := name + " " + identity
	if d, ok := c.book.dests[key]; ok {
		return d
	}
	c.book.forget(c.cfg.Now())
	d := &destination{c: c, name: name, https: https, host: host, port: port, identity: identity}
	if ip, err := netip.ParseAddr(host); err == nil {
		d.literal = []netip.Addr{ip}
	}
	d.gate.maxCalls, d.gate.maxStreams = c.cfg.MaxCalls, c.cfg.MaxStreams
	d.pool = pool{timeout: c.cfg.IdleTimeout, now: c.cfg.Now, closed: c.book.closed}
	if c.book.dests == nil {
		c.book.dests = map[string]*destination{}
	}
	c.book.dests[key] = d
	return d
}

// forget makes room when there are very many destinations: those without a call or a connection go. It is called with the
// lock held.
func (b *book) forget(now time.Time) {
	if len(b.dests) < maxTargets {
		return
	}
	b.targets.Clear()
	b.count = 0
	for key, d := range b.dests {
		if _, calls, streams := d.gate.look(now); calls+streams == 0 && d.pool.len() == 0 {
			delete(b.dests, key)
		}
	}
}

func (b *book) all() []*destination {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]*destination, 0, len(b.dests))
	for _, d := range b.dests {
		out = append(out, d)
	}
	return out
}

func (b *book) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	for _, d := range b.all() {
		d.pool.close()
		d.h2.close()
	}
}

func hostPort(host string, port uint16) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(int(port))
}

// What is the same in every request.
const (
	userAgent     = "User-Agent: mcpvault\r\n"
	accept        = "Accept: application/json, text/event-stream\r\n"
	acceptStream  = "Accept: text/event-stream\r\n"
	contentType   = "Content-Type: application/json\r\n"
	contentLength = "Content-Length: "
)

// appendRequest appends the request to dst. A body that is too large to be copied comes back by itself.
func (t *target) appendRequest(dst []byte, req *Request) (head, more []byte, err error) {
	if !token(req.Method) || req.Method == http.MethodHead || req.Method == http.MethodConnect {
		return nil, nil, fmt.Errorf("%w: the method cannot be sent", ErrUnavailable)
	}
	if req.Method == http.MethodPost && len(req.Body) > 0 && !changesStatic(req.Set) {
		dst = append(dst, t.post...)
		dst = strconv.AppendInt(dst, int64(len(req.Body)), 10)
		dst = append(dst, "\r\n"...)
	} else {
		dst = t.appendOther(dst, req)
	}
	for name, values := range req.Header {
		if !Forwarded(name) {
			continue
		}
		if _, replaced := req.Set[name]; replaced {
			continue
		}
		if dst, err = appendField(dst, name, values); err != nil {
			return nil, nil, err
		}
	}
	for name, values := range req.Set {
		if len(values) > 0 && framesRequest(name) {
			return nil, nil, fmt.Errorf("%w: the header %q cannot be set", ErrUnavailable, name)
		}
		if dst, err = appendField(dst, name, values); err != nil {
			return nil, nil, err
		}
	}
	dst = append(dst, "\r\n"...)
	if len(req.Body) <= inline {
		return append(dst, req.Body...), nil, nil
	}
	return dst, req.Body, nil
}

// appendOther begins the requests that are no ordinary call.
func (t *target) appendOther(dst []byte, req *Request) []byte {
	dst = append(dst, req.Method...)
	dst = append(dst, ' ')
	dst = append(dst, t.line...)
	own := [...]struct{ name, line string }{{"User-Agent", userAgent}, {"Accept", accept}, {"Content-Type", contentType}}
	if req.Method == http.MethodGet {
		own[1].line = acceptStream
	}
	if len(req.Body) == 0 {
		own[2].line = ""
	}
	for _, f := range own {
		if _, replaced := req.Set[f.name]; !replaced {
			dst = append(dst, f.line...)
		}
	}
	if len(req.Body) > 0 || req.Method == http.MethodPost {
		dst = append(dst, contentLength...)
		dst = strconv.AppendInt(dst, int64(len(req.Body)), 10)
		dst = append(dst, "\r\n"...)
	}
	return dst
}

func changesStatic(set http.Header) bool {
	for _, name := range [...]string{"User-Agent", "Accept", "Content-Type"} {
		if _, ok := set[name]; ok {
			return true
		}
	}
	return false
}

// framesRequest reports whether a header decides how a request is read, or to whom it goes.
func framesRequest(name string) bool {
	switch http.CanonicalHeaderKey(name) {
	case "Host", "Content-Length", "Transfer-Encoding", "Connection", "Keep-Alive", "Upgrade", "Te", "Trailer", "Expect",
		"Proxy-Connection", "Content-Encoding":
		return true
	}
	return false
}

func appendField(dst []byte, name string, values []string) ([]byte, error) {
	for _, v := range values {
		if !token(name) || !text(v) {
			// The value may be a credential: it is not told.
			return nil, fmt.Errorf("%w: the header %q cannot be sent", ErrUnavailable, name)
		}
		dst = append(dst, name...)
		dst = append(dst, ": "...)
		dst = append(dst, v...)
		dst = append(dst, "\r\n"...)
	}
	return dst, nil
}
