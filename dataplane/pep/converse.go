package pep

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/bridge"
	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/dataplane/veneer"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	"google.golang.org/protobuf/proto"
)

// gatherTime is how long a question waits for others that the server asks along with it, before they go to a modern client
// as one round.
const gatherTime = 20 * time.Millisecond

// conversation is one request to an upstream and all that comes back. It outlives the exchange that began it when the
// upstream asks something that a modern client will answer with its next request.
type conversation struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	// detach stops the exchange's end from ending the conversation.
	detach func() bool
	resp   *upstream.Response
	pump   *pump
	stop   sync.Once
	// sent brings the response when the request was made by a goroutine of its own; nil after that.
	sent chan sent
	// place is where the answer's stream has come to; rounds counts how often it was taken up again.
	place  resumption
	rounds int
	// up is the legacy session that it is in.
	up     session.Upstream
	wireID []byte
	// asides are what the server says on the session's own stream, where that is heard.
	asides chan []byte
	// leave is called at the end; it may be nil.
	leave func()
	// asked are the questions that the client has not answered, count all there were.
	asked []bridge.Question
	count int
	// request is the digest of what was asked; rec is what the record of an abandoned conversation is made of, set what is
	// said to the upstream then.
	request [32]byte
	rec     *auditv1.Record
	set     http.Header
	leaks   [][]byte
}

// converse begins a conversation that ends with the exchange.
func (x *exchange) converse() *conversation {
	c := &conversation{wireID: x.wireID}
	c.ctx, c.cancel = context.WithCancelCause(context.WithoutCancel(x.ctx))
	x.attach(c)
	return c
}

func (x *exchange) attach(c *conversation) {
	c.detach = context.AfterFunc(x.ctx, func() { c.cancel(x.life.cause()) })
}

// send sends the body to the server of the exchange. Where the server may ask on the session's stream before it answers, the
// answer is not waited for.
func (c *conversation) send(x *exchange, body []byte) *answer {
	if c.asides != nil {
		c.start(x.p.up, 0, &upstream.Request{URL: x.server.URL, Method: http.MethodPost, Set: x.set, Body: body, Header: x.r.Header.Clone()})
		return nil
	}
	resp, a := x.sendIn(c.ctx, &upstream.Request{Method: http.MethodPost, Body: body, Header: x.r.Header})
	if a != nil {
		return a
	}
	c.resp = resp
	if resp.Events != nil {
		c.pump = startPump(c.ctx, resp.Events)
	}
	return nil
}

// sent is what became of a request.
type sent struct {
	resp *upstream.Response
	err  error
}

// start makes a request beside what else is heard meanwhile, after a pause.
func (c *conversation) start(up Upstream, after time.Duration, req *upstream.Request) {
	c.sent = make(chan sent, 1)
	go func() {
		if after > 0 {
			pause(c.ctx, after)
		}
		resp, err := up.Do(c.ctx, req)
		c.sent <- sent{resp, err}
	}()
}

// close ends the conversation and waits for what it started.
func (c *conversation) close() {
	c.stop.Do(func() {
		c.detach()
		c.cancel(nil)
		if c.sent != nil {
			if r := <-c.sent; r.resp != nil {
				r.resp.Close()
			}
		}
		if c.resp != nil {
			c.resp.Close()
		}
		if c.pump != nil {
			<-c.pump.done
		}
		if c.leave != nil {
			c.leave()
		}
	})
}

