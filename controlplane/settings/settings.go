// Package settings keeps what a tenant decides about how it is served: how stale its cells may become before they stop
// serving a class of calls, or what carries a label; how long sessions live, and how many there may be; and what its callers
// may ask for over time; and what is done about what servers say. It answers the admin API's SettingsService. The cells enforce it.
package settings

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/compile"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// The bounds of a bound: a cell hears from the control plane every few seconds, and revoked access must end some day.
const (
	MinStaleness = time.Minute
	MaxStaleness = 30 * 24 * time.Hour
)

// The bounds of sessions, and what holds where a tenant has decided nothing.
const (
	MinSessionIdle = time.Minute
	MaxSessionTime = 7 * 24 * time.Hour

	DefaultSessionIdle = 30 * time.Minute
	DefaultSessionMax  = 24 * time.Hour
)

// What is done when the bound of reads is over.
const (
	afterDeny     = "deny"
	afterReadOnly = "allow-read-only"
)

// maxLabels bounds the labels that have a bound of their own.
const maxLabels = 1000

// state is all that is kept.
type state struct {
	stale    controlplane.Staleness
	sessions controlplane.SessionLimits
	rates    controlplane.RateLimits
	guards   controlplane.Guards
}

func load(ctx context.Context, tx *store.Tx) (s state, err error) {
	if s.stale, err = tx.Staleness(ctx); err != nil {
		return s, err
	}
	if s.sessions, err = tx.SessionLimits(ctx); err != nil {
		return s, err
	}
	if s.rates, err = tx.RateLimits(ctx); err != nil {
		return s, err
	}
	s.guards, err = tx.Guards(ctx)
	return s, err
}

// Service keeps the settings. It is safe for concurrent use.
type Service struct {
	store *store.Store
}

// New makes the service.
func New(st *store.Store) *Service { return &Service{store: st} }

// GetSettings shows the settings that are in force, defaults included.
func (s *Service) GetSettings(ctx context.Context, _ *adminv1.GetSettingsRequest) (*adminv1.GetSettingsResponse, error) {
	var now state
	err := s.store.Read(ctx, controlplane.CallerFrom(ctx).TenantID, func(tx *store.Tx) (err error) {
		now, err = load(ctx, tx)
		return err
	})
	return &adminv1.GetSettingsResponse{Settings: show(now)}, err
}

