package ledger_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/ledger"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/tlog"
	"github.com/mcpvault/mcpvault/kit/tlog/check"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

const cell, node = "eu-1", "n1"

type fixture struct {
	t      *testing.T
	url    string
	store  *store.Store
	ledger *ledger.Ledger
	acme   controlplane.Tenant
	globex controlplane.Tenant
}

func setup(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, url: storetest.URL(t)}
	f.store = storetest.OpenAt(t, f.url, nil)
	f.ledger = ledger.New(ledger.Config{Store: f.store})
	f.acme, f.globex = storetest.Tenant(t, f.store, "acme"), storetest.Tenant(t, f.store, "globex")
	return f
}

// as is a context of a caller in the tenant.
func (f *fixture) as(tenant controlplane.Tenant, roles ...string) context.Context {
	return controlplane.WithCaller(f.t.Context(), controlplane.Caller{
		Principal: "carol", TenantID: tenant.ID, Tenant: tenant.Name, Home: tenant.Name, Roles: roles,
	})
}

func (f *fixture) openLog(dir string) *tlog.Log {
	f.t.Helper()
	l, _, err := tlog.Open(tlog.Config{Dir: dir, Prefix: "mcpvault/audit/" + cell + "/" + node, SegmentBytes: 64 << 10})
	if err != nil {
		f.t.Fatal(err)
	}
	return l
}

func (f *fixture) log() *tlog.Log {
	f.t.Helper()
	l := f.openLog(f.t.TempDir())
	f.t.Cleanup(func() { _ = l.Close() })
	return l
}

// record is the i-th record of a log: acme's, globex's and nobody's in turn.
func (f *fixture) record(i int) *auditv1.Record {
	r := &auditv1.Record{
		Id: fmt.Sprintf("R%06d", i), Kind: auditv1.RecordKind_RECORD_KIND_CALL, TimeMs: 1_700_000_000_000 + int64(i),
		Decision: auditv1.Decision_DECISION_ALLOW, Reason: "allowed", Server: "demo", Target: "echo",
		Principal: &auditv1.Person{Name: "alice"},
	}
	switch i % 3 {
	case 0:
		r.TenantId = string(f.acme.ID)
	case 1:
		r.TenantId, r.Decision, r.Reason = string(f.globex.ID), auditv1.Decision_DECISION_DENY, "no_grant"
	}
	return r
}