// hear returns the upstream's answer. On the way it passes notices on to the caller and sees to what the server asks; when
// that is for a modern client to answer in a further round, it returns nothing at all, with the questions in c.asked.
func (x *exchange) hear(c *conversation) (*mcp.Message, *answer) {
	if c.sent == nil && c.pump == nil {
		return x.entire(c)
	}
	caller := x.caller()
	alive := time.NewTicker(x.p.cfg.KeepAlive)
	defer alive.Stop()
	var gathered <-chan time.Time
	for {
		var events <-chan mcp.Event
		if c.sent == nil {
			events = c.pump.events
		}
		if len(c.asked) > 0 && gathered == nil {
			gathered = time.After(gatherTime)
		}
		select {
		case r := <-c.sent:
			c.sent = nil
			m, a := x.arrived(c, r)
			if m != nil || a != nil {
				return m, a
			}
		case ev, more := <-events:
			if !more {
				if a := x.takeUp(c); a != nil {
					return nil, a
				}
				continue
			}
			c.place.note(ev)
			m, a := x.heard(c, caller, ev)
			if m != nil || a != nil {
				x.drain(c.pump)
				return m, a
			}
			c.pump.taken <- struct{}{}
		case raw := <-c.asides:
			if _, a := x.heard(c, caller, mcp.Event{Raw: raw, Data: raw}); a != nil {
				return nil, a
			}
		case <-gathered:
			return nil, nil
		case <-alive.C:
			if !x.say([]byte(mcp.KeepAlive)) {
				return nil, x.callerGone()
			}
		case <-x.ctx.Done():
			return nil, x.upstreamFailed(x.ctx.Err())
		}
	}
}

// entire is an answer that is no stream.
func (x *exchange) entire(c *conversation) (*mcp.Message, *answer) {
	m, refusal := x.p.framer.FrameAnswer(c.resp.Body)
	if refusal == nil && x.answers(&m) {
		return &m, nil
	}
	if c.resp.Status == http.StatusNotFound && c.up.URL != "" {
		a := x.fail(mcp.CodeServer, "upstream_session_lost", "the server no longer knows the session; the call was not made, try again", true)
		a.outcome = "refused"
		return nil, a
	}
	return nil, x.upstreamFailed(upstream.ErrProtocol)
}

// arrived takes the response to a request that was made beside. Nothing at all means that its events are to be heard.
func (x *exchange) arrived(c *conversation, r sent) (*mcp.Message, *answer) {
	resp, a := x.came(r.resp, r.err)
	if a != nil {
		return nil, a
	}
	c.resp, c.pump = resp, nil
	switch {
	case resp.Events != nil:
		c.pump = startPump(c.ctx, resp.Events)
		if c.rounds > 0 {
			x.extend(x.p.cfg.CallTimeout)
		}
		return nil, nil
	case c.rounds > 0:
		return nil, x.brokeOff(upstream.ErrBroken) // the server does not go on with it
	}
	return x.entire(c)
}

// maxTakenUp bounds how often one answer is asked for again.
const maxTakenUp = 256

// takeUp asks for the rest of an answer whose stream has ended before it, where the server gave its events names: it may close
// a stream on purpose and say when to come back (2025-11-25, transports: resumability). The request itself is not made again.
func (x *exchange) takeUp(c *conversation) *answer {
	err := c.pump.err
	if c.up.URL == "" || c.place.last == "" || c.rounds == maxTakenUp || x.ctx.Err() != nil || errors.Is(err, mcp.ErrEventTooLarge) {
		return x.brokeOff(err)
	}
	c.rounds++
	c.resp.Close()
	set := maps.Clone(x.set)
	c.place.header(set)
	c.start(x.p.up, c.place.wait(0), &upstream.Request{URL: x.server.URL, Method: http.MethodGet, Set: set, Long: true})
	return nil
}

// brokeOff is what is said of a stream that ended before its answer.
func (x *exchange) brokeOff(err error) *answer {
	switch {
	case x.ctx.Err() != nil:
		err = x.ctx.Err()
	case !errors.Is(err, mcp.ErrEventTooLarge):
		err = upstream.ErrBroken
	}
	return x.upstreamFailed(err)
}