// UpdateSettings changes what the request gives; doing it twice is doing it once.
func (s *Service) UpdateSettings(ctx context.Context, req *adminv1.UpdateSettingsRequest) (*adminv1.UpdateSettingsResponse, error) {
	if err := check(req); err != nil {
		return nil, err
	}
	if err := checkLimits(req.GetRateLimits()); err != nil {
		return nil, err
	}
	c := controlplane.CallerFrom(ctx)
	var next state
	rev, err := s.store.Write(ctx, c.TenantID, c.Actor(), func(tx *store.Tx) error {
		before, err := load(ctx, tx)
		if err != nil {
			return err
		}
		next = state{stale: merge(before.stale, req), sessions: mergeSessions(before.sessions, req)}
		if next.rates, err = mergeLimits(before.rates, req); err != nil {
			return err
		}
		if next.guards, err = mergeGuards(before.guards, req.GetGuards()); err != nil {
			return err
		}
		if n := len(next.stale.Labels); n > maxLabels {
			return problem.Newf(problem.Invalid, "take some away", "%d labels would have a bound of their own: at most %d", n, maxLabels)
		}
		if err := fits(next.sessions); err != nil {
			return err
		}
		changed, err := tx.SetStaleness(ctx, before.stale, next.stale)
		if err != nil {
			return err
		}
		also, err := tx.SetSessionLimits(ctx, before.sessions, next.sessions)
		if err != nil {
			return err
		}
		others, err := tx.SetRateLimits(ctx, before.rates, next.rates)
		if err != nil {
			return err
		}
		guarded, err := tx.SetGuards(ctx, before.guards, next.guards)
		if err != nil {
			return err
		}
		if !changed && !also && !others && !guarded {
			return store.ErrNoChange
		}
		return tx.Change(ctx, "settings.update", "settings", describe(next))
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.UpdateSettingsResponse{Settings: show(next), Revision: rev}, nil
}

func check(req *adminv1.UpdateSettingsRequest) error {
	bounds := map[string]*durationpb.Duration{"read": req.GetMaxStalenessRead(), "write": req.GetMaxStalenessWrite()}
	maps.Copy(bounds, req.GetLabelStaleness())
	for _, name := range slices.Sorted(maps.Keys(bounds)) {
		d := bounds[name].AsDuration()
		if d != 0 && (d < MinStaleness || d > MaxStaleness) {
			return problem.Newf(problem.Invalid, "give a time from 1m to 30d", "the bound for %s cannot be %s", name, d)
		}
	}
	for name, given := range map[string]*durationpb.Duration{"idle": req.GetSessionIdle(), "absolute": req.GetSessionMax()} {
		d := given.AsDuration()
		if d != 0 && (d < MinSessionIdle || d > MaxSessionTime) {
			return problem.Newf(problem.Invalid, "give a time from 1m to 7d", "the %s time-out of sessions cannot be %s", name, d)
		}
	}
	return nil
}

// fits refuses limits that contradict each other.
func fits(s controlplane.SessionLimits) error {
	if idle, longest := cmp.Or(s.Idle, DefaultSessionIdle), cmp.Or(s.Max, DefaultSessionMax); idle > longest {
		return problem.Newf(problem.Invalid, "change both", "sessions would end after %s at most, and unused ones after %s", longest, idle)
	}
	if s.PerTenant > 0 && s.PerPrincipal > s.PerTenant {
		return problem.Newf(problem.Invalid, "change both", "one principal may have %d sessions, and the whole organisation %d", s.PerPrincipal, s.PerTenant)
	}
	return nil
}

func mergeSessions(s controlplane.SessionLimits, req *adminv1.UpdateSettingsRequest) controlplane.SessionLimits {
	if req.GetSessionIdle() != nil {
		s.Idle = req.GetSessionIdle().AsDuration()
	}
	if req.GetSessionMax() != nil {
		s.Max = req.GetSessionMax().AsDuration()
	}
	if req.SessionsPerPrincipal != nil {
		s.PerPrincipal = req.GetSessionsPerPrincipal()
	}
	if req.SessionsPerTenant != nil {
		s.PerTenant = req.GetSessionsPerTenant()
	}
	return s
}

func merge(s controlplane.Staleness, req *adminv1.UpdateSettingsRequest) controlplane.Staleness {
	s.Labels = maps.Clone(s.Labels)
	if req.GetMaxStalenessRead() != nil {
		s.Read = req.GetMaxStalenessRead().AsDuration()
	}
	if req.GetMaxStalenessWrite() != nil {
		s.Write = req.GetMaxStalenessWrite().AsDuration()
	}
	if after := req.GetAfterStaleness(); after != "" {
		s.ReadOnlyAfter = after == afterReadOnly
	}
	for label, d := range req.GetLabelStaleness() {
		if s.Labels[label] = d.AsDuration(); d.AsDuration() == 0 {
			delete(s.Labels, label)
		}
	}
	return s
}

func show(s state) *adminv1.Settings {
	out := &adminv1.Settings{
		MaxStalenessRead:     durationpb.New(cmp.Or(s.stale.Read, compile.DefaultReadStaleness)),
		MaxStalenessWrite:    durationpb.New(cmp.Or(s.stale.Write, compile.DefaultWriteStaleness)),
		LabelStaleness:       map[string]*durationpb.Duration{},
		AfterStaleness:       afterDeny,
		SessionIdle:          durationpb.New(cmp.Or(s.sessions.Idle, DefaultSessionIdle)),
		SessionMax:           durationpb.New(cmp.Or(s.sessions.Max, DefaultSessionMax)),
		SessionsPerPrincipal: s.sessions.PerPrincipal,
		SessionsPerTenant:    s.sessions.PerTenant,
		RateLimits:           showLimits(s.rates), MaxCalls: uint32(s.rates.MaxCalls),
		Guards: showGuards(s.guards),
	}
	if s.stale.ReadOnlyAfter {
		out.AfterStaleness = afterReadOnly
	}
	for label, d := range s.stale.Labels {
		out.LabelStaleness[label] = durationpb.New(d)
	}
	return out
}

func describe(s state) map[string]any {
	labels := map[string]string{}
	for label, d := range s.stale.Labels {
		labels[label] = d.String()
	}
	return map[string]any{
		"read": s.stale.Read.String(), "write": s.stale.Write.String(), "labels": labels, "read_only_after": s.stale.ReadOnlyAfter,
		"session_idle": s.sessions.Idle.String(), "session_max": s.sessions.Max.String(),
		"sessions_per_principal": s.sessions.PerPrincipal, "sessions_per_tenant": s.sessions.PerTenant,
		"rate_limits": describeLimits(s.rates), "max_calls": s.rates.MaxCalls,
		"guards": describeGuards(s.guards),
	}
}
