package pep

import (
	"maps"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	"google.golang.org/protobuf/proto"
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
	packed  []byte      // what the exchange has for a record while nobody needs it; nil when it was not handed over
}

// listenTo relays a stream that has no answer. It ends the exchange itself, at once or later.
func (x *exchange) listenTo(resp *upstream.Response) *answer {
	if err := x.record("", "ok", http.StatusOK); err != nil {
		resp.Close()
		x.p.log.Error("audit record lost", "error", err, "request_id", x.rec.GetId())
		return x.unaudited()
	}
	l := &listener{x: x, resp: resp, out: x.openStream()}
	if finish := x.detach(); finish != nil {
		l.x, l.packed = x.handOver()
		l.end = func() {
			l.x.release()
			finish()
		}
		l.begin()
		return nil
	}
	ended := make(chan struct{})
	l.end = func() { close(ended) }
	l.begin()
	<-ended
	return nil
}

// detach lets the handler return while the answer goes on, where the front can do that. A request that is traced is followed
// to its end by its handler.
func (x *exchange) detach() (finish func()) {
	if front, can := x.w.(interface{ Detach() (func(), bool) }); can && x.traced == nil {
		finish, _ = front.Detach()
	}
	return finish
}

// handOver gives the request to somebody else than its handler: as a copy, so that the large piece of memory in which requests
// begin serves the next one. Without its record, which is packed, and headers for an upstream it takes little more than half.
func (x *exchange) handOver() (_ *exchange, packed []byte) {
	theirs := *x
	theirs.rec, theirs.parts, theirs.set = nil, nil, nil
	if packed = packRecord(x.rec); packed == nil {
		theirs.rec = proto.CloneOf(x.rec)
	}
	x.left = true
	return &theirs, packed
}

// packRecord returns nil when the record cannot be packed.
func packRecord(rec *auditv1.Record) []byte {
	b, err := proto.Marshal(rec)
	if err != nil {
		return nil
	}
	return b
}

// unpack gives the exchange a record. It is called with mu held, like pack, which takes it away.
func (l *listener) unpack() {
	if l.x.rec != nil {
		return
	}
	l.x.rec = &auditv1.Record{}
	if err := proto.Unmarshal(l.packed, l.x.rec); err != nil {
		l.x.p.log.Error("the record of a stream is lost", "error", err)
	}
}

func (l *listener) pack() {
	if l.packed != nil {
		l.x.rec = nil
	}
}

func (l *listener) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.x
	l.alive = time.AfterFunc(x.p.cfg.KeepAlive, l.comment)
	l.unbind = x.life.after(l.cut)
	x.p.listeners.add(x.p, l)
	if !l.resp.Park(l.wake) {
		l.reading = true
		go l.read()
	}
	l.tell(l.look()) // the policy may have been replaced before the listeners had this one
	if !l.reading {
		l.pack()
	}
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
		l.pack()
		return false
	}
	return true
}

// event relays one event. It reports whether more can come. It is called with mu held.
func (l *listener) event(ev mcp.Event) bool {
	x := l.x
	l.unpack()
	ev = x.cleanEvent(ev)
	if len(ev.Data) > 0 {
		m, refusal := x.p.framer.FrameAnswer(ev.Data)
		if refusal != nil {
			x.upstreamFailed(upstream.ErrProtocol) // says so in the log
			return false
		}
		if m.Kind == mcp.KindRequest {
			if reason := x.forbids(m.Method, m.Raw(m.Params)); reason != "" {
				l.refuse(&m, reason)
				return true
			}
		}
		if ev.Raw = x.taskNotice(&m, ev); ev.Raw == nil {
			return true
		}
	}
	return l.out.send(ev.Raw)
}

// refuse tells the server that its question is not put, with its credential of now.
func (l *listener) refuse(m *mcp.Message, reason string) {
	x := l.x
	x.set = http.Header{}
	leaks, err := x.p.credentials(x.ctx, x.state, x.tenant, x.server, x.set)
	if err != nil {
		x.p.log.Warn("a server was not told that its question is refused", "error", err, "request_id", x.rec.GetId())
		return
	}
	x.mustNotLeak(leaks)
	x.refuseQuestion(m, reason)
	x.set = nil
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
	if l.resp.Overdue() || !l.out.send([]byte(mcp.KeepAlive)) {
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
		l.unpack()
		if x.recheck() != nil {
			x.life.end(errRevoked)
			l.stop()
			return nil
		}
		notices = append(notices, x.changes()...)
		if l.packed != nil {
			l.packed = packRecord(x.rec)
		}
		if !l.reading {
			l.pack()
		}
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
