// Package settings keeps what a tenant decides about how it is served: how stale its cells may become before they stop
// serving a class of calls, or what carries a label, and what its callers may ask for over time. It answers the admin API's SettingsService. The cells enforce it.
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

// maxLabels bounds the labels that have a bound of their own.
const maxLabels = 1000

// Service keeps the settings. It is safe for concurrent use.
type Service struct {
	store *store.Store
}

// New makes the service.
func New(st *store.Store) *Service { return &Service{store: st} }

// GetSettings shows the settings that are in force, defaults included.
func (s *Service) GetSettings(ctx context.Context, _ *adminv1.GetSettingsRequest) (*adminv1.GetSettingsResponse, error) {
	var now controlplane.Staleness
	var limits controlplane.RateLimits
	err := s.store.Read(ctx, controlplane.CallerFrom(ctx).TenantID, func(tx *store.Tx) (err error) {
		if now, err = tx.Staleness(ctx); err != nil {
			return err
		}
		limits, err = tx.RateLimits(ctx)
		return err
	})
	return &adminv1.GetSettingsResponse{Settings: show(now, limits)}, err
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
	var next controlplane.Staleness
	var limits controlplane.RateLimits
	rev, err := s.store.Write(ctx, c.TenantID, c.Actor(), func(tx *store.Tx) error {
		before, err := tx.Staleness(ctx)
		if err != nil {
			return err
		}
		next = merge(before, req)
		if len(next.Labels) > maxLabels {
			return problem.Newf(problem.Invalid, "take some away", "%d labels would have a bound of their own: at most %d", len(next.Labels), maxLabels)
		}
		changed, err := tx.SetStaleness(ctx, before, next)
		if err != nil {
			return err
		}
		limited, err := tx.RateLimits(ctx)
		if err != nil {
			return err
		}
		if limits, err = mergeLimits(limited, req); err != nil {
			return err
		}
		others, err := tx.SetRateLimits(ctx, limited, limits)
		if err != nil {
			return err
		}
		if !changed && !others {
			return store.ErrNoChange
		}
		return tx.Change(ctx, "settings.update", "settings", describe(next, limits))
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.UpdateSettingsResponse{Settings: show(next, limits), Revision: rev}, nil
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
	return nil
}

func merge(s controlplane.Staleness, req *adminv1.UpdateSettingsRequest) controlplane.Staleness {
	s.Labels = maps.Clone(s.Labels)
	if req.GetMaxStalenessRead() != nil {
		s.Read = req.GetMaxStalenessRead().AsDuration()
	}
	if req.GetMaxStalenessWrite() != nil {
		s.Write = req.GetMaxStalenessWrite().AsDuration()
	}
	for label, d := range req.GetLabelStaleness() {
		if s.Labels[label] = d.AsDuration(); d.AsDuration() == 0 {
			delete(s.Labels, label)
		}
	}
	return s
}

func show(s controlplane.Staleness, l controlplane.RateLimits) *adminv1.Settings {
	out := &adminv1.Settings{
		MaxStalenessRead:  durationpb.New(cmp.Or(s.Read, compile.DefaultReadStaleness)),
		MaxStalenessWrite: durationpb.New(cmp.Or(s.Write, compile.DefaultWriteStaleness)),
		LabelStaleness:    map[string]*durationpb.Duration{},
		RateLimits:        showLimits(l), MaxCalls: uint32(l.MaxCalls),
	}
	for label, d := range s.Labels {
		out.LabelStaleness[label] = durationpb.New(d)
	}
	return out
}

func describe(s controlplane.Staleness, l controlplane.RateLimits) map[string]any {
	labels := map[string]string{}
	for label, d := range s.Labels {
		labels[label] = d.String()
	}
	return map[string]any{
		"read": s.Read.String(), "write": s.Write.String(), "labels": labels, "rate_limits": describeLimits(l), "max_calls": l.MaxCalls,
	}
}
