package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"time"

	"google.golang.org/protobuf/proto"

	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// deliveryLimit is how long the nodes may take to hand their audit logs over once all is quiet.
const deliveryLimit = 40 * time.Second

// check looks whether what was promised is there, once everything runs again.
func (c *campaign) check(ctx context.Context) error {
	if err := c.settle(ctx); err != nil {
		c.found("%v", err)
		return nil
	}
	c.checkGrants(ctx)
	c.checkKills(ctx)
	c.checkSessions(ctx)
	c.checkCalls()
	for _, f := range c.history.check() {
		c.found("%s", f)
	}
	var last []string
	for begin := time.Now(); time.Since(begin) < deliveryLimit; time.Sleep(300 * time.Millisecond) {
		book, err := c.readBook(ctx)
		if err != nil {
			return err
		}
		if last = c.audit(book); len(last) == 0 {
			break
		}
	}
	for _, f := range last {
		c.found("%s", f)
	}
	if _, err := c.dev.CLI(ctx, "audit", "verify"); err != nil {
		c.found("the audit log does not verify: %v", err)
	}
	c.report.RestartMS, c.report.History = spread(c.restarts), c.history.n
	return nil
}

func (c *campaign) checkGrants(ctx context.Context) {
	for name, r := range c.grants {
		c.report.Changes += r.acked
		for n := range c.dev.MCPURLs {
			a := effect(ctx, c.node(n), r.token, "as "+name, fmt.Sprintf("%032x", 2))
			switch {
			case a.done() && !r.may[true], a.hidden() && !r.may[false]:
				c.found("n%d: %s may call: %v; acknowledged was the contrary", n+1, name, a.done())
			case !a.done() && !a.hidden():
				c.found("n%d answers %s with %d %v %.200s", n+1, name, a.status, a.err, a.body)
			}
		}
	}
}

func (c *campaign) checkKills(ctx context.Context) {
	for _, d := range c.doomed {
		if d.acked {
			c.report.Killed++
		}
		for n := range c.dev.MCPURLs {
			a := effect(ctx, c.node(n), d.token, "by "+d.name, fmt.Sprintf("%032x", 1))
			switch {
			case d.acked && a.status != http.StatusUnauthorized:
				c.found("n%d: the kill of %s was acknowledged, and it is answered %d %v", n+1, d.name, a.status, a.err)
			case !d.asked && !a.done():
				c.found("n%d: nobody killed %s, and it is answered %d %v %.200s", n+1, d.name, a.status, a.err, a.body)
			}
		}
	}
}

func (c *campaign) checkSessions(ctx context.Context) {
	for _, s := range c.sessions {
		c.report.Sessions++
		if s.ended {
			c.report.Ended++
		}
		for n := range c.dev.MCPURLs {
			a := c.useSession(ctx, s, n)
			// A node that has just been started may still hear of the last sessions.
			for begin := time.Now(); s.ended && a.status == http.StatusOK && time.Since(begin) < bound; a = c.useSession(ctx, s, n) {
				time.Sleep(100 * time.Millisecond)
			}
			switch {
			case s.ended && a.status != http.StatusNotFound:
				c.found("n%d: a session whose end was acknowledged is answered %d %v", n+1, a.status, a.err)
			case !s.asked && a.status != http.StatusOK:
				c.found("n%d: a session that was opened, and never ended, is answered %d %v %.200s", n+1, a.status, a.err, a.body)
			}
		}
	}
}

// checkCalls holds what callers were told against what was carried out.
func (c *campaign) checkCalls() {
	for _, k := range c.calls {
		n := c.canary.count(k.id)
		c.report.Calls++
		if n > 1 {
			c.report.Doubles++
			c.found("call %s was sent upstream %d times", k.id, n)
		}
		switch a := k.answer; {
		case a.err == nil && a.done():
			c.report.Answered++
			if n == 0 {
				c.found("call %s was answered and not carried out", k.id)
			}
		case a.err == nil && n == 0:
			c.report.Refused++
		case a.err == nil:
			// It was carried out and the answer is not a result: it must say that the outcome is not known.
			c.report.Broken++
		case a.sent:
			c.report.Broken++
		default:
			c.report.NotSent++
			if n != 0 {
				c.found("call %s was never sent, and was carried out", k.id)
			}
		}
	}
	if n := c.canary.bounded(); n > 0 {
		c.found("%d calls that a condition denies were carried out", n)
	}
}

