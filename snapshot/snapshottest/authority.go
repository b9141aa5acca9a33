package snapshottest

import (
	"crypto/ed25519"
	"crypto/sha256"
	"testing"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/shard"
)

// Signer makes the signer of a name. Its key is known to everybody who can read this.
func Signer(name string) *seal.Signer {
	seed := sha256.Sum256([]byte("snapshottest " + name))
	s, err := seal.NewSigner(ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		panic(err) // a seed of 32 bytes always makes a key
	}
	return s
}

// Authority seals what a control plane would.
type Authority struct {
	Root            [3]*seal.Signer
	Head, Heartbeat *seal.Signer
	Kill            *seal.Signer
	Roots           []byte
	Trust           *seal.Trust
	blobs           map[snapshot.Digest][]byte
}

// NewAuthority makes roots of version 1 and epoch 1, two of whose three keys must sign.
func NewAuthority(tb testing.TB) *Authority {
	tb.Helper()
	a := &Authority{
		Root: [3]*seal.Signer{Signer("root-1"), Signer("root-2"), Signer("root-3")},
		Head: Signer("head"), Heartbeat: Signer("heartbeat"), Kill: Signer("kill"),
		blobs: map[snapshot.Digest][]byte{},
	}
	env, err := seal.SignRoots(a.Body(1, 1), a.Root[0], a.Root[1])
	must(tb, err)
	pin, err := seal.RootsDigest(env)
	must(tb, err)
	a.Roots = env
	a.Trust, err = seal.OpenRoots(env, pin)
	must(tb, err)
	return a
}

// Body is the body of the authority's roots at a version and an epoch.
func (a *Authority) Body(version uint64, epoch snapshot.Epoch) *snapshotv1.Roots {
	keys := []seal.RoleKey{
		{Role: snapshotv1.KeyRole_KEY_ROLE_HEAD, Key: a.Head.Public()},
		{Role: snapshotv1.KeyRole_KEY_ROLE_HEARTBEAT, Key: a.Heartbeat.Public()},
		{Role: snapshotv1.KeyRole_KEY_ROLE_KILL, Key: a.Kill.Public()},
	}
	for _, r := range a.Root {
		keys = append(keys, seal.RoleKey{Role: snapshotv1.KeyRole_KEY_ROLE_ROOT, Key: r.Public()})
	}
	return seal.BuildRoots(version, epoch, 2, keys...)
}

// Publish builds a policy, puts its shards where Fetch finds them and seals a head. Catalogue and head come as the caller
// filled them; tenant and shards are set here, and a version of 1.1 and a long validity when they are missing.
func (a *Authority) Publish(tb testing.TB, p *snapshot.Policy, c *snapshotv1.Catalogue, h *snapshotv1.Head) []byte {
	tb.Helper()
	idx, err := builder.Build(p)
	must(tb, err)
	c.TenantId = string(p.Tenant)
	if c.Tenant == "" {
		c.Tenant = "acme"
	}
	cat, err := shard.EncodeCatalogue(c)
	must(tb, err)
	h.TenantId, h.Tenant = c.TenantId, c.Tenant
	h.Epoch, h.Generation = max(h.Epoch, 1), max(h.Generation, 1)
	if h.NotAfterMs == 0 {
		h.NotBeforeMs, h.NotAfterMs = 1, Now*2
	}
	h.Shards = []*snapshotv1.Shard{
		shard.Of(snapshotv1.ShardKind_SHARD_KIND_INDEX, idx), shard.Of(snapshotv1.ShardKind_SHARD_KIND_CATALOGUE, cat),
	}
	a.blobs[snapshot.DigestOf(idx)], a.blobs[snapshot.DigestOf(cat)] = idx, cat
	env, err := seal.SignHead(h, a.Head)
	must(tb, err)
	return env
}

// Fetch is the shard.Fetch over what was published.
func (a *Authority) Fetch(dst []byte, d snapshot.Digest, _ uint64) ([]byte, error) {
	b, ok := a.blobs[d]
	if !ok {
		return nil, seal.ErrDigest
	}
	return append(dst, b...), nil
}

// Manifest seals the manifest of a cell over heads, which are in the order of tenants.
func (a *Authority) Manifest(tb testing.TB, cell string, sequence uint64, heads ...[]byte) []byte {
	tb.Helper()
	m := &snapshotv1.Manifest{Cell: cell, Sequence: sequence, IssuedMs: Now}
	for _, env := range heads {
		h, err := a.Trust.OpenHead(env)
		must(tb, err)
		d, err := seal.HeadDigest(env)
		must(tb, err)
		m.Heads = append(m.Heads, &snapshotv1.HeadRef{
			TenantId: h.GetTenantId(), Epoch: h.GetEpoch(), Generation: h.GetGeneration(), HeadSha256: d[:],
		})
	}
	root, err := seal.ManifestRoot(m.GetHeads())
	must(tb, err)
	m.Root = root[:]
	env, err := seal.SignManifest(m, a.Head)
	must(tb, err)
	return env
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
