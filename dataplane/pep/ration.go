package pep

import (
	"net/http"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/dataplane/limit"
	"github.com/mcpvault/mcpvault/dataplane/mcp"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// ration is what the limits have said of one request. An exchange without limits has none.
type ration struct {
	said  [4]limit.Verdict
	n     int
	place limit.Key // of what is under way
	held  bool
}

// ration holds the caller to what the tenant lets it ask for over time and at once. It comes before everything that costs.
func (x *exchange) ration() *answer {
	if x.tenant.Limits == nil && x.p.cfg.Limits == nil {
		return nil
	}
	x.rations = &ration{}
	name := x.who.Name
	switch {
	case x.msg.Method == mcp.MethodDiscover:
		if a := x.spend(limit.Discover, name, ""); a != nil {
			return a
		}
	case x.r.Method == http.MethodGet && len(x.r.Header[mcp.HeaderLastEventID]) > 0:
		if a := x.spend(limit.Resume, name, ""); a != nil {
			return a
		}
	}
	if a := x.spend(limit.Principal, name, ""); a != nil {
		return a
	}
	if a := x.spend(limit.Tenant, "", ""); a != nil {
		return a
	}
	return x.enter()
}

// allot holds what goes upstream to the limits of its tool and its server. They are looked at once it is decided that the
// caller may know of both.
func (x *exchange) allot() *answer {
	if x.rations == nil || x.server == nil {
		return nil
	}
	if x.tool != nil {
		if a := x.spend(limit.Tool, x.server.Name, x.tool.Name); a != nil {
			return a
		}
	}
	return x.spend(limit.Server, x.server.Name, "")
}

// spend takes one request out of a bucket, if there is a limit for it.
func (x *exchange) spend(s limit.Scope, name, item string) *answer {
	rate := x.tenant.Limits.Rate(s, name, item)
	if rate == nil {
		if rate = x.p.cfg.Limits.Rate(s, name, item); rate == nil {
			return nil
		}
	}
	v := x.p.limits.Take(limit.Key{Tenant: string(x.tenant.ID), Scope: s, Name: name, Item: item}, rate)
	if x.rations.n < len(x.rations.said) {
		x.rations.said[x.rations.n] = v
		x.rations.n++
	}
	if v.OK {
		return nil
	}
	wait := seconds(v.Wait)
	return x.tooMany(s.String(), "rate_limited", "the limit of "+rate.String()+" for "+whose(s)+" is used up: try again in "+wait+" s", wait)
}

// whose says what a limit is for.
func whose(s limit.Scope) string {
	switch s {
	case limit.Tenant:
		return "the whole organisation"
	case limit.Tool:
		return "this tool"
	case limit.Server:
		return "this server"
	case limit.Discover:
		return "server/discover of one caller"
	case limit.Resume:
		return "the resuming of streams of one caller"
	case limit.Principal:
	}
	return "one caller"
}

// enter takes a place among what the caller has under way. Streams have places of their own.
func (x *exchange) enter() *answer {
	most := 0
	if x.tenant.Limits != nil {
		most = x.tenant.Limits.MaxCalls
	}
	if most == 0 && x.p.cfg.Limits != nil {
		most = x.p.cfg.Limits.MaxCalls
	}
	if most == 0 || x.r.Method != http.MethodPost || x.msg.Method == mcp.MethodListen {
		return nil
	}
	x.rations.place = limit.Key{Tenant: string(x.tenant.ID), Name: x.who.Name}
	if x.rations.held = x.p.slots.Enter(x.rations.place, most); !x.rations.held {
		return x.tooMany("calls", "too_many_calls", "one caller may have "+strconv.Itoa(most)+" requests under way on a node: wait for an answer, then try again", "1")
	}
	return nil
}

// leave gives the place back.
func (x *exchange) leave() {
	if x.rations != nil && x.rations.held {
		x.p.slots.Leave(x.rations.place)
		x.rations.held = false
	}
}

// tooMany refuses with 429. In a flood one refusal a second of each caller is recorded in full; the others are told its id
// and are counted.
func (x *exchange) tooMany(which, reason, message, retryAfter string) *answer {
	x.p.metrics.limited.WithLabelValues(which).Inc()
	x.denied(reason)
	x.rec.Detail = which
	k := limit.Key{Tenant: string(x.tenant.ID), Name: x.who.Name}
	id, skipped, keep := x.p.flood.Keep(k, x.rec.GetId(), x.p.cfg.Now(), func() *auditv1.Record {
		first := proto.Clone(x.rec).(*auditv1.Record)
		first.Outcome, first.HttpStatus = "refused", http.StatusTooManyRequests
		return first
	})
	if x.rec.Repeated = skipped; !keep {
		x.rec.Id, x.recorded = id, true
		x.rec.Outcome = "refused"
		x.p.metrics.observe(x.rec, x.p.cfg.Now().Sub(x.began))
	}
	d := mcp.ErrorData{DecisionID: x.rec.GetId(), Reason: reason, Hint: "an administrator can change the limit: mcpvault settings set --rate-limit", Retryable: true}
	return &answer{
		status: http.StatusTooManyRequests, reason: reason, outcome: "refused",
		body:   mcp.AppendError(nil, x.msg.ID, mcp.CodeServer, message, d.Append(nil)),
		header: http.Header{"Retry-After": {retryAfter}},
	}
}

// countFloods records how many refusals had no record of their own.
func (p *PEP) countFloods(all bool) {
	now := p.cfg.Now()
	for _, s := range p.flood.Due(now, all) {
		rec := s.First
		rec.Id, rec.TimeMs = p.audit.NewID(), now.UnixMilli()
		rec.Repeated = s.Count - 1
		if err := p.audit.Append(rec); err != nil {
			p.log.Error("audit record lost", "error", err, "request_id", rec.GetRequestId())
		}
	}
}

// The fields of draft-ietf-httpapi-ratelimit-headers-10: what is allowed, and what of it is left. They tell what this node
// would let through now; q is for all nodes of the cell together.
const (
	headerPolicy = "Ratelimit-Policy"
	headerLimit  = "Ratelimit"
)

// header adds the fields for the limits that this request has met.
func (r *ration) header(h http.Header) {
	if r.n == 0 {
		return
	}
	policy, state := make([]byte, 0, 96), make([]byte, 0, 96)
	for i := range r.n {
		v := &r.said[i]
		if i > 0 {
			policy, state = append(policy, ", "...), append(state, ", "...)
		}
		policy = append(append(append(policy, '"'), v.Scope.String()...), `";q=`...)
		policy = strconv.AppendInt(policy, v.Rate.Requests, 10)
		policy = strconv.AppendInt(append(policy, ";w="...), int64(v.Rate.Per/time.Second), 10)
		state = append(append(append(state, '"'), v.Scope.String()...), `";r=`...)
		state = strconv.AppendInt(state, v.Left, 10)
		if v.Left == 0 {
			state = append(append(state, ";t="...), seconds(v.Wait)...)
		}
	}
	h[headerPolicy], h[headerLimit] = []string{string(policy)}, []string{string(state)}
}

// seconds is a wait in whole seconds, never none.
func seconds(d time.Duration) string {
	return strconv.FormatInt(max(1, int64((d+time.Second-1)/time.Second)), 10)
}
