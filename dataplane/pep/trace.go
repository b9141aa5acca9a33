package pep

import (
	"bytes"
	"context"
	"encoding/hex"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/kit/tele"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// Spans follow the conventions for the Model Context Protocol. The span of a request is the child of the context in
// params._meta (SEP-414); the context of the HTTP headers, which may be that of a proxy, is a link, or the parent when the
// message carries none. The upstream is given the context of the call to it: in the headers, and in place of the caller's
// traceparent in params._meta. A message without one is not changed, and baggage crosses as it came: neither it nor
// arguments, results, tokens or names of people are recorded.

// traced is what is kept of one request for its spans; an exchange that is not traced has none.
type traced struct {
	ctx    context.Context
	tracer trace.Tracer
	span   trace.Span
	// How the request ended: the JSON-RPC code is 0 for none.
	reason, outcome string
	status, code    int
}

const (
	headerTraceParent = "Traceparent"
	headerTraceState  = "Tracestate"
)

// trace begins the request's span, at the time when the request began.
func (x *exchange) trace() *answer {
	if x.p.tracer != nil && x.traced == nil {
		x.beginSpan()
	}
	return nil
}

func (x *exchange) beginSpan() {
	t := &traced{tracer: x.p.tracer}
	x.traced = t
	around := remoteContext(x.r.Header.Get(headerTraceParent), x.r.Header.Get(headerTraceState))
	parent, _ := x.msg.Text(x.msg.TraceParent)
	state, _ := x.msg.Text(x.msg.TraceState)
	within := remoteContext(parent, state)
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(x.began), trace.WithAttributes(x.requestAttributes()...)}
	switch {
	case !within.IsValid():
		within = around
	case around.IsValid():
		options = append(options, trace.WithLinks(trace.Link{SpanContext: around}))
	}
	t.ctx, t.span = t.tracer.Start(trace.ContextWithRemoteSpanContext(x.ctx, within), x.spanName(), options...)
	if sc := t.span.SpanContext(); sc.IsValid() {
		x.rec.TraceId = sc.TraceID().String()
	}
}

// remoteContext reads W3C trace context; it is not valid when parent is not.
func remoteContext(parent, state string) trace.SpanContext {
	if parent == "" {
		return trace.SpanContext{}
	}
	carrier := propagation.MapCarrier{"traceparent": parent, "tracestate": state}
	return trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), carrier))
}

// spanName is the method and, for what is on the approved list, the tool: the number of names stays small.
func (x *exchange) spanName() string {
	name := methodLabel(x.rec.GetMethod())
	if x.tool != nil {
		name += " " + x.tool.Name
	}
	return name
}

// requestAttributes are what is known when a message was framed.
func (x *exchange) requestAttributes() []attribute.KeyValue {
	a := make([]attribute.KeyValue, 0, 24)
	str := func(key, value string) {
		if value != "" {
			a = append(a, attribute.String(key, value))
		}
	}
	str(tele.KeyMCPMethod, x.rec.GetMethod())
	str(tele.KeyMCPProtocol, bounded(x.revision, 32))
	a = append(a, x.targetAttributes()...)
	if x.msg.Kind == mcp.KindRequest {
		str(tele.KeyJSONRPCID, bounded(strings.Trim(string(x.msg.ID), `"`), 64))
	}
	transport, version := "tcp", "1.1"
	switch x.r.ProtoMajor {
	case 2:
		version = "2"
	case 3:
		transport, version = "quic", "3"
	}
	str(tele.KeyTransport, transport)
	str(tele.KeyProtocol, "http")
	str(tele.KeyProtocolVer, version)
	if x.ask.IP.IsValid() {
		str(tele.KeyClientAddress, x.ask.IP.String())
	}
	return append(a, hostAttributes(bounded(x.r.Host, 255))...)
}

// targetAttributes name what the request is about: never more than a name, or an address without its query.
func (x *exchange) targetAttributes() []attribute.KeyValue {
	name := bounded(x.msg.Name, 128)
	switch {
	case x.msg.Method == mcp.MethodToolsCall:
		return []attribute.KeyValue{attribute.String(tele.KeyGenAIOperation, "execute_tool"), attribute.String(tele.KeyGenAITool, name)}
	case x.msg.Method == mcp.MethodPromptsGet:
		return []attribute.KeyValue{attribute.String(tele.KeyGenAIPrompt, name)}
	case x.msg.Method == mcp.MethodResourcesRead:
		if u, err := url.Parse(x.msg.Name); err == nil && u.Opaque == "" {
			u.User, u.RawQuery, u.Fragment, u.RawFragment = nil, "", "", ""
			return []attribute.KeyValue{attribute.String(tele.KeyMCPResource, bounded(u.String(), 256))}
		}
	}
	return nil
}

func hostAttributes(host string) []attribute.KeyValue {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		return []attribute.KeyValue{attribute.String(tele.KeyServerAddress, host)}
	}
	a := []attribute.KeyValue{attribute.String(tele.KeyServerAddress, name)}
	if n, err := strconv.Atoi(port); err == nil {
		a = append(a, attribute.Int(tele.KeyServerPort, n))
	}
	return a
}

