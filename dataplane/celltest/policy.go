package celltest

import (
	"errors"
	"fmt"
	"sync"

	"github.com/mcpvault/mcpvault/kit/problem"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

// trust is what a node believes: the authority's roots, renewed by those that come in updates.
type trust struct {
	mu  sync.Mutex
	cur *seal.Trust
}

func (t *trust) VerifyUpdate(u *cellv1.Update) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(u.GetRoots()) > 0 {
		next, err := t.cur.OpenRoots(u.GetRoots())
		if err != nil && !errors.Is(err, seal.ErrRollback) {
			return err
		}
		if err == nil {
			t.cur = next
		}
	}
	if _, err := t.cur.OpenManifest(u.GetManifest(), CellName); err != nil {
		return err
	}
	for _, env := range u.GetHeads() {
		if _, err := t.cur.OpenHead(env); err != nil {
			return err
		}
	}
	for _, d := range u.GetDeltas() {
		if _, err := t.cur.OpenDelta(d); err != nil {
			return err
		}
	}
	return nil
}

func (t *trust) VerifyDelta(d *snapshotv1.SignedDelta) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, err := t.cur.OpenDelta(d)
	return err
}

func (t *trust) VerifyKill(env []byte) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k, err := t.cur.OpenKill(env)
	return k.GetId(), err
}

func retriable(err error) bool {
	code := problem.CodeOf(err)
	return code == problem.Unavailable || code == problem.Timeout
}

// TenantID is the id of the nth tenant of a test.
func TenantID(n int) snapshot.TenantID {
	return snapshot.TenantID(fmt.Sprintf("00000000-0000-7000-8000-%012d", n))
}

// Head seals the given generation of a tenant, with an empty policy.
func (c *Cell) Head(tenant int, generation uint64) []byte {
	c.t.Helper()
	return c.Authority.Publish(c.t, &snapshot.Policy{Tenant: TenantID(tenant)},
		&snapshotv1.Catalogue{}, &snapshotv1.Head{Generation: generation, Revision: generation})
}

// Update is an entry with a manifest over heads, which are in the order of tenants.
func (c *Cell) Update(sequence uint64, heads ...[]byte) *cellv1.RaftEntry {
	c.t.Helper()
	return &cellv1.RaftEntry{Command: &cellv1.RaftEntry_Update{Update: &cellv1.Update{
		Roots: c.Authority.Roots, Manifest: c.Authority.Manifest(c.t, CellName, sequence, heads...), Heads: heads,
	}}}
}

// Deltas is an entry with n deltas, which say that nothing changed, behind a head or delta of a tenant.
func (c *Cell) Deltas(tenant int, at uint64, parent snapshot.Digest, n int) (*cellv1.RaftEntry, snapshot.Digest) {
	c.t.Helper()
	id, ok := seal.TenantBytes(TenantID(tenant))
	if !ok {
		c.t.Fatalf("tenant %d has no UUID", tenant)
	}
	state := snapshot.DigestOf([]byte("nothing changed"))
	deltas := &cellv1.Deltas{}
	for i := range uint64(n) {
		d, err := seal.SignDelta(&snapshotv1.Delta{
			TenantId: id, Epoch: 1, Generation: at + i + 1, Revision: at + i + 1, Parent: parent[:], StateHash: state[:],
		}, c.Authority.Head)
		if err != nil {
			c.t.Fatal(err)
		}
		deltas.Deltas, parent = append(deltas.Deltas, d), seal.DeltaDigest(d)
	}
	return &cellv1.RaftEntry{Command: &cellv1.RaftEntry_Deltas{Deltas: deltas}}, parent
}

// Kill is an entry that kills a user.
func (c *Cell) Kill(id string) *cellv1.RaftEntry {
	c.t.Helper()
	env, err := seal.SignKill(&snapshotv1.Kill{
		Id: id, Kind: snapshotv1.KillKind_KILL_KIND_USER, TenantId: string(TenantID(1)), Subject: "mallory", IssuedMs: snapshottest.Now,
	}, c.Authority.Kill)
	if err != nil {
		c.t.Fatal(err)
	}
	return &cellv1.RaftEntry{Command: &cellv1.RaftEntry_Kill{Kill: env}}
}
