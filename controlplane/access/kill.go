package access

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/registry"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// killKind is what may be killed, and how.
type killKind struct {
	kind snapshotv1.KillKind
	// owner is needed, and it is always a kill of every tenant.
	platform bool
	// names are the same in every tenant, so that it may be killed everywhere.
	global bool
}

var killKinds = map[string]killKind{
	"user":    {kind: snapshotv1.KillKind_KILL_KIND_USER},
	"token":   {kind: snapshotv1.KillKind_KILL_KIND_TOKEN, global: true},
	"session": {kind: snapshotv1.KillKind_KILL_KIND_SESSION, global: true},
	"server":  {kind: snapshotv1.KillKind_KILL_KIND_SERVER},
	"tool":    {kind: snapshotv1.KillKind_KILL_KIND_TOOL},
	"version": {kind: snapshotv1.KillKind_KILL_KIND_VERSION, global: true},
	"secret":  {kind: snapshotv1.KillKind_KILL_KIND_SECRET, global: true},
	"node":    {kind: snapshotv1.KillKind_KILL_KIND_NODE, global: true, platform: true},
	"issuer":  {kind: snapshotv1.KillKind_KILL_KIND_ISSUER, global: true},
	"key":     {kind: snapshotv1.KillKind_KILL_KIND_KEY, global: true},
}

// kindName is the word for a kind; "" for one that has none.
func kindName(k snapshotv1.KillKind) string {
	for name, known := range killKinds {
		if known.kind == k {
			return name
		}
	}
	return ""
}

// Kill signs and stores a deny that needs no compiling; committing it sends it to every cell of the tenant, or to all. It is
// not taken back.
func (s *Service) Kill(ctx context.Context, req *adminv1.KillRequest) (*adminv1.KillResponse, error) {
	caller := controlplane.CallerFrom(ctx)
	kind, ok := killKinds[req.GetKind()]
	if !ok {
		return nil, problem.Newf(problem.Invalid, "use "+strings.Join(slices.Sorted(maps.Keys(killKinds)), ", "), "%q cannot be killed", req.GetKind())
	}
	everywhere := req.GetEverywhere() || kind.platform
	if err := mayKillEverywhere(caller, req.GetKind(), kind, everywhere); err != nil {
		return nil, err
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
			Id: store.NewULID(tx.Now()), Kind: kind.kind, Subject: req.GetSubject(), IssuedMs: tx.Now().UnixMilli(), Reason: req.GetReason(),
		}
		if !everywhere {
			body.TenantId = string(tx.Tenant())
		}
		env, err := seal.SignKill(body, s.cfg.Keys.Current().Kill)
		if err != nil {
			return err
		}
		res.Id = body.GetId()
		_, err = insertKill(ctx, tx, body, env)
		return err
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

// insertKill stores a signed kill and says so in the ledger; false when it was there.
func insertKill(ctx context.Context, tx *store.Tx, body *snapshotv1.Kill, env []byte) (fresh bool, err error) {
	tx.SetKind(store.OutboxKill)
	k := store.Kill{
		ID: body.GetId(), Kind: kindName(body.GetKind()), Subject: body.GetSubject(), Reason: body.GetReason(),
		IssuedAt: time.UnixMilli(body.GetIssuedMs()).UTC(), Envelope: env,
	}
	insert := tx.InsertKill
	if body.GetTenantId() == "" {
		insert = tx.InsertPlatformKill
	}
	if fresh, err = insert(ctx, k); err != nil || !fresh {
		return fresh, err
	}
	return true, tx.Change(ctx, "kill."+k.Kind, k.Kind+":"+k.Subject, map[string]any{"id": k.ID, "reason": k.Reason, "everywhere": body.GetTenantId() == ""})
}

func mayKillEverywhere(caller controlplane.Caller, name string, kind killKind, everywhere bool) error {
	switch {
	case everywhere && !kind.global:
		return problem.Newf(problem.Invalid, "kill it in each tenant: the same name means another "+name+" there", "a %s cannot be killed everywhere at once", name)
	case everywhere && !caller.Has(controlplane.RoleOwner):
		return problem.Newf(problem.Denied, "ask an owner of the platform", "a kill of every tenant takes an owner, and killing a %s here would be one", name)
	}
	return nil
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
		_, err := checkTarget(ctx, tx, controlplane.Target{Server: server, Item: tool})
		return err
	case "node":
		return knownNode(ctx, tx, req.GetSubject())
	}
	return nil
}

func knownNode(ctx context.Context, tx *store.Tx, subject string) error {
	cell, node, ok := strings.Cut(subject, "/")
	if !ok || cell == "" || node == "" {
		return problem.Newf(problem.Invalid, "write CELL/NODE", "%q names no node", subject)
	}
	all, err := tx.NodeStatuses(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(all, func(s store.NodeStatus) bool { return s.Cell == cell && s.Node == node }) {
		return problem.Newf(problem.NotFound, "see `mcpvault cell status`", "no node %s has ever reported", subject)
	}
	return nil
}
