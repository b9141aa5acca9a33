package devmode

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/kit/problem"
)

// links carry what the nodes say to each other and to the control plane, byte for byte, so that it can be cut or delayed, each
// direction by itself. TLS runs through them from end to end.
//
// A direction that is cut is like a network that drops packets: what is on the way waits, and what waits arrives when the
// direction is open again, unless whoever waits for it has given up.
type links struct {
	// addrs are where the caller reaches a listener of somebody else.
	addrs map[route]string
	ways  map[way]*passage
	open  []*relay
}

// route is a caller's way to one listener, host:port.
type route struct{ caller, listener string }

// way is one direction between two processes.
type way struct{ from, to string }

// relay is one listener.
type relay struct {
	l          net.Listener
	target     string
	there, and *passage
}

func newLinks() *links { return &links{addrs: map[route]string{}, ways: map[way]*passage{}} }

// passage returns the state of a direction.
func (l *links) passage(from, to string) *passage {
	w := way{from, to}
	if l.ways[w] == nil {
		l.ways[w] = newPassage()
	}
	return l.ways[w]
}

// add makes a link from a caller to a listener of somebody; reserved are ports that others will listen on.
func (l *links) add(caller, callee, listener string, reserved func(port int) bool) error {
	ln, err := listenOutside(reserved)
	if err != nil {
		return fmt.Errorf("make a link from %s to %s: %w", caller, callee, err)
	}
	l.addrs[route{caller, listener}] = ln.Addr().String()
	l.open = append(l.open, &relay{ln, listener, l.passage(caller, callee), l.passage(callee, caller)})
	return nil
}

// listenOutside takes any free port on loopback but those that are spoken for.
func listenOutside(reserved func(port int) bool) (net.Listener, error) {
	const tries = 1000
	for range tries {
		ln, err := listen(0)
		if err != nil {
			return nil, err
		}
		if a, ok := ln.Addr().(*net.TCPAddr); ok && !reserved(a.Port) {
			return ln, nil
		}
		_ = ln.Close()
	}
	return nil, errors.New("no port is free")
}

// through is where the caller reaches a listener.
func (l *links) through(caller, listener string) string {
	if a, ok := l.addrs[route{caller, listener}]; ok {
		return a
	}
	return listener
}

// run serves all links in the background.
func (l *links) run(bg *background) {
	for _, r := range l.open {
		bg.run(r.serve)
	}
}

// serve relays connections until ctx ends, and returns when all of them are closed.
func (r *relay) serve(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { _ = r.l.Close() })
	defer stop()
	for {
		caller, err := r.l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return problem.New(problem.Internal, "a link has ended", "start again").Because(err)
		}
		wg.Go(func() { r.carry(ctx, caller) })
	}
}

// carry is the life of one connection.
func (r *relay) carry(ctx context.Context, caller net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	there := newPipe(caller, r.there)
	callee, err := r.reach(ctx, there)
	if err != nil {
		reset(caller)
		there.drop()
		return
	}
	back := newPipe(callee, r.and)
	end := sync.OnceFunc(func() { _, _ = caller.Close(), callee.Close() })
	defer end()
	defer context.AfterFunc(ctx, end)()
	var wg sync.WaitGroup
	wg.Go(func() { r.pour(ctx, there, callee, r.and) })
	wg.Go(func() { r.pour(ctx, back, caller, r.there) })
	wg.Wait()
}

// reach connects once packets pass in both directions, as a handshake of TCP needs, unless the caller gives up.
func (r *relay) reach(ctx context.Context, there *pipe) (net.Conn, error) {
	for _, p := range []*passage{r.there, r.and} {
		if !p.wait(ctx, there.broken) {
			return nil, errGone
		}
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", r.target)
}

var errGone = errors.New("the caller has gone")

// pour brings what one side says to the other. When the other has gone, the first hears so as soon as packets pass to it.
func (r *relay) pour(ctx context.Context, p *pipe, to net.Conn, opposite *passage) {
	if p.deliver(ctx, to) {
		if c, ok := to.(*net.TCPConn); ok {
			_ = c.CloseWrite() // It may have gone.
		}
		return
	}
	opposite.wait(ctx, nil)
	reset(p.from)
	p.drop()
}

// reset closes a connection as a system does whose process has died.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // It may be closed.
	}
	_ = c.Close()
}

// piece is what was read at once.
type piece struct {
	read time.Time
	b    []byte
}

const (
	pieceBytes = 16 << 10
	// maxPieces bounds what is on the way; then whoever sends has to wait, as with any full window.
	maxPieces = 1024
)

// pipe holds what one side has said and the other has not heard.
type pipe struct {
	from net.Conn
	p    *passage
	way  chan piece
	// broken is closed when nothing more comes.
	broken chan struct{}
}

// newPipe begins to read.
func newPipe(from net.Conn, p *passage) *pipe {
	c := &pipe{from: from, p: p, way: make(chan piece, maxPieces), broken: make(chan struct{})}
	go c.read()
	return c
}

func (c *pipe) read() {
	defer close(c.way)
	defer close(c.broken)
	buf := make([]byte, pieceBytes)
	for {
		n, err := c.from.Read(buf)
		if n > 0 {
			c.way <- piece{time.Now(), append([]byte(nil), buf[:n]...)}
		}
		if err != nil {
			return
		}
	}
}

// deliver writes what was said, each piece when it is due, and then returns true; false when the other side takes nothing or
// ctx has ended.
func (c *pipe) deliver(ctx context.Context, to net.Conn) bool {
	for p := range c.way {
		if !c.p.due(ctx, p.read) {
			return false
		}
		if _, err := to.Write(p.b); err != nil {
			return false
		}
	}
	return c.p.due(ctx, time.Time{})
}

// drop lets the reader end; the connection is closed already.
func (c *pipe) drop() {
	for range c.way {
		continue
	}
}

// passage is how bytes get from one process to another.
type passage struct {
	mu      sync.Mutex // guards what follows
	cut     bool
	delay   time.Duration
	changed chan struct{} // closed when one of them changes
}

func newPassage() *passage { return &passage{changed: make(chan struct{})} }

func (p *passage) set(cut bool, delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut == cut && p.delay == delay {
		return
	}
	p.cut, p.delay = cut, delay
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *passage) look() (cut bool, delay time.Duration, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cut, p.delay, p.changed
}

// wait returns true once the passage is open; false when gone is closed or ctx ends first.
func (p *passage) wait(ctx context.Context, gone <-chan struct{}) bool {
	for {
		cut, _, changed := p.look()
		if !cut {
			return true
		}
		select {
		case <-changed:
		case <-gone:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// due waits until what was said at a time arrives; false when ctx ends first.
func (p *passage) due(ctx context.Context, said time.Time) bool {
	for {
		cut, delay, changed := p.look()
		rest := time.Until(said.Add(delay))
		if !cut && rest <= 0 {
			return true
		}
		var arrives <-chan time.Time
		if !cut {
			arrives = time.After(rest)
		}
		select {
		case <-arrives:
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}
