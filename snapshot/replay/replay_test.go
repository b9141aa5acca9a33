package replay_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/replay"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

// record decides a call and records it as a cell does; what comes back has been through the record's bytes.
func record(t interface{ Fatalf(string, ...any) }, x *index.Index, c snapshottest.Call, resource bool) (*auditv1.Record, authz.Decision) {
	r := &c.Request
	state := x.StateHash()
	rec := &auditv1.Record{
		Principal: &auditv1.Person{Name: c.Principal}, Server: c.Server, Region: r.Region, StateHash: state[:],
		Client: &auditv1.Client{Address: "unknown, through 10.0.0.1"},
	}
	if r.Actor != "" {
		rec.Actor = &auditv1.Person{Name: r.Actor}
	}
	if r.IP.IsValid() {
		rec.Client.Address = r.IP.String()
	}
	p, known := x.Principal(c.Principal)
	srv, ok := x.Server(c.Server)
	item, found := x.Item(srv, c.Item)
	if !ok || !found {
		t.Fatalf("%+v is not in the index", c)
	}
	var v index.View
	if known {
		v = x.View(p, srv)
	}
	var d authz.Decision
	if resource {
		d = authz.DecideResource(&v, c.URI, r)
		replay.NoteResource(rec, &v, c.URI, r, d)
	} else {
		d = authz.Decide(&v, item, r)
		replay.Note(rec, &v, item, c.Item, r, d, authz.Reaching(&v, item))
	}
	rec.Decision, rec.Reason = auditv1.Decision_DECISION_DENY, d.Reason.String()
	if d.Allow {
		rec.Decision = auditv1.Decision_DECISION_ALLOW
	}
	if !known {
		rec.Reason = "unknown_principal"
	}
	raw, err := proto.Marshal(rec)
	if err != nil {
		t.Fatalf("marshal: %v", err)
	}
	again := &auditv1.Record{}
	if err := proto.Unmarshal(raw, again); err != nil {
		t.Fatalf("unmarshal: %v", err)
	}
	return again, d
}

func open(t interface{ Fatalf(string, ...any) }, p *snapshot.Policy) *index.Index {
	raw, err := builder.Build(p)
	if err != nil {
		t.Fatalf("build: %v", err)
	}
	x, err := index.Open(raw)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return x
}

// TestTenThousandRecordedDecisionsComeOutTheSame: 100 random policies, 100 calls on each, hostile ones among them.
func TestTenThousandRecordedDecisionsComeOutTheSame(t *testing.T) {
	t.Parallel()
	n, conditions, allowed := 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		p := snapshottest.Policies().Draw(t, "policy")
		x := open(t, p)
		for i := range 100 {
			c := snapshottest.Calls(p, i%2 == 0).Draw(t, "call")
			if i%20 == 0 {
				c.Principal = "nobody"
			}
			// Patterns are not decided by themselves: resources are.
			kind, _ := snapshot.KindOf(c.Item)
			rec, d := record(t, x, c, i%3 == 0 || kind == snapshot.ItemResource)
			got, err := replay.Decide(x, rec, nil)
			if err != nil || got.Decision != d || len(got.Differences) > 0 || got.Evaluated || got.Overruled != "" {
				t.Fatalf("%+v\nrecorded %v\ndecided %+v, again %+v, %v", c, rec, d, got, err)
			}
			if c.Request.Args != nil {
				if got, err = replay.Decide(x, rec, c.Request.Args); err != nil || got.Decision != d || len(got.Differences) > 0 || !got.Evaluated {
					t.Fatalf("with arguments: %+v\nrecorded %v\ndecided %+v, again %+v, %v", c, rec, d, got, err)
				}
			}
			n++
			if len(rec.GetConditions()) > 0 {
				conditions++
			}
			if d.Allow {
				allowed++
			}
		}
	})
	t.Logf("%d decisions, %d with conditions, %d allowed", n, conditions, allowed)
	if n < 10_000 || conditions < n/10 || allowed < n/20 {
		t.Errorf("%d decisions, %d with conditions, %d allowed: too few to say anything", n, conditions, allowed)
	}
}

// TestTheGrantsOfARecordAreThoseThatExplainNames compares the quick way to the deciding grants with the slow one.
func TestTheGrantsOfARecordAreThoseThatExplainNames(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := snapshottest.Policies().Draw(t, "policy")
		x := open(t, p)
		for range 30 {
			c := snapshottest.Calls(p, true).Draw(t, "call")
			rec, _ := record(t, x, c, false)
			pid, _ := x.Principal(c.Principal)
			srv, _ := x.Server(c.Server)
			item, _ := x.Item(srv, c.Item)
			var want []string
			for _, g := range authz.Explain(x, pid, srv, item, &c.Request).Grants {
				if g.Decided {
					want = append(want, g.ID)
				}
			}
			slices.Sort(want)
			if want = want[:min(len(want), replay.MaxGrants)]; !slices.Equal(rec.GetGrants(), want) {
				t.Fatalf("%+v: recorded %q, explained %q", c, rec.GetGrants(), want)
			}
		}
	})
}

// below is a policy in which alice may refund less than 100, and from ten addresses only.
func below(limit int64) *snapshot.Policy {
	return &snapshot.Policy{
		Tenant:     "0198c0de-0000-7000-8000-000000000001",
		Principals: []snapshot.Principal{{Name: "alice"}},
		Servers:    []snapshot.Server{{Name: "pay", Items: []string{"refund"}}},
		Grants: []snapshot.Grant{{ID: "g1", Subject: "user:alice", Server: "pay", Tool: "refund", When: &snapshot.Cond{
			Op: snapshot.OpLt, Arg: "amount", Value: snapshot.Value{Type: snapshot.TypeNumber, Int: limit},
		}}},
	}
}

