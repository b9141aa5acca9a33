package snapshots

import (
	"context"
	"fmt"

	"github.com/mcpvault/mcpvault/controlplane"
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

// checkKeys says why newer keys are not in use, and for whom.
func (s *Service) checkKeys(ctx context.Context) *adminv1.HealthCheck {
	if err := s.cfg.Keys.Problem(); err != nil {
		return broken("keys", err)
	}
	t := s.cfg.Keys.Current().Trust
	var bad []string
	caller := controlplane.CallerFrom(ctx)
	for _, tenant := range s.cfg.Publisher.Status().Outdated {
		if caller.Has(controlplane.RoleOwner) || tenant == caller.Home {
			bad = append(bad, fmt.Sprintf("the generation of %s is signed by an older key only", tenant))
		}
	}
	return check("keys", fmt.Sprintf("roots of version %d and epoch %d are in force", t.Version(), t.Epoch()), bad,
		"do not withdraw that key before the tenant can be published: nodes that restart could not serve it")
}
