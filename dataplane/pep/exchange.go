package pep

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/authn"
	"github.com/mcpvault/mcpvault/dataplane/bridge"
	"github.com/mcpvault/mcpvault/dataplane/guard"
	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/session"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// exchange is one request on its way through the steps.
type exchange struct {
	p     *PEP
	w     http.ResponseWriter
	r     *http.Request
	ctx   context.Context
	life  lifetime // of ctx
	began time.Time

	rec      *auditv1.Record
	parts    *parts
	intended bool // the intent is durable
	recorded bool // the record is closed
	started  bool // the answer's head is sent
	done     bool // the answer is sent
	plain    bool // nobody looks at this any more once the request is over
	left     bool // the answer goes on without its handler

	route  route
	state  *pdp.State
	tenant *pdp.Tenant
	who    authn.Principal
	// owner names the caller across tokens; pid is meaningful when known is true.
	owner session.Owner
	pid   index.PrincipalID
	known bool

	msg      mcp.Message
	era      mcp.Era
	revision string
	// sessionID and claims are set for a request in a legacy session.
	sessionID string
	claims    session.Claims

	// server is where the request goes, nil on the aggregate until a name chooses one.
	server *pdp.Server
	view   index.View
	// ask is what a decision may depend on besides who calls what; its time is the decision's own.
	ask  authz.Request
	tool *pdp.Tool
	// task is what a request about one is about.
	task *task
	// owned: the gateway leads this dialogue itself. shown is the name by which the caller knows the tool.
	owned bool
	shown string
	// asked is what a modern client wants to be told of, wanted what of it may be told; watched what it saw of the lists.
	asked, wanted bridge.Wanted
	watched       [3]uint64
	// relaying: an upstream's own stream goes to a legacy caller.
	relaying bool
	// renamed is the upstream's own name of what the request is about, where the gateway leads the dialogue.
	renamed bridge.Rename
	// lasting is set for a request that the caller can come back for, back when they come back to a stream.
	lasting *lasting
	back    *comeback
	// out is the caller's stream, once one was opened on the way of a request that is bridged.
	out *sseWriter
	// after is done when the answer is sent; it may be nil.
	after func()
	// wireID is the id that the upstream is given in place of the caller's; nil for the same.
	wireID []byte
	set    http.Header
	// leaks are secret values that went upstream and must not come back.
	leaks [][]byte
	// found is what upstreams hid in what they said.
	found guard.Found
	free  func()
	// rations is nil without limits.
	rations *ration
	// traced is nil while nothing is traced.
	traced *traced
	// decided is how long the decision took; visible means that the caller may know of the tool that was denied.
	decided time.Duration
	visible bool
	handed  time.Time // to the upstream; zero when nothing was
}

// parts are the pieces of the record that nearly every request has, made along with the exchange.
type parts struct {
	record    auditv1.Record
	client    auditv1.Client
	principal auditv1.Person
}

// answer ends a request.
type answer struct {
	status int
	body   []byte // JSON; nil sends none
	header http.Header
	// reason, for the record, is "" when the request was served; outcome is its outcome word.
	reason  string
	outcome string
	// event sends the body as the one event of a stream, for a caller that would rather have it so.
	event bool
	// silent sends nothing: the caller is gone.
	silent bool
}

// exchanges are those whose requests are over and were plain: they are large, and nearly all of them.
var exchanges = sync.Pool{New: func() any {
	both := new(struct {
		x     exchange
		parts parts
	})
	both.x.set, both.x.parts = http.Header{}, &both.parts
	return &both.x
}}

func (p *PEP) open(w http.ResponseWriter, r *http.Request) *exchange {
	now := p.cfg.Now()
	x, _ := exchanges.Get().(*exchange)
	x.p, x.w, x.r, x.began, x.state = p, w, r, now, p.policy.Current()
	x.ask = authz.Request{NowMS: now.UnixMilli(), IP: p.cfg.Proxies.Client(r), Region: p.cfg.Region}
	x.ctx = x.life.begin(r.Context())
	x.life.within(p.cfg.BodyTimeout+p.cfg.CallTimeout, errTimeout)
	id := p.audit.NewID()
	rec, client := &x.parts.record, &x.parts.client
	client.Address = address(x.ask.IP, r)
	x.rec, rec.Client = rec, client
	rec.Id, rec.RequestId, rec.Kind, rec.TimeMs = id, id, auditv1.RecordKind_RECORD_KIND_CALL, now.UnixMilli()
	rec.Cell, rec.Node, rec.Region = p.cfg.Cell, p.cfg.Node, p.cfg.Region
	return x
}

// close is what happens to every request at the end, panics included.
func (x *exchange) close() {
	if v := recover(); v != nil {
		x.plain = false
		if err, ok := v.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
			x.p.log.Error("request panicked", "panic", v, "request_id", x.rec.GetId())
		}
		if x.started {
			x.lastRecord("internal", "unknown", 0)
		} else {
			x.finish(x.fail(mcp.CodeInternal, "internal", "internal error, request "+x.rec.GetId(), false))
		}
	}
	if x.left {
		x.recycle()
		return
	}
	x.release()
}

// release gives back what the request held.
func (x *exchange) release() {
	if !x.recorded {
		x.lastRecord("canceled", "canceled", 0)
	}
	if x.after != nil {
		_ = http.NewResponseController(x.w).Flush()
		x.after()
	}
	x.lasting.over()
	x.life.forever()
	x.life.end(nil)
	if x.free != nil {
		x.free()
	}
	x.leave()
	x.endSpan()
	if x.plain && x.after == nil && x.traced == nil {
		x.recycle()
	}
}

