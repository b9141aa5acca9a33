package pep

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/bridge"
	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/resume"
	"github.com/mcpvault/mcpvault/dataplane/session"
)

// A legacy client that loses a stream which the gateway itself makes can take it up again, on the node that made it: its events
// have ids, sealed and bound to session and stream, and are kept for a while. A request goes on meanwhile: in these revisions a
// lost connection is no cancellation. Streams that are relayed are their servers' to resume; modern ones cannot be.

// tape keeps what is said on a stream.
type tape struct {
	*resume.Stream
	reading *resume.Reading
	id      func(number uint64) string
	// answer: the stream brings the answer to a request, which goes on without a reader.
	answer bool
	off    bool
}

// resumable reports whether the caller can come back for the rest of a stream.
func (x *exchange) resumable() bool { return x.era == mcp.EraLegacy && x.owned && x.sessionID != "" }

// keep has what is sent on a stream kept, and tells a client of 2025-11-25 at once from where to come back.
func (x *exchange) keep(out *sseWriter, s *resume.Stream, r *resume.Reading, answer bool) {
	e := session.Event{Session: s.Name().Session, Stream: s.Name().Number, Answer: answer, Node: x.p.cfg.Node}
	id := func(number uint64) string {
		e.Number = number
		return x.p.sessions.SealEvent(e)
	}
	out.tape = &tape{Stream: s, reading: r, id: id, answer: answer}
	if x.revision == mcp.Rev20251125 {
		out.write([]byte("id: " + id(s.Next()-1) + "\ndata: \n\n"))
	}
}

// send keeps an event and puts it on the wire, while that is there and nobody else has come for the stream. It reports whether
// the writer is to go on.
func (t *tape) send(out *sseWriter, event []byte) bool {
	if event[0] != ':' {
		event = append(append([]byte("id: "+t.id(t.Next())), '\n'), event...)
		t.Append(event)
	}
	select {
	case <-t.reading.Taken:
		t.off = true
	default:
	}
	if !t.off && !out.write(event) {
		t.off = true
		t.Leave(t.reading, nil)
	}
	return t.answer || !t.off
}

// taken is closed when another reader has come for the stream; nil where nobody can.
func (s *sseWriter) taken() <-chan struct{} {
	if s.tape == nil {
		return nil
	}
	return s.tape.reading.Taken
}

// lasting is a request that goes on when its connection is lost, if there is a stream by then to come back to.
type lasting struct {
	stream  *resume.Stream
	reading *resume.Reading
	stop    func() bool
	mu      sync.Mutex // guards stream and reading
}

// outlive gives a request that the caller can come back for a life of its own.
func (x *exchange) outlive() {
	if !x.resumable() {
		return
	}
	wire := x.ctx
	x.life.forever()
	x.life = lifetime{}
	x.ctx = x.life.begin(context.WithoutCancel(wire))
	x.extend(x.p.cfg.CallTimeout)
	end, l := x.life.stop, &lasting{}
	l.stop = context.AfterFunc(wire, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if cause := context.Cause(wire); l.stream == nil || errors.Is(cause, ErrStopping) {
			end(cause)
			return
		}
		l.stream.Leave(l.reading, nil)
	})
	x.lasting = l
}

// lasts makes the exchange's stream one that the caller can come back to.
func (x *exchange) lasts() {
	l := x.lasting
	if l == nil {
		return
	}
	end := x.life.stop
	s, r := x.p.kept.Open(session.Hash(x.sessionID), func() { end(nil) })
	if s == nil {
		return
	}
	x.keep(x.out, s, r, true)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stream, l.reading = s, r
}

// over ends what outlive and lasts began; what was said stays to be come back for.
func (l *lasting) over() {
	if l == nil {
		return
	}
	l.stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stream != nil {
		l.stream.Finish()
	}
}

// comesBack takes a stream up again from the event that the client names; nil when it is to be a stream that starts now.
func (x *exchange) comesBack() *answer {
	ids := x.r.Header[mcp.HeaderLastEventID]
	if len(ids) == 0 || !x.resumable() {
		return nil
	}
	e, err := x.p.sessions.OpenEvent(ids[0], session.Hash(x.sessionID))
	if err != nil {
		return x.reject(http.StatusBadRequest, mcp.CodeServer, "event_id_unknown", "the Last-Event-ID is none of this session's")
	}
	s, r, found := x.p.kept.Take(resume.Name{Session: e.Session, Number: e.Stream})
	if found {
		if _, _, _, whole := s.After(e.Number); whole {
			if e.Answer {
				return x.replay(s, r, e.Number)
			}
			x.back = &comeback{s, r, e.Number}
			return nil
		}
		s.Leave(r, r.Left)
	}
	if !e.Answer {
		return nil
	}
	message := "what came after this event is not kept any more; what became of the request is unknown"
	if e.Node != x.p.cfg.Node {
		message = "what came after this event is kept on node " + clean(e.Node) + " of the cell: ask there"
	}
	return x.reject(http.StatusBadRequest, mcp.CodeServer, "event_gone", message)
}

// replay sends the rest of an answer's stream, as it was and as it goes on.
func (x *exchange) replay(s *resume.Stream, r *resume.Reading, from uint64) *answer {
	defer s.Leave(r, nil)
	if err := x.record("", "ok", http.StatusOK); err != nil {
		x.p.log.Error("audit record lost", "error", err, "request_id", x.rec.GetId())
		return x.unaudited()
	}
	out := x.openStream()
	alive := time.NewTicker(x.p.cfg.KeepAlive)
	defer alive.Stop()
	for {
		events, more, ended, whole := s.After(from)
		for _, ev := range events {
			if !out.send(ev) {
				return nil
			}
		}
		if from += uint64(len(events)); ended || !whole {
			return nil
		}
		select {
		case <-more:
		case <-r.Taken:
			return nil
		case <-alive.C:
			if !out.send([]byte(mcp.KeepAlive)) {
				return nil
			}
		case <-x.state.Replaced():
			if x.recheck() != nil {
				return nil
			}
		case <-x.p.draining:
			return nil
		case <-x.ctx.Done():
			return nil
		}
	}
}

// comeback is a stream of the gateway's own that is taken up again after an event.
type comeback struct {
	stream  *resume.Stream
	reading *resume.Reading
	from    uint64
}

// keepOwn makes the gateway's own stream one that the caller can come back to, or goes on with the one that they came back to:
// with what they have not read, and with what may have happened while nobody was there to be told.
func (x *exchange) keepOwn(out *sseWriter, agreed []string) {
	switch {
	case x.back != nil:
		s, r := x.back.stream, x.back.reading
		missed, _, _, _ := s.After(x.back.from)
		for _, ev := range missed {
			out.write(ev)
		}
		x.keep(out, s, r, false)
		if before, is := r.Left.([3]uint64); is {
			x.watched = before
		}
		for _, n := range x.changes() {
			out.send(n)
		}
		for _, uri := range agreed {
			out.send(mcp.AppendEvent(nil, bridge.AppendUpdated(nil, x.subscription(), uri)))
		}
	case x.resumable():
		if s, r := x.p.kept.Open(session.Hash(x.sessionID), nil); s != nil {
			x.keep(out, s, r, false)
		}
	}
}

// leaveOwn leaves the stream to whoever comes back for it.
func (x *exchange) leaveOwn(out *sseWriter) {
	if out.tape != nil {
		out.tape.Leave(out.tape.reading, x.watched)
	}
}