func TestADecisionThatComesOutOtherwiseIsTold(t *testing.T) {
	t.Parallel()
	call := snapshottest.Call{Principal: "alice", Server: "pay", Item: "refund", Request: authz.Request{NowMS: 1, Args: []byte(`{"amount":5}`)}}
	x := open(t, below(100))
	for name, c := range map[string]struct {
		x      *index.Index
		change func(*auditv1.Record)
		args   string
		want   string // fields that differ
	}{
		"nothing":                 {x, func(*auditv1.Record) {}, "", ""},
		"another policy":          {open(t, below(200)), func(*auditv1.Record) {}, "", "state_hash"},
		"a condition":             {x, func(r *auditv1.Record) { r.Conditions[0].Outcome = auditv1.ConditionOutcome_OUTCOME_FALSE }, "", "reason effect"},
		"a condition is missing":  {x, func(r *auditv1.Record) { r.Conditions = nil }, "", "conditions reason effect grants"},
		"no such condition":       {x, func(r *auditv1.Record) { r.Conditions[0].Program = 99 }, "", "conditions reason effect program grants"},
		"no such outcome":         {x, func(r *auditv1.Record) { r.Conditions[0].Outcome = 77 }, "", "conditions reason effect grants"},
		"effect":                  {x, func(r *auditv1.Record) { r.Decision, r.Reason = auditv1.Decision_DECISION_DENY, "condition" }, "", "reason effect"},
		"program":                 {x, func(r *auditv1.Record) { r.Program = 0 }, "", "program"},
		"grants":                  {x, func(r *auditv1.Record) { r.Grants = []string{"g2"} }, "", "grants"},
		"principal":               {x, func(r *auditv1.Record) { r.Principal.Name = "bob" }, "", "reason effect program grants"},
		"server":                  {x, func(r *auditv1.Record) { r.Server = "crm" }, "", "server reason effect program grants"},
		"item":                    {x, func(r *auditv1.Record) { r.Item = "balance" }, "", "item reason effect program grants"},
		"the same arguments":      {x, func(*auditv1.Record) {}, `{"amount":5}`, ""},
		"others, the same way":    {x, func(*auditv1.Record) {}, `{"amount":6}`, ""},
		"others, another outcome": {x, func(*auditv1.Record) {}, `{"amount":500}`, "conditions reason effect"},
	} {
		rec, _ := record(t, x, call, false)
		c.change(rec)
		var args []byte
		if c.args != "" {
			args = []byte(c.args)
		}
		got, err := replay.Decide(c.x, rec, args)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var fields []string
		for _, d := range got.Differences {
			fields = append(fields, d.Field)
		}
		if strings.Join(fields, " ") != c.want {
			t.Errorf("%s: %+v, want %s", name, got.Differences, c.want)
		}
	}
}

func TestWhatOverruledAPolicyIsNoDifference(t *testing.T) {
	t.Parallel()
	call := snapshottest.Call{Principal: "alice", Server: "pay", Item: "refund", Request: authz.Request{NowMS: 1, Args: []byte(`{"amount":5}`)}}
	x := open(t, below(100))
	rec, _ := record(t, x, call, false)
	rec.Decision, rec.Reason = auditv1.Decision_DECISION_DENY, "killed"
	got, err := replay.Decide(x, rec, nil)
	if err != nil || got.Overruled != "killed" || len(got.Differences) > 0 || !got.Decision.Allow {
		t.Errorf("got %+v, %v", got, err)
	}
	call.Request.Args = []byte(`{"amount":500}`)
	rec, _ = record(t, x, call, false)
	rec.Reason = "killed"
	if got, err = replay.Decide(x, rec, nil); err != nil || len(got.Differences) != 1 || got.Differences[0].Field != "effect" {
		t.Errorf("a kill is looked at only where the policy allows: %+v, %v", got, err)
	}
}

func TestARecordWithoutADecisionIsRefused(t *testing.T) {
	t.Parallel()
	x := open(t, below(100))
	long := snapshottest.Call{Principal: "alice", Server: "pay", Item: "refund", URI: "file:///" + strings.Repeat("a", replay.MaxItem)}
	tooLong, _ := record(t, x, long, true)
	for name, rec := range map[string]*auditv1.Record{"a list": {Server: "pay", Method: "tools/list"}, "nothing": {}, "a name too long": tooLong} {
		if _, err := replay.Decide(x, rec, nil); !errors.Is(err, replay.ErrNoDecision) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzDecide: a record is bytes from outside; whatever it says, deciding again ends and changes nothing.
func FuzzDecide(f *testing.F) {
	x := open(f, below(100))
	call := snapshottest.Call{Principal: "alice", Server: "pay", Item: "refund", URI: "file:///a", Request: authz.Request{NowMS: 1, Args: []byte(`{"amount":5}`)}}
	for _, resource := range []bool{false, true} {
		rec, _ := record(f, x, call, resource)
		raw, err := proto.Marshal(rec)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, []byte(`{"amount":5}`))
		f.Add(raw, []byte(nil))
	}
	f.Fuzz(func(t *testing.T, raw, args []byte) {
		rec := &auditv1.Record{}
		if proto.Unmarshal(raw, rec) != nil {
			return
		}
		a, errA := replay.Decide(x, rec, args)
		b, errB := replay.Decide(x, rec, args)
		if (errA == nil) != (errB == nil) || errA == nil && a.Decision != b.Decision {
			t.Fatalf("%+v %v, then %+v %v", a, errA, b, errB)
		}
	})
}