// heard sees to one event; it returns the answer when that is what it is.
func (x *exchange) heard(c *conversation, caller *bridge.Caller, ev mcp.Event) (*mcp.Message, *answer) {
	if len(ev.Data) == 0 {
		return nil, nil
	}
	ev = x.cleanEvent(ev)
	m, refusal := x.p.framer.FrameAnswer(bytes.Clone(ev.Data))
	switch {
	case refusal != nil, m.Kind == mcp.KindResponse && !x.answers(&m):
		return nil, x.upstreamFailed(upstream.ErrProtocol)
	case m.Kind == mcp.KindResponse:
		return &m, nil
	case m.Kind == mcp.KindRequest:
		return nil, x.questioned(c, &m)
	}
	x.extend(x.p.cfg.CallTimeout)
	if raw, theirs := caller.Notice(&m, c.wireID); theirs && !x.say(mcp.AppendEvent(nil, oneLine(raw))) {
		return nil, x.callerGone()
	}
	return nil, nil
}

// questioned sees to a legacy server's request: it goes to the client when that said that it can answer, and is declined
// otherwise.
func (x *exchange) questioned(c *conversation, m *mcp.Message) *answer {
	switch {
	case c.up.URL == "":
		return x.upstreamFailed(upstream.ErrProtocol) // a modern server asks with its answer only
	case m.Method == mcp.MethodPing:
		_ = x.tell(c.up, mcp.AppendEmptyResult(nil, m.ID, mcp.EraLegacy))
		return nil
	case !x.offers().Answers(m.Method, m.Raw(m.Params)):
		return x.decline(c, m)
	}
	if x.forbids(m.Method, m.Raw(m.Params)) != "" {
		return x.decline(c, m)
	}
	q := bridge.Question{ID: m.ID, Method: m.Method, Params: m.Raw(m.Params)}
	if x.era == mcp.EraModern {
		if !bridge.MayAsk(x.msg.Method) || len(c.asked) == bridge.MaxQuestions || !x.p.parked.Room(x.owner) {
			return x.decline(c, m)
		}
		c.count++
		q.Key = mcp.AppendString(nil, "q"+strconv.Itoa(c.count))
		c.asked = append(c.asked, q)
		return nil
	}
	p, up, set := x.p, c.up, x.set
	id, room := x.dialogue().Ask(func(ctx context.Context, r *mcp.Message) {
		body := veneer.Apply(r.Body, veneer.Splice{At: r.IDSpan(), With: q.ID})
		if err := p.tell(ctx, up, set, body); err != nil {
			p.log.Warn("answer to a server's request lost", "error", err)
		}
	})
	if !room {
		return x.decline(c, m)
	}
	x.extend(x.p.cfg.MaxCall) // a person may have to answer
	if !x.say(mcp.AppendEvent(nil, oneLine(bridge.AppendQuestion(nil, id, &q)))) {
		return x.callerGone()
	}
	return nil
}

// decline tells a server that its request is not answered here.
func (x *exchange) decline(c *conversation, m *mcp.Message) *answer {
	_ = x.tell(c.up, mcp.AppendError(nil, m.ID, mcp.CodeMethodNotFound, "not offered", nil))
	return nil
}

