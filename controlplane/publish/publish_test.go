package publish_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/keyring/keyringtest"
	"github.com/mcpvault/mcpvault/controlplane/publish"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/shard"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

const limit = 20 * time.Second

type bundle struct {
	st   *store.Store
	auth *snapshottest.Authority
	acme controlplane.Tenant
	p    *publish.Publisher
	reg  *prometheus.Registry
	// now is the publisher's clock; the wall clock when nil.
	now func() time.Time
}

func setup(t *testing.T) *bundle {
	t.Helper()
	b := &bundle{st: storetest.Open(t), auth: snapshottest.NewAuthority(t)}
	b.acme = storetest.Tenant(t, b.st, "acme")
	b.p = b.run(t, b.st)
	return b
}

// run starts a publisher that is stopped before the test ends.
func (b *bundle) run(t *testing.T, st *store.Store) *publish.Publisher {
	t.Helper()
	p, _ := b.runUntil(t, st)
	return p
}

func (b *bundle) runUntil(t *testing.T, st *store.Store) (*publish.Publisher, func()) {
	t.Helper()
	cfg := publish.Config{
		Store: st, Keys: keyringtest.Of(t, b.auth),
		Cells:  map[string][]string{"local": {publish.Everyone}, "far": {"globex"}},
		Logger: slog.New(slog.DiscardHandler), Now: b.now,
	}
	if b.reg != nil {
		cfg.Metrics = b.reg
	}
	p := publish.New(cfg)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return p, stop
}

