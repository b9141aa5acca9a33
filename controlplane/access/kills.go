package access

import (
	"context"
	"slices"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// ListKills lists what was killed, newest first: of the tenant, and of every tenant. Who is no owner of the platform is
// told of the nodes of the tenant's own cells only.
func (s *Service) ListKills(ctx context.Context, req *adminv1.ListKillsRequest) (*adminv1.ListKillsResponse, error) {
	caller := controlplane.CallerFrom(ctx)
	var own, everywhere []store.Kill
	var ownAcks, allAcks []store.KillAck
	err := s.store.Read(ctx, caller.TenantID, func(tx *store.Tx) (err error) {
		if own, err = tx.Kills(ctx); err != nil {
			return err
		}
		if everywhere, err = tx.PlatformKills(ctx); err != nil {
			return err
		}
		if ownAcks, err = tx.KillAcks(ctx); err != nil {
			return err
		}
		allAcks, err = tx.PlatformKillAcks(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	var nodes []store.NodeStatus
	homes := map[string]bool{}
	err = s.store.Platform(ctx, func(tx *store.Tx) (err error) {
		cells, err := tx.CellTenants(ctx)
		if err != nil {
			return err
		}
		for _, c := range cells {
			homes[c.Cell] = homes[c.Cell] || c.TenantID == caller.TenantID
		}
		nodes, err = tx.NodeStatuses(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	if !caller.Has(controlplane.RoleOwner) {
		nodes = slices.DeleteFunc(nodes, func(n store.NodeStatus) bool { return !homes[n.Cell] })
		allAcks = slices.DeleteFunc(allAcks, func(a store.KillAck) bool { return !homes[a.Cell] })
	}
	res := &adminv1.ListKillsResponse{}
	for _, k := range everywhere {
		res.Kills = append(res.Kills, showKill(k, true, allAcks, nodes, nil))
	}
	for _, k := range own {
		res.Kills = append(res.Kills, showKill(k, false, ownAcks, nodes, homes))
	}
	res.Kills = slices.DeleteFunc(res.Kills, func(k *adminv1.KillRecord) bool { return req.GetId() != "" && k.GetId() != req.GetId() })
	slices.SortFunc(res.Kills, func(a, b *adminv1.KillRecord) int {
		if a.GetId() > b.GetId() {
			return -1
		}
		return 1
	})
	return res, nil
}

// showKill tells who enforces a kill and who was not heard of. homes are the cells concerned; nil means all.
func showKill(k store.Kill, everywhere bool, acks []store.KillAck, nodes []store.NodeStatus, homes map[string]bool) *adminv1.KillRecord {
	out := &adminv1.KillRecord{
		Id: k.ID, Kind: k.Kind, Subject: k.Subject, Reason: k.Reason, IssuedMs: k.IssuedAt.UnixMilli(), Everywhere: everywhere, Envelope: k.Envelope,
	}
	answered := map[string]bool{}
	for _, a := range acks {
		if a.KillID == k.ID {
			answered[a.Cell+"/"+a.Node] = true
			out.Acks = append(out.Acks, &adminv1.NodeAck{Cell: a.Cell, Node: a.Node, Status: "applied", AtMs: a.At.UnixMilli()})
		}
	}
	for _, n := range nodes {
		if name := n.Cell + "/" + n.Node; !answered[name] && (homes == nil || homes[n.Cell]) {
			out.Waiting = append(out.Waiting, name)
		}
	}
	return out
}

// ImportKills takes kills that were signed elsewhere, with a break-glass key: all of them or, when one is not to be taken,
// none. From then on they are signed anew like any other when keys change.
func (s *Service) ImportKills(ctx context.Context, req *adminv1.ImportKillsRequest) (*adminv1.ImportKillsResponse, error) {
	caller := controlplane.CallerFrom(ctx)
	trust := s.cfg.Keys.Current().Trust
	bodies := make([]*snapshotv1.Kill, 0, len(req.GetEnvelopes()))
	for i, env := range req.GetEnvelopes() {
		body, err := trust.OpenKill(env)
		if err != nil {
			return nil, problem.Newf(problem.Invalid, "look with `mcpvault kill inspect`: it is to be signed by a kill key that the roots name", "kill %d does not verify", i+1).Because(err)
		}
		if kindName(body.GetKind()) == "" {
			return nil, problem.Newf(problem.Invalid, "use a newer control plane", "kill %d is of a kind that is not known here", i+1)
		}
		if body.GetTenantId() == "" && !caller.Has(controlplane.RoleOwner) {
			return nil, problem.Newf(problem.Denied, "ask an owner of the platform", "kill %d is one of every tenant", i+1)
		}
		if body.GetTenantId() != "" && body.GetTenantId() != string(caller.TenantID) {
			return nil, problem.Newf(problem.Invalid, "name that organisation with --org", "kill %d is of another tenant", i+1)
		}
		bodies = append(bodies, body)
	}
	res := &adminv1.ImportKillsResponse{}
	_, err := s.store.Write(ctx, caller.TenantID, caller.Actor(), func(tx *store.Tx) error {
		res.Ids = nil
		for i, body := range bodies {
			fresh, err := insertKill(ctx, tx, body, req.GetEnvelopes()[i])
			if err != nil {
				return err
			}
			if fresh {
				res.Ids = append(res.Ids, body.GetId())
			}
		}
		if len(res.GetIds()) == 0 {
			return store.ErrNoChange
		}
		return nil
	})
	return res, err
}
