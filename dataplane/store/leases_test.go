package store_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/store"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"google.golang.org/protobuf/proto"
)

const opened = cellv1.SessionVerdict_SESSION_VERDICT_OPENED

func leaseStore(t testing.TB, dir string) *store.Leases {
	t.Helper()
	s, err := store.Open(store.Config{Dir: dir, Key: store.Key{1}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s.Leases()
}

func leaseID(createdMS, n int64) (id [24]byte) {
	binary.BigEndian.PutUint64(id[:], uint64(createdMS))
	binary.BigEndian.PutUint64(id[8:], uint64(n)*0x9e3779b97f4a7c15) // spread as hashes are
	binary.BigEndian.PutUint64(id[16:], uint64(n))
	return id
}

func lease(createdMS, n int64, tenant, user string) *cellv1.SessionLease {
	id := leaseID(createdMS, n)
	return &cellv1.SessionLease{
		Id: id[:], TenantId: tenant, Server: "pay", Owner: append(make([]byte, 16-len(user)), user...), Principal: user,
		Client: "claude-code 2.1.0", Node: "n1", Revision: "2025-11-25", UsedMs: createdMS, Upstream: "0b7c9d8e-upstream-session-id",
	}
}

func opening(l *cellv1.SessionLease) *cellv1.SessionOpening { return &cellv1.SessionOpening{Lease: l} }

func apply(t testing.TB, l *store.Leases, index uint64, b *cellv1.SessionBatch) store.LeaseChange {
	t.Helper()
	if b.AtMs == 0 {
		b.AtMs = int64(index)
	}
	done, err := l.Apply(index, b)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func everything(*cellv1.SessionLease) bool { return true }

func TestALeaseLivesFromItsOpeningToItsEnd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := leaseStore(t, dir)
	one, two := lease(1000, 1, "acme", "alice"), lease(2000, 2, "acme", "bob")
	if done := apply(t, l, 5, &cellv1.SessionBatch{Opened: []*cellv1.SessionOpening{opening(one), opening(two)}}); done.Verdicts[0] != opened || done.Verdicts[1] != opened {
		t.Fatal(done.Verdicts)
	}
	apply(t, l, 6, &cellv1.SessionBatch{AtMs: 9000, TouchedMs: 9000, Touched: one.GetId()})
	all, more, err := l.List("acme", 10, everything)
	if err != nil || more || len(all) != 2 || all[0].GetPrincipal() != "alice" || all[0].GetUsedMs() != 9000 {
		t.Fatalf("not the last used first: %v %v %v", all, more, err)
	}
	if all, more, _ := l.List("acme", 1, everything); len(all) != 1 || !more {
		t.Fatal("the limit does not hold")
	}
	if all, _, _ := l.List("acm", 9, everything); len(all) != 0 {
		t.Fatal("another tenant's sessions are shown")
	}
	done := apply(t, l, 7, &cellv1.SessionBatch{Ended: one.GetId()})
	if len(done.Ended) != 1 || !done.Ended[0].Closed || done.Ended[0].Lease.GetUpstream() != one.GetUpstream() {
		t.Fatalf("%v", done.Ended)
	}
	if got, ended, err := l.Lease([24]byte(one.GetId())); got != nil || !ended || err != nil {
		t.Fatal(got, ended, err)
	}
	if done := apply(t, l, 8, &cellv1.SessionBatch{Opened: []*cellv1.SessionOpening{opening(one)}}); l.Len() != 1 || len(done.Ended) != 0 {
		t.Fatal("a session that ended was opened again")
	}
	if got, err := l.Find([16]byte{9}, [16]byte(two.GetId()[8:])); err != nil || len(got) != 1 || !proto.Equal(got[0], two) {
		t.Fatal(got, err)
	}
	if tenants, err := l.Tenants(); err != nil || len(tenants) != 1 || tenants[0] != "acme" {
		t.Fatal(tenants, err)
	}
}

func TestAnEntryCountsOnce(t *testing.T) {
	t.Parallel()
	l := leaseStore(t, t.TempDir())
	open := &cellv1.SessionBatch{Opened: []*cellv1.SessionOpening{opening(lease(1000, 1, "acme", "alice"))}}
	apply(t, l, 5, open)
	apply(t, l, 6, &cellv1.SessionBatch{Dropped: open.Opened[0].Lease.Id, AtMs: 500_000})
	apply(t, l, 7, &cellv1.SessionBatch{AtMs: 500_000, ForgetBeforeMs: 400_000})
	if done := apply(t, l, 5, open); !done.Seen || l.Len() != 0 {
		t.Fatal("an old entry of the log, seen again after a restart, has opened an ended session")
	}
	if _, ended, _ := l.Lease([24]byte(open.Opened[0].Lease.Id)); ended {
		t.Fatal("an end was not forgotten")
	}
}

func TestCapsHoldPerPrincipalAndPerTenant(t *testing.T) {
	t.Parallel()
	l := leaseStore(t, t.TempDir())
	try := func(index uint64, user, tenant string) cellv1.SessionVerdict {
		o := opening(lease(int64(index), int64(index), tenant, user))
		o.PrincipalCap, o.TenantCap = 2, 3
		return apply(t, l, index, &cellv1.SessionBatch{Opened: []*cellv1.SessionOpening{o}}).Verdicts[0]
	}
	for i, want := range []struct {
		user, tenant string
		verdict      cellv1.SessionVerdict
	}{
		{"alice", "acme", opened},
		{"alice", "acme", opened},
		{"alice", "acme", cellv1.SessionVerdict_SESSION_VERDICT_PRINCIPAL_FULL},
		{"alice", "globex", opened},
		{"bob", "acme", opened},
		{"carol", "acme", cellv1.SessionVerdict_SESSION_VERDICT_TENANT_FULL},
	} {
		if got := try(uint64(i+1), want.user, want.tenant); got != want.verdict {
			t.Errorf("%d: %s of %s: %s", i, want.user, want.tenant, got)
		}
	}
	first := leaseID(1, 1)
	apply(t, l, 50, &cellv1.SessionBatch{Ended: first[:]})
	if got := try(51, "alice", "acme"); got != opened {
		t.Error("an ended session still counts: ", got)
	}
}

func TestOnlyWhatWasNotUsedExpires(t *testing.T) {
	t.Parallel()
	l := leaseStore(t, t.TempDir())
	old, used := lease(1000, 1, "acme", "alice"), lease(1001, 2, "acme", "alice")
	apply(t, l, 1, &cellv1.SessionBatch{Opened: []*cellv1.SessionOpening{opening(old), opening(used)}})
	ids, err := l.Unused("acme", 5000, 10)
	if err != nil || len(ids) != 48 {
		t.Fatalf("%x %v", ids, err)
	}
	// A use overtakes the expiry that was decided on before it.
	apply(t, l, 2, &cellv1.SessionBatch{AtMs: 6000, TouchedMs: 6000, Touched: used.GetId()})
	done := apply(t, l, 3, &cellv1.SessionBatch{AtMs: 7000, Expired: []*cellv1.SessionExpiry{{UnusedSinceMs: 5000, Leases: ids}}})
	if len(done.Ended) != 1 || string(done.Ended[0].Lease.GetId()) != string(old.GetId()) || l.Len() != 1 {
		t.Fatalf("%v", done.Ended)
	}
}

// parts is what a snapshot of the log holds of the leases.
func parts(t testing.TB, l *store.Leases) (all []*cellv1.SessionState) {
	t.Helper()
	s, err := l.State()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.Parts(func(p *cellv1.SessionState) error {
		all = append(all, proto.CloneOf(p))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestASnapshotReplacesWhatIsOlderAndNothingThatIsNewer(t *testing.T) {
	t.Parallel()
	a, b := leaseStore(t, t.TempDir()), leaseStore(t, t.TempDir())
	var open []*cellv1.SessionOpening
	for i := range int64(9000) {
		open = append(open, opening(lease(1000+i, i, "acme", fmt.Sprint("u", i%7))))
	}
	apply(t, a, 10, &cellv1.SessionBatch{Opened: open})
	apply(t, a, 11, &cellv1.SessionBatch{AtMs: 11_000, Ended: open[0].Lease.Id})
	// b was away: it has a session that has ended since.
	apply(t, b, 9, &cellv1.SessionBatch{Opened: []*cellv1.SessionOpening{opening(lease(1, 77, "acme", "gone"))}})
	state := parts(t, a)
	for _, p := range state {
		if err := b.Restore(p); err != nil {
			t.Fatal(err)
		}
	}
	again := parts(t, b)
	if len(again) != len(state) || len(state) < 3 {
		t.Fatalf("%d parts became %d", len(state), len(again))
	}
	for i := range state {
		if !proto.Equal(state[i], again[i]) {
			t.Fatalf("part %d differs", i)
		}
	}
	if b.Len() != 8999 || b.Index() != 11 || b.AsOf() != 11_000 {
		t.Fatal(b.Len(), b.Index(), b.AsOf())
	}
	apply(t, b, 12, &cellv1.SessionBatch{AtMs: 12_000, Ended: open[1].Lease.Id})
	for _, p := range state {
		if err := b.Restore(p); err != nil {
			t.Fatal(err)
		}
	}
	if b.Len() != 8998 || b.Index() != 12 {
		t.Fatal("an older snapshot took back what was newer")
	}
	if err := b.Displace(); err != nil || b.Index() != 0 || b.Len() != 8998 {
		t.Fatal("a new log was not begun, or cost the sessions: ", err)
	}
}

func TestLeasesSurviveARestartAndDamageCostsNoPolicy(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := store.Config{Dir: dir, Key: store.Key{1}}
	open := func() *store.Store {
		s, err := store.Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	apply(t, s.Leases(), 3, &cellv1.SessionBatch{AtMs: 4000, Opened: []*cellv1.SessionOpening{opening(lease(1000, 1, "acme", "alice"))}})
	if err := s.PutHighWater(42); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	s = open()
	if l := s.Leases(); l.Len() != 1 || l.Index() != 3 || l.AsOf() != 4000 {
		t.Fatal(l.Len(), l.Index(), l.AsOf())
	}
	_ = s.Close()
	path := filepath.Join(dir, "sessions.db")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] ^= 0x55
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open()
	defer s.Close()
	if s.Leases().Len() != 0 || s.Leases().Index() != 0 || s.HighWater() != 42 {
		t.Fatal("a damaged file of sessions is not begun anew beside the policy")
	}
}

// load opens n sessions in batches as big as a test can afford.
func load(t testing.TB, l *store.Leases, n int) {
	t.Helper()
	const step = 20_000
	for from := 0; from < n; from += step {
		b := &cellv1.SessionBatch{AtMs: int64(from + 1)}
		for i := from; i < min(from+step, n); i++ {
			b.Opened = append(b.Opened, opening(lease(int64(i+1), int64(i), "acme", fmt.Sprint("u", i%1000))))
		}
		apply(t, l, l.Index()+1, b)
	}
}

// expire ends all of them as the sweep does.
func expire(t testing.TB, l *store.Leases) {
	t.Helper()
	for {
		ids, err := l.Unused("acme", 1<<50, 2000)
		if err != nil {
			t.Fatal(err)
		}
		if len(ids) == 0 {
			break
		}
		apply(t, l, l.Index()+1, &cellv1.SessionBatch{AtMs: 1 << 50, Expired: []*cellv1.SessionExpiry{{UnusedSinceMs: 1 << 50, Leases: ids}}})
	}
	for {
		oldest, err := l.OldestEnded()
		if err != nil {
			t.Fatal(err)
		}
		if oldest == 0 {
			return
		}
		apply(t, l, l.Index()+1, &cellv1.SessionBatch{AtMs: 1 << 50, ForgetBeforeMs: 1 << 49})
	}
}

func heap() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

func TestAbandonedSessionsLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	l := leaseStore(t, t.TempDir())
	load(t, l, 40_000)
	expire(t, l)
	oldest, err := l.OldestEnded()
	ofUser, ofTenant, cerr := l.Counts("acme", [16]byte(lease(1, 1, "acme", "u1").GetOwner()))
	if err = errors.Join(err, cerr); err != nil || l.Len() != 0 || oldest != 0 || ofUser != 0 || ofTenant != 0 {
		t.Fatal(l.Len(), oldest, ofUser, ofTenant, err)
	}
	if all := parts(t, l); len(all) != 1 || len(all[0].GetLeases())+len(all[0].GetEnded()) != 0 {
		t.Fatal("rows are left")
	}
}

// BenchmarkAbandonedSessions opens many sessions and lets all of them expire: what they take of memory and disk, and what is
// left of that.
func BenchmarkAbandonedSessions(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { abandon(b, n) })
	}
}

func abandon(b *testing.B, count int) {
	n := float64(count)
	for b.Loop() {
		dir := b.TempDir()
		l := leaseStore(b, dir)
		before := heap()
		began := time.Now()
		load(b, l, count)
		b.ReportMetric(float64(time.Since(began).Microseconds())/n, "us/opening")
		b.ReportMetric((heap()-before)/n, "heap-B/lease")
		info, err := os.Stat(filepath.Join(dir, "sessions.db"))
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(info.Size())/n, "disk-B/lease")
		began = time.Now()
		expire(b, l)
		b.ReportMetric(float64(time.Since(began).Microseconds())/n, "us/expiry")
		b.ReportMetric((heap()-before)/1024, "heap-KiB-after")
		b.ReportMetric(float64(l.Len()), "leases-after")
		// What is free is used again: as many again do not make the file grow by much.
		load(b, l, count)
		again, err := os.Stat(filepath.Join(dir, "sessions.db"))
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(again.Size())/float64(info.Size()), "disk-growth")
	}
}

