// Package access keeps who may use what: grants, explanations of decisions, and kills.
//
// A grant is checked when it is written: its subject and its target exist, and its condition fits the tools it reaches.
// Explanations decide on the newest published generation with the very code that a cell runs, so that they cannot tell
// another story than the cell.
package access

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/compile"
	"github.com/mcpvault/mcpvault/controlplane/keyring"
	"github.com/mcpvault/mcpvault/controlplane/policy"
	"github.com/mcpvault/mcpvault/controlplane/registry"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// MaxGrantTime is the longest that a grant with an end may run.
const MaxGrantTime = 10 * 365 * 24 * time.Hour

// Config is what the service stands on.
type Config struct {
	Store *store.Store
	// Keys hold the key that signs kills.
	Keys   Keys
	Logger *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Keys are the keys that sign now.
type Keys interface {
	Current() *keyring.Set
}

// Service answers the admin API's AccessService. It is safe for concurrent use.
type Service struct {
	cfg   Config
	store *store.Store
	now   func() time.Time
	views *views
}

// New makes the service.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{cfg: cfg, store: cfg.Store, now: cfg.Now, views: newViews(cfg.Store)}
}

// CreateGrant writes a rule. Writing the same rule again changes nothing and returns the one that is there.
func (s *Service) CreateGrant(ctx context.Context, req *adminv1.CreateGrantRequest) (*adminv1.CreateGrantResponse, error) {
	caller := controlplane.CallerFrom(ctx)
	server, tool, err := ParseTarget(req.GetTarget())
	if err != nil {
		return nil, err
	}
	life := req.GetValidFor().AsDuration()
	if req.GetValidFor() != nil && (life <= 0 || life > MaxGrantTime) {
		return nil, problem.New(problem.Invalid, "a grant cannot be valid for that long", "give a duration such as 1h; without one it has no end")
	}
	g := store.Grant{
		Deny: req.GetEffect() == adminv1.GrantEffect_GRANT_EFFECT_DENY, Subject: req.GetSubject(), Server: server, Tool: tool,
		Condition: strings.TrimSpace(req.GetCondition()), Reason: req.GetReason(), CreatedBy: caller.Actor(),
	}
	res := &adminv1.CreateGrantResponse{}
	res.Revision, err = s.store.Write(ctx, caller.TenantID, caller.Actor(), func(tx *store.Tx) error {
		g.ID, g.CreatedAt = store.NewID(), tx.Now()
		if life > 0 {
			g.ExpiresAt = tx.Now().Add(life)
		}
		if err := checkGrant(ctx, tx, g); err != nil {
			return err
		}
		same, err := findSame(ctx, tx, g)
		if err != nil {
			return err
		}
		if same != nil {
			res.Grant = showGrant(*same)
			return store.ErrNoChange
		}
		if err := tx.InsertGrant(ctx, g); err != nil {
			return err
		}
		res.Grant = showGrant(g)
		return tx.Change(ctx, "grant.create", "grant:"+g.ID, describeGrant(g))
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

func checkGrant(ctx context.Context, tx *store.Tx, g store.Grant) error {
	if err := checkSubject(ctx, tx, g.Subject); err != nil {
		return err
	}
	surface, err := checkTarget(ctx, tx, g.Server, g.Tool)
	if err != nil || g.Condition == "" {
		return err
	}
	var schemas map[string]policy.Schema
	if surface != nil {
		schemas = surface.Schemas(g.Server)
	}
	_, err = compile.LowerFor(g.Condition, g.Server, g.Tool, schemas)
	if p, ok := problem.As(err); ok && g.Tool == "" && g.Server != "*" && len(schemas) > 1 {
		// The grant reaches every tool of the server, so that each of them must have the argument.
		return problem.New(problem.Invalid, p.What, "the condition must fit every tool of "+g.Server+"; name a tool: server:"+g.Server+"/TOOL")
	}
	return err
}

// findSame finds a rule in the same words that has no end, which makes another one pointless.
func findSame(ctx context.Context, tx *store.Tx, g store.Grant) (*store.Grant, error) {
	if !g.ExpiresAt.IsZero() {
		return nil, nil
	}
	list, err := tx.Grants(ctx)
	if err != nil {
		return nil, err
	}
	for _, o := range list {
		if o.Deny == g.Deny && o.Subject == g.Subject && o.Server == g.Server && o.Tool == g.Tool && o.Condition == g.Condition && o.ExpiresAt.IsZero() {
			return &o, nil
		}
	}
	return nil, nil
}

// DeleteGrants takes away the rules in the same words, or the one with an id.
func (s *Service) DeleteGrants(ctx context.Context, req *adminv1.DeleteGrantsRequest) (*adminv1.DeleteGrantsResponse, error) {
	caller := controlplane.CallerFrom(ctx)
	match, err := matcher(req)
	if err != nil {
		return nil, err
	}
	res := &adminv1.DeleteGrantsResponse{}
	res.Revision, err = s.store.Write(ctx, caller.TenantID, caller.Actor(), func(tx *store.Tx) error {
		list, err := tx.Grants(ctx)
		if err != nil {
			return err
		}
		res.Deleted = nil
		for _, g := range list {
			if !match(g) {
				continue
			}
			if err := tx.DeleteGrant(ctx, g.ID); err != nil {
				return err
			}
			if err := tx.Change(ctx, "grant.delete", "grant:"+g.ID, describeGrant(g)); err != nil {
				return err
			}
			res.Deleted = append(res.Deleted, showGrant(g))
		}
		if len(res.Deleted) == 0 {
			return noSuchGrant(req, list)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

// matcher compares words; an effect or a condition that is not given matches every one.
func matcher(req *adminv1.DeleteGrantsRequest) (func(store.Grant) bool, error) {
	if req.GetId() != "" {
		return func(g store.Grant) bool { return g.ID == req.GetId() }, nil
	}
	if req.GetSubject() == "" || req.GetTarget() == "" {
		return nil, problem.New(problem.Invalid, "which grant is meant is not said", "give subject and target, or an id")
	}
	server, tool, err := ParseTarget(req.GetTarget())
	if err != nil {
		return nil, err
	}
	condition := strings.TrimSpace(req.GetCondition())
	return func(g store.Grant) bool {
		effect := req.GetEffect() == adminv1.GrantEffect_GRANT_EFFECT_UNSPECIFIED || g.Deny == (req.GetEffect() == adminv1.GrantEffect_GRANT_EFFECT_DENY)
		return effect && g.Subject == req.GetSubject() && g.Server == server && g.Tool == tool && (condition == "" || g.Condition == condition)
	}, nil
}

// noSuchGrant names the grants that are closest to what was asked for.
func noSuchGrant(req *adminv1.DeleteGrantsRequest, list []store.Grant) error {
	if req.GetId() != "" {
		return problem.Newf(problem.NotFound, "see `mcpvault grants list`", "grant %s does not exist", req.GetId())
	}
	var near []string
	for _, g := range list {
		if g.Subject == req.GetSubject() || target(g) == req.GetTarget() {
			near = append(near, words(g))
		}
	}
	fix := "see `mcpvault grants list`"
	if len(near) > 0 {
		near = slices.Compact(near)
		fix = "there is " + strings.Join(near[:min(len(near), 3)], "; ")
	}
	return problem.Newf(problem.NotFound, fix, "%s has no such grant on %s", req.GetSubject(), req.GetTarget())
}

// ListGrants lists rules, all or those of a subject or on a target.
func (s *Service) ListGrants(ctx context.Context, req *adminv1.ListGrantsRequest) (*adminv1.ListGrantsResponse, error) {
	res := &adminv1.ListGrantsResponse{}
	err := s.store.Read(ctx, controlplane.CallerFrom(ctx).TenantID, func(tx *store.Tx) error {
		list, err := tx.Grants(ctx)
		if err != nil {
			return err
		}
		res.Grants = nil
		for _, g := range list {
			if (req.GetSubject() == "" || g.Subject == req.GetSubject()) && (req.GetTarget() == "" || target(g) == req.GetTarget()) {
				res.Grants = append(res.Grants, showGrant(g))
			}
		}
		return nil
	})
	return res, err
}

// ParseTarget reads "server:payments/refund", "server:payments" or "server:*".
func ParseTarget(text string) (server, tool string, err error) {
	rest, ok := strings.CutPrefix(text, "server:")
	server, tool, slash := strings.Cut(rest, "/")
	switch {
	case !ok || server == "" || slash && tool == "":
		return "", "", problem.Newf(problem.Invalid, "write server:NAME, server:NAME/TOOL or server:*", "%q is no target", text)
	case server == "*" && slash:
		return "", "", problem.New(problem.Invalid, "a tool of every server cannot be granted", "name the server: server:NAME/"+tool)
	}
	return server, tool, nil
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

// checkTarget finds the surface that the grant is about: the published one, else the newest. nil for every server.
func checkTarget(ctx context.Context, tx *store.Tx, server, tool string) (*registry.Surface, error) {
	if server == "*" {
		return nil, nil
	}
	srv, err := registry.Find(ctx, tx, server)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, number := range []uint32{srv.PublishedVersion, srv.LatestVersion} {
		if number == 0 {
			continue
		}
		v, err := tx.Version(ctx, srv, number)
		if err != nil {
			return nil, err
		}
		surface, err := registry.DecodeSurface(v.Surface)
		if err != nil {
			return nil, err
		}
		has := slices.ContainsFunc(surface.Tools, func(t registry.Tool) bool { return t.Name == tool })
		if tool == "" || has {
			return surface, nil
		}
		for _, t := range surface.Tools {
			names = append(names, t.Name)
		}
	}
	if tool == "" {
		return nil, nil // never scanned with success: the grant waits for its server
	}
	fix := "see `mcpvault server get " + server + "`"
	if near := policy.Nearest(tool, names); near != "" {
		fix = "did you mean server:" + server + "/" + near + "?"
	}
	return nil, problem.Newf(problem.NotFound, fix, "server %s has no tool %s", server, tool)
}