func (f *fixture) append(l *tlog.Log, recs ...*auditv1.Record) {
	f.t.Helper()
	for _, r := range recs {
		b, err := proto.Marshal(r)
		if err != nil {
			f.t.Fatal(err)
		}
		if _, err := l.Append(b); err != nil {
			f.t.Fatal(err)
		}
	}
	if err := l.Sync(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) fill(l *tlog.Log, from, to int) {
	f.t.Helper()
	var recs []*auditv1.Record
	for i := from; i < to; i++ {
		recs = append(recs, f.record(i))
	}
	f.append(l, recs...)
}

// batch is the delivery of records [from, to).
func (f *fixture) batch(l *tlog.Log, from, to int64) *cellv1.DeliverAuditRequest {
	f.t.Helper()
	req := &cellv1.DeliverAuditRequest{LogId: l.Origin(), VerifierKey: l.VerifierKey(), FirstIndex: uint64(from)}
	for at := from; at < to; {
		recs, err := l.Read(at, int(to-at), 1<<20)
		if err != nil {
			f.t.Fatal(err)
		}
		req.Records = append(req.Records, recs...)
		at += int64(len(recs))
	}
	var err error
	if req.Checkpoint, _, err = l.CheckpointAt(to); err != nil {
		f.t.Fatal(err)
	}
	return req
}

func (f *fixture) deliver(req *cellv1.DeliverAuditRequest) (*cellv1.DeliverAuditResponse, error) {
	return f.ledger.Deliver(f.t.Context(), cell, node, req)
}

func (f *fixture) mustDeliver(req *cellv1.DeliverAuditRequest, next uint64) {
	f.t.Helper()
	res, err := f.deliver(req)
	if err != nil {
		f.t.Fatalf("deliver: %v", err)
	}
	if res.NextIndex != next || res.WitnessedSize > next {
		f.t.Fatalf("next %d, witnessed %d, want %d", res.NextIndex, res.WitnessedSize, next)
	}
}

// proveOnline reads the log as its owner and computes everything again.
func (f *fixture) proveOnline() []check.Report {
	f.t.Helper()
	ctx := f.as(f.acme, controlplane.RoleOwner)
	list, err := f.ledger.ListLogs(ctx, &adminv1.ListLogsRequest{})
	if err != nil {
		f.t.Fatal(err)
	}
	var logs []check.Log
	for _, l := range list.Logs {
		logs = append(logs, check.Log{Origin: l.LogId, VerifierKey: l.VerifierKey, Checkpoints: [][]byte{l.Checkpoint}})
	}
	reports, err := check.Online(ctx, logs, nil, func(ctx context.Context, origin string, first int64) ([][]byte, error) {
		res, err := f.ledger.ReadLog(ctx, &adminv1.ReadLogRequest{LogId: origin, First: uint64(first), Limit: 333})
		return res.GetLeaves(), err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return reports
}

func (f *fixture) search(ctx context.Context, req *adminv1.SearchRecordsRequest) *adminv1.SearchRecordsResponse {
	f.t.Helper()
	res, err := f.ledger.SearchRecords(ctx, req)
	if err != nil {
		f.t.Fatal(err)
	}
	return res
}

func idOf(t *testing.T, r *adminv1.AuditRecord) string {
	t.Helper()
	var rec auditv1.Record
	if err := proto.Unmarshal(r.Leaf, &rec); err != nil {
		t.Fatal(err)
	}
	return rec.Id
}

func TestEveryRecordArrivesExactlyOnce(t *testing.T) {
	t.Parallel()
	f := setup(t)
	const n = 3000
	dir := t.TempDir()
	l := f.openLog(dir)
	f.fill(l, 0, n)
	rnd := rand.New(rand.NewPCG(3, 4))
	next := int64(0)
	for rounds := 0; next < n; rounds++ {
		if rounds%7 == 3 { // the node restarts
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = f.openLog(dir)
		}
		// From before, at or behind the watermark: a repetition, the next run, a gap.
		from := max(0, min(n-1, next-50+rnd.Int64N(80)))
		to := min(n, from+1+rnd.Int64N(400))
		req := f.batch(l, from, to)
		want := uint64(next)
		if from <= next {
			want = uint64(max(next, to))
		}
		f.mustDeliver(req, want)
		if rounds%5 == 0 {
			f.mustDeliver(req, want) // the answer was lost, and it is sent again
		}
		next = int64(want)
	}
	defer l.Close()
	reports := f.proveOnline()
	if len(reports) != 1 || !reports[0].OK() || reports[0].Size != n || reports[0].Signed != n {
		t.Fatalf("%+v", reports)
	}
	for rest, tenant := range []controlplane.Tenant{f.acme, f.globex} {
		seen := map[string]bool{}
		after := int64(0)
		for first := true; ; first = false {
			req := &adminv1.SearchRecordsRequest{After: after, Limit: 100}
			if first {
				req.After = 1 // from the beginning
				res := f.search(f.as(tenant), &adminv1.SearchRecordsRequest{Limit: 1000})
				if len(res.Records) != 1000 {
					t.Fatalf("the newest: %d", len(res.Records))
				}
			}
			res := f.search(f.as(tenant), req)
			if len(res.Records) == 0 {
				break
			}
			for _, r := range res.Records {
				id := idOf(t, r)
				var i int
				if _, err := fmt.Sscanf(id, "R%d", &i); err != nil || i%3 != rest || seen[id] {
					t.Fatalf("%s sees %s: seen %v", tenant.Name, id, seen[id])
				}
				seen[id] = true
			}
			after = res.Last
		}
		// The record with number 1 of the receiving order was asked past.
		if len(seen) < n/3-1 || len(seen) > n/3 {
			t.Fatalf("%s has %d records", tenant.Name, len(seen))
		}
	}
}

func TestDeliveriesAtOnceStoreOnce(t *testing.T) {
	t.Parallel()
	f := setup(t)
	l := f.log()
	f.fill(l, 0, 600)
	reqs := []*cellv1.DeliverAuditRequest{f.batch(l, 0, 200), f.batch(l, 0, 300), f.batch(l, 200, 600), f.batch(l, 300, 600)}
	var wg sync.WaitGroup
	for range 4 {
		for _, req := range reqs {
			wg.Go(func() {
				if _, err := f.deliver(req); err != nil {
					t.Errorf("deliver: %v", err)
				}
			})
		}
	}
	wg.Wait()
	f.mustDeliver(f.batch(l, 0, 600), 600)
	if r := f.proveOnline(); len(r) != 1 || !r[0].OK() || r[0].Size != 600 {
		t.Fatalf("%+v", r)
	}
}

func TestAGapIsAskedFor(t *testing.T) {
	t.Parallel()
	f := setup(t)
	l := f.log()
	f.fill(l, 0, 100)
	f.mustDeliver(f.batch(l, 50, 100), 0)
	f.mustDeliver(f.batch(l, 0, 30), 30)
	f.mustDeliver(f.batch(l, 50, 100), 30)
	f.mustDeliver(&cellv1.DeliverAuditRequest{LogId: l.Origin(), VerifierKey: l.VerifierKey()}, 30)
	f.mustDeliver(f.batch(l, 30, 100), 100)
}

// refused expects a Conflict, and that nothing of the log is taken from then on.
func (f *fixture) refused(req *cellv1.DeliverAuditRequest, word string) {
	f.t.Helper()
	_, err := f.deliver(req)
	if problem.CodeOf(err) != problem.Conflict || !strings.Contains(err.Error(), word) {
		f.t.Fatalf("want a conflict about %q, got %v", word, err)
	}
	list, err := f.ledger.ListLogs(f.as(f.acme, controlplane.RoleOwner), &adminv1.ListLogsRequest{})
	if err != nil || len(list.Logs) != 1 || !strings.Contains(list.Logs[0].Alarm, word) {
		f.t.Fatalf("no alarm on the log: %v, %v", list, err)
	}
}

func TestAChangedRecordRaisesAnAlarm(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]struct {
		word string
		at   int
	}{"known": {"changed", 10}, "new": {"do not lead", 70}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := setup(t)
			l := f.log()
			f.fill(l, 0, 100)
			f.mustDeliver(f.batch(l, 0, 50), 50)
			req := f.batch(l, 0, 100)
			req.Records[change.at][5] ^= 1
			f.refused(req, change.word)
			f.refused(f.batch(l, 50, 100), change.word)
			if r := f.proveOnline(); !r[0].OK() || r[0].Size != 50 {
				t.Fatalf("the evidence: %+v", r)
			}
		})
	}
}

