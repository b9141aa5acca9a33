package registry

import (
	"context"
	"slices"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/compile"
	"github.com/mcpvault/mcpvault/controlplane/policy"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// ApproveVersion sets the effect class of each tool and makes the version what callers are served. It is refused when a
// grant's condition does not fit the version's tools: such a grant would stop to allow, or deny everything, unnoticed.
func (s *Service) ApproveVersion(ctx context.Context, req *adminv1.ApproveVersionRequest) (*adminv1.ApproveVersionResponse, error) {
	caller := controlplane.CallerFrom(ctx)
	res := &adminv1.ApproveVersionResponse{}
	rev, err := s.store.Write(ctx, caller.TenantID, caller.Actor(), func(tx *store.Tx) error {
		srv, err := Find(ctx, tx, req.GetName())
		if err != nil {
			return err
		}
		v, surface, err := chosen(ctx, tx, srv, req.GetVersion())
		if err != nil {
			return err
		}
		effects, err := effectsOf(surface, req)
		if err != nil {
			return err
		}
		if err := stillFit(ctx, tx, srv.Name, surface); err != nil {
			return err
		}
		if err := tx.PublishVersion(ctx, v, effects); err != nil {
			return err
		}
		detail := map[string]any{"version": v.Number, "digest": v.Digest, "effects": effects, "before": srv.PublishedVersion}
		if err := tx.Change(ctx, "server.approve", "server:"+srv.Name, detail); err != nil {
			return err
		}
		return fill(ctx, tx, srv.Name, v.Number, &res.Server, &res.Version)
	})
	if err != nil {
		return nil, err
	}
	res.Revision = rev
	return res, nil
}

func chosen(ctx context.Context, tx *store.Tx, srv store.Server, number uint32) (store.ServerVersion, *Surface, error) {
	if number == 0 {
		number = srv.LatestVersion
	}
	if number == 0 {
		fix := "make it reachable, then run mcpvault server scan " + srv.Name
		return store.ServerVersion{}, nil, problem.Newf(problem.Conflict, fix, "server %s was never scanned with success, so that there is nothing to approve", srv.Name)
	}
	v, err := tx.Version(ctx, srv, number)
	if err != nil {
		return v, nil, err
	}
	surface, err := DecodeSurface(v.Surface)
	return v, surface, err
}

// effectsOf gives every tool a class.
func effectsOf(surface *Surface, req *adminv1.ApproveVersionRequest) (map[string]string, error) {
	effects := make(map[string]string, len(surface.Tools))
	names := make([]string, 0, len(surface.Tools))
	for _, t := range surface.Tools {
		effects[t.Name] = class(req.GetDefaultEffect())
		if req.GetSource() == adminv1.EffectSource_EFFECT_SOURCE_HINTS {
			effects[t.Name] = hint(t.Raw)
		}
		names = append(names, t.Name)
	}
	var asked []string
	for name := range req.GetToolEffects() {
		asked = append(asked, name)
	}
	slices.Sort(asked)
	for _, name := range asked {
		if _, ok := effects[name]; !ok {
			fix := "see `mcpvault server get " + req.GetName() + "`"
			if near := policy.Nearest(name, names); near != "" {
				fix = "did you mean " + near + "?"
			}
			return nil, problem.Newf(problem.Invalid, fix, "this version of %s has no tool %s", req.GetName(), name)
		}
		effects[name] = class(req.GetToolEffects()[name])
	}
	return effects, nil
}

// stillFit types the conditions of all grants on the server against its new surface.
func stillFit(ctx context.Context, tx *store.Tx, server string, surface *Surface) error {
	grants, err := tx.Grants(ctx)
	if err != nil {
		return err
	}
	schemas := surface.Schemas(server)
	for _, g := range grants {
		over := !g.ExpiresAt.IsZero() && g.ExpiresAt.Before(tx.Now())
		if g.Server != server || g.Condition == "" || over {
			continue
		}
		if _, ok := schemas[g.Item]; g.Item != "" && g.Item != controlplane.AllTools && !ok {
			continue // the tool is gone: the grant reaches nothing
		}
		if _, err := compile.LowerFor(g.Condition, g.Target, schemas); err != nil {
			return problem.Newf(problem.Conflict, "take the grant back with mcpvault revoke --id "+g.ID+", or have the server keep the argument",
				"grant %s of %s has a condition that does not fit this version: %s", g.ID, g.Subject, sentence(err))
		}
	}
	return policiesStillFit(ctx, tx, server, schemas)
}

// policiesStillFit types the written policies on the server. What names a tool that is gone reaches nothing, as a grant does.
func policiesStillFit(ctx context.Context, tx *store.Tx, server string, schemas map[string]policy.Schema) error {
	texts, err := tx.Policies(ctx)
	if err != nil {
		return err
	}
	w := &policy.World{Lenient: true, Servers: map[string]policy.Surface{server: {Tools: schemas}}}
	for _, row := range texts {
		doc, err := policy.Parse(row.Name, row.Text)
		if err != nil {
			continue // it denies everything until it is written anew
		}
		for _, p := range doc.Policies {
			g, err := p.Lower(w)
			_, kept := schemas[g.Tool]
			if err == nil || g.Server != server || g.Tool != "" && !kept {
				continue
			}
			return problem.Newf(problem.Conflict, "change it with mcpvault policy put "+row.Name+", or have the server keep the argument",
				"policy %s/%s does not fit this version: %s", row.Name, p.ID, sentence(err))
		}
	}
	return nil
}
