package proof_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/proof"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

func compiled(t *testing.T, users ...string) *index.Index {
	t.Helper()
	p := &snapshot.Policy{Tenant: "0197f3c2-5d7e-7c3b-9a51-2f6f1d1f8a10", Servers: []snapshot.Server{{Name: "demo", Items: []string{"echo"}}}}
	for _, u := range users {
		p.Principals = append(p.Principals, snapshot.Principal{Name: u})
	}
	raw, err := builder.Build(p)
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// edited is a generation that two deltas have made out of the published head.
func edited(t *testing.T) (*snapshottest.Authority, *adminv1.GetGenerationResponse, snapshot.Digest) {
	t.Helper()
	a, g := published(t)
	id, _ := seal.TenantBytes("0197f3c2-5d7e-7c3b-9a51-2f6f1d1f8a10")
	head, err := seal.HeadDigest(g.GetEnvelope())
	if err != nil {
		t.Fatal(err)
	}
	x, parent := compiled(t, "alice"), head[:]
	for i, users := range [][]string{{"alice", "bob"}, {"alice", "bob", "carol"}} {
		next := compiled(t, users...)
		d, err := index.Diff(x, next)
		if err != nil {
			t.Fatal(err)
		}
		state := next.StateHash()
		d.TenantId, d.Epoch, d.Generation, d.Revision, d.Parent, d.StateHash = id, 1, uint64(5+i), uint64(8+i), parent, state[:]
		signed, err := seal.SignDelta(d, a.Head)
		if err != nil {
			t.Fatal(err)
		}
		if x, err = index.Apply(x, d); err != nil {
			t.Fatal(err)
		}
		digest := seal.DeltaDigest(signed)
		g.Deltas, parent = append(g.Deltas, signed), digest[:]
		g.Generation.Generation, g.Generation.Digest = d.GetGeneration(), digest.String()
	}
	return a, g, x.StateHash()
}

func TestAGenerationThatIsADeltaVerifies(t *testing.T) {
	t.Parallel()
	a, g, state := edited(t)
	s, err := proof.CheckSnapshot(g, a.Roots, now)
	if err != nil || s.Version.Generation != 6 || s.Deltas != 2 || s.State != state || s.Tools != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
}

func TestEveryTamperingOfDeltasIsRefused(t *testing.T) {
	t.Parallel()
	a, genuine, _ := edited(t)
	resign := func(g *adminv1.GetGenerationResponse, by *seal.Signer, change func(*snapshotv1.Delta)) {
		d, err := a.Trust.OpenDelta(g.GetDeltas()[1])
		if err != nil {
			t.Fatal(err)
		}
		change(d)
		if g.Deltas[1], err = seal.SignDelta(d, by); err != nil {
			t.Fatal(err)
		}
		digest := seal.DeltaDigest(g.GetDeltas()[1])
		g.Generation.Digest, g.Generation.Generation = digest.String(), d.GetGeneration()
	}
	for name, spoil := range map[string]func(*adminv1.GetGenerationResponse){
		"a bit of a delta":     func(g *adminv1.GetGenerationResponse) { g.Deltas[1].Body[9] ^= 1 },
		"a bit of a signature": func(g *adminv1.GetGenerationResponse) { g.Deltas[0].Signature[9] ^= 1 },
		"the first left out":   func(g *adminv1.GetGenerationResponse) { g.Deltas = g.Deltas[1:] },
		"the last left out":    func(g *adminv1.GetGenerationResponse) { g.Deltas = g.Deltas[:1] },
		"another order":        func(g *adminv1.GetGenerationResponse) { g.Deltas[0], g.Deltas[1] = g.Deltas[1], g.Deltas[0] },
		"one twice":            func(g *adminv1.GetGenerationResponse) { g.Deltas = append(g.Deltas, g.Deltas[1]) },
		"a stranger's": func(g *adminv1.GetGenerationResponse) {
			resign(g, snapshottest.Signer("x"), func(*snapshotv1.Delta) {})
		},
		"another state": func(g *adminv1.GetGenerationResponse) {
			resign(g, a.Head, func(d *snapshotv1.Delta) { d.StateHash[0] ^= 1 })
		},
		"a gap": func(g *adminv1.GetGenerationResponse) {
			resign(g, a.Head, func(d *snapshotv1.Delta) { d.Generation++ })
		},
		"another tenant's": func(g *adminv1.GetGenerationResponse) {
			resign(g, a.Head, func(d *snapshotv1.Delta) { d.TenantId[0] ^= 1 })
		},
	} {
		g := proto.CloneOf(genuine)
		spoil(g)
		if _, err := proof.CheckSnapshot(g, a.Roots, now); problem.CodeOf(err) != problem.Denied {
			t.Errorf("%s: %v", name, err)
		}
	}
	g := proto.CloneOf(genuine)
	resign(g, a.Head, func(*snapshotv1.Delta) {})
	if _, err := proof.CheckSnapshot(g, a.Roots, now); err != nil {
		t.Errorf("nothing changed: %v", err)
	}
}
