package upstream

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// maxAge is how long a connection serves, so that a host that has moved is noticed.
const maxAge = 15 * time.Minute

// past is a deadline that ends whatever is under way.
var past = time.Unix(1, 0)

// A connection out of the pool was of no use any more, which showed before anything was sent on it: errStale by looking,
// errUnsent by writing.
var (
	errStale  = errors.New("the connection was closed while it was idle")
	errUnsent = errors.New("the connection was closed just before it was used")
)

// conn is one connection, used by one exchange at a time.
type conn struct {
	nc   net.Conn
	tls  *tls.Conn       // nc again, nil for plain HTTP
	raw  syscall.RawConn // of the socket below; nil where there is none
	addr *address
	born time.Time
	idle time.Time // in the pool since
	used bool      // has served an exchange
	// abort ends what is under way, from any goroutine. It is made once, so that a call costs no closure.
	abort func()
	swap  swap
}

func newConn(nc net.Conn, socket net.Conn, addr *address, now time.Time) *conn {
	c := &conn{nc: nc, addr: addr, born: now}
	c.tls, _ = nc.(*tls.Conn)
	if sc, ok := socket.(syscall.Conn); ok && nonBlocking {
		if raw, err := sc.SyscallConn(); err == nil {
			c.raw = raw
		}
	}
	c.abort = func() { _ = socket.SetDeadline(past) }
	c.swap.init()
	return c
}

// exchange writes a request, head and whatever of the body did not fit beside it, and reads the first bytes of what comes
// back. sent reports whether any of it was written; on errStale and errUnsent nothing was.
func (c *conn) exchange(head, more, buf []byte) (n int, sent bool, err error) {
	if c.tls == nil && c.raw != nil && more == nil {
		n, sent, err = c.swap.run(c, head, buf)
	} else {
		n, sent, err = c.plainly(head, more, buf)
	}
	if err != nil && !sent && c.used && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, errStale) {
		err = fmt.Errorf("%w (%w)", errUnsent, err)
	}
	c.used = true
	return n, sent, err
}

func (c *conn) plainly(head, more, buf []byte) (int, bool, error) {
	if c.used && c.stale() {
		return 0, false, errStale
	}
	return c.writeAndRead(0, head, more, buf)
}

// writeAndRead goes on when so many bytes have been written.
func (c *conn) writeAndRead(wrote int, head, more, buf []byte) (int, bool, error) {
	n, err := c.write(head, more)
	if wrote += n; err != nil {
		// A server that has refused a large body early may have said so.
		if wrote > 0 {
			if n, readErr := c.nc.Read(buf); readErr == nil {
				return n, true, nil
			}
		}
		return 0, wrote > 0, err
	}
	n, err = c.nc.Read(buf)
	return n, true, err
}

func (c *conn) write(head, more []byte) (int, error) {
	if more == nil {
		return c.nc.Write(head)
	}
	if c.tls != nil {
		n, err := c.nc.Write(head)
		if err == nil {
			_, err = c.nc.Write(more)
		}
		return n, err
	}
	both := net.Buffers{head, more}
	n, err := both.WriteTo(c.nc) // one system call
	return int(n), err
}

// stale reports whether an idle connection was closed, or has bytes waiting that nobody asked for. It does not wait.
func (c *conn) stale() bool {
	if c.raw != nil && c.swap.peek(c.raw) {
		return true
	}
	if c.tls == nil {
		return false
	}
	// A whole record may have been read along with the last one, where the socket does not show it.
	if c.tls.SetReadDeadline(past) != nil {
		return true
	}
	var one [1]byte
	n, err := c.tls.Read(one[:])
	return n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) || c.tls.SetReadDeadline(time.Time{}) != nil
}

// pool holds the idle connections of a destination. The one that was used last is used first, so that what is not needed
// grows old and is closed.
type pool struct {
	timeout time.Duration
	now     func() time.Time

	mu     sync.Mutex
	conns  []*conn // the longest idle first
	sweep  *time.Timer
	closed bool
}

func (p *pool) get() *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.conns)
	if n == 0 {
		return nil
	}
	c := p.conns[n-1]
	p.conns[n-1] = nil
	p.conns = p.conns[:n-1]
	return c
}

// put takes a connection back, or closes it.
func (p *pool) put(c *conn, now time.Time, most int) {
	c.idle = now
	if now.Sub(c.born) >= maxAge || c.addr.ejected(now) || !p.add(c, most) {
		_ = c.nc.Close()
	}
}

func (p *pool) add(c *conn, most int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.conns) >= most {
		return false
	}
	p.conns = append(p.conns, c)
	if p.sweep == nil {
		p.sweep = time.AfterFunc(p.timeout, p.expire)
	}
	return true
}

// expire closes what has been idle for too long.
func (p *pool) expire() {
	now := p.now()
	p.drop(func(c *conn) bool { return now.Sub(c.idle) >= p.timeout })
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sweep = nil
	if len(p.conns) > 0 && !p.closed {
		// At least a little: the clocks of the timer and of now may differ.
		p.sweep = time.AfterFunc(max(p.timeout-now.Sub(p.conns[0].idle), p.timeout/16), p.expire)
	}
}

// drop closes the idle connections that are meant.
func (p *pool) drop(meant func(*conn) bool) {
	p.mu.Lock()
	kept := p.conns[:0]
	var gone []*conn
	for _, c := range p.conns {
		if meant(c) {
			gone = append(gone, c)
		} else {
			kept = append(kept, c)
		}
	}
	clear(p.conns[len(kept):])
	p.conns = kept
	p.mu.Unlock()
	for _, c := range gone {
		_ = c.nc.Close()
	}
}

func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	if p.sweep != nil {
		p.sweep.Stop()
	}
	p.mu.Unlock()
	p.drop(func(*conn) bool { return true })
}

func (p *pool) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}
