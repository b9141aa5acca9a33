package registry

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/policy"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// maxLabels bounds the labels of one server and of each of its tools.
const maxLabels = 64

// SetLabels sets and takes away labels of a server or of one of its tools; doing it twice is doing it once.
func (s *Service) SetLabels(ctx context.Context, req *adminv1.SetLabelsRequest) (*adminv1.SetLabelsResponse, error) {
	caller := controlplane.CallerFrom(ctx)
	res := &adminv1.SetLabelsResponse{}
	rev, err := s.store.Write(ctx, caller.TenantID, caller.Actor(), func(tx *store.Tx) error {
		srv, err := Find(ctx, tx, req.GetName())
		if err != nil {
			return err
		}
		if req.GetTool() != "" && len(req.GetSet()) > 0 {
			if _, err := SurfaceWith(ctx, tx, controlplane.Target{Server: srv.Name, Item: req.GetTool()}); err != nil {
				return err
			}
		}
		changed, err := setLabels(ctx, tx, srv, req)
		if err != nil {
			return err
		}
		if err := fill(ctx, tx, srv.Name, cmp.Or(srv.PublishedVersion, srv.LatestVersion), &res.Server, &res.Version); err != nil {
			return err
		}
		if !changed {
			return store.ErrNoChange
		}
		object := "server:" + srv.Name
		if req.GetTool() != "" {
			object += "/" + req.GetTool()
		}
		return tx.Change(ctx, "server.label", object, map[string]any{"set": req.GetSet(), "remove": req.GetRemove()})
	})
	if err != nil {
		return nil, err
	}
	res.Revision = rev
	return res, nil
}

func setLabels(ctx context.Context, tx *store.Tx, srv store.Server, req *adminv1.SetLabelsRequest) (changed bool, err error) {
	note := func(err error) error {
		if errors.Is(err, store.ErrNoChange) {
			return nil
		}
		changed = changed || err == nil
		return err
	}
	for _, key := range req.GetRemove() {
		if err := note(tx.SetLabel(ctx, srv.ID, controlplane.Label{Tool: req.GetTool(), Key: key}, true)); err != nil {
			return changed, err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(req.GetSet())) {
		if err := note(tx.SetLabel(ctx, srv.ID, controlplane.Label{Tool: req.GetTool(), Key: key, Value: req.GetSet()[key]}, false)); err != nil {
			return changed, err
		}
	}
	list, err := tx.ServerLabels(ctx, srv.ID)
	if err != nil {
		return changed, err
	}
	if n := len(labelWords(list, req.GetTool())); n > maxLabels {
		return changed, problem.Newf(problem.Invalid, "take some away", "it would have %d labels: at most %d", n, maxLabels)
	}
	return changed, nil
}

// labelWords are the labels of the server, or of one of its tools, as people write them.
func labelWords(list []controlplane.Label, tool string) []string {
	var out []string
	for _, l := range list {
		if l.Tool == tool {
			out = append(out, l.Key+"="+l.Value)
		}
	}
	slices.Sort(out)
	return out
}

// SurfaceWith finds the surface that a target is about: of the published version, else of the newest, or of the one that the
// target names. nil when it has none yet; not_found, with what may have been meant, when it lacks the target's item.
func SurfaceWith(ctx context.Context, tx *store.Tx, t controlplane.Target) (*Surface, error) {
	srv, err := Find(ctx, tx, t.Server)
	if err != nil {
		return nil, err
	}
	numbers := []uint32{srv.PublishedVersion, srv.LatestVersion}
	if t.Version != 0 {
		numbers = []uint32{t.Version}
	}
	kind, name := snapshot.KindOf(t.Item)
	whole := t.Item == "" || t.Item == controlplane.AllTools || t.Item == controlplane.AllPrompts || kind == snapshot.ItemResource
	var names []string
	for _, number := range numbers {
		if number == 0 {
			continue
		}
		v, err := tx.Version(ctx, srv, number)
		if err != nil {
			return nil, err
		}
		surface, err := DecodeSurface(v.Surface)
		if err != nil {
			return nil, err
		}
		have := surface.Names(kind)
		if whole || slices.Contains(have, name) {
			return surface, nil
		}
		names = append(names, have...)
	}
	if whole {
		return nil, nil // never scanned with success: what names it waits for its server
	}
	fix := "see `mcpvault server get " + t.Server + "`"
	if near := policy.Nearest(name, names); near != "" {
		t.Item = near
		if kind == snapshot.ItemPrompt {
			t.Item = snapshot.PromptItem(near)
		}
		fix = "did you mean " + t.String() + "?"
	}
	return nil, problem.Newf(problem.NotFound, fix, "server %s has no %s %s", t.Server, kind, name)
}
