// Package snapshot is the contract between the planes: the nouns of a compiled policy and the rules by which one version
// of it replaces another. Sealing, the flat index and the decision live in the packages below it; this one has no IO.
package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// TenantID is the UUIDv7 of one customer organisation, in its canonical text form.
type TenantID string

// Epoch counts changes of authority. Only root keys raise it; a lower epoch never replaces a higher one.
type Epoch uint64

// Generation counts the publishes of one tenant within an epoch. It is compared, never parsed.
type Generation uint64

// Version orders the heads of one tenant.
type Version struct {
	Epoch      Epoch
	Generation Generation
}

// Newer reports whether v may replace w.
func (v Version) Newer(w Version) bool {
	if v.Epoch != w.Epoch {
		return v.Epoch > w.Epoch
	}
	return v.Generation > w.Generation
}

func (v Version) String() string {
	var space [41]byte
	b := strconv.AppendUint(space[:0], uint64(v.Epoch), 10)
	return string(strconv.AppendUint(append(b, '.'), uint64(v.Generation), 10))
}

// VersionOf reads the version that a head states.
func VersionOf(h *snapshotv1.Head) Version {
	return Version{Epoch(h.GetEpoch()), Generation(h.GetGeneration())}
}

// Digest is the SHA-256 of a shard, a head's payload or a tool surface.
type Digest [sha256.Size]byte

// DigestOf hashes b.
func DigestOf(b []byte) Digest { return sha256.Sum256(b) }

// DigestFrom converts the wire form; it reports false when b is not 32 bytes long.
func DigestFrom(b []byte) (Digest, bool) {
	var d Digest
	if len(b) != len(d) {
		return d, false
	}
	copy(d[:], b)
	return d, true
}

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero reports whether d was never set.
func (d Digest) IsZero() bool { return d == Digest{} }
