package access

import (
	"context"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// Newest opens the newest generation of the caller's tenant, for tests that decide as a cell does.
func (s *Service) Newest(ctx context.Context) (version snapshot.Version, digest []byte, x *index.Index, err error) {
	v, err := s.views.load(ctx, controlplane.CallerFrom(ctx).TenantID, snapshot.Version{})
	if err != nil {
		return version, nil, nil, err
	}
	return snapshot.Version{Epoch: snapshot.Epoch(v.epoch), Generation: snapshot.Generation(v.generation)}, v.digest, v.index, nil
}
