package seal_test

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

const deltaTenant = snapshot.TenantID("0198c0de-0000-7000-8000-000000000001")

func delta(t testing.TB) *snapshotv1.Delta {
	id, ok := seal.TenantBytes(deltaTenant)
	if !ok {
		t.Fatal("no UUID")
	}
	d := snapshot.DigestOf([]byte("x"))
	return &snapshotv1.Delta{
		TenantId: id, Epoch: 1, Generation: 8, Revision: 43, Parent: d[:], StateHash: d[:],
		Users: []*snapshotv1.DeltaUser{{Id: 70_000, Nodes: []uint32{17, 200, 3000}}},
	}
}

func TestDeltaOfOneRoleChangeIsSmall(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	d := must[*snapshotv1.SignedDelta](t)(seal.SignDelta(delta(t), a.Head))
	if n := len(d.GetBody()) + len(d.GetSignature()); n > 200 {
		t.Errorf("%d bytes", n)
	}
	got := must[*snapshotv1.Delta](t)(a.Trust.OpenDelta(d))
	if !proto.Equal(got, delta(t)) || seal.DeltaTenant(got) != deltaTenant {
		t.Errorf("opened %v", got)
	}
}

func TestDeltaIsRefused(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	good := must[*snapshotv1.SignedDelta](t)(seal.SignDelta(delta(t), a.Head))
	sign := func(change func(*snapshotv1.Delta), s *seal.Signer) *snapshotv1.SignedDelta {
		d := delta(t)
		change(d)
		return must[*snapshotv1.SignedDelta](t)(seal.SignDelta(d, s))
	}
	same := func(*snapshotv1.Delta) {}
	for name, tc := range map[string]struct {
		d    *snapshotv1.SignedDelta
		want error
	}{
		"unsigned":              {&snapshotv1.SignedDelta{Body: good.GetBody()}, seal.ErrSignature},
		"empty":                 {&snapshotv1.SignedDelta{}, seal.ErrSignature},
		"signed by a heartbeat": {sign(same, a.Heartbeat), seal.ErrSignature},
		"signed by a kill key":  {sign(same, a.Kill), seal.ErrSignature},
		"signed by a root":      {sign(same, a.Root[0]), seal.ErrSignature},
		"a key nobody knows":    {sign(same, snapshottest.Signer("stranger")), seal.ErrSignature},
		"an epoch too high":     {sign(func(d *snapshotv1.Delta) { d.Epoch = 2 }, a.Head), seal.ErrEpoch},
		"too large":             {&snapshotv1.SignedDelta{Body: make([]byte, seal.MaxDelta+1), Signature: good.GetSignature()}, seal.ErrSize},
	} {
		if _, err := a.Trust.OpenDelta(tc.d); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	for i := range good.GetBody() {
		bad := proto.CloneOf(good)
		bad.Body[i] ^= 1
		if _, err := a.Trust.OpenDelta(bad); err == nil {
			t.Fatalf("byte %d of the body flipped and accepted", i)
		}
	}
	for i := range good.GetSignature() {
		bad := proto.CloneOf(good)
		bad.Signature[i] ^= 0x10
		if _, err := a.Trust.OpenDelta(bad); err == nil {
			t.Fatalf("byte %d of the signature flipped and accepted", i)
		}
	}
	for name, change := range map[string]func(*snapshotv1.Delta){
		"no tenant":  func(d *snapshotv1.Delta) { d.TenantId = nil },
		"no parent":  func(d *snapshotv1.Delta) { d.Parent = nil },
		"no state":   func(d *snapshotv1.Delta) { d.StateHash = d.StateHash[:31] },
		"no epoch":   func(d *snapshotv1.Delta) { d.Epoch = 0 },
		"from zero":  func(d *snapshotv1.Delta) { d.Generation = 1 },
		"over bound": func(d *snapshotv1.Delta) { d.Users[0].Name = string(make([]byte, seal.MaxDelta)) },
	} {
		d := delta(t)
		change(d)
		if _, err := seal.SignDelta(d, a.Head); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

func FuzzOpenDelta(f *testing.F) {
	a := snapshottest.NewAuthority(f)
	good, err := seal.SignDelta(delta(f), a.Head)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good.GetBody(), good.GetSignature())
	f.Fuzz(func(t *testing.T, body, sig []byte) {
		d := &snapshotv1.SignedDelta{Body: body, Signature: sig}
		got, err := a.Trust.OpenDelta(d)
		if err == nil && !proto.Equal(got, delta(f)) {
			t.Fatal("another body under the one signature there is")
		}
	})
}
