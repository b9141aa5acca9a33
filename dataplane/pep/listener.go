package pep

import (
	"context"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
)

// listener is a stream on which a legacy server speaks unasked, for as long as a session may last. There are thousands of
// them, and mostly nothing is said: while that is so, it has no goroutine. What happens to it comes from elsewhere, each in
// a goroutine of its own: bytes of the upstream, the time for a comment, the end of the request's context, and, through
// listeners, a policy that was replaced and the end of the node. Where the upstream cannot be parked, one goroutine reads;
// where the front cannot be left, the handler waits.
type listener struct {
	x    *exchange
	resp *upstream.Response
	// end is called at the very end.
	end func()

	mu      sync.Mutex  // guards the exchange and what follows
	out     *sseWriter  //
	reading bool        // somebody reads, and ends the exchange when it is over
	over    bool        //
	alive   *time.Timer // a comment is due
	unbind  func() bool // of the context
}

// listenTo relays a stream that has no answer. It ends the exchange itself, at once or later.
func (x *exchange) listenTo(resp *upstream.Response) *answer {
	if err := x.record("", "ok", http.StatusOK); err != nil {
		resp.Close()
		x.p.log.Error("audit record lost", "error", err, "request_id", x.rec.GetId())
		return x.unaudited()
	}
	l := &listener{x: x, resp: resp, out: x.openStream()}
	var ended chan struct{}
	if finish, left := x.leaveOpen(); left {
		l.end = func() {
			x.release()
			finish()
		}
	} else {
		ended = make(chan struct{})
		l.end = func() { close(ended) }
	}
	l.begin()
	if ended != nil {
		<-ended
	}
	return nil
}

// leaveOpen lets the handler return while the answer goes on, where the front can do that. A request that is traced is
// followed to its end by its handler.
func (x *exchange) leaveOpen() (finish func(), left bool) {
	front, can := x.w.(interface{ Detach() (func(), bool) })
	if !can || x.traced != nil {
		return nil, false
	}
	if finish, left = front.Detach(); left {
		x.left = true
	}
	return finish, left
}

func (l *listener) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.x
	l.alive = time.AfterFunc(x.p.cfg.KeepAlive, l.comment)
	l.unbind = context.AfterFunc(x.ctx, l.cut)
	x.p.listeners.add(x.p, l)
	if !l.resp.Park(l.wake) {
		l.reading = true
		go l.read()
	}
	l.tell(l.look()) // the policy may have been replaced before the listeners had this one
}

// wake is called by the upstream's stream when it has something to read.
func (l *listener) wake() { go l.woken() }

func (l *listener) woken() {
	l.mu.Lock()
	l.reading = !l.over
	l.mu.Unlock()
	l.read()
}

func (l *listener) read() {
	for l.readOne() {
	}
}

// readOne relays one event. It reports whether to go on with the next one at once.
func (l *listener) readOne() bool {
	l.mu.Lock()
	goesOn := l.reading
	l.mu.Unlock()
	if !goesOn {
		return false
	}
	ev, err := l.resp.Events.Next()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.over:
		l.reading = false
		l.end()
		return false
	case err != nil || !l.event(ev):
		l.reading = false
		l.stop()
		return false
	}
	l.alive.Reset(l.x.p.cfg.KeepAlive)
	if l.resp.Park(l.wake) {
		l.reading = false
		return false
	}
	return true
}

// event relays one event. It reports whether more can come. It is called with mu held.
func (l *listener) event(ev mcp.Event) bool {
	x := l.x
	ev = x.cleanEvent(ev)
	if len(ev.Data) > 0 {
		m, refusal := x.p.framer.FrameAnswer(ev.Data)
		if refusal != nil {
			x.upstreamFailed(upstream.ErrProtocol) // says so in the log
			return false
		}
		if m.Kind == mcp.KindRequest {
			if reason := x.forbids(m.Method, m.Raw(m.Params)); reason != "" {
				x.refuseQuestion(&m, reason)
				return true
			}
		}
	}
	return l.out.send(ev.Raw)
}

// stop ends the stream. It is called with mu held.
func (l *listener) stop() {
	if l.over {
		return
	}
	l.over = true
	l.alive.Stop()
	l.unbind()
	l.x.p.listeners.remove(l)
	l.resp.Close() // whoever reads reads no more
	if !l.reading {
		l.end()
	}
}

func (l *listener) comment() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return
	}
	if !l.out.send([]byte(mcp.KeepAlive)) {
		l.stop()
		return
	}
	l.alive.Reset(l.x.p.cfg.KeepAlive)
}

func (l *listener) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stop()
}

// lookSoon looks, and tells, without waiting for anybody.
func (l *listener) lookSoon() {
	if !l.mu.TryLock() {
		go func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.tell(l.look())
		}()
		return
	}
	notices := l.look()
	if len(notices) == 0 {
		l.mu.Unlock()
		return
	}
	go func() {
		defer l.mu.Unlock()
		l.tell(notices)
	}()
}

// look holds the stream to the policy of now, and to the life of the node. It returns what the caller is to be told. It is
// called with mu held.
func (l *listener) look() (notices [][]byte) {
	x := l.x
	select {
	case <-x.p.draining:
		l.stop()
	default:
	}
	for !l.over {
		select {
		case <-x.state.Replaced():
		default:
			return notices
		}
		if x.recheck() != nil {
			x.life.end(errRevoked)
			l.stop()
			return nil
		}
		notices = append(notices, x.changes()...)
	}
	return nil
}

// tell is called with mu held.
func (l *listener) tell(notices [][]byte) {
	for _, n := range notices {
		if !l.over && !l.out.send(n) {
			l.stop()
		}
	}
}

// listeners are all of this node. One goroutine watches over them, while there are any.
type listeners struct {
	mu      sync.Mutex
	all     map[*listener]struct{} // guarded by mu
	watched bool                   // guarded by mu
	empty   chan struct{}          // gets a value when the last one has gone
}

func newListeners() *listeners {
	return &listeners{all: map[*listener]struct{}{}, empty: make(chan struct{}, 1)}
}

func (ls *listeners) add(p *PEP, l *listener) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.all[l] = struct{}{}
	if !ls.watched {
		ls.watched = true
		go ls.watch(p)
	}
}

func (ls *listeners) remove(l *listener) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	delete(ls.all, l)
	if len(ls.all) == 0 {
		select {
		case ls.empty <- struct{}{}:
		default:
		}
	}
}

// none reports whether there is none left, in which case nobody watches any more.
func (ls *listeners) none() bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.watched = len(ls.all) > 0
	if !ls.watched {
		ls.all = map[*listener]struct{}{} // a map never shrinks
	}
	return !ls.watched
}

// look has all of them look, on all processors: some are to be cut off.
func (ls *listeners) look() {
	ls.mu.Lock()
	all := slices.Collect(maps.Keys(ls.all))
	ls.mu.Unlock()
	var wg sync.WaitGroup
	for some := range slices.Chunk(all, len(all)/runtime.GOMAXPROCS(0)+1) {
		wg.Go(func() {
			for _, l := range some {
				l.lookSoon()
			}
		})
	}
	wg.Wait()
}

// watch tells the listeners of a policy that was replaced, and of the node's stopping.
func (ls *listeners) watch(p *PEP) {
	draining := p.draining
	for {
		state := p.policy.Current()
		ls.look()
		select {
		case <-state.Replaced():
		case <-draining:
			draining = nil
		case <-ls.empty:
			if ls.none() {
				return
			}
		}
	}
}