// askClient puts the questions of a modern server to a legacy client, on the stream of its request, and returns the answers
// as the upstream wants them.
func (x *exchange) askClient(asked []bridge.Question) ([]byte, *answer) {
	offers := x.offers()
	for i := range asked {
		if !offers.Answers(asked[i].Method, asked[i].Params) {
			return nil, x.fail(mcp.CodeServer, "era_mismatch", "the server asks for something that this client did not say it can give", false)
		}
	}
	if len(asked) == 0 {
		return nil, x.idle()
	}
	type reply struct {
		n int
		m *mcp.Message
	}
	replies := make(chan reply, len(asked))
	var ids []string
	defer func() {
		for _, id := range ids {
			x.dialogue().Answered(id) // nobody waits for it any more
		}
	}()
	d := x.dialogue()
	x.extend(x.p.cfg.MaxCall) // a person may have to answer
	for i := range asked {
		id, room := d.Ask(func(_ context.Context, m *mcp.Message) { replies <- reply{i, m} })
		if !room {
			return nil, x.fail(mcp.CodeServer, "too_many_questions", "too many questions to this client are open", true)
		}
		ids = append(ids, id)
		if !x.say(mcp.AppendEvent(nil, oneLine(bridge.AppendQuestion(nil, id, &asked[i])))) {
			return nil, x.callerGone()
		}
	}
	answers := make([][]byte, len(asked))
	alive := time.NewTicker(x.p.cfg.KeepAlive)
	defer alive.Stop()
	for left := len(asked); left > 0; {
		select {
		case r := <-replies:
			result := r.m.Raw(r.m.Result)
			if result == nil {
				var said bool
				if result, said = bridge.Refusal(asked[r.n].Method); !said {
					return nil, x.fail(mcp.CodeServer, "input_refused", "the client did not answer what the server asked", false)
				}
			}
			answers[r.n] = result
			left--
		case <-alive.C:
			if !x.say([]byte(mcp.KeepAlive)) {
				return nil, x.callerGone()
			}
		case <-x.ctx.Done():
			return nil, x.upstreamFailed(x.ctx.Err())
		}
	}
	x.extend(x.p.cfg.CallTimeout)
	return bridge.AppendResponses(nil, asked, answers), nil
}

// idleRound is the pause before a request is made again that the upstream has put off.
const idleRound = time.Second

func (x *exchange) idle() *answer {
	pause(x.ctx, idleRound)
	if x.ctx.Err() != nil {
		return x.upstreamFailed(x.ctx.Err())
	}
	return nil
}

// say sends an event to the caller; the first one opens the stream.
func (x *exchange) say(event []byte) bool {
	if x.out == nil {
		x.out = x.openStream()
		x.lasts()
	}
	return x.out.send(event)
}

// callerGone ends an exchange whose caller does not listen.
func (x *exchange) callerGone() *answer {
	x.life.end(nil)
	return &answer{silent: true, reason: "client_gone", outcome: "canceled", status: 499}
}

// conclude ends the exchange with an answer: on its stream, when one was opened.
func (x *exchange) conclude(a *answer) *answer {
	switch {
	case a == nil:
		return nil
	case x.out == nil && errors.Is(x.life.cause(), errCancelled):
		x.out = x.openStream() // which ends without an answer, as a cancelled request does
	case x.out == nil:
		return a
	}
	if err := x.record(a.reason, a.outcome, http.StatusOK); err != nil {
		x.p.log.Error("audit record lost", "error", err, "request_id", x.rec.GetId())
		a = x.unaudited()
	}
	if !a.silent {
		x.out.send(mcp.AppendEvent(nil, oneLine(a.body)))
	}
	return nil
}

// park keeps a conversation for the client's next request and answers this one with the questions.
func (x *exchange) park(c *conversation) *answer {
	if !c.detach() {
		return x.upstreamFailed(context.Canceled)
	}
	c.request, c.set, c.leaks = x.requestDigest(), x.set, x.leaks
	c.rec = proto.Clone(x.rec).(*auditv1.Record)
	s := bridge.State{
		Until: x.p.cfg.Now().Add(x.p.cfg.InputWait), Owner: x.owner, Request: c.request, Node: x.p.cfg.Node,
	}
	_, _ = rand.Read(s.Nonce[:])
	body := bridge.AppendInputRequired(nil, x.msg.ID, c.asked, x.p.sessions.SealState(s.Append(nil)))
	if !x.p.parked.Put(s.Nonce, x.owner, s.Until, c) {
		x.attach(c)
		return x.fail(mcp.CodeServer, "too_many_questions", "too many calls wait for the client's input", true)
	}
	a := ok(body)
	a.outcome = outcomeInput
	return a
}

// requestDigest tells this request from all others that a parked conversation could be for.
func (x *exchange) requestDigest() [32]byte {
	return bridge.Digest(x.msg.Raw(x.msg.Arguments), string(x.tenant.ID), x.route.server, x.server.Name, x.server.VersionDigest.String(),
		x.msg.Method, x.msg.Name)
}

