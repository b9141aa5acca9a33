package pep

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
)

const (
	tokenLeeway = 60 * time.Second
	// writeTimeout bounds the wait for a caller that does not read.
	writeTimeout = 10 * time.Second
	// drainTimeout is the wait for the end of a stream whose answer has come, so that its connection can be used again.
	drainTimeout = 20 * time.Millisecond
)

// pump reads events ahead of the one goroutine that writes them.
type pump struct {
	events chan mcp.Event
	taken  chan struct{}
	err    error // set before events is closed
	done   chan struct{}
}

func startPump(ctx context.Context, r *mcp.EventReader) *pump {
	p := &pump{events: make(chan mcp.Event), taken: make(chan struct{}, 1), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		defer close(p.events)
		for {
			var ev mcp.Event
			if ev, p.err = r.Next(); p.err != nil {
				return
			}
			select {
			case p.events <- ev:
			case <-ctx.Done():
				p.err = ctx.Err()
				return
			}
			select {
			case <-p.taken:
			case <-ctx.Done():
				p.err = ctx.Err()
				return
			}
		}
	}()
	return p
}

// stream relays events one by one, each flushed at once. It ends the exchange itself.
func (x *exchange) stream(resp *upstream.Response) *answer {
	ctx, stop := context.WithCancel(x.ctx)
	p := startPump(ctx, resp.Events)
	defer func() {
		stop()
		resp.Close()
		<-p.done
	}()
	out := x.openStream()
	alive := time.NewTicker(x.p.cfg.KeepAlive)
	defer alive.Stop()
	for {
		select {
		case ev, more := <-p.events:
			if !more {
				x.streamEnded(out, p.err)
				return nil
			}
			last := x.event(out, ev)
			if last {
				x.drain(p)
				return nil
			}
			alive.Reset(x.p.cfg.KeepAlive)
			p.taken <- struct{}{}
		case <-alive.C:
			if !out.send([]byte(mcp.KeepAlive)) {
				x.endStream("client_gone", "canceled")
				return nil
			}
		case <-ctx.Done():
			x.streamEnded(out, ctx.Err())
			return nil
		}
	}
}

// drain lets the pump see the end of the upstream's stream.
func (x *exchange) drain(p *pump) {
	t := time.NewTimer(drainTimeout)
	defer t.Stop()
	p.taken <- struct{}{}
	select {
	case <-p.done:
	case <-p.events:
	case <-t.C:
	}
}

// event relays one event; it reports whether that was the last one.
func (x *exchange) event(out *sseWriter, ev mcp.Event) bool {
	ev = x.cleanEvent(ev)
	if len(ev.Data) == 0 {
		if !out.send(ev.Raw) {
			return x.endStream("client_gone", "canceled")
		}
		return false
	}
	m, refusal := x.p.framer.FrameAnswer(ev.Data)
	switch {
	case refusal != nil:
		return x.failStream(out, upstream.ErrProtocol)
	case m.Kind == mcp.KindResponse:
		if !x.answers(&m) {
			return x.failStream(out, upstream.ErrProtocol)
		}
		return x.lastEvent(out, ev, &m)
	case m.Kind == mcp.KindRequest:
		if x.era == mcp.EraModern {
			return x.failStream(out, upstream.ErrProtocol)
		}
		if reason := x.forbids(m.Method, m.Raw(m.Params)); reason != "" {
			x.refuseQuestion(&m, reason)
			return false
		}
		x.extend(x.p.cfg.MaxCall) // a person may have to answer
	default:
		x.extend(x.p.cfg.CallTimeout)
	}
	raw := x.taskNotice(&m, ev)
	if raw == nil {
		return false
	}
	if !out.send(raw) {
		return x.endStream("client_gone", "canceled")
	}
	return false
}

