package http1

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/mcpvault/mcpvault/kit/poll"
)

const (
	// writePiece is what one wait for the client is about: as much has to leave within the write timeout.
	writePiece = 64 << 10
	// lingerTime and lingerBytes bound what is read of a client that still sends when it was answered for the last time:
	// closing over unread bytes would reset the connection, and with it the answer.
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 256 << 10
)

// state is what a connection is doing, which decides what the sweep does with it.
type state uint8

const (
	stateNew     state = iota // nothing has come yet
	stateHead                 // a part of a head has come
	stateIdle                 // between requests
	stateParked               // idle, and without buffers
	stateRunning              // in the handler
	stateClosing              // answered for the last time
	stateClosed
)

// kick is why the sweep has ended a read.
type kick uint8

const (
	kickNone kick = iota
	kickPark
	kickSlow
)

// conn is one connection. One goroutine reads requests from it and runs the handler.
type conn struct {
	srv *Server
	nc  net.Conn
	// rw is the shortest way to the bytes: nc, or what nc wraps when it is not encrypted.
	rw     io.ReadWriter
	raw    syscall.Conn // the socket, nil when there is none
	remote string
	tls    *tls.ConnectionState

	// What follows belongs to the goroutine, and to the body of the request under way.
	buf        []byte // from a pool; nil while there is nothing in it
	r, w       int
	one        [1]byte
	head       head
	url        url.URL // of target
	target     string
	reqHeader  http.Header
	respHeader http.Header

	mu    sync.Mutex
	state state     // guarded by mu
	since int64     // guarded by mu; when it began, by the server's clock
	kick  kick      // guarded by mu
	x     *exchange // guarded by mu; the request under way
	watch poll.ID   // guarded by mu; 0 when nobody watches for the client's leaving
	// writing is since when a write is under way, 0 for none; reading is whether a read of a body is.
	writing int64 // guarded by mu
	reading bool  // guarded by mu
	// The deadlines that the handler wants, and those that the connection has: they are set when there is a wait at all.
	wantRead, wantWrite, hasRead, hasWrite time.Time // guarded by mu

	slot int // guarded by the server's mu
}

var past = time.Unix(1, 0)

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{srv: s, nc: nc, rw: nc, remote: nc.RemoteAddr().String()}
	c.head.forget()
	if t, ok := nc.(*tls.Conn); ok {
		st := t.ConnectionState()
		c.tls = &st
	}
	under := nc
	for {
		w, ok := under.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		under = w.NetConn()
	}
	c.raw, _ = under.(syscall.Conn)
	if c.tls == nil {
		c.rw = under
	}
	return c
}

// serve reads and answers requests until there are no more, or until a handler has left and somebody else goes on.
func (c *conn) serve() {
	left := false
	defer func() {
		if !left {
			c.close()
		}
	}()
	for c.next() {
		x := c.handle()
		if x == nil {
			return
		}
		if left = x.leave(); left || !c.finish(x) {
			return
		}
	}
}

// next reads the head of the next request.
func (c *conn) next() bool {
	c.head.reset()
	for {
		if c.r < c.w {
			n, why := c.head.parse(c.buf[c.r:c.w], c.srv.cfg.MaxHeader, c.srv.cfg.MaxFields)
			switch {
			case why != nil:
				c.refuse(why)
				return false
			case n > 0:
				c.r += n
				return true
			case !c.enter(stateHead):
				return false
			}
		}
		if !c.fill() {
			return false
		}
	}
}

// enter says that the connection is in a state now, since when unless it was before; false means that the sweep has closed
// it.
func (c *conn) enter(s state) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == stateClosed {
		return false
	}
	c.calm()
	if c.state != s {
		if c.state != stateNew {
			c.since = c.srv.clock.Load()
		}
		c.state = s
	}
	return true
}

// calm takes a kick back that has come too late. It is called with mu held.
func (c *conn) calm() {
	if c.kick != kickNone {
		c.kick = kickNone
		_ = c.nc.SetReadDeadline(time.Time{})
	}
}

