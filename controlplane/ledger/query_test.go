package ledger_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/tlog"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

func TestADecisionIsFoundWithItsProofs(t *testing.T) {
	t.Parallel()
	f := setup(t)
	l := f.log()
	f.fill(l, 0, 700)
	intent := f.record(0)
	intent.Id, intent.Kind = "INTENT", auditv1.RecordKind_RECORD_KIND_INTENT
	f.append(l, intent)
	f.fill(l, 701, 900)
	outcome := f.record(0)
	outcome.Id, outcome.IntentId, outcome.Kind = "OUTCOME", "INTENT", auditv1.RecordKind_RECORD_KIND_OUTCOME
	f.append(l, outcome)
	f.fill(l, 901, 1000)
	f.mustDeliver(f.batch(l, 0, 1000), 1000)
	for _, id := range []string{"INTENT", "OUTCOME"} {
		res, err := f.ledger.GetRecord(f.as(f.acme), &adminv1.GetRecordRequest{Id: id})
		if err != nil || len(res.Records) != 2 {
			t.Fatalf("%s: %v, %v", id, res, err)
		}
		for _, p := range res.Records {
			cp, err := tlog.OpenCheckpoint(p.Log.Checkpoint, p.Log.VerifierKey)
			if err != nil {
				t.Fatal(err)
			}
			proof, err := tlog.HashesFromBytes(p.Proof)
			if err != nil {
				t.Fatal(err)
			}
			leaf := tlog.LeafHash(p.Record.Leaf)
			if err := tlog.CheckRecord(proof, cp.Size, cp.Root, int64(p.Record.Index), leaf); err != nil {
				t.Fatalf("record %d: %v", p.Record.Index, err)
			}
		}
	}
	if _, err := f.ledger.GetRecord(f.as(f.globex), &adminv1.GetRecordRequest{Id: "INTENT"}); problem.CodeOf(err) != problem.NotFound {
		t.Fatalf("another tenant's record: %v", err)
	}
}

func TestSearchFiltersAndFollows(t *testing.T) {
	t.Parallel()
	f := setup(t)
	l := f.log()
	f.fill(l, 0, 30)
	f.mustDeliver(f.batch(l, 0, 30), 30)
	ctx := f.as(f.globex)
	if res := f.search(ctx, &adminv1.SearchRecordsRequest{Decision: "allow"}); len(res.Records) != 0 {
		t.Fatalf("globex was allowed nothing: %v", res)
	}
	res := f.search(ctx, &adminv1.SearchRecordsRequest{
		Decision: "deny", Principal: "alice", Server: "demo", Target: "echo", SinceMs: 1_700_000_000_010, Limit: 3,
	})
	if len(res.Records) != 3 || idOf(t, res.Records[0]) != "R000022" || idOf(t, res.Records[2]) != "R000028" {
		t.Fatalf("the newest three, oldest first: %v", res)
	}
	if more := f.search(ctx, &adminv1.SearchRecordsRequest{After: res.Last}); len(more.Records) != 0 || more.Last != res.Last {
		t.Fatalf("nothing came since: %v", more)
	}
	f.fill(l, 30, 33)
	f.mustDeliver(f.batch(l, 30, 33), 33)
	if more := f.search(ctx, &adminv1.SearchRecordsRequest{After: res.Last}); len(more.Records) != 1 || idOf(t, more.Records[0]) != "R000031" {
		t.Fatalf("one came since: %v", more)
	}
}

func TestOnlyAnOwnerReadsAWholeLog(t *testing.T) {
	t.Parallel()
	f := setup(t)
	l := f.log()
	f.fill(l, 0, 3)
	f.mustDeliver(f.batch(l, 0, 3), 3)
	req := &adminv1.ReadLogRequest{LogId: l.Origin()}
	if _, err := f.ledger.ReadLog(f.as(f.acme, controlplane.RoleAuditor, controlplane.RoleAdmin), req); problem.CodeOf(err) != problem.Denied {
		t.Fatalf("a tenant's auditor: %v", err)
	}
	if _, err := f.ledger.ReadLog(t.Context(), req); problem.CodeOf(err) != problem.Denied {
		t.Fatalf("nobody: %v", err)
	}
	if _, err := f.ledger.SearchRecords(t.Context(), &adminv1.SearchRecordsRequest{}); problem.CodeOf(err) != problem.Unauthenticated {
		t.Fatalf("nobody searches: %v", err)
	}
	if res, err := f.ledger.ReadLog(f.as(f.acme, controlplane.RoleOwner), req); err != nil || len(res.Leaves) != 3 || res.Next != 3 {
		t.Fatalf("an owner: %v, %v", res, err)
	}
}

func TestTheServersRoleCannotChangeRecords(t *testing.T) {
	t.Parallel()
	f := setup(t)
	l := f.log()
	f.fill(l, 0, 3)
	f.mustDeliver(f.batch(l, 0, 3), 3)
	conn, err := pgx.Connect(t.Context(), f.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for _, sql := range []string{
		"SET ROLE mcpvault_app",
		"SELECT set_config('mcpvault.tenant', '" + string(f.acme.ID) + "', false)",
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for _, sql := range []string{
		"UPDATE audit_records SET reason = 'x'", "DELETE FROM audit_records", "TRUNCATE audit_records", "DELETE FROM audit_logs",
	} {
		if _, err := conn.Exec(t.Context(), sql); err == nil {
			t.Errorf("%s: allowed", sql)
		}
	}
}

// Somebody who owns the database can change what is stored, and whoever reads the log finds it.
func TestAChangeInTheDatabaseIsFound(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"changed": "UPDATE audit_records SET leaf = leaf || '\\x00' WHERE idx = 11",
		"deleted": "DELETE FROM audit_records WHERE idx = 11",
		"cut":     "DELETE FROM audit_records WHERE idx >= 40",
		"moved":   "UPDATE audit_records SET idx = CASE idx WHEN 11 THEN 1000 ELSE idx END; UPDATE audit_records SET idx = 11 WHERE idx = 49",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := setup(t)
			l := f.log()
			f.fill(l, 0, 50)
			f.mustDeliver(f.batch(l, 0, 50), 50)
			conn, err := pgx.Connect(t.Context(), f.url)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(t.Context())
			if _, err := conn.Exec(t.Context(), "ALTER TABLE audit_records NO FORCE ROW LEVEL SECURITY; "+sql); err != nil {
				t.Fatal(err)
			}
			if r := f.proveOnline(); r[0].OK() {
				t.Fatalf("not found: %+v", r)
			}
		})
	}
}
