package pep

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/snapshot"
)

const (
	// earTime is how long a call waits for the stream on which its server may ask.
	earTime = time.Second
	// earLinger is how long such a stream outlasts the last call that it was opened for; the memory of a server that has none
	// lasts ten times as long.
	earLinger = 30 * time.Second
	// maxEars bounds these streams on a node; calls beyond it are made without.
	maxEars = 4096
	// maxAsides bounds what waits of a server for one call.
	maxAsides = 16
)

// ears are the streams (GET) on which legacy servers speak unasked. There is one for each session of the gateway's own that
// has a call under way whose caller can be asked something: some servers put their questions there, whatever call they are
// about. They say not which one that is: a question goes to the call that began last, so that the one call there mostly is
// gets it, and always to the session's principal.
type ears struct {
	p   *PEP
	mu  sync.Mutex
	all map[session.Upstream]*ear // guarded by mu
	wg  sync.WaitGroup
}

type ear struct {
	up     session.Upstream
	cancel context.CancelFunc
	// ready is closed when the stream is open, or when no more is to be waited for it.
	ready chan struct{}
	open  sync.Once
	// calls are those under way, in the order in which they began. Guarded by ears.mu, like deaf.
	calls  []*conversation
	linger *time.Timer
	// deaf: the server has no such stream.
	deaf bool
}

func newEars(p *PEP) *ears { return &ears{p: p, all: map[session.Upstream]*ear{}} }

// join opens the stream of the conversation's session, if it is not, and waits for it as long as a call may.
func (e *ears) join(ctx context.Context, c *conversation) {
	e.mu.Lock()
	one := e.all[c.up]
	if one == nil {
		if len(e.all) >= maxEars {
			e.mu.Unlock()
			return
		}
		one = &ear{up: c.up, ready: make(chan struct{})}
		var life context.Context
		life, one.cancel = context.WithCancel(context.Background())
		e.all[c.up] = one
		e.wg.Go(func() { e.listen(life, one) })
	}
	c.asides = make(chan []byte, maxAsides)
	c.leave = func() { e.leave(one, c) }
	one.calls = append(one.calls, c)
	e.mu.Unlock()
	late := time.NewTimer(earTime)
	defer late.Stop()
	select {
	case <-one.ready:
	case <-late.C:
		one.opened() // nobody else waits for it
	case <-ctx.Done():
	}
}

// opened ends the wait for the stream.
func (one *ear) opened() { one.open.Do(func() { close(one.ready) }) }

// leave takes a conversation out and declines what it has not seen to. The stream ends a while after the last one.
func (e *ears) leave(one *ear, c *conversation) {
	e.mu.Lock()
	one.calls = slices.DeleteFunc(one.calls, func(other *conversation) bool { return other == c })
	if len(one.calls) == 0 {
		e.lingerOn(one)
	}
	e.mu.Unlock()
	for {
		select {
		case raw := <-c.asides:
			if m, refusal := e.p.framer.FrameAnswer(raw); refusal == nil && m.Kind == mcp.KindRequest {
				e.decline(c.up, &m)
			}
		default:
			return
		}
	}
}

// lingerOn needs mu.
func (e *ears) lingerOn(one *ear) {
	wait := earLinger
	if one.deaf {
		wait = 10 * earLinger
	}
	one.unlinger()
	one.linger = time.AfterFunc(wait, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if len(one.calls) == 0 && e.all[one.up] == one {
			delete(e.all, one.up)
			one.cancel()
		}
	})
}

// unlinger needs mu.
func (one *ear) unlinger() {
	if one.linger != nil {
		one.linger.Stop()
	}
}

// end closes the stream of a session that is over.
func (e *ears) end(up session.Upstream) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if one := e.all[up]; one != nil {
		delete(e.all, up)
		one.unlinger()
		one.cancel()
	}
}

// close closes all and waits.
func (e *ears) close() {
	e.mu.Lock()
	for up, one := range e.all {
		delete(e.all, up)
		one.unlinger()
		one.cancel()
	}
	e.mu.Unlock()
	e.wg.Wait()
}

// listen hears what the server says until nobody is there to answer it any more. A stream that ends is opened anew, as the
// server said when, from where it had come to.
func (e *ears) listen(ctx context.Context, one *ear) {
	defer one.opened()
	var place resumption
	for tries := 0; ctx.Err() == nil; tries++ {
		resp, err := e.ask(ctx, one.up, &place)
		switch {
		case err != nil:
		case resp.Events == nil:
			resp.Close()
			e.mu.Lock()
			one.deaf = true
			e.mu.Unlock()
			return
		default:
			tries = 0
			one.opened()
			e.hear(one, resp, &place)
			resp.Close()
		}
		if errors.Is(err, errRevoked) {
			return
		}
		pause(ctx, place.wait(tries))
	}
}

