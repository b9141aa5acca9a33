package access

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// How much of a report is in one page.
const (
	defaultRows = 1000
	maxRows     = 5000
	// maxPageBytes bounds a page whose rows are long.
	maxPageBytes = 1 << 20
	// maxScan bounds how many principals are looked at for one page.
	maxScan = 20_000
)

// The words for how somebody may use something.
const (
	always      = "always"
	conditional = "conditional"
)

// WhoCan lists everybody who may use a tool, a prompt or a resource, or anything of a server, and by which grants.
func (s *Service) WhoCan(ctx context.Context, req *adminv1.WhoCanRequest) (*adminv1.WhoCanResponse, error) {
	r, at, err := s.report(ctx, req.GetPageToken())
	if err != nil {
		return nil, err
	}
	x := r.view.index
	srv, ok := x.Server(req.GetServer())
	if !ok {
		return nil, problem.Newf(problem.NotFound, "see `mcpvault server list`", "server %s is not published", req.GetServer())
	}
	want, err := r.wanted(srv, req)
	if err != nil {
		return nil, err
	}
	res := &adminv1.WhoCanResponse{Epoch: r.view.epoch, Generation: r.view.generation, Total: uint32(x.Principals())}
	pg := paging{rows: rowsOf(req.GetPageSize())}
	next := at.first
	for ; next < x.Principals() && next-at.first < maxScan && !pg.full(); next++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if h := r.holder(index.PrincipalID(next), srv, want); h != nil {
			res.Holders = append(res.Holders, h)
			pg.add(h)
		}
	}
	if res.Done = uint32(next); next < x.Principals() {
		res.NextPageToken = at.next(next, 0)
	}
	return res, nil
}

// WhatCan lists everything that a principal may use.
func (s *Service) WhatCan(ctx context.Context, req *adminv1.WhatCanRequest) (*adminv1.WhatCanResponse, error) {
	r, at, err := s.report(ctx, req.GetPageToken())
	if err != nil {
		return nil, err
	}
	x := r.view.index
	p, ok := x.Principal(req.GetPrincipal())
	if !ok {
		return nil, problem.Newf(problem.NotFound, "see `mcpvault user list`", "%s does not exist in generation %d", req.GetPrincipal(), r.view.generation)
	}
	res := &adminv1.WhatCanResponse{Epoch: r.view.epoch, Generation: r.view.generation, Disabled: x.Disabled(p)}
	pg := paging{rows: rowsOf(req.GetPageSize())}
	for srv, item := at.first, at.second; srv < x.Servers(); srv, item = srv+1, 0 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		view := x.View(p, index.ServerID(srv))
		r.forget()
		for ; item < view.Items(); item++ {
			if pg.full() {
				res.NextPageToken = at.next(srv, item)
				return res, nil
			}
			if u := r.usable(&view, index.ItemID(item)); u != nil {
				res.Usable = append(res.Usable, u)
				pg.add(u)
			}
		}
	}
	return res, nil
}

// paging counts what is in a page.
type paging struct{ rows, n, bytes int }

func (p *paging) full() bool { return p.n >= p.rows || p.bytes >= maxPageBytes }

func (p *paging) add(row proto.Message) {
	p.n++
	p.bytes += proto.Size(row)
}

func rowsOf(asked uint32) int {
	if asked == 0 {
		return defaultRows
	}
	return int(min(asked, maxRows))
}

// place is where a page begins: in which generation, at which time of asking, and at which row.
type place struct {
	version       snapshot.Version
	nowMS         int64
	first, second int
}

func (p place) next(first, second int) string {
	return fmt.Sprintf("%d.%d.%d.%d.%d", p.version.Epoch, p.version.Generation, p.nowMS, first, second)
}

func placeOf(token string) (p place, err error) {
	n, err := fmt.Sscanf(token, "%d.%d.%d.%d.%d", &p.version.Epoch, &p.version.Generation, &p.nowMS, &p.first, &p.second)
	if err != nil || n != 5 || p.first < 0 || p.second < 0 || p.next(p.first, p.second) != token {
		return p, problem.Newf(problem.Invalid, "begin again without a page token", "%q is not the token of a page", token)
	}
	return p, nil
}

// reporter tells who may use what in one generation, as of one moment.
type reporter struct {
	view  *view
	nowMS int64
	// pages are those of the view that was looked at last; see forget.
	pages map[int]*standing
}

// report opens the generation that a page is of: all pages of a report are of one.
func (s *Service) report(ctx context.Context, token string) (*reporter, place, error) {
	at := place{nowMS: s.now().UnixMilli()}
	if token != "" {
		var err error
		if at, err = placeOf(token); err != nil {
			return nil, at, err
		}
	}
	v, err := s.views.load(ctx, controlplane.CallerFrom(ctx).TenantID, at.version)
	if err != nil {
		return nil, at, err
	}
	at.version = snapshot.Version{Epoch: snapshot.Epoch(v.epoch), Generation: snapshot.Generation(v.generation)}
	return &reporter{view: v, nowMS: at.nowMS, pages: map[int]*standing{}}, at, nil
}

