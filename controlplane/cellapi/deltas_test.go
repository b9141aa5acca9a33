package cellapi_test

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/publish"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

func isDelta(e *cellv1.WatchResponse) bool { return e.GetDelta() != nil }

// carries tells what brings a revision, or a later one: a head or a delta.
func (b *bundle) carries(t *testing.T, revision uint64) func(*cellv1.WatchResponse) bool {
	return func(e *cellv1.WatchResponse) bool {
		for _, env := range e.GetUpdate().GetHeads() {
			if h, err := b.auth.Trust.OpenHead(env); err != nil {
				t.Error(err)
			} else if h.GetRevision() >= revision {
				return true
			}
		}
		for _, signed := range append([]*snapshotv1.SignedDelta{e.GetDelta()}, e.GetUpdate().GetDeltas()...) {
			if signed == nil {
				continue
			}
			if d, err := b.auth.Trust.OpenDelta(signed); err != nil {
				t.Error(err)
			} else if d.GetRevision() >= revision {
				return true
			}
		}
		return false
	}
}

// edited publishes alice and a few more, each a generation, and returns what is in force: a head with deltas on it.
func edited(t *testing.T, b *bundle) *publish.Head {
	t.Helper()
	b.published(t, b.acme, b.write(t, b.acme, "alice"))
	var h *publish.Head
	for i := range 3 {
		h = b.published(t, b.acme, b.write(t, b.acme, fmt.Sprint("u", i)))
	}
	if len(h.Deltas) < 2 {
		t.Fatalf("%d deltas on %s", len(h.Deltas), h.Base.Version)
	}
	return h
}

// rebased is the generation as a head: one whose refusal is not answered with another generation.
func (b *bundle) rebased(t *testing.T, h *publish.Head) *publish.Head {
	t.Helper()
	if len(h.Deltas) == 0 {
		return h
	}
	b.pub.Rebase(h.TenantID, h.Version)
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		v, _, _ := b.pub.View("eu")
		for _, next := range v.Heads {
			if next.TenantID == h.TenantID && len(next.Deltas) == 0 && next.Version.Newer(h.Version) {
				return next
			}
		}
	}
	t.Fatal("no head was made of it")
	return nil
}

func appliedAt(b *bundle, v snapshot.Version) *cellv1.WatchRequest {
	return &cellv1.WatchRequest{Applied: []*cellv1.AppliedHead{{
		TenantId: string(b.acme.ID), Epoch: uint64(v.Epoch), Generation: uint64(v.Generation),
	}}}
}

func TestANodeAtTheGenerationBeforeIsSentDeltasAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := edited(t, b)
	events, _ := b.watch(t, b.node(t, "eu", "n1"), appliedAt(b, h.Base.Version))
	if u := next(t, events, "the manifest", isUpdate).GetUpdate(); len(u.GetHeads()) != 0 || len(u.GetDeltas()) != 0 || len(u.GetManifest()) == 0 {
		t.Errorf("%d heads and %d deltas in the update", len(u.GetHeads()), len(u.GetDeltas()))
	}
	for _, want := range h.Deltas {
		if got := next(t, events, "a delta", isDelta).GetDelta(); !proto.Equal(got, want.Signed) {
			t.Fatalf("another delta than %s", want.Version)
		}
	}
	rev := b.write(t, b.acme, "bob")
	for {
		e := next(t, events, "the next delta", func(e *cellv1.WatchResponse) bool { return isDelta(e) || isUpdate(e) })
		if isUpdate(e) {
			t.Fatal("an edit cost a manifest")
		}
		if b.carries(t, rev)(e) {
			return
		}
	}
}