// ask opens the stream, by the policy of now.
func (e *ears) ask(ctx context.Context, up session.Upstream, place *resumption) (*upstream.Response, error) {
	state := e.p.policy.Current()
	t := state.Tenant(snapshot.TenantID(up.Tenant))
	if t == nil {
		return nil, errRevoked
	}
	s, exists := t.Server(up.Server)
	if !exists || s.URL != up.URL {
		return nil, errRevoked
	}
	set := sessionHeader(up.ID, up.Revision)
	if _, err := e.p.credentials(ctx, state, t, s, set); err != nil {
		return nil, err
	}
	place.header(set)
	return e.p.up.Do(ctx, &upstream.Request{URL: up.URL, Method: http.MethodGet, Set: set, Long: true})
}

// hear hands on what comes on an open stream, until it ends.
func (e *ears) hear(one *ear, resp *upstream.Response, place *resumption) {
	for {
		ev, err := resp.Events.Next()
		if err != nil {
			return
		}
		place.note(ev)
		if len(ev.Data) == 0 {
			continue
		}
		raw := bytes.Clone(ev.Data)
		m, refusal := e.p.framer.FrameAnswer(raw)
		if refusal != nil || m.Kind == mcp.KindResponse {
			continue
		}
		if !e.hand(one, &m, raw) && m.Kind == mcp.KindRequest {
			e.decline(one.up, &m)
		}
	}
}

// hand gives a message to the call that it is for; false when there is none.
func (e *ears) hand(one *ear, m *mcp.Message, raw []byte) bool {
	if m.Kind == mcp.KindNotification && m.Method != mcp.MethodProgress && m.Method != mcp.MethodMessage {
		return false // of changes the gateway tells itself
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range slices.Backward(one.calls) {
		if m.Method == mcp.MethodProgress && !bytes.Equal(progressOf(m), c.wireID) {
			continue
		}
		select {
		case c.asides <- raw:
			return true
		default:
			return false
		}
	}
	return false
}

// progressOf is the raw token that a progress notice names.
func progressOf(m *mcp.Message) []byte {
	params := m.Raw(m.Params)
	at := mcp.Member(params, "progressToken")
	if !at.Present() {
		return nil
	}
	return params[at.Start:at.End]
}

// decline tells a server that nobody is there to answer, unless it only asks whether anybody is.
func (e *ears) decline(up session.Upstream, m *mcp.Message) {
	body := mcp.AppendError(nil, m.ID, mcp.CodeMethodNotFound, "not offered", nil)
	if m.Method == mcp.MethodPing {
		body = mcp.AppendEmptyResult(nil, m.ID, mcp.EraLegacy)
	}
	ctx, cancel := context.WithTimeout(context.Background(), cancelTime)
	defer cancel()
	set := http.Header{}
	state := e.p.policy.Current()
	if t := state.Tenant(snapshot.TenantID(up.Tenant)); t != nil {
		if s, exists := t.Server(up.Server); exists {
			if _, err := e.p.credentials(ctx, state, t, s, set); err != nil {
				return
			}
		}
	}
	if err := e.p.tell(ctx, up, set, body); err != nil {
		e.p.log.Debug("a server's request was not answered", "server", up.Server, "error", err)
	}
}

// resumption is where a stream has come to, and when its server wants to be asked for the rest.
type resumption struct {
	last  string
	retry time.Duration
}

func (r *resumption) note(ev mcp.Event) {
	if ev.Retry > 0 {
		r.retry = ev.Retry
	}
	if len(ev.ID) > 0 && len(ev.ID) <= maxEventID && printable(string(ev.ID)) {
		r.last = string(ev.ID)
	}
}

// header adds the place to a request for the rest.
func (r *resumption) header(set http.Header) {
	if r.last != "" {
		set[mcp.HeaderLastEventID] = []string{r.last}
	}
}

// The pauses before a stream is opened anew.
const (
	defaultRetry = time.Second
	minRetry     = 100 * time.Millisecond
	maxRetry     = 30 * time.Second
)

// wait is the pause before the next try: what the server asked for, and the longer the more tries in a row have failed. Some
// of it is chance, so that many do not come at once.
func (r *resumption) wait(failed int) time.Duration {
	d := r.retry
	if d == 0 {
		d = defaultRetry
	}
	d = max(d, minRetry) << min(failed, 8)
	if d > maxRetry {
		d = maxRetry
	}
	return d + rand.N(d/4+1) //nolint:gosec // a pause
}

// pause waits, unless the context ends before.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
