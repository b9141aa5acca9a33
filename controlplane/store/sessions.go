package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
)

const (
	sqlSessionLimits    = `SELECT idle_ms, max_ms, per_principal, per_tenant FROM session_limits WHERE tenant_id = $1`
	sqlPutSessionLimits = `INSERT INTO session_limits (tenant_id, idle_ms, max_ms, per_principal, per_tenant) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (tenant_id) DO UPDATE SET idle_ms = excluded.idle_ms, max_ms = excluded.max_ms,
		per_principal = excluded.per_principal, per_tenant = excluded.per_tenant`
)

// SessionLimits is what the tenant lets its sessions be, where it is not the default.
func (tx *Tx) SessionLimits(ctx context.Context) (controlplane.SessionLimits, error) {
	type row struct {
		IdleMS, MaxMS           int64
		PerPrincipal, PerTenant int32
	}
	rows, err := all(ctx, tx, pgx.RowToStructByPos[row], sqlSessionLimits, tx.tenant)
	if err != nil || len(rows) == 0 {
		return controlplane.SessionLimits{}, err
	}
	r := rows[0]
	return controlplane.SessionLimits{
		Idle: time.Duration(r.IdleMS) * time.Millisecond, Max: time.Duration(r.MaxMS) * time.Millisecond,
		PerPrincipal: uint32(r.PerPrincipal), PerTenant: uint32(r.PerTenant),
	}, nil
}

// SetSessionLimits makes them what they are in next, and reports whether anything changed.
func (tx *Tx) SetSessionLimits(ctx context.Context, before, next controlplane.SessionLimits) (bool, error) {
	if before == next {
		return false, nil
	}
	_, err := tx.exec(ctx, sqlPutSessionLimits, tx.tenant, next.Idle.Milliseconds(), next.Max.Milliseconds(),
		int32(next.PerPrincipal), int32(next.PerTenant))
	return err == nil, err
}