// fork copies a log at its present size and lets the copy tell another story, with the same key.
func (f *fixture) fork(l *tlog.Log, to int) *tlog.Log {
	f.t.Helper()
	dir := f.t.TempDir()
	es, err := os.ReadDir(l.Dir())
	if err != nil {
		f.t.Fatal(err)
	}
	for _, e := range es {
		b, err := os.ReadFile(filepath.Join(l.Dir(), e.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, e.Name()), b, 0o600)
		}
		if err != nil {
			f.t.Fatal(err)
		}
	}
	other := f.openLog(dir)
	f.t.Cleanup(func() { _ = other.Close() })
	for i := int(other.Size()); i < to; i++ {
		r := f.record(i)
		r.Reason = "another story"
		f.append(other, r)
	}
	return other
}

func TestAForkRaisesAnAlarm(t *testing.T) {
	t.Parallel()
	for name, word := range map[string]string{"same size": "fork", "longer": "fork", "no proof": "do not lead", "watermark": "fork"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := setup(t)
			l := f.log()
			f.fill(l, 0, 40)
			other := f.fork(l, 80)
			f.fill(l, 40, 60)
			f.mustDeliver(f.batch(l, 0, 60), 60)
			var req *cellv1.DeliverAuditRequest
			switch name {
			case "same size":
				req = f.batch(other, 60, 60)
			case "watermark":
				req = f.batch(other, 50, 50)
			case "no proof":
				req = f.batch(other, 60, 80)
			case "longer":
				req = f.batch(other, 60, 80)
				proof, err := other.ProveTree(80, 60)
				if err != nil {
					t.Fatal(err)
				}
				req.Consistency, req.ConsistencyFrom = tlog.HashesToBytes(proof), 60
			}
			f.refused(req, word)
		})
	}
}

