package access

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/publish"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// maxViews bounds how many tenants' indexes are kept open.
const maxViews = 16

// view is the newest generation of a tenant, opened, and the rows that give it names.
type view struct {
	epoch, generation uint64
	index             *index.Index
	rows              store.PolicyRows
	grants            map[string]store.Grant
	climbs            map[[2]string]string
}

// views opens the newest generation of a tenant and keeps the last few.
type views struct {
	store *store.Store

	mu   sync.Mutex // guards open
	open map[controlplane.TenantID]opened
}

type opened struct {
	digest snapshot.Digest
	index  *index.Index
}

func newViews(st *store.Store) *views {
	return &views{store: st, open: map[controlplane.TenantID]opened{}}
}

// load reads the newest generation and the rows of one moment. The rows may be a revision ahead of the index.
func (vs *views) load(ctx context.Context, tenant controlplane.TenantID) (*view, error) {
	v := &view{}
	err := vs.store.Read(ctx, tenant, func(tx *store.Tx) error {
		g, err := tx.Generation(ctx, 0)
		if errors.Is(err, store.ErrNotFound) {
			return problem.New(problem.Unavailable, "nothing has been published for this tenant yet", "try again in a moment; `mcpvault doctor` says what is in the way")
		}
		if err != nil {
			return err
		}
		v.epoch, v.generation = g.Epoch, g.Generation
		head, err := publish.ReadHead(g.Envelope)
		if err != nil {
			return err
		}
		if v.index, err = vs.indexOf(ctx, tx, head); err != nil {
			return err
		}
		if v.rows, err = tx.PolicyRows(ctx); err != nil {
			return err
		}
		grants, err := tx.Grants(ctx)
		if err != nil {
			return err
		}
		v.grants = make(map[string]store.Grant, len(grants))
		for _, g := range grants {
			v.grants[g.ID] = g
		}
		return nil
	})
	return v, err
}

func (vs *views) indexOf(ctx context.Context, tx *store.Tx, head *snapshotv1.Head) (*index.Index, error) {
	digest, _, ok := seal.ShardOf(head, snapshotv1.ShardKind_SHARD_KIND_INDEX)
	if !ok {
		return nil, fmt.Errorf("generation %d has no index", head.GetGeneration())
	}
	vs.mu.Lock()
	have, ok := vs.open[tx.Tenant()]
	vs.mu.Unlock()
	if ok && have.digest == digest {
		return have.index, nil
	}
	blob, err := tx.Blob(ctx, digest[:])
	if err != nil {
		return nil, err
	}
	if snapshot.DigestOf(blob) != digest {
		return nil, fmt.Errorf("stored shard %s has other bytes", digest)
	}
	x, err := index.Open(blob)
	if err != nil {
		return nil, fmt.Errorf("open generation %d: %w", head.GetGeneration(), err)
	}
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if len(vs.open) >= maxViews {
		clear(vs.open)
	}
	vs.open[tx.Tenant()] = opened{digest, x}
	return x, nil
}

// path says how a principal comes by a grant: by itself, or through a node that it belongs to directly and from there up
// to the grant's subject.
func (v *view) path(user, via, subject string) string {
	self := "user:" + user
	if via == self {
		return self
	}
	return self + arrow + v.climb(via, subject)
}

const arrow = " > "

// climb is the shortest way from a node up to another. It is the same for everybody, so it is found once.
func (v *view) climb(from, to string) string {
	if from == to || to == "" {
		return from
	}
	key := [2]string{from, to}
	if have, ok := v.climbs[key]; ok {
		return have
	}
	if v.climbs == nil {
		v.climbs = map[[2]string]string{}
	}
	v.climbs[key] = v.walk(from, to)
	return v.climbs[key]
}

func (v *view) walk(from, to string) string {
	parents := map[string][]string{}
	for kind, list := range map[string][]store.PolicyNode{"unit:": v.rows.Units, "team:": v.rows.Teams, "group:": v.rows.Groups, "role:": v.rows.Roles} {
		for _, n := range list {
			above := prefix("role:", n.Roles)
			if n.Unit != "" {
				above = append(above, "unit:"+n.Unit)
			}
			parents[kind+n.Name] = above
		}
	}
	type step struct{ node, text string }
	seen := map[string]bool{from: true}
	for queue := []step{{from, from}}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		if at.node == to {
			return at.text
		}
		for _, next := range parents[at.node] {
			if !seen[next] {
				seen[next] = true
				queue = append(queue, step{next, at.text + arrow + next})
			}
		}
	}
	return from
}

func prefix(kind string, names []string) []string {
	out := make([]string, 0, len(names))
	for _, n := range names {
		out = append(out, kind+n)
	}
	return out
}
