package proof_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/proof"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/tlog"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

var now = time.UnixMilli(snapshottest.Now)

// published is what a control plane would hand out for a tenant with one server.
func published(t *testing.T) (*snapshottest.Authority, *adminv1.GetGenerationResponse) {
	t.Helper()
	a := snapshottest.NewAuthority(t)
	policy := &snapshot.Policy{
		Tenant:     "0197f3c2-5d7e-7c3b-9a51-2f6f1d1f8a10",
		Principals: []snapshot.Principal{{Name: "alice"}},
		Servers:    []snapshot.Server{{Name: "demo", Items: []string{"echo"}}},
	}
	digest := snapshot.DigestOf([]byte("surface"))
	catalogue := &snapshotv1.Catalogue{Servers: []*snapshotv1.CatalogueServer{{
		Id: "s1", Name: "demo", Url: "http://127.0.0.1:1/mcp", Version: 1, VersionDigest: digest[:],
		Tools: []*snapshotv1.CatalogueTool{{Name: "echo", Raw: []byte(`{"name":"echo","inputSchema":{"type":"object"}}`), Effect: snapshotv1.Effect_EFFECT_READ}},
	}}}
	head := &snapshotv1.Head{Generation: 4, Revision: 7}
	env := a.Publish(t, policy, catalogue, head)
	d, err := seal.HeadDigest(env)
	if err != nil {
		t.Fatal(err)
	}
	g := &adminv1.GetGenerationResponse{
		Generation: &adminv1.Generation{Tenant: "acme", Epoch: 1, Generation: 4, Revision: 7, Digest: d.String()},
		Envelope:   env, Roots: a.Roots,
	}
	for _, s := range head.GetShards() {
		sd, _ := snapshot.DigestFrom(s.GetSha256())
		b, err := a.Fetch(nil, sd, s.GetSize())
		if err != nil {
			t.Fatal(err)
		}
		g.Shards = append(g.Shards, b)
	}
	return a, g
}

func TestAGenuineSnapshotVerifies(t *testing.T) {
	t.Parallel()
	a, g := published(t)
	s, err := proof.CheckSnapshot(g, a.Roots, now)
	if err != nil || s.Head.GetGeneration() != 4 || s.Servers != 1 || s.Tools != 1 || s.InForce != nil || s.Roots != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	if s, err := proof.CheckSnapshot(g, a.Roots, now.AddDate(100, 0, 0)); err != nil || s.InForce == nil {
		t.Fatalf("a hundred years later: %+v, %v", s, err)
	}
}

func TestNewerRootsAreBelievedWhenTheKnownOnesVouchForThem(t *testing.T) {
	t.Parallel()
	a, g := published(t)
	next, err := seal.SignRoots(a.Body(2, 1), a.Root[0], a.Root[2])
	if err != nil {
		t.Fatal(err)
	}
	g.Roots = next
	if s, err := proof.CheckSnapshot(g, a.Roots, now); err != nil || s.Roots != 2 {
		t.Fatalf("%+v, %v", s, err)
	}
	alone, err := seal.SignRoots(a.Body(3, 1), snapshottest.Signer("x"), snapshottest.Signer("y"))
	if err == nil {
		g.Roots = alone
		if _, err := proof.CheckSnapshot(g, a.Roots, now); problem.CodeOf(err) != problem.Denied {
			t.Fatalf("strangers' roots: %v", err)
		}
	}
}

