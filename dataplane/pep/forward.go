package pep

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/bridge"
	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/dataplane/veneer"
	"github.com/mcpvault/mcpvault/kit/egress"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// forward sends the request upstream and the answer back.
func (x *exchange) forward() (a *answer) {
	x.handed = time.Now()
	if x.traced != nil && x.server != nil {
		end := x.handOn()
		defer func() { end(a) }()
	}
	if x.claims.Upstream == "" {
		// An upstream without a session could not tell whose events it is asked for.
		x.set[mcp.HeaderLastEventID] = nil
	}
	if x.r.Method == http.MethodGet || x.era == mcp.EraModern && x.msg.Method == mcp.MethodListen {
		return x.listen()
	}
	if x.owned {
		return x.bridge()
	}
	if x.era == mcp.EraLegacy {
		merge(x.set, sessionHeader(x.claims.Upstream, x.revision))
	}
	switch {
	case x.r.Method == http.MethodDelete:
		return x.endRelayed()
	case x.msg.Method == mcp.MethodInitialize:
		return x.initializeRelayed()
	}
	body, a := x.taskReply()
	if a != nil {
		return a
	}
	if x.task != nil {
		if body = bridge.Renamed(&x.msg, x.renamed); x.era == mcp.EraModern {
			x.set[mcp.HeaderName] = []string{mcp.EncodeHeader(x.task.ID)}
		}
	}
	resp, a := x.send(&upstream.Request{Method: http.MethodPost, Body: body, Header: x.r.Header})
	if a != nil {
		return a
	}
	defer resp.Close()
	if resp.Events != nil {
		return x.stream(resp)
	}
	x.plain = true
	return x.relayed(resp)
}

// send sends one request to the server of the exchange.
func (x *exchange) send(req *upstream.Request) (*upstream.Response, *answer) {
	return x.sendIn(x.ctx, req)
}

// sendIn is send for a request that may outlive the exchange.
func (x *exchange) sendIn(ctx context.Context, req *upstream.Request) (*upstream.Response, *answer) {
	req.URL, req.Set = x.server.URL, x.set
	return x.came(x.p.up.Do(ctx, req))
}

// came judges what an upstream sent before it is read.
func (x *exchange) came(resp *upstream.Response, err error) (*upstream.Response, *answer) {
	if err != nil {
		return nil, x.upstreamFailed(err)
	}
	switch {
	case resp.Status == http.StatusUnauthorized || resp.Status == http.StatusForbidden:
		resp.Close()
		x.p.log.Warn("upstream refused the gateway", "server", x.server.Name, "status", resp.Status, "request_id", x.rec.GetId())
		return nil, x.fail(mcp.CodeServer, "upstream_unauthorized", "the server does not let this gateway in", false)
	case resp.Status >= http.StatusInternalServerError && !resp.JSON:
		resp.Close()
		a := x.fail(mcp.CodeServer, "upstream_unavailable", "the server failed on this request", false)
		a.outcome = "upstream_unavailable"
		return nil, a
	}
	if body, leaked := x.withoutSecrets(resp.Body); leaked {
		resp.Body = body
	}
	resp.Body = x.sanitized(resp.Body)
	return resp, nil
}

// upstreamFailed tells what became of a call that got no answer.
func (x *exchange) upstreamFailed(err error) *answer {
	reason, message, outcome, retryable := "upstream_broken", "the server broke off; what became of the call is unknown", "unknown", false
	switch {
	case x.ctx.Err() != nil && errors.Is(err, x.ctx.Err()):
		switch reason, outcome = x.cutShort(); reason {
		case "upstream_timeout":
			message = "the server did not answer in time; what became of the call is unknown"
		case "node_stopping":
			message = "this node is stopping and the server has not answered; what became of the call is unknown"
			retryable = x.rec.GetEffect() == snapshotv1.Effect_EFFECT_READ
		default:
			return &answer{silent: true, reason: reason, outcome: outcome, status: 499}
		}
	case errors.Is(err, egress.ErrBlocked):
		reason, message, outcome = "ssrf_blocked", "the server's address is not one that this node may connect to; nothing was sent", "refused"
	case errors.Is(err, upstream.ErrIdentity):
		reason, message, outcome = "upstream_identity", "the server did not prove who it is; nothing was sent", "refused"
	case errors.Is(err, upstream.ErrUnavailable), errors.Is(err, upstream.ErrRefused):
		reason, message, outcome, retryable = "upstream_unavailable", "the server cannot be reached; nothing was sent", "upstream_unavailable", true
	case errors.Is(err, upstream.ErrBusy):
		reason, message, outcome, retryable = "upstream_busy", "too many calls to the server are under way; nothing was sent", "upstream_unavailable", true
	case errors.Is(err, upstream.ErrTooLarge), errors.Is(err, mcp.ErrEventTooLarge):
		reason, message = "upstream_too_large", "the server's answer is too large"
	case errors.Is(err, upstream.ErrRedirect):
		reason, message, outcome = "upstream_redirect", "the server answered with a redirect, which is not followed", "refused"
	case errors.Is(err, upstream.ErrProtocol):
		reason, message = "upstream_protocol", "the server did not answer in the protocol"
	}
	x.p.log.Warn("upstream call failed", "server", x.server.Name, "reason", reason, "error", err, "request_id", x.rec.GetId())
	a := x.fail(mcp.CodeServer, reason, message, retryable)
	a.outcome = outcome
	return a
}

