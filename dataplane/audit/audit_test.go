package audit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/dataplane/audit"
	"github.com/mcpvault/mcpvault/kit/tlog"
	"github.com/mcpvault/mcpvault/kit/tlog/tlogtest"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

var key = []byte("0123456789abcdef0123456789abcdef")

type bundle struct {
	t       *testing.T
	dir     string
	disk    *tlogtest.FS
	log     *tlog.Log
	reg     *prometheus.Registry
	audit   *audit.Audit
	reserve int64
}

func setup(t *testing.T) *bundle {
	t.Helper()
	b := &bundle{t: t, dir: t.TempDir(), disk: tlogtest.New(tlogtest.Quick{})}
	b.start(0)
	t.Cleanup(func() { _ = b.log.Close() })
	return b
}

// start opens the log and makes an audit on it, as a process does.
func (b *bundle) start(quota int64) {
	b.t.Helper()
	var err error
	b.log, _, err = tlog.Open(tlog.Config{
		Dir: b.dir, Prefix: "mcpvault/audit/eu-1/n1", SegmentBytes: 32 << 10, FS: b.disk, WriteTimeout: 20 * time.Second,
		Reserve: b.reserve,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.reg = prometheus.NewRegistry()
	b.audit, err = audit.New(audit.Config{
		Cell: "eu-1", Node: "n1", Log: b.log, MACKey: key, Registerer: b.reg, Quota: quota,
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// restart ends the process without a word and starts the next one.
func (b *bundle) restart() {
	b.t.Helper()
	if err := b.log.Close(); err != nil {
		b.t.Fatal(err)
	}
	b.start(0)
	if err := b.audit.Recover(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bundle) call(kind auditv1.RecordKind) *auditv1.Record {
	return &auditv1.Record{
		Id: b.audit.NewID(), Kind: kind, TenantId: "0192f0a0-0000-7000-8000-000000000001", Server: "payments", Target: "refund",
		Principal: &auditv1.Person{Name: "alice"}, Decision: auditv1.Decision_DECISION_ALLOW, Reason: "allowed",
	}
}

func (b *bundle) intent() *auditv1.Record {
	b.t.Helper()
	rec := b.call(auditv1.RecordKind_RECORD_KIND_INTENT)
	if err := b.audit.Intent(b.t.Context(), rec); err != nil {
		b.t.Fatal(err)
	}
	return rec
}

func (b *bundle) outcome(intent *auditv1.Record) {
	b.t.Helper()
	rec := b.call(auditv1.RecordKind_RECORD_KIND_OUTCOME)
	rec.IntentId, rec.Outcome = intent.Id, "ok"
	if err := b.audit.Outcome(b.t.Context(), rec); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bundle) append() {
	b.t.Helper()
	if err := b.audit.Append(b.call(auditv1.RecordKind_RECORD_KIND_CALL)); err != nil {
		b.t.Fatal(err)
	}
}

// records reads the whole log.
func (b *bundle) records() []*auditv1.Record {
	b.t.Helper()
	if err := b.log.Sync(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	var out []*auditv1.Record
	for at := b.log.First(); at < b.log.Durable(); {
		recs, err := b.log.Read(at, 1000, 1<<20)
		if err != nil {
			b.t.Fatal(err)
		}
		for _, raw := range recs {
			rec := &auditv1.Record{}
			if err := proto.Unmarshal(raw, rec); err != nil {
				b.t.Fatal(err)
			}
			out = append(out, rec)
		}
		at += int64(len(recs))
	}
	return out
}

// unknown lists the intents that recovery gave an unknown outcome.
func (b *bundle) unknown() []string {
	var ids []string
	for _, rec := range b.records() {
		if rec.Kind == auditv1.RecordKind_RECORD_KIND_UNKNOWN_OUTCOME {
			if rec.Outcome != "unknown" || rec.Target != "refund" || rec.Principal.GetName() != "alice" || rec.Id == rec.IntentId {
				b.t.Errorf("unknown outcome: %v", rec)
			}
			ids = append(ids, rec.IntentId)
		}
	}
	return ids
}

// metric adds up the series of a metric that have the label value, all when it is empty.
func (b *bundle) metric(name, value string) float64 {
	b.t.Helper()
	families, err := b.reg.Gather()
	if err != nil {
		b.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if value == "" || (len(m.GetLabel()) > 0 && m.GetLabel()[0].GetValue() == value) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestIntentAndOutcomeAreDurableWhenTheyReturn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	in := b.intent()
	if b.log.Durable() != 1 {
		t.Fatal("the intent is not durable")
	}
	b.outcome(in)
	if b.log.Durable() != 2 {
		t.Fatal("the outcome is not durable")
	}
	recs := b.records()
	if recs[0].Id != in.Id || recs[1].IntentId != in.Id || recs[1].Cell != "eu-1" || recs[1].Node != "n1" || recs[1].TimeMs == 0 {
		t.Fatalf("%v", recs)
	}
	if b.metric("mcpvault_audit_events_total", "committed") != 2 {
		t.Error("committed records are not counted")
	}
}

func TestIdsOnlyGrowWhateverTheClockDoes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var mu sync.Mutex
	at := time.UnixMilli(1_700_000_000_000)
	steps := 0
	a, err := audit.New(audit.Config{Cell: "c", Node: "n", Log: b.log, MACKey: key, Now: func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		if steps++; steps%100 == 0 {
			at = at.Add(-time.Minute) // the clock is set back
		}
		return at
	}})
	if err != nil {
		t.Fatal(err)
	}
	last := ""
	for range 10_000 {
		id := a.NewID()
		if len(id) != 26 || id <= last {
			t.Fatalf("%s after %s", id, last)
		}
		last = id
	}
}

func TestArgumentsAreHashedUnderTheKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	one, two := b.audit.MAC([]byte(`{"amount":5}`)), b.audit.MAC([]byte(`{"amount":6}`))
	if len(one) != 32 || string(one) == string(two) || string(one) != string(b.audit.MAC([]byte(`{"amount":5}`))) {
		t.Fatal("not a hash of the arguments")
	}
	other, err := audit.New(audit.Config{Cell: "c", Node: "n", Log: b.log, MACKey: []byte("another key of this house")})
	if err != nil {
		t.Fatal(err)
	}
	if string(other.MAC([]byte(`{"amount":5}`))) == string(one) {
		t.Fatal("the key does not matter")
	}
	if _, err := audit.New(audit.Config{Cell: "c", Node: "n", Log: b.log, MACKey: []byte("short")}); err == nil {
		t.Fatal("a short key was taken")
	}
}

func TestAnIntentWithoutOutcomeBecomesUnknownOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var open []string
	for i := range 30 {
		b.append()
		in := b.intent()
		if i%10 == 4 {
			open = append(open, in.Id)
		} else {
			b.outcome(in)
		}
	}
	for range 3 {
		b.restart()
		if got := b.unknown(); fmt.Sprint(got) != fmt.Sprint(open) {
			t.Fatalf("unknown are %v, want %v", got, open)
		}
	}
	b.intent()
	b.restart()
	if got := b.unknown(); len(got) != len(open)+1 {
		t.Fatalf("after another: %v", got)
	}
}

func TestAnOldOpenIntentIsFoundBehindManyMarks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := b.intent()
	for range 40_000 {
		b.append()
	}
	b.restart()
	marks := 0
	for _, rec := range b.records() {
		if rec.Code == "MV9002N" {
			marks++
			if rec.Detail != "settled_below=0" {
				t.Errorf("a mark says %q while the first intent is open", rec.Detail)
			}
		}
	}
	if got := b.unknown(); marks < 2 || len(got) != 1 || got[0] != old.Id {
		t.Fatalf("%d marks, unknown %v", marks, got)
	}
}

func TestAFailedDiskRefusesEffectsAndKeepsReads(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.append()
	b.disk.FailWrites(syscall.ENOSPC)
	refused := b.call(auditv1.RecordKind_RECORD_KIND_INTENT)
	if err := b.audit.Intent(t.Context(), refused); !errors.Is(err, audit.ErrUnavailable) {
		t.Fatalf("intent on a full disk: %v", err)
	}
	if b.audit.Problem() == nil || b.metric("mcpvault_audit_dropped_total", "") != 1 || b.metric("mcpvault_audit_disk_failed", "") != 1 {
		t.Fatal("nobody would notice")
	}
	// The caller says what became of the call, under the same id.
	refused.Kind, refused.Outcome, refused.Reason = auditv1.RecordKind_RECORD_KIND_CALL, "refused", "audit_unavailable"
	if err := b.audit.Append(refused); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		b.append()
	}
	b.disk.FailWrites(nil)
	waitFor(t, "the disk works again", func() bool {
		return b.audit.Intent(t.Context(), b.call(auditv1.RecordKind_RECORD_KIND_INTENT)) == nil
	})
	if err := b.audit.Problem(); err != nil {
		t.Fatal(err)
	}
	b.restart()
	for _, id := range b.unknown() {
		if id == refused.Id {
			t.Fatal("a call that was refused is said to be unknown")
		}
	}
}

// What the reserve gives back is for the outcomes of calls under way: were intents let in, the last of them would find no
// room for its outcome.
func TestTheReserveOfAFullDiskTakesNoNewIntents(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if err := b.log.Close(); err != nil {
		t.Fatal(err)
	}
	b.reserve = 4 << 20
	b.start(0)
	under := b.intent()
	b.disk.Full(0)
	b.append()
	waitFor(t, "the reserve is used", func() bool { return b.log.Stats().ReserveUsed })
	b.disk.Full(1 << 20) // the removal of the reserve makes room, which the disk of the test does not know
	waitFor(t, "the log goes on", func() bool { return b.log.Sync(t.Context()) == nil })
	if err := b.audit.Intent(t.Context(), b.call(auditv1.RecordKind_RECORD_KIND_INTENT)); !errors.Is(err, audit.ErrUnavailable) {
		t.Fatalf("an intent on the reserve: %v", err)
	}
	if b.audit.Problem() == nil {
		t.Fatal("nobody would notice")
	}
	b.outcome(under)
	b.append()
	b.disk.Free()
	waitFor(t, "the reserve is back", func() bool { return b.audit.Problem() == nil })
	b.outcome(b.intent())
}

func TestRecoveryOnAFailedDiskLetsTheNodeStart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	in := b.intent()
	if err := b.log.Close(); err != nil {
		t.Fatal(err)
	}
	b.start(0)
	b.disk.FailSyncs(syscall.EIO)
	if err := b.audit.Recover(t.Context()); err != nil {
		t.Fatalf("recover: %v", err)
	}
	b.disk.FailSyncs(nil)
	waitFor(t, "the disk works again", func() bool { return b.log.Sync(t.Context()) == nil })
	if got := b.unknown(); len(got) != 1 || got[0] != in.Id {
		t.Fatalf("unknown are %v", got)
	}
}

func TestTheQuotaRefusesEffectsFirst(t *testing.T) {
	t.Parallel()
	b := setup(t)
	in := b.intent()
	if err := b.log.Close(); err != nil {
		t.Fatal(err)
	}
	b.start(20 << 10)
	if err := b.audit.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the spool is full", func() bool {
		b.append()
		return b.metric("mcpvault_audit_spool_alarm", "") == 1 && b.audit.Problem() != nil
	})
	for range 64 { // the spool is looked at now and then
		b.append()
	}
	if err := b.audit.Intent(t.Context(), b.call(auditv1.RecordKind_RECORD_KIND_INTENT)); !errors.Is(err, audit.ErrUnavailable) {
		t.Fatalf("intent above the quota: %v", err)
	}
	b.outcome(in)
	b.append()
}

func TestManyCallersAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 100 {
				b.append()
				b.outcome(b.intent())
			}
		})
	}
	wg.Wait()
	var ids []string
	for _, rec := range b.records() {
		ids = append(ids, rec.Id)
	}
	sort.Strings(ids)
	for i := 1; i < len(ids); i++ {
		if ids[i] == ids[i-1] {
			t.Fatalf("%s is there twice", ids[i])
		}
	}
	if len(ids) != 16*300 {
		t.Fatalf("%d records", len(ids))
	}
	b.restart()
	if got := b.unknown(); len(got) != 0 {
		t.Fatalf("unknown: %v", got)
	}
}

func TestATruncatedLogDoesNotOpen(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for range 10 {
		b.outcome(b.intent())
	}
	if err := b.log.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(b.dir, tlog.SegmentName(0))
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, st.Size()/2); err != nil {
		t.Fatal(err)
	}
	_, _, err = tlog.Open(tlog.Config{Dir: b.dir, Prefix: "mcpvault/audit/eu-1/n1"})
	if !errors.Is(err, tlog.ErrCorrupt) || !strings.Contains(err.Error(), filepath.Base(name)) {
		t.Fatalf("open: %v", err)
	}
}

func BenchmarkAppend(b *testing.B) {
	l, _, err := tlog.Open(tlog.Config{Dir: b.TempDir(), Prefix: "mcpvault/audit/eu-1/n1", WriteTimeout: 20 * time.Second})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	a, err := audit.New(audit.Config{Cell: "eu-1", Node: "n1", Log: l, MACKey: key})
	if err != nil {
		b.Fatal(err)
	}
	rec := &auditv1.Record{
		Id: a.NewID(), Kind: auditv1.RecordKind_RECORD_KIND_CALL, TimeMs: time.Now().UnixMilli(), Code: "MV1001I",
		TenantId: "0192f0a0-0000-7000-8000-000000000001", Tenant: "acme", Cell: "eu-1", Node: "n1",
		Principal: &auditv1.Person{Name: "alice", Issuer: "urn:mcpvault:issuer:acme", Subject: "alice", Type: "user"},
		Client:    &auditv1.Client{Name: "claude", Version: "1.2.3", Address: "192.0.2.7:51234"},
		Method:    "tools/call", Server: "demo", VersionDigest: make([]byte, 32), Target: "echo",
		Decision: auditv1.Decision_DECISION_ALLOW, Reason: "allowed", Grants: []string{"0192f0a0-0000-7000-8000-000000000009"},
		Epoch: 1, Generation: 42, HeadSha256: make([]byte, 32), Session: make([]byte, 16), RequestId: a.NewID(),
		ArgumentsMac: make([]byte, 32), Outcome: "ok", HttpStatus: 200, LatencyUs: 1234, ProtocolVersion: "2025-11-25",
	}
	b.ReportAllocs()
	b.SetBytes(int64(proto.Size(rec)))
	n := 0
	for b.Loop() {
		if err := a.Append(rec); err != nil {
			b.Fatal(err)
		}
		if n++; n%5000 == 0 {
			b.StopTimer()
			if err := l.Sync(context.Background()); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	}
}
