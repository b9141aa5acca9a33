package seal

import (
	"cmp"
	"crypto/ed25519"
	"fmt"
	"slices"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

const maxKeys = 128

// Trust is the roots that a node believes. It is read-only.
type Trust struct {
	version   uint64
	epoch     snapshot.Epoch
	threshold int
	keys      map[string]roleKey
	digest    snapshot.Digest
}

type roleKey struct {
	role  snapshotv1.KeyRole
	pub   ed25519.PublicKey
	since uint64
}

// Version counts the changes of the roots.
func (t *Trust) Version() uint64 { return t.version }

// Epoch is the highest epoch that a head may claim.
func (t *Trust) Epoch() snapshot.Epoch { return t.epoch }

// Digest is the SHA-256 of the roots' payload.
func (t *Trust) Digest() snapshot.Digest { return t.digest }

// Threshold is how many root keys must sign the next roots.
func (t *Trust) Threshold() int { return t.threshold }

// Newest lists the keys of a role, those that were named last first: the first one whose private half is there signs.
func (t *Trust) Newest(role snapshotv1.KeyRole) []string {
	ids := t.KeyIDs(role)
	slices.SortStableFunc(ids, func(a, b string) int { return cmp.Compare(t.keys[b].since, t.keys[a].since) })
	return ids
}

// KeyIDs lists the keys of a role, sorted.
func (t *Trust) KeyIDs(role snapshotv1.KeyRole) []string {
	var ids []string
	for id, k := range t.keys {
		if k.role == role {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// RoleKey gives a role to a public key.
type RoleKey struct {
	Role snapshotv1.KeyRole
	Key  ed25519.PublicKey
	// Since is the version of the roots that first named it.
	Since uint64
}

// BuildRoots makes the body of roots, keys sorted by role and id.
func BuildRoots(version uint64, epoch snapshot.Epoch, threshold uint32, keys ...RoleKey) *snapshotv1.Roots {
	r := &snapshotv1.Roots{Version: version, Epoch: uint64(epoch), Threshold: threshold}
	for _, k := range keys {
		r.Keys = append(r.Keys, &snapshotv1.PublicKey{KeyId: KeyID(k.Key), Role: k.Role, Ed25519: slices.Clone(k.Key), Since: k.Since})
	}
	slices.SortFunc(r.Keys, func(a, b *snapshotv1.PublicKey) int {
		return cmp.Or(cmp.Compare(a.GetRole(), b.GetRole()), cmp.Compare(a.GetKeyId(), b.GetKeyId()))
	})
	return r
}

// SignRoots seals roots. A new version needs signers of the version before it too.
func SignRoots(body *snapshotv1.Roots, signers ...*Signer) ([]byte, error) {
	if _, err := trustOf(body); err != nil {
		return nil, fmt.Errorf("sign roots: %w", err)
	}
	b, err := sign(TypeRoots, MaxRoots, body, signers)
	if err != nil {
		return nil, fmt.Errorf("sign roots: %w", err)
	}
	return b, nil
}

// OpenRoots opens the first roots of a node: those whose payload has the pinned digest, signed by a threshold of their
// own root keys.
func OpenRoots(env []byte, pinned snapshot.Digest) (*Trust, error) {
	t, _, err := openRoots(env, nil)
	if err != nil {
		return nil, fmt.Errorf("open roots: %w", err)
	}
	if pinned.IsZero() || t.digest != pinned {
		return nil, fmt.Errorf("open roots: digest %v: %w", t.digest, ErrPin)
	}
	return t, nil
}

// OpenRoots opens roots that shall replace t: a higher version, an epoch at least as high, signed by a threshold of the
// old root keys and a threshold of the new. Roots that are t's own come back as t.
func (t *Trust) OpenRoots(env []byte) (*Trust, error) {
	next, o, err := openRoots(env, t)
	if err != nil {
		return nil, fmt.Errorf("open roots: %w", err)
	}
	if next.digest == t.digest {
		return t, nil
	}
	if next.version <= t.version || next.epoch < t.epoch {
		return nil, fmt.Errorf("open roots: version %d epoch %d after version %d epoch %d: %w",
			next.version, next.epoch, t.version, t.epoch, ErrRollback)
	}
	if err := o.verify(next.keys, snapshotv1.KeyRole_KEY_ROLE_ROOT, next.threshold); err != nil {
		return nil, fmt.Errorf("open roots: new keys: %w", err)
	}
	return next, nil
}

// openRoots checks the old keys' signatures before it decodes; without old keys, the new keys' after.
func openRoots(env []byte, old *Trust) (*Trust, *opened, error) {
	o, err := open(env, TypeRoots, MaxRoots)
	if err != nil {
		return nil, nil, err
	}
	if old != nil {
		if err := o.verify(old.keys, snapshotv1.KeyRole_KEY_ROLE_ROOT, old.threshold); err != nil {
			return nil, nil, fmt.Errorf("old keys: %w", err)
		}
	}
	var body snapshotv1.Roots
	if err := o.decode(&body); err != nil {
		return nil, nil, err
	}
	t, err := trustOf(&body)
	if err != nil {
		return nil, nil, err
	}
	t.digest = snapshot.DigestOf(o.payload)
	if old == nil {
		if err := o.verify(t.keys, snapshotv1.KeyRole_KEY_ROLE_ROOT, t.threshold); err != nil {
			return nil, nil, err
		}
	}
	return t, o, nil
}

// trustOf checks a body: every key once and under its own id, enough root keys for the threshold. A key has one role.
func trustOf(r *snapshotv1.Roots) (*Trust, error) {
	if r.GetVersion() == 0 || r.GetEpoch() == 0 || len(r.GetKeys()) > maxKeys {
		return nil, fmt.Errorf("roots version %d epoch %d with %d keys: %w", r.GetVersion(), r.GetEpoch(), len(r.GetKeys()), ErrFormat)
	}
	t := &Trust{
		version: r.GetVersion(), epoch: snapshot.Epoch(r.GetEpoch()), threshold: int(r.GetThreshold()),
		keys: make(map[string]roleKey, len(r.GetKeys())),
	}
	roots := 0
	for _, k := range r.GetKeys() {
		pub := ed25519.PublicKey(k.GetEd25519())
		if len(pub) != ed25519.PublicKeySize || KeyID(pub) != k.GetKeyId() || k.GetRole() == snapshotv1.KeyRole_KEY_ROLE_UNSPECIFIED {
			return nil, fmt.Errorf("key %.64q: %w", k.GetKeyId(), ErrFormat)
		}
		if _, twice := t.keys[k.GetKeyId()]; twice {
			return nil, fmt.Errorf("key %q twice: %w", k.GetKeyId(), ErrFormat)
		}
		if k.GetSince() > r.GetVersion() {
			return nil, fmt.Errorf("key %q of version %d in version %d: %w", k.GetKeyId(), k.GetSince(), r.GetVersion(), ErrFormat)
		}
		t.keys[k.GetKeyId()] = roleKey{role: k.GetRole(), pub: slices.Clone(pub), since: k.GetSince()}
		if k.GetRole() == snapshotv1.KeyRole_KEY_ROLE_ROOT {
			roots++
		}
	}
	if t.threshold < 1 || t.threshold > roots || t.threshold > maxSignatures {
		return nil, fmt.Errorf("threshold %d of %d root keys: %w", r.GetThreshold(), roots, ErrFormat)
	}
	return t, nil
}
