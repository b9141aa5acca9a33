package seal

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

const (
	maxText   = 1024
	maxShards = 64
	// MaxShard bounds what a head may say of the size of a shard.
	MaxShard = 1 << 30
)

// SignHead seals the policy of one tenant at one generation.
func SignHead(body *snapshotv1.Head, signers ...*Signer) ([]byte, error) {
	return seal("head", TypeHead, MaxHead, body, checkHead, signers)
}

// SignManifest seals the list of heads homed in a cell. Its root must be ManifestRoot of its heads.
func SignManifest(body *snapshotv1.Manifest, signers ...*Signer) ([]byte, error) {
	return seal("manifest", TypeManifest, MaxManifest, body, checkManifest, signers)
}

// SignHeartbeat seals a statement that a root was the newest at a time.
func SignHeartbeat(body *snapshotv1.Heartbeat, signers ...*Signer) ([]byte, error) {
	return seal("heartbeat", TypeHeartbeat, MaxHeartbeat, body, checkHeartbeat, signers)
}

// SignKill seals a kill.
func SignKill(body *snapshotv1.Kill, signers ...*Signer) ([]byte, error) {
	return seal("kill", TypeKill, MaxKill, body, checkKill, signers)
}

// seal checks first, so that nobody signs what every reader refuses.
func seal[T proto.Message](what, payloadType string, limit int, body T, check func(T) error, signers []*Signer) ([]byte, error) {
	if err := check(body); err != nil {
		return nil, fmt.Errorf("sign %s: %w", what, err)
	}
	b, err := sign(payloadType, limit, body, signers)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", what, err)
	}
	return b, nil
}

// OpenHead opens a head signed by a head key, of an epoch that the roots know.
func (t *Trust) OpenHead(env []byte) (*snapshotv1.Head, error) {
	h := &snapshotv1.Head{}
	if err := t.open("head", env, TypeHead, MaxHead, snapshotv1.KeyRole_KEY_ROLE_HEAD, h); err != nil {
		return nil, err
	}
	if err := checkHead(h); err != nil {
		return nil, fmt.Errorf("open head: %w", err)
	}
	if snapshot.Epoch(h.GetEpoch()) > t.epoch {
		return nil, fmt.Errorf("open head: epoch %d, roots have %d: %w", h.GetEpoch(), t.epoch, ErrEpoch)
	}
	return h, nil
}

// OpenManifest opens the manifest of a cell, signed by a head key. Its refs are sorted, each tenant once, and its root
// is theirs.
func (t *Trust) OpenManifest(env []byte, cell string) (*snapshotv1.Manifest, error) {
	m := &snapshotv1.Manifest{}
	if err := t.open("manifest", env, TypeManifest, MaxManifest, snapshotv1.KeyRole_KEY_ROLE_HEAD, m); err != nil {
		return nil, err
	}
	if err := checkManifest(m); err != nil {
		return nil, fmt.Errorf("open manifest: %w", err)
	}
	if m.GetCell() != cell {
		return nil, fmt.Errorf("open manifest: for %.64q: %w", m.GetCell(), ErrCell)
	}
	for _, r := range m.GetHeads() {
		if snapshot.Epoch(r.GetEpoch()) > t.epoch {
			return nil, fmt.Errorf("open manifest: epoch %d, roots have %d: %w", r.GetEpoch(), t.epoch, ErrEpoch)
		}
	}
	return m, nil
}

// OpenHeartbeat opens the heartbeat of a cell, signed by a heartbeat key.
func (t *Trust) OpenHeartbeat(env []byte, cell string) (*snapshotv1.Heartbeat, error) {
	h := &snapshotv1.Heartbeat{}
	if err := t.open("heartbeat", env, TypeHeartbeat, MaxHeartbeat, snapshotv1.KeyRole_KEY_ROLE_HEARTBEAT, h); err != nil {
		return nil, err
	}
	if err := checkHeartbeat(h); err != nil {
		return nil, fmt.Errorf("open heartbeat: %w", err)
	}
	if h.GetCell() != cell {
		return nil, fmt.Errorf("open heartbeat: for %.64q: %w", h.GetCell(), ErrCell)
	}
	return h, nil
}

// OpenKill opens a kill signed by a kill key: the control plane's or a break-glass one.
func (t *Trust) OpenKill(env []byte) (*snapshotv1.Kill, error) {
	k := &snapshotv1.Kill{}
	if err := t.open("kill", env, TypeKill, MaxKill, snapshotv1.KeyRole_KEY_ROLE_KILL, k); err != nil {
		return nil, err
	}
	if err := checkKill(k); err != nil {
		return nil, fmt.Errorf("open kill: %w", err)
	}
	return k, nil
}