// nextRound hands a modern client's answers to the legacy server that asked, and hears it out. It returns nothing when the call
// is to be made again.
func (x *exchange) nextRound() *answer {
	text, _ := x.msg.Text(x.msg.RequestState)
	plain, err := x.p.sessions.OpenState(text)
	s, whole := bridge.ParseState(plain)
	switch {
	case err != nil || !whole || s.Owner != x.owner || s.Request != x.requestDigest() || !x.p.cfg.Now().Before(s.Until):
		return x.stateInvalid()
	case s.Node != "" && s.Node != x.p.cfg.Node:
		return x.fail(mcp.CodeServer, "other_node", "the call that this answers waits on node "+clean(s.Node)+" of the cell: send it there, or make the call anew", false)
	}
	given := map[string][]byte{}
	params := mcp.Message{Body: x.msg.Raw(x.msg.Params)}
	for key, raw := range mcp.RawMembers(params.Raw(mcp.Member(params.Body, "inputResponses"))) {
		given[key] = raw
	}
	if s.Node == "" {
		return x.afterURLs(int(s.Asked), given)
	}
	unasked := false
	c, found, fit := x.p.parked.Take(s.Nonce, func(c *conversation) bool {
		left := len(given)
		for i := range c.asked {
			if raw := given[c.asked[i].Name()]; raw != nil && raw[0] == '{' {
				left--
			}
		}
		unasked = left > 0
		return !unasked
	})
	switch {
	case !found:
		return x.stateInvalid()
	case !fit:
		return x.inputUnasked()
	}
	x.wireID, x.leaks = c.wireID, append(x.leaks, c.leaks...)
	merge(x.set, sessionHeader(c.up.ID, c.up.Revision))
	x.attach(c)
	var left []bridge.Question
	for _, q := range c.asked {
		raw := given[q.Name()]
		if raw == nil {
			left = append(left, q)
			continue
		}
		if err := x.tell(c.up, bridge.AppendReply(nil, q.ID, raw)); err != nil {
			c.close()
			return x.upstreamFailed(err)
		}
	}
	if c.asked = left; len(left) > 0 {
		if a := x.park(c); a.outcome == outcomeInput {
			return a
		}
	}
	return x.hearLegacy(c)
}

func (x *exchange) inputUnasked() *answer {
	return x.reject(http.StatusBadRequest, mcp.CodeInvalidParams, "input_unasked", "inputResponses answers something that was not asked, or not with an object")
}

// stateInvalid is the answer to every requestState that is not good for this request, whatever is wrong with it.
func (x *exchange) stateInvalid() *answer {
	return x.reject(http.StatusBadRequest, mcp.CodeInvalidParams, "request_state_invalid", "this requestState is not of this request, or no longer: make the call anew")
}

// abandon ends parked conversations whose clients did not come back, and records that.
func (p *PEP) abandon(calls []*conversation) {
	for _, c := range calls {
		p.tellCancelled(c.up, c.set, c.wireID)
		c.close()
		rec := c.rec
		rec.Id, rec.IntentId = p.audit.NewID(), ""
		rec.Kind, rec.TimeMs = auditv1.RecordKind_RECORD_KIND_CALL, p.cfg.Now().UnixMilli()
		rec.Detail, rec.Outcome = "input_abandoned", "canceled"
		if err := p.audit.Append(rec); err != nil {
			p.log.Error("audit record lost", "error", err, "request_id", rec.GetId())
		}
	}
}

// tellCancelled tells a legacy upstream that nobody waits for the answer to a request.
func (p *PEP) tellCancelled(up session.Upstream, set http.Header, id []byte) {
	ctx, cancel := context.WithTimeout(context.Background(), cancelTime)
	defer cancel()
	if err := p.tell(ctx, up, set, bridge.AppendCancelled(nil, id, "the client no longer waits")); err != nil {
		p.log.Warn("cancellation lost", "error", err)
	}
}

// cancelTime bounds the telling of an upstream that nobody waits.
const cancelTime = 2 * time.Second