// recycle forgets everything of the request but the memory.
func (x *exchange) recycle() {
	set, p := x.set, x.parts
	clear(set)
	*p = parts{}
	*x = exchange{set: set, parts: p}
	exchanges.Put(x)
}

// finish records and sends an answer. When the record cannot be kept, the caller gets that for an answer.
func (x *exchange) finish(a *answer) {
	x.done = true
	x.trace()
	x.traceAnswer(a.body)
	if err := x.record(a.reason, a.outcome, a.status); err != nil {
		x.p.log.Error("audit record lost", "error", err, "request_id", x.rec.GetId())
		a = x.unaudited()
	}
	if a.silent {
		return
	}
	h := x.head()
	for k, v := range a.header {
		h[k] = v
	}
	if x.r.ProtoMajor < 3 && (a.status == http.StatusRequestEntityTooLarge || a.status == http.StatusRequestTimeout || a.reason == "bad_json") {
		// Nobody knows any more where the next request begins: a body that is no JSON may have had the wrong length.
		h["Connection"] = []string{"close"}
	}
	switch {
	case a.body != nil && a.event:
		h["Content-Type"] = events
		a.body = mcp.AppendEvent(make([]byte, 0, len(a.body)+32), a.body)
	case a.body != nil:
		h["Content-Type"] = jsonContent
	}
	x.started = true
	x.w.WriteHeader(a.status)
	if a.body != nil {
		_, _ = x.w.Write(a.body)
	}
}

// Header values that never change are shared by all answers: nobody writes into them.
var (
	noStore     = []string{"no-store"}
	noSniff     = []string{"nosniff"}
	jsonContent = []string{"application/json"}
	events      = []string{"text/event-stream"}
)

// head sets the headers of every answer.
func (x *exchange) head() http.Header {
	h, words := x.w.Header(), new([3]string)
	h["Cache-Control"], h["X-Content-Type-Options"], h["MCPVault-Cell"] = noStore, noSniff, x.p.here
	words[0] = x.rec.GetId()
	h["X-Request-Id"], h["MCPVault-Decision-Id"] = words[0:1:1], words[0:1:1]
	// Not for what is hidden: the time would tell it from what does not exist.
	if x.decided > 0 && (x.tool != nil || x.visible) {
		var space [32]byte
		b := strconv.AppendFloat(append(space[:0], "decision;dur="...), float64(x.decided.Nanoseconds())/1e6, 'f', 4, 64)
		words[1] = string(b)
		h["Server-Timing"] = words[1:2:2]
	}
	if x.rations != nil {
		x.rations.header(h)
	}
	if x.traced != nil {
		x.traceHeader(h)
	}
	if x.tenant != nil {
		words[2] = x.tenant.Version.String()
		h["MCPVault-Snapshot"] = words[2:3:3]
	}
	return h
}

// ok is a served request with a JSON answer.
func ok(body []byte) *answer {
	return &answer{status: http.StatusOK, body: body, outcome: "ok"}
}

// refuse turns a framing refusal into an answer.
func (x *exchange) refuse(r *mcp.Refusal) *answer {
	return &answer{
		status: r.Status, reason: r.Reason, outcome: "refused",
		body: mcp.AppendError(nil, x.msg.ID, r.Code, r.Message, r.Data),
	}
}

// reject refuses with a plain status and a JSON-RPC error.
func (x *exchange) reject(status, code int, reason, message string) *answer {
	return x.refuse(&mcp.Refusal{Reason: reason, Status: status, Code: code, Message: message})
}

// fail is an error of our own or of an upstream, told as JSON-RPC so that the caller's program sees the words.
func (x *exchange) fail(code int, reason, message string, retryable bool) *answer {
	d := mcp.ErrorData{DecisionID: x.rec.GetId(), Reason: reason, Retryable: retryable}
	status := http.StatusOK
	if x.msg.Kind != mcp.KindRequest {
		status = http.StatusBadGateway
	}
	return &answer{
		status: status, reason: reason, outcome: "rpc_error",
		body: mcp.AppendError(nil, x.msg.ID, code, message, d.Append(nil)),
	}
}

func (x *exchange) unaudited() *answer {
	message := "the audit log of this node does not take records, so nothing was done; try again or use another node"
	if x.intended {
		message = "the call was made, but its outcome could not be recorded and is withheld"
	}
	return x.fail(mcp.CodeServer, "audit_unavailable", message, !x.intended)
}

// extend gives the call its time anew, within the bound of all of it; more is an upper bound for this wait.
func (x *exchange) extend(more time.Duration) {
	left := x.p.cfg.MaxCall - x.p.cfg.Now().Sub(x.began)
	x.life.within(min(more, left), errTimeout)
}

// cutShort says why the context ended.
func (x *exchange) cutShort() (reason, outcome string) {
	switch cause := x.life.cause(); {
	case errors.Is(cause, errTimeout):
		return "upstream_timeout", "timeout"
	case errors.Is(cause, errExpired):
		return "token_expired", "canceled"
	case errors.Is(cause, errCancelled):
		return "canceled", "canceled"
	case errors.Is(cause, errRevoked):
		return "revoked", "canceled"
	case errors.Is(cause, ErrStopping):
		return "node_stopping", "unknown"
	}
	return "client_gone", "canceled"
}
