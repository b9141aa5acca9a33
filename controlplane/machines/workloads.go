package machines

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// IssueWorkload signs an SVID for a workload of the tenant that the directory knows, of at most an hour, by the authority of
// the cell's workloads. Without a certificate request it says the workload's id and whom to believe, and signs nothing.
func (s *Service) IssueWorkload(ctx context.Context, req *adminv1.IssueWorkloadRequest) (*adminv1.IssueWorkloadResponse, error) {
	c := controlplane.CallerFrom(ctx)
	if !slices.Contains(s.cfg.Cells.Homes(c.Tenant), req.GetCell()) {
		return nil, problem.Newf(problem.NotFound, "see `mcpvault cell list`", "organisation %s is not homed in a cell %s", c.Tenant, req.GetCell())
	}
	ttl := WorkloadTTL
	if req.GetTtl() != nil {
		ttl = req.GetTtl().AsDuration()
	}
	if ttl < time.Minute || ttl > WorkloadTTL {
		return nil, problem.Newf(problem.Invalid, "ask for 1m to 1h, and again before it is over", "a workload's SVID cannot be good for %s", ttl)
	}
	id, err := svid.WorkloadID(s.cfg.TrustDomain, req.GetCell(), c.Tenant, req.GetName())
	if err != nil {
		return nil, problem.New(problem.Invalid, "this is no name for a workload: "+err.Error(), "")
	}
	authority, err := s.workloadAuthority(req.GetCell())
	if err != nil {
		return nil, err
	}
	ca := authority.CA().WithClock(s.cfg.Now)
	res := &adminv1.IssueWorkloadResponse{SpiffeId: id.String(), Bundle: ca.Bundle()}
	if len(req.GetCsr()) == 0 {
		return res, nil
	}
	_, err = s.cfg.Store.Write(ctx, c.TenantID, c.Actor(), func(tx *store.Tx) error {
		tx.SetKind(store.OutboxNone)
		u, err := tx.UserByName(ctx, id.String())
		switch {
		case errors.Is(err, store.ErrNotFound):
			return problem.Newf(problem.NotFound, "make it first: mcpvault workload create "+id.String(), "organisation %s has no workload %s", c.Tenant, id)
		case err != nil:
			return err
		case u.Disabled:
			return problem.Newf(problem.Denied, "enable it first: mcpvault user enable "+u.Name, "%s is disabled", u.Name)
		}
		if res.Svid, err = ca.SignRequest(req.GetCsr(), id, ttl); err != nil {
			return refusedRequest(err)
		}
		until := s.cfg.Now().Add(ttl).UTC().Truncate(time.Second)
		res.NotAfterMs = until.UnixMilli()
		return tx.Change(ctx, "workload.issue", "user:"+u.Name, map[string]any{"cell": req.GetCell(), "expires_at": until, "thumbprint": svid.Thumbprint(res.Svid)})
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}