func TestEveryTamperingOfASnapshotIsRefused(t *testing.T) {
	t.Parallel()
	a, genuine := published(t)
	for name, spoil := range map[string]func(*adminv1.GetGenerationResponse){
		"a bit of the envelope": func(g *adminv1.GetGenerationResponse) { g.Envelope[len(g.Envelope)/2] ^= 1 },
		"a bit of a shard":      func(g *adminv1.GetGenerationResponse) { g.Shards[0][len(g.Shards[0])/2] ^= 1 },
		"a shard left out":      func(g *adminv1.GetGenerationResponse) { g.Shards = g.Shards[1:] },
		"another number":        func(g *adminv1.GetGenerationResponse) { g.Generation.Generation = 5 },
		"another digest":        func(g *adminv1.GetGenerationResponse) { g.Generation.Digest = "00" },
		"other roots":           func(g *adminv1.GetGenerationResponse) { g.Roots = []byte("x") },
		"nothing":               func(g *adminv1.GetGenerationResponse) { proto.Reset(g) },
	} {
		g := proto.CloneOf(genuine)
		spoil(g)
		if _, err := proof.CheckSnapshot(g, a.Roots, now); problem.CodeOf(err) != problem.Denied {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := proof.CheckSnapshot(genuine, []byte("not roots"), now); problem.CodeOf(err) != problem.Denied {
		t.Errorf("no roots: %v", err)
	}
}

// logged writes records to a real log and proves one of them.
func logged(t *testing.T, index int64) *adminv1.ProvenRecord {
	t.Helper()
	l, _, err := tlog.Open(tlog.Config{Dir: t.TempDir(), Prefix: "mcpvault/audit/local/n1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var leaves [][]byte
	for _, id := range []string{"01A", "01B", "01C"} {
		leaf, err := proto.Marshal(&auditv1.Record{Id: id, Method: "tools/call"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Commit(t.Context(), leaf); err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, leaf)
	}
	signed, cp, err := l.CheckpointAt(3)
	if err != nil {
		t.Fatal(err)
	}
	path, err := l.ProveRecord(3, index)
	if err != nil {
		t.Fatal(err)
	}
	return &adminv1.ProvenRecord{
		Record: &adminv1.AuditRecord{LogId: cp.Origin, Index: uint64(index), Leaf: leaves[index]},
		Log:    &adminv1.AuditLog{LogId: cp.Origin, VerifierKey: l.VerifierKey(), Checkpoint: signed},
		Proof:  tlog.HashesToBytes(path),
	}
}

func TestARecordIsProvenByItsPathToTheCheckpoint(t *testing.T) {
	t.Parallel()
	for i := range int64(3) {
		r, err := proof.CheckRecord(logged(t, i))
		if err != nil || !r.Proven || r.Size != 3 {
			t.Fatalf("%d: %+v, %v", i, r, err)
		}
	}
}

func TestARecordThatIsNotCoveredYetIsUnproven(t *testing.T) {
	t.Parallel()
	p := logged(t, 1)
	p.Log.Checkpoint = nil
	if r, err := proof.CheckRecord(p); err != nil || r.Proven || r.Unproven == "" {
		t.Fatalf("%+v, %v", r, err)
	}
	p = logged(t, 1)
	p.Record.Index = 3
	if r, err := proof.CheckRecord(p); err != nil || r.Proven || r.Unproven == "" {
		t.Fatalf("%+v, %v", r, err)
	}
}

func TestEveryForgeryOfARecordIsRefused(t *testing.T) {
	t.Parallel()
	genuine := logged(t, 1)
	for name, spoil := range map[string]func(*adminv1.ProvenRecord){
		"another leaf": func(p *adminv1.ProvenRecord) {
			p.Record.Leaf, _ = proto.Marshal(&auditv1.Record{Id: "01B", Method: "tools/list"})
		},
		"another place": func(p *adminv1.ProvenRecord) { p.Record.Index = 0 },
		"another path":  func(p *adminv1.ProvenRecord) { p.Proof[0][0] ^= 1 },
		"no path":       func(p *adminv1.ProvenRecord) { p.Proof = nil },
		"a short hash":  func(p *adminv1.ProvenRecord) { p.Proof[0] = p.Proof[0][:5] },
		"another key":   func(p *adminv1.ProvenRecord) { p.Log.VerifierKey = "x+00000000+AA==" },
		"another log":   func(p *adminv1.ProvenRecord) { p.Record.LogId = "mcpvault/audit/local/n2/0" },
		"another root": func(p *adminv1.ProvenRecord) {
			p.Log.Checkpoint = bytes.Replace(p.Log.Checkpoint, []byte("\n3\n"), []byte("\n4\n"), 1)
		},
		"an alarm":          func(p *adminv1.ProvenRecord) { p.Log.Alarm = "two trees" },
		"a leaf of rubbish": func(p *adminv1.ProvenRecord) { p.Record.Leaf = []byte{0xff, 0xff} },
	} {
		p := proto.CloneOf(genuine)
		p.Proof = slices.Clone(p.Proof)
		spoil(p)
		if r, err := proof.CheckRecord(p); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func FuzzSnapshot(f *testing.F) {
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(_ *testing.T, raw, roots []byte) {
		g := &adminv1.GetGenerationResponse{}
		if proto.Unmarshal(raw, g) == nil {
			_, _ = proof.CheckSnapshot(g, roots, now)
		}
	})
}
