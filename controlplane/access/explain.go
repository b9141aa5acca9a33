package access

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// Explain decides as a cell would, on the newest generation, and says which grants did it and what would allow it.
func (s *Service) Explain(ctx context.Context, req *adminv1.ExplainRequest) (*adminv1.ExplainResponse, error) {
	request, err := requestOf(req, s.now().UnixMilli())
	if err != nil {
		return nil, err
	}
	v, err := s.views.load(ctx, controlplane.CallerFrom(ctx).TenantID, snapshot.Version{})
	if err != nil {
		return nil, err
	}
	e := &explainer{view: v, req: req, request: request}
	e.res = &adminv1.ExplainResponse{Epoch: v.epoch, Generation: v.generation}
	e.run()
	return e.res, nil
}

func requestOf(req *adminv1.ExplainRequest, now int64) (*authz.Request, error) {
	r := &authz.Request{NowMS: now, Region: req.GetRegion(), Actor: req.GetActor()}
	if req.GetAtMs() > 0 {
		r.NowMS = req.GetAtMs()
	}
	if req.GetArguments() != "" {
		r.Args = []byte(req.GetArguments())
		if err := checkArguments(r.Args); err != nil {
			return nil, err
		}
	}
	if req.GetIp() != "" {
		ip, err := netip.ParseAddr(req.GetIp())
		if err != nil {
			return nil, problem.Newf(problem.Invalid, "write one like 192.0.2.7 or 2001:db8::7", "%q is no address", req.GetIp())
		}
		r.IP = ip.Unmap().WithZone("")
	}
	return r, nil
}

func checkArguments(raw []byte) error {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(raw, &object); err != nil || object == nil {
		return problem.New(problem.Invalid, "the arguments are not a JSON object", `write them like {"amount": 5}`)
	}
	return nil
}

type explainer struct {
	view    *view
	req     *adminv1.ExplainRequest
	res     *adminv1.ExplainResponse
	request *authz.Request
	thing   thing
}

func (e *explainer) run() {
	user, server := e.req.GetPrincipal(), e.req.GetServer()
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
	if e.thing, ok = e.view.find(srv, e.req.GetTool()); !ok {
		e.say("unknown_tool", "the published version of %s has no tool %s", server, e.thing.name)
		e.fix("mcpvault server get %s", server)
		return
	}
	view := x.View(p, srv)
	var out authz.Explanation
	if e.thing.kind == snapshot.ItemResource {
		out = authz.ExplainResource(x, p, srv, e.thing.name, e.request)
		e.res.Visible = authz.VisibleResource(&view, e.thing.name, e.request)
	} else {
		out = authz.Explain(x, p, srv, e.thing.items[0], e.request)
		e.res.Visible = authz.Visible(&view, e.thing.items[0], e.request)
	}
	e.res.Allowed, e.res.Reason = out.Decision.Allow, out.Decision.Reason.String()
	e.grants(user, &view, out)
	e.sentence(user, out)
}

func (e *explainer) say(reason, format string, args ...any) {
	e.res.Reason, e.res.Sentence = reason, fmt.Sprintf(format, args...)
}

func (e *explainer) fix(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(e.res.GetFixes(), text) {
		e.res.Fixes = append(e.res.Fixes, text)
	}
}

// grants shows the grants of an explanation in their own words, each with the first way to it.
func (e *explainer) grants(user string, view *index.View, out authz.Explanation) {
	rules := map[string]index.Rule{}
	reaching := authz.ReachingResource(view, e.thing.name)
	if e.thing.kind != snapshot.ItemResource {
		reaching = authz.Reaching(view, e.thing.items[0])
	}
	for _, r := range reaching {
		if have, ok := rules[r.Grant]; !ok || len(r.Path) < len(have.Path) {
			rules[r.Grant] = r
		}
	}
	for _, g := range out.Grants {
		r := rules[g.ID]
		e.res.Grants = append(e.res.Grants, &adminv1.ExplainedGrant{
			Grant: e.view.grant(r), Path: path(user, r), Outcome: g.Outcome, Detail: g.Detail, Policy: policyOf(g.ID), Decided: g.Decided,
		})
	}
}

func (e *explainer) sentence(user string, out authz.Explanation) {
	say := func(format string, args ...any) { e.res.Sentence = fmt.Sprintf(format, args...) }
	target := e.req.GetServer() + "/" + e.thing.word()
	what := e.thing.verb() + " " + target
	grant := func() { e.fix("mcpvault grant user:%s server:%s", user, quoted(target)) }
	deciding := e.deciding(out)
	switch out.Decision.Reason {
	case authz.Allowed:
		say("%s may %s: %s", user, what, deciding)
	case authz.Disabled:
		say("%s is disabled and may use nothing", user)
		e.fix("mcpvault user enable %s", user)
	case authz.NoGrant:
		say("%s may not %s: no grant reaches it", user, what)
		grant()
	case authz.ExplicitDeny:
		say("%s may not %s: %s", user, what, deciding)
		e.revokes(out)
		if !allowHolds(out) {
			grant()
		}
	case authz.Condition, authz.ArgumentType:
		say("%s may not %s %s: %s", user, what, e.given(out), deciding)
		if e.revokes(out); !allowHolds(out) {
			grant()
		}
	}
}

// given is what the question said of the call, and what it left open that would settle it.
func (e *explainer) given(out authz.Explanation) string {
	open := slices.ContainsFunc(out.Grants, func(g authz.GrantOutcome) bool { return g.Decided && g.Detail == authz.UnknownFact })
	switch {
	case open && e.request.Args != nil && !e.request.IP.IsValid() && e.request.Actor == "" && e.request.Region == "":
		return "with these arguments and nothing said of --ip, --region and --acting"
	case e.thing.kind == snapshot.ItemResource || e.request.Args != nil && (e.request.IP.IsValid() || e.req.GetAtMs() > 0):
		return "in these circumstances"
	case e.request.Args != nil:
		return "with these arguments"
	case e.res.GetVisible():
		return "without saying with which arguments"
	}
	return "whatever the arguments"
}

// deciding names what settled the decision, in the author's own words.
func (e *explainer) deciding(out authz.Explanation) string {
	var parts []string
	for i, g := range out.Grants {
		if !g.Decided {
			continue
		}
		shown := e.res.GetGrants()[i]
		verb := "granted"
		if g.Deny {
			verb = "denied"
		}
		text := fmt.Sprintf("%s to %s", verb, shown.GetPath())
		if shown.GetPolicy() != "" {
			text += " by policy " + shown.GetPolicy()
		}
		if asks := shown.GetGrant().GetTerms(); len(asks) > 0 {
			text += " " + strings.Join(asks, ", ")
		}
		if ms := shown.GetGrant().GetNotBeforeMs(); ms > e.request.NowMS {
			text += ", which has not begun"
		}
		if ms := shown.GetGrant().GetExpiresMs(); ms != 0 && ms <= e.request.NowMS {
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
		if !g.Deny || g.Outcome == authz.ConditionFalse {
			continue
		}
		if name := policyOf(g.ID); name != "" {
			document, _, _ := strings.Cut(name, "/")
			e.fix("mcpvault policy get %s", document)
		} else {
			e.fix("mcpvault revoke --id %s", g.ID)
		}
	}
}

// allowHolds reports whether some allow would do, were it not for the denies.
func allowHolds(out authz.Explanation) bool {
	return slices.ContainsFunc(out.Grants, func(g authz.GrantOutcome) bool { return !g.Deny && g.Outcome == authz.Matched })
}
