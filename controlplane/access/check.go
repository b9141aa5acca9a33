package access

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/compile"
	"github.com/mcpvault/mcpvault/controlplane/policy"
	"github.com/mcpvault/mcpvault/controlplane/registry"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// validity is from when to when a grant counts; zero times are no bound.
func validity(req *adminv1.CreateGrantRequest, now time.Time) (from, until time.Time, err error) {
	from, until = timeOf(req.GetNotBeforeMs()), timeOf(req.GetNotAfterMs())
	life := req.GetValidFor().AsDuration()
	begin := now
	if from.After(now) {
		begin = from
	}
	switch {
	case req.GetValidFor() != nil && !until.IsZero():
		return from, until, problem.New(problem.Invalid, "the grant has two ends", "say how long it lasts, or until when")
	case req.GetValidFor() != nil && (life <= 0 || life > MaxGrantTime):
		return from, until, problem.New(problem.Invalid, "a grant cannot be valid for that long", "give a duration such as 1h; without one it has no end")
	case req.GetValidFor() != nil:
		until = begin.Add(life)
	case !until.IsZero() && !until.After(begin):
		return from, until, problem.New(problem.Invalid, "the grant would end before it begins", "name a later end")
	}
	if from.Sub(now) > MaxGrantTime || until.Sub(begin) > MaxGrantTime {
		return from, until, problem.New(problem.Invalid, "a grant cannot begin or last that far in the future", "name an earlier time")
	}
	return from, until, nil
}

func timeOf(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func limitsOf(l *adminv1.GrantLimits) (controlplane.Limits, error) {
	return controlplane.ParseLimits(controlplane.LimitWords{
		Networks: l.GetNetworks(), Between: l.GetBetween(), Days: l.GetDays(), Zone: l.GetTimeZone(), Regions: l.GetRegions(),
		Clearance: l.GetWithinClearance(), NotActing: l.GetNotActing(),
	})
}

func checkGrant(ctx context.Context, tx *store.Tx, g store.Grant) error {
	if err := checkSubject(ctx, tx, g.Subject); err != nil {
		return err
	}
	surface, err := checkTarget(ctx, tx, g.Target)
	if err != nil {
		return err
	}
	var schemas map[string]policy.Schema
	if surface != nil {
		schemas = surface.Schemas(g.Server)
	}
	when, err := compile.Lower(g.Target, g.Condition, g.Limits, schemas)
	whole := g.Item == "" || g.Item == controlplane.AllTools
	if p, ok := problem.As(err); ok && whole && g.Server != "*" && len(schemas) > 1 {
		// The grant reaches every tool of the server, so that each of them must have the argument.
		return problem.New(problem.Invalid, p.What, "the condition must fit every tool of "+g.Server+"; name a tool: server:"+g.Server+"/TOOL")
	}
	if err != nil {
		return err
	}
	for _, ref := range policy.Members(when) {
		if err := checkSubject(ctx, tx, ref); err != nil {
			return err
		}
	}
	return nil
}

func checkSubject(ctx context.Context, tx *store.Tx, subject string) error {
	kind, name, _ := strings.Cut(subject, ":")
	if subject == "everyone" {
		return nil
	}
	if kind == "user" {
		// The common case needs one row, not everybody.
		if _, err := tx.UserByName(ctx, name); problem.CodeOf(err) != problem.NotFound {
			return err
		}
	}
	rows, err := tx.PolicyRows(ctx)
	if err != nil {
		return err
	}
	var names []string
	switch kind {
	case "user":
		for _, u := range rows.Users {
			names = append(names, u.Name)
		}
	case "unit":
		names = nodeNames(rows.Units)
	case "team":
		names = nodeNames(rows.Teams)
	case "group":
		names = nodeNames(rows.Groups)
	case "role":
		names = nodeNames(rows.Roles)
	default:
		return problem.Newf(problem.Invalid, "write user:NAME, team:NAME, group:NAME, unit:NAME, role:NAME or everyone", "%q is no subject", subject)
	}
	if slices.Contains(names, name) {
		return nil
	}
	fix := "create it with mcpvault " + kind + " create " + name
	if near := policy.Nearest(name, names); near != "" {
		fix = "did you mean " + kind + ":" + near + "?"
	}
	return problem.Newf(problem.NotFound, fix, "%s %s does not exist", kind, name)
}

func nodeNames(list []store.PolicyNode) []string {
	out := make([]string, 0, len(list))
	for _, n := range list {
		out = append(out, n.Name)
	}
	return out
}

// checkTarget finds the surface that the grant is about; nil for every server, and for one that was never scanned.
func checkTarget(ctx context.Context, tx *store.Tx, t controlplane.Target) (*registry.Surface, error) {
	if t.Server == "*" {
		return nil, checkTerms(ctx, tx, t)
	}
	return registry.SurfaceWith(ctx, tx, t)
}

// checkTerms refuses an endpoint that does not exist. Labels and hints may come later.
func checkTerms(ctx context.Context, tx *store.Tx, t controlplane.Target) error {
	for _, term := range t.Terms() {
		if term.Fact != controlplane.FactEndpoint {
			continue
		}
		name, pattern, _ := strings.Cut(term.Value, "/")
		e, err := tx.Endpoint(ctx, name)
		if err != nil {
			return err
		}
		if pattern != "" && !slices.Contains(e.Access, pattern) {
			return problem.Newf(problem.NotFound, "it is used for "+strings.Join(e.Access, ", ")+"; see `mcpvault endpoint get "+name+"`",
				"endpoint %s is not used for %s", name, pattern)
		}
	}
	return nil
}