// lastEvent records the outcome and then sends the answer.
func (x *exchange) lastEvent(out *sseWriter, ev mcp.Event, m *mcp.Message) bool {
	if a := x.forbidsRound(m); a != nil {
		x.lastRecord(a.reason, a.outcome, http.StatusOK)
		out.send(mcp.AppendEvent(nil, a.body))
		return true
	}
	raw := ev.Raw
	body, refused := x.withTasks(m, m.Body)
	switch {
	case refused != nil:
		x.lastRecord(refused.reason, refused.outcome, http.StatusOK)
		out.send(mcp.AppendEvent(nil, refused.body))
		return true
	case len(body) != len(m.Body) || &body[0] != &m.Body[0]:
		raw = mcp.AppendEventFrom(nil, ev, oneLine(body))
	}
	outcome := outcomeOf(m)
	if outcome == "rpc_error" {
		x.traceAnswer(m.Body)
	}
	if err := x.record("", outcome, http.StatusOK); err != nil {
		x.p.log.Error("audit record lost", "error", err, "request_id", x.rec.GetId())
		raw = mcp.AppendEvent(nil, x.unaudited().body)
	}
	out.send(raw)
	return true
}

// failStream answers on a stream that has begun, because the upstream did not.
func (x *exchange) failStream(out *sseWriter, err error) bool {
	a := x.upstreamFailed(err)
	if recErr := x.record(a.reason, a.outcome, http.StatusOK); recErr != nil {
		x.p.log.Error("audit record lost", "error", recErr, "request_id", x.rec.GetId())
	}
	if !a.silent {
		out.send(mcp.AppendEvent(nil, a.body))
	}
	return true
}

// streamEnded is what happens when the upstream's stream ends before its answer, or the exchange is cut short.
func (x *exchange) streamEnded(out *sseWriter, err error) {
	switch {
	case x.ctx.Err() != nil:
		err = x.ctx.Err()
	case x.era == mcp.EraLegacy && out.resumable:
		// The server may close a stream that the client can resume: that is no failure.
		x.endStream("", "unknown")
		return
	case !errors.Is(err, mcp.ErrEventTooLarge):
		err = upstream.ErrBroken
	}
	x.failStream(out, err)
}

func (x *exchange) endStream(reason, outcome string) bool {
	x.lastRecord(reason, outcome, http.StatusOK)
	return true
}

// lastRecord closes the record of a request whose caller can no longer be told that it was lost.
func (x *exchange) lastRecord(reason, outcome string, status int) {
	if err := x.record(reason, outcome, status); err != nil {
		x.p.log.Error("audit record lost", "error", err, "request_id", x.rec.GetId())
	}
}

// sseWriter writes to the caller's stream.
type sseWriter struct {
	w         http.ResponseWriter
	rc        *http.ResponseController
	resumable bool // an event with an id was sent
	tape      *tape
}

func (x *exchange) openStream() *sseWriter {
	h := x.head()
	h["Content-Type"] = []string{"text/event-stream"}
	h["X-Accel-Buffering"] = []string{"no"}
	x.started, x.done = true, true
	x.w.WriteHeader(http.StatusOK)
	out := &sseWriter{w: x.w, rc: http.NewResponseController(x.w)}
	_ = out.rc.Flush()
	return out
}

// send sends an event, or a comment; false means that there is nobody any more to send to.
func (s *sseWriter) send(raw []byte) bool {
	if s.tape != nil {
		return s.tape.send(s, raw)
	}
	return s.write(raw)
}

// write puts an event on the wire.
func (s *sseWriter) write(raw []byte) bool {
	_ = s.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	if !s.resumable && (bytes.HasPrefix(raw, []byte("id:")) || bytes.Contains(raw, []byte("\nid:"))) {
		s.resumable = true
	}
	if _, err := s.w.Write(raw); err != nil {
		return false
	}
	if s.rc.Flush() != nil {
		return false
	}
	_ = s.rc.SetWriteDeadline(time.Time{})
	return true
}

// oneLine makes a JSON message fit one data line; line breaks can only be between its tokens.
func oneLine(b []byte) []byte {
	if bytes.IndexByte(b, '\n') < 0 && bytes.IndexByte(b, '\r') < 0 {
		return b
	}
	return bytes.Map(func(r rune) rune {
		if r == '\n' || r == '\r' {
			return ' '
		}
		return r
	}, b)
}