func (t *Trust) open(what string, env []byte, payloadType string, limit int, role snapshotv1.KeyRole, body proto.Message) error {
	o, err := open(env, payloadType, limit)
	if err == nil {
		err = o.verify(t.keys, role, 1)
	}
	if err == nil {
		err = o.decode(body)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", what, err)
	}
	return nil
}

// CheckTime judges whether a head is in force: not before the one bound, before the other.
func CheckTime(h *snapshotv1.Head, now time.Time) error {
	switch ms := now.UnixMilli(); {
	case ms < h.GetNotBeforeMs():
		return fmt.Errorf("head of %s %v: %w", h.GetTenant(), snapshot.VersionOf(h), ErrNotYet)
	case ms >= h.GetNotAfterMs():
		return fmt.Errorf("head of %s %v: %w", h.GetTenant(), snapshot.VersionOf(h), ErrExpired)
	}
	return nil
}

// ShardOf returns the digest and the size of a head's shard of a kind.
func ShardOf(h *snapshotv1.Head, kind snapshotv1.ShardKind) (snapshot.Digest, uint64, bool) {
	for _, s := range h.GetShards() {
		if s.GetKind() == kind {
			d, ok := snapshot.DigestFrom(s.GetSha256())
			return d, s.GetSize(), ok
		}
	}
	return snapshot.Digest{}, 0, false
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrFormat)
}

func text(s string) bool { return s != "" && len(s) <= maxText }

func digest(b []byte) bool { return len(b) == len(snapshot.Digest{}) }

func checkHead(h *snapshotv1.Head) error {
	switch {
	case !text(h.GetTenantId()) || !text(h.GetTenant()):
		return malformed("head without tenant")
	case h.GetEpoch() == 0 || h.GetGeneration() == 0:
		return malformed("head of epoch %d generation %d", h.GetEpoch(), h.GetGeneration())
	case len(h.GetParent()) != 0 && !digest(h.GetParent()):
		return malformed("parent of %d bytes", len(h.GetParent()))
	case len(h.GetStateHash()) != 0 && !digest(h.GetStateHash()):
		return malformed("state hash of %d bytes", len(h.GetStateHash()))
	case h.GetNotAfterMs() <= h.GetNotBeforeMs() || h.GetNotBeforeMs() < 0:
		return malformed("head in force from %d to %d", h.GetNotBeforeMs(), h.GetNotAfterMs())
	case len(h.GetShards()) > maxShards:
		return malformed("%d shards", len(h.GetShards()))
	}
	seen := map[snapshotv1.ShardKind]bool{}
	for _, s := range h.GetShards() {
		if !digest(s.GetSha256()) || s.GetSize() == 0 || s.GetSize() > MaxShard || seen[s.GetKind()] {
			return malformed("shard of kind %d and %d bytes", s.GetKind(), s.GetSize())
		}
		seen[s.GetKind()] = true
	}
	if !seen[snapshotv1.ShardKind_SHARD_KIND_INDEX] || !seen[snapshotv1.ShardKind_SHARD_KIND_CATALOGUE] {
		return malformed("head without index or catalogue")
	}
	return nil
}

func checkManifest(m *snapshotv1.Manifest) error {
	if !text(m.GetCell()) || m.GetSequence() == 0 || m.GetIssuedMs() <= 0 {
		return malformed("manifest of cell %.64q sequence %d", m.GetCell(), m.GetSequence())
	}
	last := ""
	for _, r := range m.GetHeads() {
		if !text(r.GetTenantId()) || r.GetEpoch() == 0 || r.GetGeneration() == 0 || !digest(r.GetHeadSha256()) {
			return malformed("head of tenant %.64q", r.GetTenantId())
		}
		if r.GetTenantId() <= last {
			return malformed("tenant %.64q out of order", r.GetTenantId())
		}
		last = r.GetTenantId()
	}
	root, err := ManifestRoot(m.GetHeads())
	if err != nil {
		return err
	}
	if string(root[:]) != string(m.GetRoot()) {
		return fmt.Errorf("manifest root: %w", ErrDigest)
	}
	return nil
}

func checkHeartbeat(h *snapshotv1.Heartbeat) error {
	if !text(h.GetCell()) || !digest(h.GetRoot()) || h.GetTimeMs() <= 0 {
		return malformed("heartbeat of cell %.64q", h.GetCell())
	}
	return nil
}

func checkKill(k *snapshotv1.Kill) error {
	if !text(k.GetId()) || !text(k.GetSubject()) || k.GetKind() == snapshotv1.KillKind_KILL_KIND_UNSPECIFIED ||
		len(k.GetTenantId()) > maxText || k.GetIssuedMs() <= 0 {
		return malformed("kill %.64q", k.GetId())
	}
	return nil
}
