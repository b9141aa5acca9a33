package snapshots

import (
	"context"
	"fmt"

	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// GetRoots returns the roots in force, and which of their keys sign now. They are no secret: every node has them.
func (s *Service) GetRoots(context.Context, *adminv1.GetRootsRequest) (*adminv1.GetRootsResponse, error) {
	keys := s.cfg.Keys.Current()
	return &adminv1.GetRootsResponse{
		Roots: keys.Roots, HeadKey: keys.Head.KeyID(), HeartbeatKey: keys.Heartbeat.KeyID(), KillKey: keys.Kill.KeyID(),
	}, nil
}

// InstallRoots puts roots into force that a threshold of root keys has signed. It is not the caller's word that counts here
// but those signatures.
func (s *Service) InstallRoots(ctx context.Context, req *adminv1.InstallRootsRequest) (*adminv1.InstallRootsResponse, error) {
	version, err := s.cfg.Keys.Install(ctx, req.GetRoots())
	if err != nil {
		return nil, err
	}
	return &adminv1.InstallRootsResponse{Version: version}, nil
}

// checkKeys says why newer keys are not in use.
func (s *Service) checkKeys() *adminv1.HealthCheck {
	if err := s.cfg.Keys.Problem(); err != nil {
		return broken("keys", err)
	}
	t := s.cfg.Keys.Current().Trust
	return check("keys", fmt.Sprintf("roots of version %d and epoch %d are in force", t.Version(), t.Epoch()), nil, "")
}