// wanted are the things that a report is about: each is decided by its items together.
func (r *reporter) wanted(srv index.ServerID, req *adminv1.WhoCanRequest) ([]thing, error) {
	if req.GetTool() != "" {
		t, ok := r.view.find(srv, req.GetTool())
		if !ok {
			return nil, problem.Newf(problem.NotFound, "see `mcpvault server get "+req.GetServer()+"`",
				"the published version of %s has no tool %s", req.GetServer(), t.name)
		}
		if t.kind == snapshot.ItemResource && !authz.Canonical(t.name) {
			return nil, problem.Newf(problem.Invalid, "write it as RFC 3986 normalises it: scheme and host in lower case, no . or .. in the path, nothing escaped without need",
				"%q is not in canonical form: no pattern matches it, and every pattern that is denied denies it", t.name)
		}
		return []thing{t}, nil
	}
	var all []thing
	for item := range r.view.index.Items(srv) {
		all = append(all, r.thing(srv, item))
	}
	return all, nil
}

// thing is what an item stands for. A pattern of resources is decided together with the patterns that cover it.
func (r *reporter) thing(srv index.ServerID, item index.ItemID) thing {
	kind, name := snapshot.KindOf(r.view.index.ItemName(srv, item))
	t := thing{kind, name, []index.ItemID{item}}
	if kind == snapshot.ItemResource {
		t.items = slices.Collect(r.view.index.Resources(srv, name))
	}
	return t
}

// holder is nil for a principal who may use none of the things.
func (r *reporter) holder(p index.PrincipalID, srv index.ServerID, want []thing) *adminv1.Holder {
	view := r.view.index.View(p, srv)
	if view.Disabled() {
		return nil
	}
	r.forget()
	var h *adminv1.Holder
	for _, t := range want {
		v := r.verdict(&view, t)
		if !v.usable {
			continue
		}
		if h == nil {
			x := r.view.index
			h = &adminv1.Holder{User: x.PrincipalName(p), Access: conditional, Kind: x.Kind(p).String()}
		}
		if v.always {
			h.Access = always
		}
		h.Paths, h.Conditions = r.reasons(&view, t, h.GetUser(), h.GetPaths(), h.GetConditions())
	}
	return h
}

// usable is nil for an item that the principal of the view may not use.
func (r *reporter) usable(view *index.View, item index.ItemID) *adminv1.Usable {
	x := r.view.index
	t := r.thing(view.Server(), item)
	v := r.verdict(view, t)
	if !v.usable {
		return nil
	}
	u := &adminv1.Usable{Server: x.ServerName(view.Server()), Kind: t.kind.String(), Name: t.name, Access: conditional}
	if v.always {
		u.Access = always
	}
	if t.kind == snapshot.ItemRest {
		u.Name = ""
	}
	u.Paths, u.Conditions = r.reasons(view, t, x.PrincipalName(view.Principal()), nil, nil)
	return u
}

// reasons adds, to paths and conditions, by which way a thing may be used and on which conditions.
func (r *reporter) reasons(view *index.View, t thing, principal string, paths, conditions []string) (p, c []string) {
	for rule := range r.rules(view, t) {
		words := r.conditionOf(rule.Rule)
		switch {
		case rule.Deny && rule.Cond != 0 && rule.maybe:
			conditions = appendNew(conditions, "not ("+words+")")
		case !rule.Deny && rule.maybe:
			paths = appendNew(paths, path(principal, rule.Rule))
			if words != "" {
				conditions = appendNew(conditions, words)
			}
		}
	}
	return paths, conditions
}

// conditionOf is the condition of a rule in one text, "" for none.
func (r *reporter) conditionOf(rule index.Rule) string {
	if rule.Cond == 0 {
		return ""
	}
	g := r.view.grant(rule)
	var parts []string
	if name := policyOf(rule.Grant); name != "" {
		parts = append(parts, "policy "+name)
	}
	parts = append(parts, g.GetTerms()...)
	if len(parts) == 1 {
		parts[0] = strings.TrimPrefix(parts[0], "when ")
	}
	if ms := g.GetNotBeforeMs(); ms > r.nowMS {
		parts = append(parts, "from "+time.UnixMilli(ms).UTC().Format(time.RFC3339))
	}
	if ms := g.GetExpiresMs(); ms != 0 {
		parts = append(parts, "until "+time.UnixMilli(ms).UTC().Format(time.RFC3339))
	}
	if len(parts) == 0 {
		return "a condition of grant " + rule.Grant
	}
	return strings.Join(parts, ", ")
}

func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}