// fill reads what there is.
func (c *conn) fill() bool {
	switch {
	case c.buf == nil:
		c.buf, c.r, c.w = getSmall(), 0, 0
	case c.r == c.w:
		c.r, c.w = 0, 0
	case c.w == len(c.buf) && c.r > 0:
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r = 0
	case c.w == len(c.buf):
		c.buf = enlarge(c.buf)[:largeBuffer]
	}
	n, err := c.rw.Read(c.buf[c.w:])
	c.w += n
	if n > 0 {
		return true
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	c.mu.Lock()
	k := c.kick
	c.calm()
	c.mu.Unlock()
	switch k {
	case kickPark:
		return c.park()
	case kickSlow:
		if c.r < c.w {
			c.refuse(errSlow)
		}
	case kickNone:
	}
	return false
}

// park waits for the next request without holding anything for it.
func (c *conn) park() bool {
	if c.r < c.w {
		return true
	}
	put(c.buf)
	c.buf, c.r, c.w = nil, 0, 0
	c.head.forget()
	c.reqHeader, c.respHeader, c.target = nil, nil, ""
	c.mu.Lock()
	if c.state == stateIdle {
		c.state = stateParked
	}
	c.mu.Unlock()
	n, err := c.rw.Read(c.one[:])
	if n == 0 || err != nil {
		return false
	}
	c.buf = getSmall()
	c.buf[0], c.w = c.one[0], 1
	return true
}

// rest gives the buffer back of a request whose answer may take long.
func (c *conn) rest(x *exchange) {
	b := &x.body
	if !b.mu.TryLock() {
		return
	}
	defer b.mu.Unlock()
	if b.ended && c.r == c.w && c.buf != nil {
		put(c.buf)
		c.buf, c.r, c.w = nil, 0, 0
	}
}

// handle runs the handler for the request whose head was read. It returns nil when there was none to run.
func (c *conn) handle() *exchange {
	h := &c.head
	if h.target != c.target {
		u, ok := parseTarget(h.target)
		if !ok {
			c.refuse(errTarget)
			return nil
		}
		c.url, c.target = u, h.target
	}
	x := &exchange{url: c.url, length: -1, close: !h.persists(), old: h.minor == 0, isHead: h.method == http.MethodHead}
	x.base, x.c = c.srv.cfg.Base, c
	x.body.c, x.body.x, x.body.left, x.body.chunked = c, x, h.length, h.chunked()
	x.body.ended = h.length <= 0 && !x.body.chunked
	x.body.waits = h.expect != "" && h.minor == 1 && !x.body.ended
	if c.respHeader == nil {
		c.respHeader, c.reqHeader = make(http.Header, 8), make(http.Header, h.n)
	}
	x.header = c.respHeader
	r := c.request(x)
	if !c.begin(x) {
		return nil
	}
	x.panicked = !c.call(x, r)
	return x
}

// finish ends the answer to a request, and reports whether there can be another one.
func (c *conn) finish(x *exchange) bool {
	after := cutOff
	if x.panicked {
		x.abandon()
	} else {
		after = x.finish()
	}
	x.requestContext.end()
	again := c.end()
	clear(c.respHeader)
	clear(c.reqHeader)
	if after == lingers {
		c.linger()
	}
	return again && after == goesOn
}

// request makes the request that the handler sees. Its strings are their own; the header map is used again for the next
// one.
func (c *conn) request(x *exchange) *http.Request {
	h := &c.head
	values := make([]string, h.n)
	for i := range h.fields[:h.n] {
		f := &h.fields[i]
		switch f.name {
		case "Host", "Transfer-Encoding":
			continue
		case "Trailer":
			if x.body.chunked {
				continue // it announces what is dropped
			}
		}
		if before := c.reqHeader[f.name]; before != nil {
			c.reqHeader[f.name] = append(before, f.value)
			continue
		}
		values[i] = f.value
		c.reqHeader[f.name] = values[i : i+1 : i+1]
	}
	r := blank.WithContext(&x.requestContext)
	r.Method, r.URL, r.RequestURI, r.Host = h.method, &x.url, h.target, h.host
	r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/1.1", 1, 1
	if x.old {
		r.Proto, r.ProtoMinor = "HTTP/1.0", 0
	}
	if x.url.Host != "" {
		r.Host = x.url.Host
	}
	r.Header, r.Close, r.RemoteAddr, r.TLS = c.reqHeader, x.close, c.remote, c.tls
	r.ContentLength = max(h.length, 0)
	r.Body = http.NoBody
	if x.body.chunked {
		r.ContentLength = -1
		r.TransferEncoding = []string{"chunked"}
	}
	if !x.body.ended {
		r.Body = &x.body
	}
	return r
}

var blank = new(http.Request)

// parseTarget reads a request target as net/http does.
func parseTarget(target string) (url.URL, bool) {
	plain := target[0] == '/'
	for i := 0; plain && i < len(target); i++ {
		plain = class[target[i]]&isPlain != 0
	}
	if plain {
		return url.URL{Path: target}, true
	}
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return url.URL{}, false
	}
	return *u, true
}

// call runs the handler and reports whether it has returned as it should.
func (c *conn) call(x *exchange, r *http.Request) (returned bool) {
	defer func() {
		if returned {
			return
		}
		if v := recover(); v != nil && v != http.ErrAbortHandler { //nolint:errorlint,err113 // as net/http compares it
			c.srv.cfg.Log.Error("a handler panicked", "panic", v, "remote", c.remote, "stack", string(debug.Stack()))
		}
	}()
	c.srv.cfg.Handler.ServeHTTP(x, r)
	return true
}

// begin makes x the request under way.
func (c *conn) begin(x *exchange) bool {
	c.mu.Lock()
	if c.state == stateClosed {
		c.mu.Unlock()
		return false
	}
	c.calm()
	c.state, c.since, c.x = stateRunning, c.srv.clock.Load(), x
	c.mu.Unlock()
	if c.srv.cut.Load() {
		x.requestContext.end()
	}
	return true
}

