package access_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/replay"
)

// decide makes a decision on the newest generation as a cell does, and its record.
func (b *bundle) decide(t *testing.T, id, user, tool, args string) *auditv1.Record {
	t.Helper()
	version, digest, x, err := b.acc.Newest(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	p, _ := x.Principal(user)
	srv, ok := x.Server("payments")
	item, found := x.Item(srv, tool)
	if !ok || !found {
		t.Fatalf("%s is not in the index", tool)
	}
	v, state := x.View(p, srv), x.StateHash()
	r := &authz.Request{NowMS: time.Now().UnixMilli(), Args: []byte(args)}
	d := authz.Decide(&v, item, r)
	rec := &auditv1.Record{
		Id: id, Kind: auditv1.RecordKind_RECORD_KIND_INTENT, TimeMs: r.NowMS, TenantId: string(b.acme.ID), Principal: &auditv1.Person{Name: user},
		Server: "payments", Target: tool, Method: "tools/call", Epoch: uint64(version.Epoch), Generation: uint64(version.Generation), HeadSha256: digest,
		StateHash: state[:], Decision: auditv1.Decision_DECISION_DENY, Reason: d.Reason.String(), Client: &auditv1.Client{Address: "192.0.2.1"},
	}
	if d.Allow {
		rec.Decision = auditv1.Decision_DECISION_ALLOW
	}
	replay.Note(rec, &v, item, tool, r, d, authz.Reaching(&v, item))
	return rec
}

// keep stores records, as the ledger does.
func (b *bundle) keep(t *testing.T, recs ...*auditv1.Record) {
	t.Helper()
	rows := make([]store.AuditRecord, 0, len(recs))
	for i, rec := range recs {
		leaf, err := proto.Marshal(rec)
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, store.AuditRecord{
			Index: int64(i), Tenant: b.acme.ID, ID: rec.GetId(), IntentID: rec.GetIntentId(), At: time.UnixMilli(rec.GetTimeMs()),
			Kind: int32(rec.GetKind()), Decision: int32(rec.GetDecision()), Reason: rec.GetReason(), Leaf: leaf,
		})
	}
	err := b.st.Platform(context.WithoutCancel(b.ctx), func(tx *store.Tx) error {
		log, err := tx.LockAuditLog(b.ctx, fmt.Sprintf("mcpvault/audit/local/n1/%s", recs[0].GetId()), "local", "n1", "key")
		if err != nil {
			return err
		}
		return tx.InsertAuditRecords(b.ctx, log.No, rows)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestARecordedDecisionIsMadeAgainUnderItsOwnGeneration(t *testing.T) {
	t.Parallel()
	b := setup(t)
	g := b.grant(t, &adminv1.CreateGrantRequest{Effect: allow, Subject: "role:analyst", Target: "server:payments/refund", Condition: "context.args.amount < 100"})
	allowed := b.decide(t, "01ALLOWED", "alice", "refund", `{"amount":5}`)
	denied := b.decide(t, "01DENIED", "alice", "refund", `{"amount":500}`)
	outcome := &auditv1.Record{Id: "01OUTCOME", IntentId: "01ALLOWED", Kind: auditv1.RecordKind_RECORD_KIND_OUTCOME, TimeMs: 1}
	list := &auditv1.Record{Id: "01LIST", Method: "tools/list", Server: "payments", Epoch: allowed.GetEpoch(), Generation: allowed.GetGeneration(), TimeMs: 1}
	forged := proto.Clone(denied).(*auditv1.Record)
	forged.Id, forged.Decision, forged.Reason = "01FORGED", auditv1.Decision_DECISION_ALLOW, "allowed"
	b.keep(t, allowed, denied, outcome, list, forged)
	// The policy goes on: what was decided under the generation before stays as it was.
	if _, err := b.acc.DeleteGrants(b.ctx, &adminv1.DeleteGrantsRequest{Id: g.GetId()}); err != nil {
		t.Fatal(err)
	}
	b.grant(t, &adminv1.CreateGrantRequest{Effect: deny, Subject: "everyone", Target: "server:payments"})

	for _, c := range []struct {
		id, args string
		same     bool
		allowed  bool
		differ   string
	}{
		{"01ALLOWED", "", true, true, ""},
		{"01OUTCOME", "", true, true, ""},
		{"01ALLOWED", `{"amount":5}`, true, true, ""},
		{"01ALLOWED", `{"amount":500}`, false, false, "conditions reason effect"},
		{"01DENIED", "", true, false, ""},
		{"01FORGED", "", false, false, "reason effect"},
	} {
		res, err := b.acc.Replay(b.ctx, &adminv1.ReplayRequest{Id: c.id, Arguments: c.args})
		if err != nil {
			t.Errorf("%s: %v", c.id, err)
			continue
		}
		var fields []string
		for _, d := range res.GetDifferences() {
			fields = append(fields, d.GetField())
		}
		if got := strings.Join(fields, " "); res.GetSame() != c.same || res.GetAllowed() != c.allowed || got != c.differ ||
			res.GetGeneration() != allowed.GetGeneration() || !slices.Equal(res.GetStateHash(), allowed.GetStateHash()) || res.GetEvaluated() != (c.args != "") || res.GetItem() != "refund" {
			t.Errorf("%s %s: %v", c.id, c.args, res)
		}
	}
	for id, code := range map[string]problem.Code{"01NOBODY": problem.NotFound, "01LIST": problem.Invalid} {
		if _, err := b.acc.Replay(b.ctx, &adminv1.ReplayRequest{Id: id}); problem.CodeOf(err) != code {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func TestADecisionOfAGenerationThatIsNotKeptIsNotMadeUp(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.grant(t, &adminv1.CreateGrantRequest{Effect: allow, Subject: "everyone", Target: "server:payments"})
	gone := b.decide(t, "01GONE", "alice", "refund", `{"amount":5}`)
	gone.Generation = 999
	other := b.decide(t, "01OTHER", "alice", "refund", `{"amount":5}`)
	other.HeadSha256 = make([]byte, 32)
	b.keep(t, gone, other)
	if _, err := b.acc.Replay(b.ctx, &adminv1.ReplayRequest{Id: "01GONE"}); problem.CodeOf(err) != problem.NotFound || !strings.Contains(err.Error(), "no longer kept") {
		t.Errorf("got %v", err)
	}
	res, err := b.acc.Replay(b.ctx, &adminv1.ReplayRequest{Id: "01OTHER"})
	if err != nil || res.GetSame() || len(res.GetDifferences()) != 1 || res.GetDifferences()[0].GetField() != "generation" {
		t.Errorf("a generation of the same number with other contents: %v %v", res, err)
	}
}
