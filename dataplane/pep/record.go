package pep

import (
	"context"
	"encoding/hex"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/session"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"google.golang.org/protobuf/proto"
)

// The stable codes of the records written here.
const (
	codeAllowed  = "MV1001I"
	codeDenied   = "MV1002W"
	codeRefused  = "MV1003W"
	codeIdentity = "MV1100W"
)

// auditTime bounds the wait for a durable record.
const auditTime = 10 * time.Second

// record closes the request's record, once. reason is "" for a served request.
func (x *exchange) record(reason, outcome string, status int) error {
	if x.recorded {
		return nil
	}
	x.recorded = true
	x.traceOutcome(reason, outcome, status)
	rec := x.rec
	if x.intended {
		rec = proto.Clone(x.rec).(*auditv1.Record)
		rec.TimeMs = x.p.cfg.Now().UnixMilli()
		rec.Kind, rec.Id, rec.IntentId = auditv1.RecordKind_RECORD_KIND_OUTCOME, x.p.audit.NewID(), x.rec.GetId()
	}
	if rec.GetDecision() == auditv1.Decision_DECISION_UNSPECIFIED {
		x.settle(rec, reason)
	} else if reason != "" && rec.GetDecision() == auditv1.Decision_DECISION_ALLOW {
		rec.Detail = reason
	}
	rec.Outcome, rec.HttpStatus = outcome, int32(status)
	took := x.p.cfg.Now().Sub(x.began)
	rec.LatencyUs = took.Microseconds()
	x.p.metrics.observe(rec, took)
	if x.decided > 0 {
		x.p.metrics.deciding.Observe(x.decided.Seconds())
	}
	if !x.handed.IsZero() {
		x.p.metrics.upstream.WithLabelValues(methodLabel(rec.GetMethod()), outcome).Observe(time.Since(x.handed).Seconds())
	}
	if x.intended {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(x.ctx), auditTime)
		defer cancel()
		return x.p.audit.Outcome(ctx, rec)
	}
	return x.p.audit.Append(rec)
}

// settle fills in the decision of a request that ended before one was made.
func (x *exchange) settle(rec *auditv1.Record, reason string) {
	rec.Decision, rec.Reason, rec.Code = auditv1.Decision_DECISION_DENY, reason, codeRefused
	switch {
	case reason == "":
		rec.Decision, rec.Reason, rec.Code = auditv1.Decision_DECISION_ALLOW, "allowed", codeAllowed
	case strings.HasPrefix(reason, "token_"), strings.HasPrefix(reason, "svid_"):
		rec.Code = codeIdentity
	}
}

func (x *exchange) allowed(effect snapshotv1.Effect) {
	x.rec.Decision, x.rec.Reason, x.rec.Code = auditv1.Decision_DECISION_ALLOW, "allowed", codeAllowed
	x.rec.Effect = effect
}

func (x *exchange) denied(reason string) {
	x.rec.Decision, x.rec.Reason, x.rec.Code = auditv1.Decision_DECISION_DENY, reason, codeDenied
}

// describe copies what the message says of itself into the record.
func (x *exchange) describe() {
	m := &x.msg
	x.rec.Method, x.rec.ProtocolVersion = mcp.Echo(m.Method), x.revision
	if m.Name != "" {
		x.rec.Target = bounded(m.Name, 256)
	}
	if name, version := m.Client(); name != "" {
		x.rec.Client.Name, x.rec.Client.Version = bounded(name, 128), bounded(version, 64)
	}
	if tp, found := m.Text(m.TraceParent); found {
		x.rec.TraceId = traceID(tp)
	} else if tp := x.r.Header.Get("Traceparent"); tp != "" {
		x.rec.TraceId = traceID(tp)
	}
	if m.Arguments.Present() {
		x.rec.ArgumentsMac = x.p.audit.MAC(m.Raw(m.Arguments))
	}
}

func (x *exchange) describeTenant() {
	t := x.tenant
	x.rec.TenantId, x.rec.Tenant = string(t.ID), t.Name
	x.rec.Epoch, x.rec.Generation = uint64(t.Version.Epoch), uint64(t.Version.Generation)
	x.rec.HeadSha256 = t.Digest[:]
}

func (x *exchange) describeServer() {
	x.rec.Server = x.server.Name
	x.rec.VersionDigest = x.server.VersionDigest[:]
}

func (x *exchange) describeSession() {
	h := session.Hash(x.sessionID)
	x.rec.Session = h[:]
}

// traceID is the trace id of a W3C traceparent, "" when it is malformed.
func traceID(traceparent string) string {
	parts := strings.Split(traceparent, "-")
	if len(parts) < 4 || len(parts[1]) != 32 {
		return ""
	}
	if _, err := hex.DecodeString(parts[1]); err != nil {
		return ""
	}
	return parts[1]
}

// bounded cuts what a caller sent to n bytes of valid UTF-8.
func bounded(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "")
}

// address is the caller's as conditions saw it. An unknown one is said to be unknown, so that no reader takes the proxy's
// for it.
func address(ip netip.Addr, r *http.Request) string {
	if ip.IsValid() {
		return ip.String()
	}
	return "unknown, through " + bounded(r.RemoteAddr, 64)
}