// traceDecision shows the decision in the trace.
func (x *exchange) traceDecision(began time.Time) {
	if x.traced == nil {
		return
	}
	_, span := x.traced.tracer.Start(x.traced.ctx, "mcpvault.authz.decide", trace.WithTimestamp(began))
	span.End(trace.WithTimestamp(began.Add(x.decided)))
}

// traceAnswer notes the error that an answer carries.
func (x *exchange) traceAnswer(body []byte) {
	if x.traced == nil {
		return
	}
	e := mcp.Member(body, "error")
	if !e.Present() {
		return
	}
	raw := body[e.Start:e.End]
	if c := mcp.Member(raw, "code"); c.Present() {
		x.traced.code, _ = strconv.Atoi(string(raw[c.Start:c.End]))
	}
}

// traceHeader tells the caller under which trace its request is found.
func (x *exchange) traceHeader(h http.Header) {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(x.traced.ctx, carrier)
	if parent := carrier["traceparent"]; parent != "" {
		h[headerTraceParent] = []string{parent}
	}
}

// traceOutcome notes how the record is closed.
func (x *exchange) traceOutcome(reason, outcome string, status int) {
	if t := x.traced; t != nil {
		t.reason, t.outcome, t.status = reason, outcome, status
	}
}

// handOn begins the span of the call to the upstream and gives the upstream its context; end ends it.
func (x *exchange) handOn() (end func(*answer)) {
	t := x.traced
	a := make([]attribute.KeyValue, 0, 8)
	a = append(a, attribute.String(tele.KeyMCPMethod, x.rec.GetMethod()), attribute.String(tele.KeyTransport, "tcp"), attribute.String(tele.KeyProtocol, "http"))
	a = append(a, x.targetAttributes()...)
	name := methodLabel(x.rec.GetMethod())
	if x.tool != nil {
		// By the name that the upstream knows.
		a = append(a, attribute.String(tele.KeyGenAITool, x.tool.Name))
		name += " " + x.tool.Name
	}
	if u, err := url.Parse(x.server.URL); err == nil {
		a = append(a, hostAttributes(u.Host)...)
	}
	a = append(a, attribute.String("mcpvault.server", x.server.Name))
	ctx, span := t.tracer.Start(t.ctx, name, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(a...))
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	if parent := carrier["traceparent"]; parent != "" {
		x.set[headerTraceParent] = []string{parent}
		x.set[headerTraceState] = nil
		if state := carrier["tracestate"]; state != "" {
			x.set[headerTraceState] = []string{state}
		}
		// Of the same length, so that everything in the message stays where it was found.
		if at := x.msg.TraceParent; at.End-at.Start == len(parent)+2 && x.msg.Body[at.Start] == '"' {
			x.msg.Body = bytes.Clone(x.msg.Body)
			copy(x.msg.Body[at.Start+1:], parent)
		}
	}
	return func(a *answer) {
		if a != nil {
			x.traceAnswer(a.body)
			x.traceOutcome(a.reason, a.outcome, a.status)
		}
		t.fail(span)
		span.End()
	}
}

// fail gives a span the error that the request ended with.
func (t *traced) fail(span trace.Span) {
	kind := ""
	switch {
	case t.code != 0:
		kind = strconv.Itoa(t.code)
		span.SetAttributes(attribute.String(tele.KeyRPCStatus, kind))
	case t.outcome == "tool_error":
		kind = t.outcome
	case t.reason != "":
		kind = t.reason
	case t.outcome == "rpc_error" || t.status >= http.StatusInternalServerError:
		kind = "_OTHER"
	}
	if kind != "" {
		span.SetAttributes(attribute.String(tele.KeyErrorType, kind))
		span.SetStatus(codes.Error, t.reason)
	}
}

// endSpan ends the request's span with what became of it.
func (x *exchange) endSpan() {
	if x.p.tracer == nil {
		return
	}
	x.trace()
	t, rec := x.traced, x.rec
	decision := "deny"
	if rec.GetDecision() == auditv1.Decision_DECISION_ALLOW {
		decision = "allow"
	}
	a := make([]attribute.KeyValue, 0, 12)
	a = append(a, attribute.String("mcpvault.decision", decision), attribute.String("mcpvault.decision.id", rec.GetId()),
		attribute.String("mcpvault.reason", rec.GetReason()), attribute.String("mcpvault.cell", x.p.cfg.Cell), attribute.String("mcpvault.node", x.p.cfg.Node))
	if x.tenant != nil {
		a = append(a, attribute.String("mcpvault.org", x.tenant.Name), attribute.String("mcpvault.snapshot.version", x.tenant.Version.String()))
	}
	if x.server != nil {
		a = append(a, attribute.String("mcpvault.server", x.server.Name))
	}
	if len(rec.GetSession()) > 0 {
		// The hash that records have: the id itself is a key.
		a = append(a, attribute.String(tele.KeyMCPSession, hex.EncodeToString(rec.GetSession())))
	}
	if t.status != 0 {
		a = append(a, attribute.Int("http.response.status_code", t.status))
	}
	t.span.SetAttributes(a...)
	t.span.SetName(x.spanName())
	t.fail(t.span)
	t.span.End()
}
