package access

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/publish"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// maxViews bounds how many indexes are kept open.
const maxViews = 16

// view is one generation of a tenant, opened, and the grants that give its rules their words.
type view struct {
	epoch, generation uint64
	// digest is what the generation is named by.
	digest []byte
	index  *index.Index
	grants map[string]*adminv1.Grant
}

// views opens generations and keeps the last few.
type views struct {
	store *store.Store

	mu   sync.Mutex                       // guards open
	open map[snapshot.Digest]*index.Index // by generation
}

func newViews(st *store.Store) *views {
	return &views{store: st, open: map[snapshot.Digest]*index.Index{}}
}

// load reads a generation, the newest for version 0, and the grants as they are now, which may be ahead of the index.
func (vs *views) load(ctx context.Context, tenant controlplane.TenantID, version snapshot.Version) (*view, error) {
	v := &view{}
	err := vs.store.Read(ctx, tenant, func(tx *store.Tx) error {
		if err := vs.read(ctx, tx, v, version); err != nil {
			return err
		}
		grants, err := tx.Grants(ctx)
		if err != nil {
			return err
		}
		v.grants = make(map[string]*adminv1.Grant, len(grants))
		for _, g := range grants {
			v.grants[g.ID] = showGrant(g)
		}
		return nil
	})
	return v, err
}

// read opens a generation into v.
func (vs *views) read(ctx context.Context, tx *store.Tx, v *view, version snapshot.Version) error {
	head, err := publish.Load(ctx, tx, version)
	if errors.Is(err, store.ErrNotFound) && version == (snapshot.Version{}) {
		return problem.New(problem.Unavailable, "nothing has been published for this tenant yet", "try again in a moment; `mcpvault doctor` says what is in the way")
	}
	if err != nil {
		return err
	}
	v.epoch, v.generation, v.digest = uint64(head.Version.Epoch), uint64(head.Version.Generation), head.Digest[:]
	v.index, err = vs.indexOf(ctx, tx, head)
	return err
}

func (vs *views) indexOf(ctx context.Context, tx *store.Tx, head *publish.Head) (*index.Index, error) {
	x, err := head.Open(ctx, tx, vs.nearest(head))
	if err != nil {
		return nil, err
	}
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if len(vs.open) >= maxViews {
		clear(vs.open)
	}
	vs.open[head.Digest] = x
	return x, nil
}

// nearest is what is open of the generations that one is made of, the newest.
func (vs *views) nearest(head *publish.Head) publish.Opened {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	for i := len(head.Deltas) - 1; i >= 0; i-- {
		if x := vs.open[head.Deltas[i].Digest]; x != nil {
			return publish.Opened{Digest: head.Deltas[i].Digest, Index: x}
		}
	}
	return publish.Opened{Digest: head.Base.Digest, Index: vs.open[head.Base.Digest]}
}

const arrow = " > "

// path says how a principal comes by a rule: by itself, or through a node that it belongs to directly and from there up to
// the one that the rule is given to.
func path(principal string, r index.Rule) string {
	self := "user:" + principal
	if len(r.Path) == 0 || r.Path[0] == self {
		return strings.Join(append([]string{self}, r.Path[min(1, len(r.Path)):]...), arrow)
	}
	return self + arrow + strings.Join(r.Path, arrow)
}

// policyOf is the policy that a rule comes from, DOCUMENT/ID, "" for a grant. See policy.GrantID.
func policyOf(id string) string {
	name, ok := strings.CutPrefix(id, "policy:")
	if !ok {
		return ""
	}
	return name
}

// grant is a rule in words. One that is no longer there, or that comes from a policy, has only what the index knows.
func (v *view) grant(r index.Rule) *adminv1.Grant {
	if g, ok := v.grants[r.Grant]; ok {
		return g
	}
	g := &adminv1.Grant{Id: r.Grant, Effect: adminv1.GrantEffect_GRANT_EFFECT_ALLOW}
	if r.Deny {
		g.Effect = adminv1.GrantEffect_GRANT_EFFECT_DENY
	}
	if len(r.Path) > 0 {
		g.Subject = r.Path[len(r.Path)-1]
	}
	return g
}
