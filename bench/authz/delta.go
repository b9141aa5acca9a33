package authz

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"slices"
	"time"

	"github.com/mcpvault/mcpvault/bench/measure"
	"github.com/mcpvault/mcpvault/controlplane/compile"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// editsPerRound is how many users are given another role, one at a time.
const editsPerRound = 4

// delta measures what one user's new role costs on the wire, and a node that takes it in: to verify the signature and to
// make the index of the generation after.
func (r *run) delta() error {
	r.Note("applying deltas")
	in, err := Rows(0, r.Size)
	if err != nil {
		return err
	}
	key, trust, err := authority()
	if err != nil {
		return err
	}
	tenant, ok := seal.TenantBytes(in.Tenant.ID)
	if !ok {
		return errors.New("make a delta: the tenant's id is no UUID")
	}
	base := r.indexes[0]
	users := slices.Clone(in.Users)
	var took []float64
	edits := editsPerRound * r.Rounds
	for i := range edits {
		in.Users = slices.Clone(users)
		u := &in.Users[i*len(users)/edits]
		u.Roles = []string{roleName((7 * i) % r.Size.Roles)}
		next, err := compiled(in)
		if err != nil {
			return err
		}
		body, err := index.Diff(base, next)
		if err != nil {
			return err
		}
		parent, state := sha256.Sum256([]byte("head")), next.StateHash()
		body.TenantId, body.Epoch, body.Generation, body.Revision = tenant, 3, 20_000, 200_000
		body.Parent, body.StateHash = parent[:], state[:]
		signed, err := seal.SignDelta(body, key)
		if err != nil {
			return err
		}
		r.figures.DeltaBytes = max(r.figures.DeltaBytes, len(signed.GetBody())+len(signed.GetSignature()))
		for range 10 {
			begin := time.Now()
			d, err := trust.OpenDelta(signed)
			if err != nil {
				return err
			}
			if _, err := index.Apply(base, d); err != nil {
				return err
			}
			took = append(took, float64(time.Since(begin).Nanoseconds())/1000)
		}
	}
	r.figures.DeltaApply = measure.Median(took)
	return nil
}

func compiled(in compile.Input) (*index.Index, error) {
	out, err := compile.Compile(in)
	if err != nil {
		return nil, err
	}
	return index.Open(out.Index)
}

// authority is a head key and roots that name it.
func authority() (*seal.Signer, *seal.Trust, error) {
	var signers [2]*seal.Signer
	for i, name := range []string{"root", "head"} {
		seed := sha256.Sum256([]byte("bench " + name))
		var err error
		if signers[i], err = seal.NewSigner(ed25519.NewKeyFromSeed(seed[:])); err != nil {
			return nil, nil, err
		}
	}
	root, head := signers[0], signers[1]
	env, err := seal.SignRoots(seal.BuildRoots(1, 3, 1,
		seal.RoleKey{Role: snapshotv1.KeyRole_KEY_ROLE_ROOT, Key: root.Public()},
		seal.RoleKey{Role: snapshotv1.KeyRole_KEY_ROLE_HEAD, Key: head.Public()}), root)
	if err != nil {
		return nil, nil, err
	}
	pin, err := seal.RootsDigest(env)
	if err != nil {
		return nil, nil, err
	}
	trust, err := seal.OpenRoots(env, pin)
	return head, trust, err
}
