package store

import (
	"context"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
)

const (
	sqlRateLimits   = `SELECT subject, requests, per_ms, burst FROM rate_limits WHERE tenant_id = $1`
	sqlPutRateLimit = `INSERT INTO rate_limits (tenant_id, subject, requests, per_ms, burst) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (tenant_id, subject) DO UPDATE SET requests = excluded.requests, per_ms = excluded.per_ms, burst = excluded.burst
		WHERE (rate_limits.requests, rate_limits.per_ms, rate_limits.burst) <> (excluded.requests, excluded.per_ms, excluded.burst)`
	sqlDeleteRateLimit = `DELETE FROM rate_limits WHERE tenant_id = $1 AND subject = $2`
)

// limitCalls is the subject of the bound on requests under way.
const limitCalls = "calls"

// RateLimits is what the tenant's callers may ask for over time.
func (tx *Tx) RateLimits(ctx context.Context) (l controlplane.RateLimits, err error) {
	type row struct {
		Subject                string
		Requests, PerMS, Burst int64
	}
	rows, err := all(ctx, tx, pgx.RowToStructByPos[row], sqlRateLimits, tx.tenant)
	l.Rates = map[string]controlplane.RateLimit{}
	for _, r := range rows {
		if r.Subject == limitCalls {
			l.MaxCalls = r.Requests
			continue
		}
		l.Rates[r.Subject] = controlplane.RateLimit{Requests: r.Requests, Per: time.Duration(r.PerMS) * time.Millisecond, Burst: r.Burst}
	}
	return l, err
}

// SetRateLimits makes the tenant's limits what they are in next, and reports whether anything changed.
func (tx *Tx) SetRateLimits(ctx context.Context, before, next controlplane.RateLimits) (bool, error) {
	want := limitRows(next)
	total := int64(0)
	for subject := range limitRows(before) {
		if _, ok := want[subject]; ok {
			continue
		}
		n, err := tx.exec(ctx, sqlDeleteRateLimit, tx.tenant, subject)
		if total += n; err != nil {
			return false, err
		}
	}
	for subject, r := range want {
		n, err := tx.exec(ctx, sqlPutRateLimit, tx.tenant, subject, r.Requests, r.Per.Milliseconds(), r.Burst)
		if total += n; err != nil {
			return false, err
		}
	}
	return total > 0, nil
}

func limitRows(l controlplane.RateLimits) map[string]controlplane.RateLimit {
	rows := make(map[string]controlplane.RateLimit, len(l.Rates)+1)
	maps.Copy(rows, l.Rates)
	if l.MaxCalls > 0 {
		rows[limitCalls] = controlplane.RateLimit{Requests: l.MaxCalls}
	}
	return rows
}
