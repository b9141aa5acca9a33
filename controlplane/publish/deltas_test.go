package publish_test

import (
	"bytes"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/publish"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

// rootOf is the root over the manifest's heads, advanced by the deltas in the view.
func rootOf(t *testing.T, m *snapshotv1.Manifest, v publish.View) []byte {
	t.Helper()
	var refs []*snapshotv1.HeadRef
	for i, h := range v.Heads {
		if ref := m.GetHeads()[i]; ref.GetTenantId() != string(h.TenantID) || !bytes.Equal(ref.GetHeadSha256(), h.Base.Digest[:]) {
			t.Fatalf("the manifest names %v, the view has %v", ref, h.Base)
		}
		refs = append(refs, &snapshotv1.HeadRef{
			TenantId: string(h.TenantID), Epoch: uint64(h.Version.Epoch), Generation: uint64(h.Version.Generation), HeadSha256: h.Digest[:],
		})
	}
	root, err := seal.ManifestRoot(refs)
	if err != nil {
		t.Fatal(err)
	}
	return root[:]
}

// applied goes from a head's index to the newest generation, as a cell does.
func applied(t *testing.T, trust *seal.Trust, x *index.Index, h *publish.Head) *index.Index {
	t.Helper()
	at := h.Base
	for _, d := range h.Deltas {
		body, err := trust.OpenDelta(d.Signed)
		if err != nil {
			t.Fatal(err)
		}
		if seal.DeltaTenant(body) != h.TenantID || seal.DeltaVersion(body) != d.Version || !bytes.Equal(body.GetParent(), at.Digest[:]) ||
			d.Version.Generation != at.Version.Generation+1 {
			t.Fatalf("delta %s does not follow %s", d.Version, at.Version)
		}
		if x, err = index.Apply(x, body); err != nil {
			t.Fatal(err)
		}
		at = d.Ref
	}
	if at.Version != h.Version || at.Digest != h.Digest {
		t.Fatalf("the deltas lead to %s, in force is %s", at.Version, h.Version)
	}
	return x
}

func parentOf(t *testing.T, g store.Generation) []byte {
	t.Helper()
	if g.Delta == nil {
		head, err := publish.ReadHead(g.Envelope)
		if err != nil {
			t.Fatal(err)
		}
		return head.GetParent()
	}
	signed, body := &snapshotv1.SignedDelta{}, &snapshotv1.Delta{}
	if err := proto.Unmarshal(g.Delta, signed); err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(signed.GetBody(), body); err != nil {
		t.Fatal(err)
	}
	return body.GetParent()
}

// write makes one change of the directory.
func (b *bundle) write(t *testing.T, change func(tx *store.Tx) error) uint64 {
	t.Helper()
	rev, err := b.st.Write(t.Context(), b.acme.ID, "test", func(tx *store.Tx) error {
		if err := change(tx); err != nil {
			return err
		}
		return tx.Change(t.Context(), "test", "x", nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func (b *bundle) role(t *testing.T, remove bool) uint64 {
	t.Helper()
	return b.write(t, func(tx *store.Tx) error {
		return tx.SetRoleMember(t.Context(), "reader", store.MemberUser, "alice", remove)
	})
}

// settled has a user, a role and a publisher that has published both, and waits for a head that deltas can follow.
func settled(t *testing.T) (*bundle, publish.View) {
	t.Helper()
	b := setup(t)
	rev := b.write(t, func(tx *store.Tx) error {
		if _, err := tx.InsertUser(t.Context(), controlplane.User{Name: "alice", Kind: controlplane.Person}); err != nil {
			return err
		}
		_, err := tx.InsertRole(t.Context(), controlplane.Role{Name: "reader"})
		return err
	})
	return b, await(t, b.p, "local", "the beginning", holds(b.acme.ID, rev))
}

// compiledState opens the newest generation from what is stored.
func (b *bundle) compiledState(t *testing.T) (h *publish.Head, x *index.Index) {
	t.Helper()
	err := b.st.Read(t.Context(), b.acme.ID, func(tx *store.Tx) (err error) {
		if h, err = publish.Load(t.Context(), tx, snapshot.Version{}); err != nil {
			return err
		}
		x, err = h.Open(t.Context(), tx, publish.Opened{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return h, x
}

func TestARoleChangeIsSentAsADeltaOfTwoHundredBytes(t *testing.T) {
	t.Parallel()
	b, before := settled(t)
	rev := b.role(t, false)
	v := await(t, b.p, "local", "the delta", holds(b.acme.ID, rev))
	h := v.Heads[0]
	if len(h.Deltas) != len(before.Heads[0].Deltas)+1 || h.Base != before.Heads[0].Base || !bytes.Equal(v.Manifest, before.Manifest) {
		t.Fatalf("%d deltas on %s: the edit cost more than a delta", len(h.Deltas), h.Base.Version)
	}
	signed := h.Deltas[len(h.Deltas)-1].Signed
	if n := len(signed.GetBody()) + len(signed.GetSignature()); n > 200 {
		t.Errorf("one role change is %d bytes", n)
	}
	m, err := b.auth.Trust.OpenManifest(v.Manifest, "local")
	if err != nil {
		t.Fatal(err)
	}
	if beat, err := b.auth.Trust.OpenHeartbeat(v.Heartbeat, "local"); err != nil || !bytes.Equal(beat.GetRoot(), rootOf(t, m, v)) {
		t.Errorf("the heartbeat beside it does not cover the delta: %v", err)
	}
	// What is stored comes to the state that was compiled, which the delta states.
	stored, x := b.compiledState(t)
	if state := x.StateHash(); stored.Digest != h.Digest || !bytes.Equal(state[:], h.Deltas[len(h.Deltas)-1].State) {
		t.Error("what is stored is another policy")
	}
}

func TestDeltasGoOnAfterARestartOfTheControlPlane(t *testing.T) {
	t.Parallel()
	b := &bundle{st: storetest.Open(t), auth: snapshottest.NewAuthority(t)}
	b.acme = storetest.Tenant(t, b.st, "acme")
	p, stop := b.runUntil(t, b.st)
	rev := b.write(t, func(tx *store.Tx) error {
		if _, err := tx.InsertUser(t.Context(), controlplane.User{Name: "alice", Kind: controlplane.Person}); err != nil {
			return err
		}
		_, err := tx.InsertRole(t.Context(), controlplane.Role{Name: "reader"})
		return err
	})
	await(t, p, "local", "the beginning", holds(b.acme.ID, rev))
	rev = b.role(t, false)
	first := await(t, p, "local", "the delta", holds(b.acme.ID, rev)).Heads[0]
	stop()
	b.p = b.run(t, b.st)
	again := await(t, b.p, "local", "the delta after a restart", holds(b.acme.ID, rev))
	if h := again.Heads[0]; h.Digest != first.Digest || len(h.Deltas) != len(first.Deltas) {
		t.Fatalf("after a restart %s is in force", h.Version)
	}
	m, err := b.auth.Trust.OpenManifest(again.Manifest, "local")
	if err != nil {
		t.Fatal(err)
	}
	if beat, err := b.auth.Trust.OpenHeartbeat(again.Heartbeat, "local"); err != nil || !bytes.Equal(beat.GetRoot(), rootOf(t, m, again)) {
		t.Errorf("the heartbeat does not cover the deltas: %v", err)
	}
	rev = b.role(t, true)
	h := await(t, b.p, "local", "the next delta", holds(b.acme.ID, rev)).Heads[0]
	if h.Base != first.Base || len(h.Deltas) != len(first.Deltas)+1 {
		t.Fatalf("the next generation is %d deltas on %s", len(h.Deltas), h.Base.Version)
	}
	if stored, x := b.compiledState(t); stored.Digest != h.Digest {
		t.Error("another generation is stored")
	} else if state := x.StateHash(); !bytes.Equal(state[:], h.Deltas[len(h.Deltas)-1].State) {
		t.Error("base and deltas come to another state than was compiled")
	}
}

func TestTheOtherControlPlaneLearnsOfDeltasWithoutAHint(t *testing.T) {
	t.Parallel()
	b, _ := settled(t)
	other := b.run(t, b.st)
	rev := b.role(t, false)
	one := await(t, b.p, "local", "the one", holds(b.acme.ID, rev)).Heads[0]
	two := await(t, other, "local", "the other", holds(b.acme.ID, rev)).Heads[0]
	if one.Digest != two.Digest || one.Base != two.Base {
		t.Error("two control planes show different generations")
	}
	// Both write: whoever makes the next delta makes it on what the other one made.
	for i := range 6 {
		rev = b.role(t, i%2 == 0)
	}
	one = await(t, b.p, "local", "the one", holds(b.acme.ID, rev)).Heads[0]
	two = await(t, other, "local", "the other", holds(b.acme.ID, rev)).Heads[0]
	if one.Digest != two.Digest || one.Base != two.Base {
		t.Error("two control planes show different generations")
	}
	if _, x := b.compiledState(t); len(one.Deltas) > 0 {
		if state := x.StateHash(); !bytes.Equal(state[:], one.Deltas[len(one.Deltas)-1].State) {
			t.Error("base and deltas come to another state than was compiled")
		}
	}
}

func TestAHeadIsMadeAfterSixtyFourDeltas(t *testing.T) {
	t.Parallel()
	b, v := settled(t)
	base, most := v.Heads[0].Base, 0
	for i := range publish.MaxDeltas + 2 {
		rev := b.role(t, i%2 == 1)
		v = await(t, b.p, "local", "the next one", holds(b.acme.ID, rev))
		if most = max(most, len(v.Heads[0].Deltas)); v.Heads[0].Base != base {
			break
		}
	}
	if v.Heads[0].Base == base || most != publish.MaxDeltas {
		t.Fatalf("%d deltas were made on %s, then %s", most, base.Version, v.Heads[0].Base.Version)
	}
	m, err := b.auth.Trust.OpenManifest(v.Manifest, "local")
	if err != nil || m.GetHeads()[0].GetGeneration() != uint64(v.Heads[0].Base.Version.Generation) {
		t.Errorf("the manifest does not name the new head: %v", err)
	}
}

func TestAHeadIsMadeWhenTheCatalogueChanges(t *testing.T) {
	t.Parallel()
	b, v := settled(t)
	base := v.Heads[0].Base
	srv := store.Server{ID: store.NewID(), Name: "demo", URL: "http://x"}
	rev := b.write(t, func(tx *store.Tx) error {
		ctx := t.Context()
		ver := store.ServerVersion{ID: store.NewID(), ServerID: srv.ID, Number: 1, Digest: make([]byte, 32), Surface: []byte{}}
		for _, err := range []error{tx.InsertServer(ctx, srv), tx.InsertVersion(ctx, ver), tx.PublishVersion(ctx, ver, nil)} {
			if err != nil {
				return err
			}
		}
		return nil
	})
	if h := await(t, b.p, "local", "the server", holds(b.acme.ID, rev)).Heads[0]; h.Base == base || len(h.Deltas) != 0 {
		t.Errorf("%d deltas on %s", len(h.Deltas), h.Base.Version)
	}
}

func TestADeltaThatANodeRefusedIsFollowedByOneHead(t *testing.T) {
	t.Parallel()
	b, _ := settled(t)
	rev := b.role(t, false)
	before := await(t, b.p, "local", "the delta", holds(b.acme.ID, rev)).Heads[0]
	// What nobody was sent, and heads, are no reason.
	b.p.Rebase(b.acme.ID, snapshot.Version{Epoch: before.Version.Epoch, Generation: before.Version.Generation + 1})
	b.p.Rebase(b.acme.ID, before.Base.Version)
	b.p.Rebase("nobody", before.Version)
	for range 5 {
		b.p.Rebase(b.acme.ID, before.Version)
	}
	after := await(t, b.p, "local", "the head", func(v publish.View) bool { return v.Heads[0].Base != before.Base }).Heads[0]
	if after.Version.Generation != before.Version.Generation+1 || len(after.Deltas) != 0 || after.Revision != rev {
		t.Errorf("%s with %d deltas follows %s", after.Version, len(after.Deltas), before.Version)
	}
	b.p.Rebase(b.acme.ID, before.Version) // said too late
	rev = b.role(t, true)
	if h := await(t, b.p, "local", "the next delta", holds(b.acme.ID, rev)).Heads[0]; h.Base != after.Base || len(h.Deltas) != 1 {
		t.Errorf("%s: one refusal was answered with more than one head", h.Version)
	}
}

func TestAHeadIsMadeWhenDeltasHaveReplacedMuchOfThePolicy(t *testing.T) {
	t.Parallel()
	b, v := settled(t)
	base := v.Heads[0].Base
	add := func(from, to int) *publish.Head {
		t.Helper()
		rev := b.write(t, func(tx *store.Tx) error {
			for i := from; i < to; i++ {
				if _, err := tx.InsertUser(t.Context(), controlplane.User{Name: fmt.Sprint("u", i), Kind: controlplane.Person}); err != nil {
					return err
				}
			}
			return nil
		})
		return await(t, b.p, "local", "the users", holds(b.acme.ID, rev)).Heads[0]
	}
	// A few hundred records are a delta in a policy of any size; more than that only while they are a small part of it.
	if h := add(0, 200); h.Base != base || len(h.Deltas) == 0 {
		t.Fatalf("200 users are %d deltas on %s", len(h.Deltas), h.Base.Version)
	}
	if h := add(200, 400); h.Base == base || len(h.Deltas) != 0 {
		t.Errorf("400 users are %d deltas on a head without any", len(h.Deltas))
	}
}