func TestANodeThatLacksTheHeadIsSentItWithItsDeltas(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := edited(t, b)
	for name, req := range map[string]*cellv1.WatchRequest{
		"n1": {}, "n2": appliedAt(b, snapshot.Version{Epoch: 1, Generation: 10_000}),
	} {
		events, _ := b.watch(t, b.node(t, "eu", name), req)
		u := next(t, events, "the update", isUpdate).GetUpdate()
		if len(u.GetHeads()) != 1 || string(u.GetHeads()[0]) != string(h.Envelope) || len(u.GetDeltas()) != len(h.Deltas) {
			t.Fatalf("%d heads, %d deltas", len(u.GetHeads()), len(u.GetDeltas()))
		}
		for i, d := range u.GetDeltas() {
			if !proto.Equal(d, h.Deltas[i].Signed) {
				t.Errorf("delta %d is another one", i)
			}
		}
	}
	// A cell is not sent another's deltas.
	events, _ := b.watch(t, b.node(t, "us", "n1"), &cellv1.WatchRequest{})
	if u := next(t, events, "the update", isUpdate).GetUpdate(); len(u.GetDeltas()) != 0 {
		t.Error("another cell's deltas")
	}
}

func TestARefusedDeltaIsAnsweredWithAHead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := edited(t, b)
	n1 := b.node(t, "eu", "n1")
	events, _ := b.watch(t, n1, appliedAt(b, h.Version))
	next(t, events, "the manifest", isUpdate)
	if _, err := n1.Acknowledge(t.Context(), &cellv1.AcknowledgeRequest{
		TenantId: string(b.acme.ID), Epoch: uint64(h.Version.Epoch), Generation: uint64(h.Version.Generation),
		Status: cellv1.AckStatus_ACK_STATUS_REJECTED, Reason: "the state is another one",
	}); err != nil {
		t.Fatal(err)
	}
	u := next(t, events, "a head", func(e *cellv1.WatchResponse) bool { return len(e.GetUpdate().GetHeads()) > 0 }).GetUpdate()
	if got, err := b.auth.Trust.OpenHead(u.GetHeads()[0]); err != nil || got.GetGeneration() != uint64(h.Version.Generation)+1 {
		t.Errorf("got %v %v", got, err)
	}
}

func TestANodeThatMadeSomethingElseOfAGenerationIsSentAHead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := edited(t, b)
	req := appliedAt(b, h.Version)
	state, ok := h.StateOf(h.Version)
	if !ok {
		t.Fatal("no state hash")
	}
	req.Applied[0].StateHash = state
	events, _ := b.watch(t, b.node(t, "eu", "n1"), req)
	next(t, events, "a heartbeat, and no head before it", func(e *cellv1.WatchResponse) bool {
		if len(e.GetUpdate().GetHeads()) > 0 {
			t.Error("a head for a node that is well")
		}
		return isHeartbeat(e)
	})
	bad := append([]byte(nil), state...)
	bad[0] ^= 1
	req.Applied[0].StateHash = bad
	events, _ = b.watch(t, b.node(t, "eu", "n2"), req)
	next(t, events, "a head", func(e *cellv1.WatchResponse) bool { return len(e.GetUpdate().GetHeads()) > 0 })
}

func TestAGenerationThatIsADeltaIsListedWithWhatItIsMadeOf(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := edited(t, b)
	ctx := controlplane.WithCaller(t.Context(), controlplane.Caller{TenantID: b.acme.ID, Tenant: "acme"})
	list, err := b.snaps.ListGenerations(ctx, &adminv1.ListGenerationsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range list.GetGenerations() {
		switch v := snapshot.Generation(g.GetGeneration()); {
		case v > h.Base.Version.Generation && (g.GetKind() != "delta" || g.GetBase() != uint64(h.Base.Version.Generation) || g.GetBytes() > 2000):
			t.Errorf("generation %d is listed as %v", v, g)
		case v == h.Base.Version.Generation && (g.GetKind() != "head" || g.GetBase() != g.GetGeneration()):
			t.Errorf("the head is listed as %v", g)
		}
	}
	g, err := b.snaps.GetGeneration(ctx, &adminv1.GetGenerationRequest{IncludeShards: true, Generation: uint64(h.Version.Generation)})
	if err != nil || string(g.GetEnvelope()) != string(h.Envelope) || len(g.GetDeltas()) != len(h.Deltas) || len(g.GetShards()) != 2 {
		t.Fatalf("%d deltas, %d shards: %v", len(g.GetDeltas()), len(g.GetShards()), err)
	}
}
