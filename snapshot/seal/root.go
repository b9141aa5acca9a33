package seal

import (
	"crypto/sha256"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// ManifestRoot is the RFC 6962 root over the refs in the order given, which is that of tenant ids. A leaf is the text
//
//	mcpvault head <tenant id> <epoch> <generation> <hex SHA-256 of the head's payload>
//
// with a line feed at the end. Without refs it is the hash of nothing, as the RFC says.
func ManifestRoot(refs []*snapshotv1.HeadRef) (snapshot.Digest, error) {
	if len(refs) == 0 {
		return sha256.Sum256(nil), nil
	}
	var hashes hashStore
	for i, r := range refs {
		leaf := fmt.Appendf(nil, "mcpvault head %s %d %d %x\n", r.GetTenantId(), r.GetEpoch(), r.GetGeneration(), r.GetHeadSha256())
		more, err := tlog.StoredHashes(int64(i), leaf, &hashes)
		if err != nil {
			return snapshot.Digest{}, fmt.Errorf("manifest root: %w", err)
		}
		hashes = append(hashes, more...)
	}
	root, err := tlog.TreeHash(int64(len(refs)), &hashes)
	if err != nil {
		return snapshot.Digest{}, fmt.Errorf("manifest root: %w", err)
	}
	return snapshot.Digest(root), nil
}

// hashStore keeps the tree's hashes in memory, in the order in which tlog numbers them.
type hashStore []tlog.Hash

// ReadHashes implements tlog.HashReader.
func (s *hashStore) ReadHashes(at []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, 0, len(at))
	for _, i := range at {
		if i < 0 || i >= int64(len(*s)) {
			return nil, fmt.Errorf("hash %d of %d", i, len(*s))
		}
		out = append(out, (*s)[i])
	}
	return out, nil
}
