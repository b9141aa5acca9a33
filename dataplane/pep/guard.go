package pep

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/dataplane/bridge"
	"github.com/mcpvault/mcpvault/dataplane/guard"
	"github.com/mcpvault/mcpvault/dataplane/limit"
	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/veneer"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// What is told of answers that hid something.
const (
	resultSanitized = "result_sanitized"
	resultBlocked   = "result_blocked"
)

// sanitized is one message of an upstream without what its reader would not see, as policy has it. A message in which
// nothing is found is returned as the bytes that it is. A blocked answer becomes an error; a blocked notice is nil.
func (x *exchange) sanitized(body []byte) []byte {
	if x.tenant == nil || x.tenant.Guards.Results == guard.Pass || !guard.Suspect(body) {
		return body
	}
	var found guard.Found
	var splices []veneer.Splice
	for _, key := range []string{"params", "result", "error"} {
		at := mcp.Member(body, key)
		if !at.Present() {
			continue
		}
		clean, f := guard.Clean(body[at.Start:at.End])
		if found.Add(f); f.Hidden() > 0 {
			splices = append(splices, veneer.Splice{At: at, With: clean})
		}
	}
	if !found.Any() {
		return body
	}
	if x.tenant.Guards.Results == guard.Block {
		return x.blocked(body, found)
	}
	x.noteFound(resultSanitized, found)
	if len(splices) > 1 { // an answer has one of them; the order of others is not ours to trust
		return x.blocked(body, found)
	}
	return veneer.Apply(body, splices...)
}

// blocked is what stands for a message that is not let through.
func (x *exchange) blocked(body []byte, found guard.Found) []byte {
	id := mcp.Member(body, "id")
	switch {
	case mcp.Member(body, "method").Present() && id.Present():
		return body // a question, which is judged as one
	case !id.Present():
		x.noteFound(resultBlocked, found)
		return nil
	}
	x.noteFound(resultBlocked, found)
	d := mcp.ErrorData{DecisionID: x.rec.GetId(), Reason: resultBlocked}
	return mcp.AppendError(nil, body[id.Start:id.End], mcp.CodeServer,
		"the server's answer holds characters that its reader would not see; policy does not let it through", d.Append(nil))
}

// noteFound puts what was found into the exchange's record, or into one of its own when that is closed.
func (x *exchange) noteFound(word string, found guard.Found) {
	x.found.Add(found)
	detail := word + " " + x.found.String()
	x.p.log.Warn("a server's answer hid something", "server", x.rec.GetServer(), "detail", detail, "request_id", x.rec.GetId())
	if x.recorded {
		x.alsoRecord(x.rec.GetMethod(), word, detail, auditv1.Decision_DECISION_ALLOW)
		return
	}
	if leak, _, _ := strings.Cut(x.rec.GetDetail(), "; "); leak == leakBlocked {
		detail = leak + "; " + detail
	}
	x.rec.Detail = detail
}

// forbids judges a question of a server: "" when it may go to the client, or else the reason, which is recorded.
func (x *exchange) forbids(method string, params []byte) string {
	reason := x.tenant.Guards.Question(method, params, x.server.URL)
	if reason != "" {
		x.alsoRecord(method, reason, "not forwarded", auditv1.Decision_DECISION_DENY)
	}
	return reason
}

// forbidsRound judges the questions of a modern answer.
func (x *exchange) forbidsRound(m *mcp.Message) *answer {
	if !bridge.AsksForInput(m) {
		if a := x.forbidsTaskQuestions(m); a != nil {
			return a
		}
		return x.forbidsLink(m)
	}
	asked, _, err := bridge.Questions(m)
	if err != nil {
		return nil // whoever reads it says so
	}
	for i := range asked {
		if reason := x.forbids(asked[i].Method, asked[i].Params); reason != "" {
			return x.questionForbidden(reason)
		}
	}
	return nil
}

// forbidsLink judges the URLs of an error that sends the client to them.
func (x *exchange) forbidsLink(m *mcp.Message) *answer {
	if !m.Error.Present() || bridge.ErrorCode(m) != mcp.CodeURLRequired {
		return nil
	}
	text := mcp.Message{Body: m.Raw(m.Error)}
	data := text.Raw(mcp.Member(text.Body, "data"))
	for key, list := range mcp.RawMembers(data) {
		if key != "elicitations" {
			continue
		}
		for _, raw := range elements(list) {
			if reason := x.forbids(mcp.MethodElicit, raw); reason != "" {
				return x.questionForbidden(reason)
			}
		}
	}
	return nil
}

// questionForbidden ends a call whose server asked what it may not.
func (x *exchange) questionForbidden(reason string) *answer {
	return x.fail(mcp.CodeServer, reason, "the server asks for something that policy lets no server ask; it was not asked", false)
}

// refuseQuestion tells a legacy server that its question is not put.
func (x *exchange) refuseQuestion(m *mcp.Message, reason string) {
	ctx, cancel := context.WithTimeout(x.ctx, cancelTime)
	defer cancel()
	body := mcp.AppendError(nil, m.ID, mcp.CodeServer, "not allowed: "+reason, nil)
	if err := x.p.tell(ctx, x.upstreamSession(x.claims.Upstream, x.revision), x.set, body); err != nil {
		x.p.log.Warn("a server was not told that its question is refused", "error", err, "request_id", x.rec.GetId())
	}
}

// alsoRecord records something that happened within a request, besides its own record: at most one a second of each caller
// and server in full, the rest is counted.
func (x *exchange) alsoRecord(method, reason, detail string, decision auditv1.Decision) {
	now := x.p.cfg.Now()
	rec := proto.CloneOf(x.rec)
	rec.Id, rec.IntentId, rec.Kind, rec.TimeMs = x.p.audit.NewID(), "", auditv1.RecordKind_RECORD_KIND_CALL, now.UnixMilli()
	rec.Method, rec.Reason, rec.Detail, rec.Decision, rec.Outcome = mcp.Echo(method), reason, detail, decision, "refused"
	rec.Code, rec.LatencyUs, rec.HttpStatus = codeDenied, 0, 0
	if decision == auditv1.Decision_DECISION_ALLOW {
		rec.Code, rec.Outcome = codeAllowed, "ok"
	}
	k := limit.Key{Tenant: string(x.tenant.ID), Name: x.who.Name, Item: x.rec.GetServer() + "\x00" + reason}
	_, skipped, keep := x.p.flood.Keep(k, rec.GetId(), now, func() *auditv1.Record { return rec })
	if keep {
		rec.Repeated = skipped
		x.p.keep(rec)
	}
}

// cleanText is an event's without hidden text.
func (x *exchange) cleanText(ev mcp.Event) mcp.Event {
	clean := x.sanitized(ev.Data)
	switch {
	case clean == nil:
		ev.Raw, ev.Data = []byte(": withheld\n\n"), nil
	case len(clean) != len(ev.Data) || !bytes.Equal(clean, ev.Data):
		ev.Raw = mcp.AppendEventFrom(nil, ev, oneLine(clean))
		ev.Data = clean
	}
	return ev
}

// elements are those of a raw JSON list; what is no list has none.
func elements(raw []byte) []json.RawMessage {
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		return nil
	}
	return list
}