// end is the end of the request under way. It reports whether the server wants another one.
func (c *conn) end() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unwatch()
	c.x = nil
	c.wantRead, c.wantWrite = time.Time{}, time.Time{}
	if !c.hasRead.IsZero() {
		c.hasRead = time.Time{}
		_ = c.nc.SetReadDeadline(time.Time{})
	}
	if c.state == stateClosed {
		return false
	}
	c.state, c.since = stateIdle, c.srv.clock.Load()
	if c.srv.draining() {
		c.state = stateClosing
		return false
	}
	return true
}

// watchLeaving has the request under way end when its client leaves. Where clients cannot be watched, that they have left
// shows at the next write to them. It is called with mu held.
func (c *conn) watchLeaving() {
	if socket, err := c.raw.SyscallConn(); err == nil {
		c.watch = c.srv.watcher.Watch(socket, poll.Gone, c.x.requestContext.end)
	}
}

// unwatch is called with mu held.
func (c *conn) unwatch() {
	if c.watch == 0 {
		return
	}
	if socket, err := c.raw.SyscallConn(); err == nil {
		c.srv.watcher.Stop(socket, c.watch)
	}
	c.watch = 0
}

// setDeadline is what a request wants of the connection. It takes effect at the next wait, or at once in the one that is
// under way.
func (c *conn) setDeadline(x *exchange, t time.Time, write bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.x != x {
		return errEnded
	}
	if write {
		c.wantWrite = t
		if c.writing != 0 {
			c.hasWrite = t
			return c.nc.SetWriteDeadline(t)
		}
		return nil
	}
	c.wantRead = t
	if c.reading {
		c.hasRead = t
		return c.nc.SetReadDeadline(t)
	}
	return nil
}

// readBody reads from the connection on behalf of the request.
func (c *conn) readBody(p []byte) (int, error) {
	c.mu.Lock()
	c.reading = true
	if c.wantRead != c.hasRead {
		c.hasRead = c.wantRead
		_ = c.nc.SetReadDeadline(c.wantRead)
	}
	c.mu.Unlock()
	n, err := c.rw.Read(p)
	c.mu.Lock()
	c.reading = false
	c.mu.Unlock()
	if n > 0 {
		err = nil // it will come again
	}
	return n, err
}

// interruptRead ends a read that is under way.
func (c *conn) interruptRead() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wantRead, c.hasRead = past, past
	_ = c.nc.SetReadDeadline(past)
}

// write writes all of b, with the time that the request has set, or the server's for each piece.
func (c *conn) write(b []byte) error {
	for len(b) > 0 {
		n := min(len(b), writePiece)
		c.mu.Lock()
		c.writing = c.srv.clock.Load()
		if c.wantWrite != c.hasWrite {
			c.hasWrite = c.wantWrite
			_ = c.nc.SetWriteDeadline(c.wantWrite)
		}
		c.mu.Unlock()
		_, err := c.rw.Write(b[:n])
		c.mu.Lock()
		c.writing = 0
		c.mu.Unlock()
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// refuse answers a request that is none, and ends the connection.
func (c *conn) refuse(why *refusal) {
	if c.srv.cfg.Refused != nil {
		c.srv.cfg.Refused(c.nc.RemoteAddr(), why.status, why.reason)
	}
	if !c.enter(stateClosing) {
		return
	}
	body := `{"error":"` + why.reason + `","message":"` + why.detail + `"}`
	b := appendStatus(getSmall()[:0], why.status)
	b = append(b, *c.srv.date.Load()...)
	b = append(b, "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
	b = append(b, "\r\n\r\n"...)
	b = append(b, body...)
	err := c.write(b)
	put(b)
	if err == nil {
		c.linger()
	}
}

// linger waits for the client to have read its last answer.
func (c *conn) linger() {
	if !c.enter(stateClosing) {
		return
	}
	if t, ok := c.nc.(*tls.Conn); ok {
		_ = t.CloseWrite()
	}
	if half, ok := c.raw.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	ctx, cancel := context.WithTimeout(context.Background(), lingerTime)
	defer cancel()
	until, _ := ctx.Deadline()
	_ = c.nc.SetReadDeadline(until)
	if c.buf == nil {
		c.buf = getSmall()
	}
	for read := 0; read < lingerBytes; {
		n, err := c.rw.Read(c.buf)
		read += n
		if err != nil {
			return
		}
	}
	select {
	case <-ctx.Done():
	case <-c.srv.closing:
	}
}

// close ends the connection.
func (c *conn) close() {
	c.mu.Lock()
	c.state = stateClosed
	c.mu.Unlock()
	_ = c.nc.Close()
	put(c.buf)
	c.buf = nil
	c.srv.remove(c)
}

// shut closes the connection from outside of its goroutine. It is called with mu held.
func (c *conn) shut() {
	c.state = stateClosed
	under := c.nc
	if t, ok := c.nc.(*tls.Conn); ok {
		under = t.NetConn() // without the alert, which could have to wait
	}
	_ = under.Close()
}