// relayed passes on an answer that is no stream.
func (x *exchange) relayed(resp *upstream.Response) *answer {
	if x.msg.Kind != mcp.KindRequest {
		return x.relayedStatus(resp)
	}
	m, refusal := x.p.framer.FrameAnswer(resp.Body)
	if refusal != nil || !x.answers(&m) {
		if x.lost(resp.Status) {
			return x.upstreamForgot()
		}
		return x.upstreamFailed(upstream.ErrProtocol)
	}
	if a := x.forbidsRound(&m); a != nil {
		return a
	}
	body, refused := x.withTasks(&m, resp.Body)
	if refused != nil {
		return refused
	}
	a := &answer{status: resp.Status, body: body, outcome: outcomeOf(&m)}
	switch resp.Status {
	case http.StatusOK, http.StatusBadRequest, http.StatusNotFound:
		if x.lost(resp.Status) {
			return x.upstreamForgot()
		}
	default:
		a.status = http.StatusOK
	}
	return a
}

// lost reports whether the upstream says that it does not know our session.
func (x *exchange) lost(status int) bool {
	return x.era == mcp.EraLegacy && status == http.StatusNotFound && x.claims.Upstream != ""
}

// relayedStatus passes on what an upstream says to a notification or a response: nothing but its status.
func (x *exchange) relayedStatus(resp *upstream.Response) *answer {
	switch {
	case resp.Status < http.StatusMultipleChoices:
		return &answer{status: http.StatusAccepted, outcome: "ok"}
	case x.lost(resp.Status):
		return x.upstreamForgot()
	}
	return x.reject(http.StatusBadRequest, mcp.CodeInvalidRequest, "upstream_refused", "the server refused the message")
}

// upstreamForgot ends our session along with the upstream's, so that the client initializes again.
func (x *exchange) upstreamForgot() *answer {
	x.p.leases.End(x.ctx, x.leaseID(), true)
	return x.sessionUnknown("upstream_session_lost")
}

// answers reports whether a message is the response to this request, and nothing else.
func (x *exchange) answers(m *mcp.Message) bool {
	id := x.msg.ID
	if x.wireID != nil {
		id = x.wireID
	}
	return m.Kind == mcp.KindResponse && sameID(m.ID, id)
}

// sameID compares raw ids; strings may be escaped differently.
func sameID(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	if len(a) == 0 || len(b) == 0 || a[0] != '"' || b[0] != '"' {
		return false
	}
	ma, mb := mcp.Message{Body: a}, mcp.Message{Body: b}
	ta, _ := ma.Text(mcp.Span{End: len(a)})
	tb, _ := mb.Text(mcp.Span{End: len(b)})
	return ta == tb
}

func outcomeOf(m *mcp.Message) string {
	switch {
	case m.Error.Present():
		return "rpc_error"
	case m.IsError:
		return "tool_error"
	}
	return "ok"
}

// endRelayed ends a session and the upstream's behind it, whatever the upstream thinks of that.
func (x *exchange) endRelayed() *answer {
	x.p.leases.End(x.ctx, x.leaseID(), true)
	if x.claims.Upstream != "" {
		resp, err := x.p.up.Do(x.ctx, &upstream.Request{URL: x.server.URL, Method: http.MethodDelete, Set: x.set})
		if err == nil {
			resp.Close()
		}
	}
	return &answer{status: http.StatusNoContent, outcome: "ok"}
}

