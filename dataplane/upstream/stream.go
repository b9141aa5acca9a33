package upstream

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/kit/poll"
)

// stream is a connection on which events come.
type stream struct {
	d      *destination
	src    streamSource
	body   body
	events *mcp.EventReader
	long   bool
	keep   bool // the connection can serve another exchange after the end

	mu     sync.Mutex
	closed bool        // guarded by mu
	unbind func() bool // guarded by mu; takes the end of the context off the connection; nil while parked
	watch  poll.ID     // guarded by mu; while parked, and until the next time
	quiet  time.Time   // guarded by mu; parked since
}

// stream hands over a connection on which events come.
func (x *call) stream(c *conn, h head, rest []byte, unbind func() bool) *Response {
	d, now := x.d, x.d.c.cfg.Now()
	s := &stream{d: d, long: x.req.Long, keep: h.keep, unbind: unbind}
	s.src = streamSource{s: s, c: c, ctx: x.ctx, cfg: &d.c.cfg, last: now, credit: d.c.cfg.MaxEvent}
	s.body = body{src: &s.src, rest: bytes.Clone(rest), framing: h.framing, left: h.length} // the buffer goes back
	s.events = mcp.NewEventReader(&s.body, d.c.cfg.MaxEvent)
	d.gate.learn(now, x.probe, x.verdict)
	x.probe = false
	return &Response{Status: h.status, Session: h.session, Events: s.events, close: s.close, park: s.park, overdue: s.overdue}
}

func (s *stream) close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	s.unwatch()
	bound := s.unbind == nil || s.unbind()
	s.mu.Unlock()
	c, now := s.src.c, s.d.c.cfg.Now
	if !bound || !s.body.ended.Load() || !s.keep || c.nc.SetReadDeadline(time.Time{}) != nil {
		_ = c.nc.Close()
	} else {
		s.d.pool.put(c, now(), s.d.c.cfg.MaxIdle)
	}
	s.d.gate.leave(now(), s.long, false, alive)
	s.d.count(nil)
}

// park is Response.Park.
func (s *stream) park(wake func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.src.c
	if s.closed || c.raw == nil || s.src.credit <= 0 || s.src.ctx.Err() != nil ||
		s.body.err != nil || len(s.body.rest) > 0 || !s.events.Rest() || !s.nothingDecrypted() {
		return false
	}
	s.unwatch()
	if s.watch = s.d.c.parked.Watch(c.raw, poll.Bytes, wake); s.watch == 0 {
		return false
	}
	s.quiet = s.src.cfg.Now()
	if s.unbind != nil {
		s.unbind() // had it ended by now, whoever reads next would learn of it
		s.unbind = nil
	}
	return true
}

// bind has the end of the context end a read.
func (s *stream) bind() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unbind == nil && !s.closed {
		s.unbind = afterwards(s.src.ctx, s.src.c.abort)
	}
}

// overdue is Response.Overdue.
func (s *stream) overdue() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unbind == nil && !s.closed && s.src.cfg.Now().Sub(s.quiet) > s.src.cfg.StreamIdle
}

// unwatch ends the watch, if it has not ended. It is called with mu held.
func (s *stream) unwatch() {
	if s.watch != 0 {
		s.d.c.parked.Stop(s.src.c.raw, s.watch)
		s.watch = 0
	}
}

// nothingDecrypted reports whether TLS holds back nothing that its socket would not tell of.
func (s *stream) nothingDecrypted() bool {
	c := s.src.c
	if c.tls == nil {
		return true
	}
	if c.tls.SetReadDeadline(past) != nil {
		return false
	}
	var one [1]byte
	n, err := c.tls.Read(one[:])
	s.body.rest = append(s.body.rest, one[:n]...)
	return n == 0 && errors.Is(err, os.ErrDeadlineExceeded)
}

// streamSource reads a connection for a stream of events: with a limit to how long nothing may come, and at a pace. As much
// as the largest event may come at once; a server that sends without end after that is slowed down by not being read, and
// takes no more of this node's time than its share.
type streamSource struct {
	s      *stream
	c      *conn
	ctx    context.Context
	cfg    *Config
	credit int // bytes that may be read at once
	last   time.Time
}

// Read implements io.Reader.
func (s *streamSource) Read(p []byte) (int, error) {
	if s.credit <= 0 {
		if err := s.earn(); err != nil {
			return 0, err
		}
	}
	s.s.bind()
	err := s.c.nc.SetReadDeadline(s.cfg.Now().Add(s.cfg.StreamIdle))
	if s.ctx.Err() != nil { // after this line, abort comes later than the deadline above, and wins
		return 0, s.ctx.Err()
	}
	if err != nil {
		return 0, err
	}
	n, err := s.c.nc.Read(p)
	s.credit -= n
	return n, err
}

// earn waits until there is something to spend.
func (s *streamSource) earn() error {
	const slice = 50 * time.Millisecond
	s.refill()
	for s.credit <= 0 {
		t := time.NewTimer(slice)
		select {
		case <-s.ctx.Done():
			t.Stop()
			return s.ctx.Err()
		case <-t.C:
		}
		s.refill()
	}
	return nil
}

func (s *streamSource) refill() {
	now := s.cfg.Now()
	gained := now.Sub(s.last).Seconds() * float64(s.cfg.StreamRate)
	s.last = now
	s.credit = min(s.cfg.MaxEvent, s.credit+int(min(gained, float64(s.cfg.MaxEvent))))
}
