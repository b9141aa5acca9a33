package access

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// Explain decides as a cell would, on the newest generation, and says which grants did it and what would allow it.
func (s *Service) Explain(ctx context.Context, req *adminv1.ExplainRequest) (*adminv1.ExplainResponse, error) {
	if args := req.GetArguments(); args != "" {
		var object map[string]json.RawMessage
		if err := json.Unmarshal([]byte(args), &object); err != nil || object == nil {
			return nil, problem.New(problem.Invalid, "the arguments are not a JSON object", `write them like {"amount": 5}`)
		}
	}
	v, err := s.views.load(ctx, controlplane.CallerFrom(ctx).TenantID)
	if err != nil {
		return nil, err
	}
	e := &explainer{view: v, req: req, now: s.now().UnixMilli()}
	e.res = &adminv1.ExplainResponse{Epoch: v.epoch, Generation: v.generation}
	e.run()
	return e.res, nil
}

type explainer struct {
	view *view
	req  *adminv1.ExplainRequest
	res  *adminv1.ExplainResponse
	now  int64
}

func (e *explainer) run() {
	user, server, tool := e.req.GetPrincipal(), e.req.GetServer(), e.req.GetTool()
	name := server + "/" + tool
	x := e.view.index
	p, ok := x.Principal(user)
	if !ok {
		e.say("unknown_principal", "%s does not exist in generation %d", user, e.view.generation)
		e.fix("mcpvault user create %s", user)
		return
	}
	srv, ok := x.Server(server)
	if !ok {
		e.say("unknown_tool", "server %s is not published", server)
		e.fix("mcpvault server approve %s", server)
		return
	}
	item, ok := x.Item(srv, tool)
	if !ok {
		e.say("unknown_tool", "the published version of %s has no tool %s", server, tool)
		e.fix("mcpvault server get %s", server)
		return
	}
	request := &authz.Request{NowMS: e.now}
	if e.req.GetArguments() != "" {
		request.Args = []byte(e.req.GetArguments())
	}
	out := authz.Explain(x, p, srv, item, request)
	view := x.View(p, srv)
	e.res.Allowed, e.res.Reason = out.Decision.Allow, out.Decision.Reason.String()
	e.res.Visible = authz.Visible(&view, item, &authz.Request{NowMS: e.now})
	e.grants(user, out)
	e.sentence(user, name, out)
}

func (e *explainer) say(reason, format string, args ...any) {
	e.res.Reason, e.res.Sentence = reason, fmt.Sprintf(format, args...)
}

func (e *explainer) fix(format string, args ...any) {
	e.res.Fixes = append(e.res.Fixes, fmt.Sprintf(format, args...))
}

func (e *explainer) grants(user string, out authz.Explanation) {
	for _, g := range out.Grants {
		row, known := e.view.grants[g.ID]
		shown := &adminv1.Grant{Id: g.ID}
		if known {
			shown = showGrant(row)
		}
		via := "user:" + user
		if len(g.Via) > 0 {
			via = g.Via[0]
		}
		e.res.Grants = append(e.res.Grants, &adminv1.ExplainedGrant{
			Grant: shown, Path: e.view.path(user, via, row.Subject), Outcome: g.Outcome,
		})
	}
}

func (e *explainer) sentence(user, tool string, out authz.Explanation) {
	say := func(format string, args ...any) { e.res.Sentence = fmt.Sprintf(format, args...) }
	grant := func() { e.fix("mcpvault grant user:%s server:%s", user, tool) }
	deciding := e.deciding(out)
	switch out.Decision.Reason {
	case authz.Allowed:
		say("%s may call %s: %s", user, tool, deciding)
	case authz.Disabled:
		say("%s is disabled and may call nothing", user)
		e.fix("mcpvault user enable %s", user)
	case authz.NoGrant:
		say("%s may not call %s: no grant reaches it", user, tool)
		grant()
	case authz.ExplicitDeny:
		say("%s may not call %s: %s", user, tool, deciding)
		e.revokes(out)
		if !allowHolds(out) {
			grant()
		}
	case authz.Condition, authz.ArgumentType:
		what := "with these arguments"
		if e.req.GetArguments() == "" {
			what = "without saying with which arguments"
			if e.res.Visible {
				what = "whatever the arguments"
			}
		}
		say("%s may not call %s %s: %s", user, tool, what, deciding)
		if e.revokes(out); !allowHolds(out) {
			grant()
		}
	}
}

