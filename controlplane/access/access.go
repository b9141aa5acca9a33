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
	"github.com/mcpvault/mcpvault/controlplane/keyring"
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
	target, err := controlplane.ParseTarget(req.GetTarget())
	if err != nil {
		return nil, err
	}
	limits, err := limitsOf(req.GetLimits())
	if err != nil {
		return nil, err
	}
	g := store.Grant{
		Deny: req.GetEffect() == adminv1.GrantEffect_GRANT_EFFECT_DENY, Subject: req.GetSubject(), Target: target,
		Condition: strings.TrimSpace(req.GetCondition()), Limits: limits, Reason: req.GetReason(), CreatedBy: caller.Actor(),
	}
	res := &adminv1.CreateGrantResponse{}
	res.Revision, err = s.store.Write(ctx, caller.TenantID, caller.Actor(), func(tx *store.Tx) error {
		g.ID, g.CreatedAt = store.NewID(), tx.Now()
		if g.NotBefore, g.ExpiresAt, err = validity(req, tx.Now()); err != nil {
			return err
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

// findSame finds a rule in the same words that has no beginning and no end, which makes another one pointless.
func findSame(ctx context.Context, tx *store.Tx, g store.Grant) (*store.Grant, error) {
	if !g.ExpiresAt.IsZero() || !g.NotBefore.IsZero() {
		return nil, nil
	}
	list, err := tx.Grants(ctx)
	if err != nil {
		return nil, err
	}
	for _, o := range list {
		same := o.Deny == g.Deny && o.Subject == g.Subject && o.Target == g.Target && o.Condition == g.Condition && o.Limits == g.Limits
		if same && o.ExpiresAt.IsZero() && o.NotBefore.IsZero() {
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
	target, err := controlplane.ParseTarget(req.GetTarget())
	if err != nil {
		return nil, err
	}
	condition := strings.TrimSpace(req.GetCondition())
	return func(g store.Grant) bool {
		effect := req.GetEffect() == adminv1.GrantEffect_GRANT_EFFECT_UNSPECIFIED || g.Deny == (req.GetEffect() == adminv1.GrantEffect_GRANT_EFFECT_DENY)
		return effect && g.Subject == req.GetSubject() && g.Target == target && (condition == "" || g.Condition == condition)
	}, nil
}

// noSuchGrant names the grants that are closest to what was asked for.
func noSuchGrant(req *adminv1.DeleteGrantsRequest, list []store.Grant) error {
	if req.GetId() != "" {
		return problem.Newf(problem.NotFound, "see `mcpvault grants list`", "grant %s does not exist", req.GetId())
	}
	var near []string
	for _, g := range list {
		if g.Subject == req.GetSubject() || g.String() == req.GetTarget() {
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
	var target controlplane.Target
	if req.GetTarget() != "" {
		var err error
		if target, err = controlplane.ParseTarget(req.GetTarget()); err != nil {
			return nil, err
		}
	}
	err := s.store.Read(ctx, controlplane.CallerFrom(ctx).TenantID, func(tx *store.Tx) error {
		list, err := tx.Grants(ctx)
		if err != nil {
			return err
		}
		res.Grants = nil
		for _, g := range list {
			if (req.GetSubject() == "" || g.Subject == req.GetSubject()) && (req.GetTarget() == "" || g.Target == target) {
				res.Grants = append(res.Grants, showGrant(g))
			}
		}
		return nil
	})
	return res, err
}