func addUser(t *testing.T, st *store.Store, tenant controlplane.TenantID, name string) uint64 {
	t.Helper()
	rev, err := st.Write(t.Context(), tenant, "test", func(tx *store.Tx) error {
		if _, err := tx.InsertUser(t.Context(), controlplane.User{Name: name, Kind: controlplane.Person}); err != nil {
			return err
		}
		return tx.Change(t.Context(), "user.create", name, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

// await waits until the cell's view is as wanted.
func await(t *testing.T, p *publish.Publisher, cell, what string, ok func(publish.View) bool) publish.View {
	t.Helper()
	deadline := time.After(limit)
	for {
		v, changed, known := p.View(cell)
		if known && ok(v) {
			return v
		}
		if !known {
			changed = nil
		}
		select {
		case <-changed:
		case <-time.After(5 * time.Millisecond): // a view that is not there yet has nothing to wait for
		case <-deadline:
			t.Fatalf("%s: not within %s: %+v", what, limit, p.Status())
		}
	}
}

func holds(tenant controlplane.TenantID, revision uint64) func(publish.View) bool {
	return func(v publish.View) bool {
		return slices.ContainsFunc(v.Heads, func(h *publish.Head) bool { return h.TenantID == tenant && h.Revision >= revision })
	}
}

func TestAClockThatPostgreSQLContradictsSignsNoHeartbeat(t *testing.T) {
	t.Parallel()
	for _, off := range []time.Duration{-time.Hour, time.Hour} {
		t.Run(off.String(), func(t *testing.T) {
			t.Parallel()
			b := &bundle{st: storetest.Open(t), auth: snapshottest.NewAuthority(t)}
			b.acme = storetest.Tenant(t, b.st, "acme")
			b.now = func() time.Time { return time.Now().Add(off) }
			b.p = b.run(t, b.st)
			rev := addUser(t, b.st, b.acme.ID, "alice")
			v := await(t, b.p, "local", "the generation all the same", holds(b.acme.ID, rev))
			if len(v.Heartbeat) != 0 {
				t.Error("a heartbeat was signed by a clock that is not to be believed")
			}
			if skew := b.p.Status().Skew; (skew - off).Abs() > time.Minute {
				t.Errorf("the skew is told as %s, it is %s", skew, off)
			}
		})
	}
}

func TestACommitBecomesASealedGenerationThatACellCanOpen(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rev := addUser(t, b.st, b.acme.ID, "alice")
	v := await(t, b.p, "local", "the generation", holds(b.acme.ID, rev))

	trust, err := seal.OpenRoots(v.Roots, b.auth.Trust.Digest())
	if err != nil {
		t.Fatal(err)
	}
	m, err := trust.OpenManifest(v.Manifest, "local")
	if err != nil {
		t.Fatal(err)
	}
	if beat, err := trust.OpenHeartbeat(v.Heartbeat, "local"); err != nil || !bytes.Equal(beat.GetRoot(), rootOf(t, m, v)) {
		t.Fatalf("heartbeat of another root than that of what is in force: %v", err)
	}
	head, err := trust.OpenHead(v.Heads[0].Envelope)
	if err != nil {
		t.Fatal(err)
	}
	if err := seal.CheckTime(head, time.Now()); err != nil {
		t.Error(err)
	}
	x, cat, err := shard.OpenTenant(head, func(_ []byte, d snapshot.Digest, _ uint64) (blob []byte, err error) {
		if !b.p.MayFetch("local", d) || b.p.MayFetch("far", d) {
			t.Errorf("shard %s is offered to the wrong cell", d)
		}
		err = b.st.Platform(t.Context(), func(tx *store.Tx) error { blob, err = tx.Blob(t.Context(), d[:]); return err })
		return blob, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := applied(t, trust, x, v.Heads[0]).Principal("alice"); !ok || cat.GetTenant() != "acme" {
		t.Error("alice is missing")
	}
	if far, _, _ := b.p.View("far"); len(far.Heads) != 0 {
		t.Error("a tenant is shown to a cell that it is not homed in")
	}
}

func TestGenerationsCountUpByOneAndNameTheirParent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for i := range 5 {
		rev := addUser(t, b.st, b.acme.ID, fmt.Sprint("u", i))
		await(t, b.p, "local", "the generation", holds(b.acme.ID, rev))
	}
	var list []store.Generation
	err := b.st.Read(t.Context(), b.acme.ID, func(tx *store.Tx) (err error) { list, err = tx.Generations(t.Context(), 100); return err })
	if err != nil || len(list) < 5 {
		t.Fatal(len(list), err)
	}
	for i, g := range list[:len(list)-1] {
		before := list[i+1]
		if parent := parentOf(t, g); g.Generation != before.Generation+1 || !bytes.Equal(parent, before.PayloadSHA256) {
			t.Errorf("generation %d after %d has parent %x", g.Generation, before.Generation, parent)
		}
	}
}

func TestWhatWasCommittedWithoutAPublisherIsPublishedByTheNextOne(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rev := addUser(t, b.st, b.acme.ID, "alice")
	first := await(t, b.p, "local", "the first", holds(b.acme.ID, rev))
	p2, stop2 := b.runUntil(t, b.st)
	await(t, p2, "local", "the second publisher's", holds(b.acme.ID, rev))
	stop2()

	m1, err := b.auth.Trust.OpenManifest(first.Manifest, "local")
	if err != nil {
		t.Fatal(err)
	}
	rev = addUser(t, b.st, b.acme.ID, "bob")
	p3 := b.run(t, b.st)
	v := await(t, p3, "local", "after a restart", holds(b.acme.ID, rev))
	m3, err := b.auth.Trust.OpenManifest(v.Manifest, "local")
	if err != nil || m3.GetSequence() <= m1.GetSequence() {
		t.Errorf("manifest %d after %d: %v", m3.GetSequence(), m1.GetSequence(), err)
	}
}

func TestTwoControlPlanesPublishEachRevisionOnceAndShowTheSame(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := b.run(t, b.st)
	var last uint64
	for i := range 20 {
		last = addUser(t, b.st, b.acme.ID, fmt.Sprint("u", i))
	}
	v1 := await(t, b.p, "local", "the one", holds(b.acme.ID, last))
	v2 := await(t, other, "local", "the other", holds(b.acme.ID, last))
	if v1.Heads[0].Digest != v2.Heads[0].Digest {
		t.Error("two control planes show different heads")
	}
}

func TestWhatAnotherControlPlanePublishedIsFoundWithoutAHint(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rev := addUser(t, b.st, b.acme.ID, "alice")
	before := await(t, b.p, "local", "the first", holds(b.acme.ID, rev))

	// A generation and a manifest's number, as another control plane stores them, but nothing that tells of them.
	next := *before.Heads[0]
	head, err := publish.ReadHead(next.Envelope)
	if err != nil {
		t.Fatal(err)
	}
	head.Generation++
	env, err := seal.SignHead(head, b.auth.Head)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := seal.HeadDigest(env)
	if err != nil {
		t.Fatal(err)
	}
	err = b.st.Record(t.Context(), b.acme.ID, func(tx *store.Tx) error {
		var blobs []store.Blob
		for _, s := range head.GetShards() {
			blob, err := tx.Blob(t.Context(), s.GetSha256())
			if err != nil {
				return err
			}
			blobs = append(blobs, store.Blob{SHA256: s.GetSha256(), Bytes: blob})
		}
		g := store.Generation{
			Epoch: head.GetEpoch(), Generation: head.GetGeneration(), Revision: head.GetRevision(),
			Envelope: env, PayloadSHA256: digest[:], Size: 1, CommittedAt: tx.Now(),
		}
		if err := tx.InsertGeneration(t.Context(), g, blobs); err != nil {
			return err
		}
		_, err := tx.NextManifest(t.Context(), "local")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	v := await(t, b.p, "local", "the other's generation", func(v publish.View) bool { return v.Heads[0].Digest == digest })
	m, err := b.auth.Trust.OpenManifest(v.Manifest, "local")
	if err != nil || uint64(v.Heads[0].Version.Generation) != head.GetGeneration() || m.GetHeads()[0].GetGeneration() != head.GetGeneration() {
		t.Errorf("shown as %v: %v", v.Heads[0].Version, err)
	}
}

func TestTheFiguresSayWhatWasPublishedAndWhatWaits(t *testing.T) {
	t.Parallel()
	b := &bundle{st: storetest.Open(t), auth: snapshottest.NewAuthority(t), reg: prometheus.NewRegistry()}
	b.acme = storetest.Tenant(t, b.st, "acme")
	b.p = b.run(t, b.st)
	await(t, b.p, "local", "the first", holds(b.acme.ID, 1))
	breakServer(t, b)
	deadline := time.Now().Add(limit)
	for {
		got := figures(t, b.reg)
		if got["mcpvault_publish_generations_total"] >= 1 && got["mcpvault_publish_failures_total rows"] >= 1 &&
			got["mcpvault_publish_tenants_failing"] == 1 && got["mcpvault_publish_outbox_lag_seconds"] > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("figures are %v", got)
		}
		time.Sleep(10 * time.Millisecond) // the figures tell nobody when they change
	}
}

func figures(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			out[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return out
}

// breakServer publishes a version whose stored bytes do not decode, and returns its server and the revision.
func breakServer(t *testing.T, b *bundle) (store.Server, uint64) {
	t.Helper()
	srv := store.Server{ID: store.NewID(), Name: "broken", URL: "http://x"}
	rev, err := b.st.Write(t.Context(), b.acme.ID, "test", func(tx *store.Tx) error {
		ctx := t.Context()
		v := store.ServerVersion{ID: store.NewID(), ServerID: srv.ID, Number: 1, Digest: make([]byte, 32), Surface: []byte{0xff}}
		for _, err := range []error{tx.InsertServer(ctx, srv), tx.InsertVersion(ctx, v), tx.PublishVersion(ctx, v, nil), tx.Change(ctx, "x", "x", nil)} {
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return srv, rev
}

func TestATenantThatDoesNotCompileDelaysNobodyElse(t *testing.T) {
	t.Parallel()
	b := setup(t)
	globex := storetest.Tenant(t, b.st, "globex")
	good := addUser(t, b.st, b.acme.ID, "alice")
	before := await(t, b.p, "local", "the last good", holds(b.acme.ID, good))

	ctx := t.Context()
	srv, bad := breakServer(t, b)
	rev := addUser(t, b.st, globex.ID, "mallory")
	v := await(t, b.p, "far", "the other tenant", holds(globex.ID, rev))
	if len(v.Heads) != 1 {
		t.Errorf("%d heads", len(v.Heads))
	}
	await(t, b.p, "local", "the failure", func(publish.View) bool {
		f := b.p.Status().Failures
		return len(f) == 1 && f[0].Tenant == "acme" && strings.Contains(f[0].Message, "server broken")
	})
	if h := b.p.Head(b.acme.ID); h.Revision < before.Heads[0].Revision || h.Revision >= bad {
		t.Errorf("revision %d is in force", h.Revision)
	}
	fixed, err := b.st.Write(ctx, b.acme.ID, "test", func(tx *store.Tx) error {
		if err := tx.DeleteServer(ctx, srv.ID); err != nil {
			return err
		}
		return tx.Change(ctx, "x", "x", nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	await(t, b.p, "local", "the repaired tenant", holds(b.acme.ID, fixed))
	if f := b.p.Status().Failures; len(f) != 0 {
		t.Errorf("still failing: %+v", f)
	}
}

func TestAKillIsShownWithoutANewGeneration(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rev := addUser(t, b.st, b.acme.ID, "alice")
	before := await(t, b.p, "local", "the generation", holds(b.acme.ID, rev))
	env, err := seal.SignKill(&snapshotv1.Kill{
		Id: "k1", Kind: snapshotv1.KillKind_KILL_KIND_USER, TenantId: string(b.acme.ID), Subject: "alice", IssuedMs: 1,
	}, b.auth.Kill)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.st.Write(t.Context(), b.acme.ID, "test", func(tx *store.Tx) error {
		tx.SetKind(store.OutboxKill)
		if _, err := tx.InsertKill(t.Context(), store.Kill{ID: "k1", Kind: "user", Subject: "alice", IssuedAt: tx.Now(), Envelope: env}); err != nil {
			return err
		}
		return tx.Change(t.Context(), "kill", "user:alice", nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	v := await(t, b.p, "local", "the kill", func(v publish.View) bool { return len(v.Kills) == 1 && v.Kills[0].ID == "k1" })
	if v.Heads[0].Version != before.Heads[0].Version {
		t.Error("a kill made a generation")
	}
	if again := await(t, b.run(t, b.st), "local", "the kill after a restart", func(v publish.View) bool { return len(v.Kills) == 1 }); !bytes.Equal(again.Kills[0].Envelope, env) {
		t.Error("another kill came back")
	}
}

func TestHeartbeatsGoOnWhileNothingChanges(t *testing.T) {
	t.Parallel()
	b := setup(t)
	v := await(t, b.p, "local", "a view", func(v publish.View) bool { return len(v.Heads) == 1 })
	first, err := b.auth.Trust.OpenHeartbeat(v.Heartbeat, "local")
	if err != nil {
		t.Fatal(err)
	}
	await(t, b.p, "local", "a newer heartbeat", func(v publish.View) bool {
		h, err := b.auth.Trust.OpenHeartbeat(v.Heartbeat, "local")
		return err == nil && h.GetTimeMs() > first.GetTimeMs() && bytes.Equal(h.GetRoot(), first.GetRoot())
	})
}

func BenchmarkCommitToView(b *testing.B) {
	st := storetest.Open(b)
	auth := snapshottest.NewAuthority(b)
	acme := storetest.Tenant(b, st, "acme")
	p := publish.New(publish.Config{
		Store: st, Keys: keyringtest.Of(b, auth),
		Cells: map[string][]string{"local": {publish.Everyone}}, Logger: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	for b.Loop() {
		rev, err := st.Write(ctx, acme.ID, "test", func(tx *store.Tx) error { return tx.Change(ctx, "x", "x", nil) })
		if err != nil {
			b.Fatal(err)
		}
		for {
			v, changed, ok := p.View("local")
			if ok && holds(acme.ID, rev)(v) {
				break
			}
			if ok {
				<-changed
			} else {
				time.Sleep(time.Millisecond)
			}
		}
	}
}