// deciding names what settled the decision, in the author's own words.
func (e *explainer) deciding(out authz.Explanation) string {
	var parts []string
	for i, g := range out.Grants {
		if !g.Decided {
			continue
		}
		shown := e.res.Grants[i]
		verb := "granted"
		if g.Deny {
			verb = "denied"
		}
		text := fmt.Sprintf("%s to %s", verb, shown.GetPath())
		if asks := shown.GetGrant().GetTerms(); len(asks) > 0 {
			text += " " + strings.Join(asks, ", ")
		}
		if ms := shown.GetGrant().GetNotBeforeMs(); ms > e.now {
			text += ", which has not begun"
		}
		if ms := shown.GetGrant().GetExpiresMs(); ms != 0 && ms <= e.now {
			text += ", which has expired"
		} else if g.Outcome == authz.ConditionError {
			text += ", which cannot be evaluated (" + g.Detail + ")"
		} else if g.Outcome == authz.ConditionFalse {
			text += ", which is not the case"
		}
		parts = append(parts, text)
	}
	if len(parts) == 0 {
		return "no grant settles it"
	}
	if len(parts) > 4 {
		parts = append(parts[:4], fmt.Sprintf("and %d more", len(parts)-4))
	}
	return strings.Join(parts, "; ")
}

// revokes adds how to take back each deny that stands in the way.
func (e *explainer) revokes(out authz.Explanation) {
	for _, g := range out.Grants {
		if g.Deny && g.Outcome != authz.ConditionFalse {
			e.fix("mcpvault revoke --id %s", g.ID)
		}
	}
}

// allowHolds reports whether some allow would do, were it not for the denies.
func allowHolds(out authz.Explanation) bool {
	return slices.ContainsFunc(out.Grants, func(g authz.GrantOutcome) bool { return !g.Deny && g.Outcome == authz.Matched })
}

// WhoCan lists everybody who may call a tool, or any tool of a server, and by which grants.
func (s *Service) WhoCan(ctx context.Context, req *adminv1.WhoCanRequest) (*adminv1.WhoCanResponse, error) {
	v, err := s.views.load(ctx, controlplane.CallerFrom(ctx).TenantID)
	if err != nil {
		return nil, err
	}
	x := v.index
	srv, ok := x.Server(req.GetServer())
	if !ok {
		return nil, problem.Newf(problem.NotFound, "see `mcpvault server list`", "server %s is not published", req.GetServer())
	}
	var items []index.ItemID
	if req.GetTool() != "" {
		item, ok := x.Item(srv, req.GetTool())
		if !ok {
			return nil, problem.Newf(problem.NotFound, "see `mcpvault server get "+req.GetServer()+"`",
				"the published version of %s has no tool %s", req.GetServer(), req.GetTool())
		}
		items = append(items, item)
	} else {
		for item := range x.Items(srv) {
			items = append(items, item)
		}
	}
	res := &adminv1.WhoCanResponse{Generation: v.generation}
	now := s.now().UnixMilli()
	for i := range x.Principals() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if h := v.holder(index.PrincipalID(i), srv, items, now); h != nil {
			res.Holders = append(res.Holders, h)
		}
	}
	return res, nil
}

// holder is nil for a principal who may call none of the items.
func (v *view) holder(p index.PrincipalID, srv index.ServerID, items []index.ItemID, now int64) *adminv1.Holder {
	view := v.index.View(p, srv)
	var h *adminv1.Holder
	for _, item := range items {
		if !authz.Visible(&view, item, &authz.Request{NowMS: now}) {
			continue
		}
		if h == nil {
			h = &adminv1.Holder{User: v.index.PrincipalName(p), Access: "conditional"}
		}
		plain, conditional := false, false
		for rule := range v.index.Rules(&view, item) {
			g := v.grants[rule.Grant]
			if rule.Deny {
				conditional = true
				h.Conditions = appendNew(h.Conditions, "not ("+asks(g)+")")
				continue
			}
			plain = plain || rule.Cond == 0
			h.Paths = appendNew(h.Paths, v.path(h.GetUser(), rule.Via, g.Subject))
			if text := asks(g); text != "" {
				h.Conditions = appendNew(h.Conditions, text)
			}
		}
		if plain && !conditional {
			h.Access = "always"
		}
	}
	return h
}

func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}