// initializeRelayed lets the upstream negotiate and seals its session into ours.
func (x *exchange) initializeRelayed() *answer {
	body := x.msg.Body
	if wanted, _ := x.msg.Text(x.msg.InitVersion); !mcp.IsLegacy(wanted) && x.msg.InitVersion.Present() {
		body = veneer.Apply(body, veneer.Splice{At: x.msg.InitVersion, With: []byte(`"` + mcp.Rev20251125 + `"`)})
	}
	x.set[mcp.HeaderVersion] = nil
	resp, a := x.send(&upstream.Request{Method: http.MethodPost, Body: body, Header: x.r.Header})
	if a != nil {
		return a
	}
	defer resp.Close()
	raw, m, err := x.collect(resp)
	if err != nil {
		return x.upstreamFailed(err)
	}
	if m.Error.Present() {
		return &answer{status: http.StatusOK, body: raw, outcome: "rpc_error"}
	}
	return x.initialized(raw, m, resp.Session)
}

// initialized checks what the upstream negotiated and narrows what it offers to what the caller may use.
func (x *exchange) initialized(raw []byte, m *mcp.Message, upstreamID string) *answer {
	result := m.Raw(m.Result)
	at := mcp.Member(result, "protocolVersion")
	r := mcp.Message{Body: result}
	revision, _ := r.Text(at)
	if !mcp.IsLegacy(revision) {
		x.p.hangUp(x.ctx, []session.Upstream{x.upstreamSession(upstreamID, "")})
		return x.refuse(mcp.Unsupported(clean(revision)))
	}
	x.revision, x.rec.ProtocolVersion = revision, revision
	if caps := mcp.Member(result, "capabilities"); caps.Present() {
		offered := bridge.WithoutTaskList(result[caps.Start:caps.End])
		if !x.mayOther() {
			offered = x.narrow(offered)
		}
		narrow := veneer.Apply(result, veneer.Splice{At: caps, With: offered})
		raw = veneer.Apply(raw, veneer.Splice{At: m.Result, With: narrow})
	}
	a := x.seal(ok(raw), session.Claims{Upstream: upstreamID})
	if a.reason != "" {
		x.p.hangUp(x.ctx, []session.Upstream{x.upstreamSession(upstreamID, revision)})
	}
	return a
}

// collect reads an upstream's whole answer to this request, from a body or out of a stream.
func (x *exchange) collect(resp *upstream.Response) ([]byte, *mcp.Message, error) {
	if resp.Events == nil {
		m, refusal := x.p.framer.FrameAnswer(resp.Body)
		if refusal != nil || !x.answers(&m) {
			return nil, nil, upstream.ErrProtocol
		}
		return resp.Body, &m, nil
	}
	const most = 64
	for range most {
		ev, err := resp.Events.Next()
		if err != nil {
			if x.ctx.Err() != nil {
				return nil, nil, x.ctx.Err()
			}
			return nil, nil, errors.Join(upstream.ErrProtocol, err)
		}
		if len(ev.Data) == 0 {
			continue
		}
		ev = x.cleanEvent(ev)
		m, refusal := x.p.framer.FrameAnswer(bytes.Clone(ev.Data))
		switch {
		case refusal != nil:
			return nil, nil, upstream.ErrProtocol
		case x.answers(&m):
			return m.Body, &m, nil
		}
	}
	return nil, nil, upstream.ErrProtocol
}

// listenRelayed relays the stream on which a legacy server speaks unasked. Where the server has none, or is not there, the
// gateway's own notices come all the same.
func (x *exchange) listenRelayed() *answer {
	merge(x.set, sessionHeader(x.claims.Upstream, x.revision))
	resp, a := x.send(&upstream.Request{Method: http.MethodGet, Header: x.r.Header, Long: true})
	if a != nil {
		if a.outcome == "upstream_unavailable" {
			return x.listenOwn()
		}
		return a
	}
	if resp.Events != nil {
		x.relaying = true
		return x.listenTo(resp)
	}
	defer resp.Close()
	switch {
	case resp.Status == http.StatusMethodNotAllowed:
		return x.listenOwn()
	case x.lost(resp.Status):
		return x.upstreamForgot()
	case resp.Status == http.StatusConflict:
		return x.reject(http.StatusConflict, mcp.CodeServer, "stream_taken", "the session already has such a stream")
	}
	return x.reject(http.StatusBadRequest, mcp.CodeServer, "upstream_refused", "the server refused the stream")
}

// untilExpiry lets a stream live as long as its token or certificate.
func (x *exchange) untilExpiry() {
	x.life.forever()
	left := x.who.ExpiresAt.Sub(x.p.cfg.Now())
	if !x.who.Exact {
		left += tokenLeeway
	}
	if !x.who.ExpiresAt.IsZero() {
		x.life.within(left, errExpired)
	}
}
