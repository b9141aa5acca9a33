package peers_test

import (
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/peers"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

const acme = "00000000-0000-7000-8000-000000000001"

func applied(generation uint64, digest byte) *cellv1.AppliedHead {
	return &cellv1.AppliedHead{TenantId: acme, Epoch: 1, Generation: generation, Digest: []byte{digest}}
}

func TestTwoBodiesUnderOneNumberAreAContradictionAndALateNodeIsNone(t *testing.T) {
	t.Parallel()
	own := &cellv1.NodeStatus{ManifestSequence: 7, ManifestRoot: []byte{7}, Applied: []*cellv1.AppliedHead{applied(3, 1)}}
	own.Applied[0].StateHash = []byte{8}
	for name, c := range map[string]struct {
		other *cellv1.NodeStatus
		want  int
	}{
		"the same":               {&cellv1.NodeStatus{ManifestSequence: 7, ManifestRoot: []byte{7}, Applied: []*cellv1.AppliedHead{applied(3, 1)}}, 0},
		"late":                   {&cellv1.NodeStatus{ManifestSequence: 6, ManifestRoot: []byte{6}, Applied: []*cellv1.AppliedHead{applied(2, 9)}}, 0},
		"an older release":       {&cellv1.NodeStatus{Applied: []*cellv1.AppliedHead{{TenantId: acme, Epoch: 1, Generation: 3}}}, 0},
		"nothing yet":            {&cellv1.NodeStatus{}, 0},
		"another manifest":       {&cellv1.NodeStatus{ManifestSequence: 7, ManifestRoot: []byte{8}}, 1},
		"another generation":     {&cellv1.NodeStatus{Applied: []*cellv1.AppliedHead{applied(3, 2)}}, 1},
		"both":                   {&cellv1.NodeStatus{ManifestSequence: 7, ManifestRoot: []byte{8}, Applied: []*cellv1.AppliedHead{applied(3, 2)}}, 2},
		"another state":          {&cellv1.NodeStatus{Applied: []*cellv1.AppliedHead{{TenantId: acme, Epoch: 1, Generation: 3, Digest: []byte{1}, StateHash: []byte{9}}}}, 1},
		"of another tenant only": {&cellv1.NodeStatus{Applied: []*cellv1.AppliedHead{{TenantId: "x", Epoch: 1, Generation: 3, Digest: []byte{2}}}}, 0},
	} {
		if got := peers.Contradictions(own, c.other); len(got) != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestOnlySignaturesProveAContradiction(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	sealed := func(revision uint64) *cellv1.Update {
		head := a.Publish(t, &snapshot.Policy{Tenant: acme}, &snapshotv1.Catalogue{}, &snapshotv1.Head{Generation: 3, Revision: revision})
		return &cellv1.Update{Manifest: a.Manifest(t, "eu", 7, head), Heads: [][]byte{head}}
	}
	one, two := sealed(1), sealed(2)
	if !peers.Proven(a.Trust, "eu", one, two) {
		t.Error("two manifests of one number")
	}
	if !peers.Proven(a.Trust, "eu", &cellv1.Update{Heads: one.GetHeads()}, &cellv1.Update{Heads: two.GetHeads()}) {
		t.Error("two heads of one generation")
	}
	if peers.Proven(a.Trust, "eu", one, one) {
		t.Error("a node contradicts itself")
	}
	for i := range two.GetManifest() {
		two.Manifest[i] ^= 1
		if peers.Proven(a.Trust, "eu", one, &cellv1.Update{Manifest: two.GetManifest()}) {
			t.Fatalf("a forged manifest proves something: byte %d", i)
		}
		two.Manifest[i] ^= 1
	}
}