func TestTheProofOfConsistencyIsTaken(t *testing.T) {
	t.Parallel()
	f := setup(t)
	l := f.log()
	f.fill(l, 0, 90)
	f.mustDeliver(f.batch(l, 0, 37), 37)
	req := f.batch(l, 37, 90)
	proof, err := l.ProveTree(90, 37)
	if err != nil {
		t.Fatal(err)
	}
	req.Consistency, req.ConsistencyFrom = tlog.HashesToBytes(proof), 37
	f.mustDeliver(req, 90)
}

func TestANodeDeliversItsOwnLogOnly(t *testing.T) {
	t.Parallel()
	f := setup(t)
	l := f.log()
	f.fill(l, 0, 3)
	for _, who := range [][2]string{{"eu-1", "n2"}, {"eu-2", "n1"}, {"eu-1", "n"}, {"eu-1/n1", ""}} {
		_, err := f.ledger.Deliver(t.Context(), who[0], who[1], f.batch(l, 0, 3))
		if problem.CodeOf(err) != problem.Denied {
			t.Errorf("%v: %v", who, err)
		}
	}
}

func TestAnotherKeyForAKnownLogRaisesAnAlarm(t *testing.T) {
	t.Parallel()
	f := setup(t)
	l := f.log()
	f.fill(l, 0, 3)
	f.mustDeliver(f.batch(l, 0, 3), 3)
	// A log of the same name under another key: the name is in the key, so it is made by hand.
	key := otherKey(t, l.Origin())
	f.refused(&cellv1.DeliverAuditRequest{LogId: l.Origin(), VerifierKey: key}, "key")
}

func TestBadRequestsStoreNothing(t *testing.T) {
	t.Parallel()
	f := setup(t)
	l := f.log()
	f.fill(l, 0, 10)
	stranger := f.log()
	f.fill(stranger, 0, 10)
	for name, spoil := range map[string]func(*cellv1.DeliverAuditRequest){
		"no checkpoint":       func(r *cellv1.DeliverAuditRequest) { r.Checkpoint = nil },
		"cut checkpoint":      func(r *cellv1.DeliverAuditRequest) { r.Checkpoint = r.Checkpoint[:20] },
		"stranger's signed":   func(r *cellv1.DeliverAuditRequest) { r.Checkpoint = f.batch(stranger, 0, 10).Checkpoint },
		"other size":          func(r *cellv1.DeliverAuditRequest) { r.Records = r.Records[:9] },
		"empty record":        func(r *cellv1.DeliverAuditRequest) { r.Records[3] = nil },
		"huge record":         func(r *cellv1.DeliverAuditRequest) { r.Records[3] = make([]byte, tlog.MaxRecord+1) },
		"stranger's key":      func(r *cellv1.DeliverAuditRequest) { r.VerifierKey = stranger.VerifierKey() },
		"no key":              func(r *cellv1.DeliverAuditRequest) { r.VerifierKey = "" },
		"proof of odd length": func(r *cellv1.DeliverAuditRequest) { r.Consistency = [][]byte{{1}} },
		"impossible index":    func(r *cellv1.DeliverAuditRequest) { r.FirstIndex = 1 << 63 },
	} {
		req := f.batch(l, 0, 10)
		spoil(req)
		if _, err := f.deliver(req); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.mustDeliver(f.batch(l, 0, 10), 10)
}

func TestALeafThatIsNoRecordIsStoredAllTheSame(t *testing.T) {
	t.Parallel()
	f := setup(t)
	l := f.log()
	for _, leaf := range [][]byte{{0xff, 0xff, 0xff}, []byte("\x00")} {
		if _, err := l.Append(leaf); err != nil {
			t.Fatal(err)
		}
	}
	odd := f.record(0)
	odd.Target, odd.Reason, odd.TimeMs = "a\x00b", strings.Repeat("ä", 2000), 1<<62
	f.append(l, odd)
	f.mustDeliver(f.batch(l, 0, 3), 3)
	res := f.search(f.as(f.acme), &adminv1.SearchRecordsRequest{})
	if len(res.Records) != 1 || idOf(t, res.Records[0]) != "R000000" {
		t.Fatalf("%v", res)
	}
	if r := f.proveOnline(); !r[0].OK() || r[0].Size != 3 {
		t.Fatalf("%+v", r)
	}
}
