package seal

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"

	"google.golang.org/protobuf/proto"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// MaxDelta bounds the body of a delta in bytes: with its signature it has to fit a log entry of the cell.
const MaxDelta = 58 << 10

// deltaDomain stands before the body in what is signed, so that nothing else that a head key signs can pass for a delta.
const deltaDomain = "mcpvault delta v1\x00"

// SignDelta seals a delta: 64 bytes more than its body, because DSSE is for what is kept and a delta is for the wire.
func SignDelta(body *snapshotv1.Delta, s *Signer) (*snapshotv1.SignedDelta, error) {
	if err := checkDelta(body); err != nil {
		return nil, fmt.Errorf("sign delta: %w", err)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("sign delta: %w", err)
	}
	if len(b) > MaxDelta {
		return nil, fmt.Errorf("sign delta of %d bytes, at most %d: %w", len(b), MaxDelta, ErrSize)
	}
	return &snapshotv1.SignedDelta{Body: b, Signature: ed25519.Sign(s.key, append([]byte(deltaDomain), b...))}, nil
}

// OpenDelta opens a delta signed by a head key, of an epoch that the roots know. What it says was not applied to anything
// yet: index.Apply judges that.
func (t *Trust) OpenDelta(d *snapshotv1.SignedDelta) (*snapshotv1.Delta, error) {
	if len(d.GetBody()) > MaxDelta {
		return nil, fmt.Errorf("open delta of %d bytes, at most %d: %w", len(d.GetBody()), MaxDelta, ErrSize)
	}
	if !t.signedByHead(d) {
		return nil, fmt.Errorf("open delta: %w", ErrSignature)
	}
	body := &snapshotv1.Delta{}
	if err := proto.Unmarshal(d.GetBody(), body); err != nil {
		return nil, fmt.Errorf("open delta: %w", ErrFormat)
	}
	if err := checkDelta(body); err != nil {
		return nil, fmt.Errorf("open delta: %w", err)
	}
	if snapshot.Epoch(body.GetEpoch()) > t.epoch {
		return nil, fmt.Errorf("open delta: epoch %d, roots have %d: %w", body.GetEpoch(), t.epoch, ErrEpoch)
	}
	return body, nil
}

func (t *Trust) signedByHead(d *snapshotv1.SignedDelta) bool {
	msg := append([]byte(deltaDomain), d.GetBody()...)
	for _, k := range t.keys {
		if k.role == snapshotv1.KeyRole_KEY_ROLE_HEAD && ed25519.Verify(k.pub, msg, d.GetSignature()) {
			return true
		}
	}
	return false
}

// DeltaDigest is the SHA-256 of a delta's body: what names the generation that it makes. It checks no signature.
func DeltaDigest(d *snapshotv1.SignedDelta) snapshot.Digest { return snapshot.DigestOf(d.GetBody()) }

// DeltaVersion is the version that a delta makes.
func DeltaVersion(d *snapshotv1.Delta) snapshot.Version {
	return snapshot.Version{Epoch: snapshot.Epoch(d.GetEpoch()), Generation: snapshot.Generation(d.GetGeneration())}
}

// DeltaTenant is the tenant of a delta, as a head names it.
func DeltaTenant(d *snapshotv1.Delta) snapshot.TenantID {
	if len(d.GetTenantId()) != uuidBytes {
		return ""
	}
	h := hex.EncodeToString(d.GetTenantId())
	return snapshot.TenantID(h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:])
}

// TenantBytes is a tenant's id as a delta carries it; false for an id that is not a UUID in canonical form.
func TenantBytes(id snapshot.TenantID) ([]byte, bool) {
	if len(id) != 36 || id[8] != '-' || id[13] != '-' || id[18] != '-' || id[23] != '-' {
		return nil, false
	}
	b, err := hex.DecodeString(string(id[:8] + id[9:13] + id[14:18] + id[19:23] + id[24:]))
	if err != nil || DeltaTenant(&snapshotv1.Delta{TenantId: b}) != id {
		return nil, false
	}
	return b, true
}

const uuidBytes = 16

func checkDelta(d *snapshotv1.Delta) error {
	switch {
	case len(d.GetTenantId()) != uuidBytes:
		return malformed("delta without tenant")
	case d.GetEpoch() == 0 || d.GetGeneration() < 2:
		return malformed("delta of epoch %d generation %d", d.GetEpoch(), d.GetGeneration())
	case !digest(d.GetParent()) || !digest(d.GetStateHash()):
		return malformed("delta without parent or state")
	}
	return nil
}