func BenchmarkLookUpALease(b *testing.B) {
	l := leaseStore(b, b.TempDir())
	load(b, l, 100_000)
	i := int64(0)
	for b.Loop() {
		id := leaseID(i%100_000+1, i%100_000)
		if got, _, err := l.Lease(id); got == nil || err != nil {
			b.Fatal(got, err)
		}
		i += 7919
	}
}

func FuzzSessionBatch(f *testing.F) {
	one := lease(1000, 1, "acme", "alice")
	for _, b := range []*cellv1.SessionBatch{
		{AtMs: 1, Opened: []*cellv1.SessionOpening{opening(one), {Lease: one, PrincipalCap: 1}}},
		{AtMs: 2, Touched: one.GetId(), TouchedMs: 9, Ended: one.GetId(), Dropped: one.GetId()[:23]},
		{AtMs: 2, Expired: []*cellv1.SessionExpiry{{UnusedSinceMs: -1, Leases: one.GetId()}}, ForgetBeforeMs: 2},
	} {
		data, err := proto.Marshal(b)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	l := leaseStore(f, f.TempDir())
	f.Fuzz(func(t *testing.T, data []byte) {
		b := &cellv1.SessionBatch{}
		if len(data) > 60<<10 || proto.Unmarshal(data, b) != nil {
			return
		}
		done, err := l.Apply(l.Index()+1, b)
		if err != nil {
			if !errors.Is(err, store.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		if len(done.Verdicts) != len(b.GetOpened()) {
			t.Fatalf("%d verdicts on %d openings", len(done.Verdicts), len(b.GetOpened()))
		}
		total := 0
		tenants, err := l.Tenants()
		if err != nil {
			t.Fatal(err)
		}
		for _, tenant := range tenants {
			_, n, err := l.Counts(tenant, [16]byte{})
			if err != nil {
				t.Fatal(err)
			}
			all, _, err := l.List(tenant, 1<<20, everything)
			if total += n; err != nil || len(all) != n {
				t.Fatalf("%d of %d leases of %q are listed: %v", len(all), n, tenant, err)
			}
		}
		if total != l.Len() {
			t.Fatalf("%d leases, %d counted", l.Len(), total)
		}
	})
}
