package access

import (
	"context"
	"slices"
	"strings"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/registry"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

var killKinds = map[string]snapshotv1.KillKind{
	"user": snapshotv1.KillKind_KILL_KIND_USER, "token": snapshotv1.KillKind_KILL_KIND_TOKEN, "session": snapshotv1.KillKind_KILL_KIND_SESSION,
	"server": snapshotv1.KillKind_KILL_KIND_SERVER, "tool": snapshotv1.KillKind_KILL_KIND_TOOL, "version": snapshotv1.KillKind_KILL_KIND_VERSION,
}

// Kill signs and stores a deny that needs no compiling; committing it sends it to every cell of the tenant. It is not
// taken back.
func (s *Service) Kill(ctx context.Context, req *adminv1.KillRequest) (*adminv1.KillResponse, error) {
	caller := controlplane.CallerFrom(ctx)
	kind, ok := killKinds[req.GetKind()]
	if !ok {
		return nil, problem.Newf(problem.Invalid, "use user, token, session, server, tool or version", "%q cannot be killed", req.GetKind())
	}
	res := &adminv1.KillResponse{}
	_, err := s.store.Write(ctx, caller.TenantID, caller.Actor(), func(tx *store.Tx) error {
		if err := killable(ctx, tx, req); err != nil {
			return err
		}
		if err := mayKill(ctx, tx, caller, req); err != nil {
			return err
		}
		body := &snapshotv1.Kill{
			Id: store.NewULID(tx.Now()), Kind: kind, TenantId: string(tx.Tenant()), Subject: req.GetSubject(),
			IssuedMs: tx.Now().UnixMilli(), Reason: req.GetReason(),
		}
		env, err := seal.SignKill(body, s.cfg.Kill)
		if err != nil {
			return err
		}
		tx.SetKind(store.OutboxKill)
		k := store.Kill{ID: body.GetId(), Kind: req.GetKind(), Subject: req.GetSubject(), Reason: req.GetReason(), IssuedAt: tx.Now(), Envelope: env}
		if err := tx.InsertKill(ctx, k); err != nil {
			return err
		}
		res.Id = k.ID
		return tx.Change(ctx, "kill."+req.GetKind(), req.GetKind()+":"+req.GetSubject(), map[string]any{"id": k.ID, "reason": k.Reason})
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

// mayKill keeps a person from a kill that nobody could take back: of themselves, and, unless they are an owner too, of an
// owner of the platform.
func mayKill(ctx context.Context, tx *store.Tx, caller controlplane.Caller, req *adminv1.KillRequest) error {
	if req.GetKind() != "user" {
		return nil
	}
	if req.GetSubject() == caller.Principal && caller.Home == caller.Tenant {
		return problem.New(problem.Invalid, "you would shut yourself out, and a kill is not taken back", "revoke the token that was lost, or ask another admin")
	}
	u, err := tx.UserByName(ctx, req.GetSubject())
	if err == nil && slices.Contains(u.AdminRoles, controlplane.RoleOwner) && !caller.Has(controlplane.RoleOwner) {
		return problem.Newf(problem.Denied, "ask another owner", "%s is an owner of the platform, and you are not", u.Name)
	}
	return err
}

// killable refuses a name that nothing has: an incident is no time for a kill that misses by a letter. Tokens, sessions
// and versions are named by ids that the cells know better than we do.
func killable(ctx context.Context, tx *store.Tx, req *adminv1.KillRequest) error {
	switch req.GetKind() {
	case "user":
		return checkSubject(ctx, tx, "user:"+req.GetSubject())
	case "server":
		_, err := registry.Find(ctx, tx, req.GetSubject())
		return err
	case "tool":
		server, tool, ok := strings.Cut(req.GetSubject(), "/")
		if !ok || server == "" || tool == "" {
			return problem.Newf(problem.Invalid, "write SERVER/TOOL", "%q names no tool", req.GetSubject())
		}
		_, err := checkTarget(ctx, tx, server, tool)
		return err
	}
	return nil
}