// book is what all audit logs say.
type book struct {
	intents map[string]*auditv1.Record   // by id
	traces  map[string][]*auditv1.Record // intents by trace
	ends    map[string][]*auditv1.Record // by intent
	ids     map[string]int
	// refused are calls that were decided and not forwarded: one may have an intent from before its caller hung up.
	refused map[string]bool
}

// readBook reads every leaf of every log.
func (c *campaign) readBook(ctx context.Context) (*book, error) {
	b := &book{map[string]*auditv1.Record{}, map[string][]*auditv1.Record{}, map[string][]*auditv1.Record{}, map[string]int{}, map[string]bool{}}
	var logs struct {
		Logs []struct {
			LogID string `json:"logId"`
		} `json:"logs"`
	}
	if err := c.admin.post(ctx, "AuditService/ListLogs", map[string]any{}, &logs); err != nil {
		return nil, err
	}
	for _, l := range logs.Logs {
		for first := uint64(0); ; {
			var page struct {
				Leaves []string `json:"leaves"`
				Next   string   `json:"next"`
			}
			err := c.admin.post(ctx, "AuditService/ReadLog", map[string]any{"logId": l.LogID, "first": first, "limit": 5000}, &page)
			if err != nil {
				return nil, err
			}
			for _, leaf := range page.Leaves {
				if err := b.take(leaf); err != nil {
					return nil, fmt.Errorf("%s: %w", l.LogID, err)
				}
			}
			first += uint64(len(page.Leaves))
			if len(page.Leaves) == 0 {
				break
			}
		}
	}
	return b, nil
}

func (b *book) take(leaf string) error {
	raw, err := base64.StdEncoding.DecodeString(leaf)
	r := &auditv1.Record{}
	if err := errors.Join(err, proto.Unmarshal(raw, r)); err != nil {
		return fmt.Errorf("a leaf is no record: %w", err)
	}
	switch r.GetKind() {
	case auditv1.RecordKind_RECORD_KIND_INTENT:
		b.intents[r.GetId()] = r
		b.traces[r.GetTraceId()] = append(b.traces[r.GetTraceId()], r)
		b.ids[r.GetId()]++
	case auditv1.RecordKind_RECORD_KIND_OUTCOME, auditv1.RecordKind_RECORD_KIND_UNKNOWN_OUTCOME:
		b.ends[r.GetIntentId()] = append(b.ends[r.GetIntentId()], r)
	case auditv1.RecordKind_RECORD_KIND_CALL:
		b.refused[r.GetId()] = true
	default: // the others have no effect to tell of
	}
	return nil
}

// audit holds the records against what was carried out and what callers were told.
func (c *campaign) audit(b *book) (found []string) {
	bad := func(format string, args ...any) {
		if len(found) < 20 {
			found = append(found, fmt.Sprintf(format, args...))
		}
	}
	unknown := 0
	for id, n := range b.ids {
		if n != 1 {
			bad("intent %s is recorded %d times", id, n)
		}
		switch ends := b.ends[id]; {
		case len(ends) == 0 && b.refused[id]:
		case len(ends) == 0:
			bad("intent %s has no outcome: a call whose outcome nobody knows is not recorded as unknown", id)
		case len(ends) > 1:
			bad("intent %s has %d outcomes", id, len(ends))
		case ends[0].GetKind() == auditv1.RecordKind_RECORD_KIND_UNKNOWN_OUTCOME:
			unknown++
		}
	}
	for _, k := range c.calls {
		intents := b.traces[k.trace]
		n := c.canary.count(k.id)
		if n > 0 && len(intents) != 1 {
			bad("call %s was carried out and has %d intents on record", k.id, len(intents))
			continue
		}
		for _, in := range intents {
			if b.refused[in.GetId()] && n > 0 {
				bad("call %s is recorded as refused and was carried out", k.id)
			}
			for _, end := range b.ends[in.GetId()] {
				switch {
				case end.GetOutcome() == "ok" && n == 0:
					bad("call %s is recorded as ok and was not carried out", k.id)
				case k.answer.err == nil && k.answer.done() && end.GetOutcome() != "ok":
					bad("call %s was answered and is recorded as %s", k.id, end.GetOutcome())
				}
			}
		}
	}
	c.report.Unknown = unknown
	return found
}
