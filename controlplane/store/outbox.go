package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
)

// What kind of work an outbox row asks for.
const (
	// OutboxPolicy asks for a new generation.
	OutboxPolicy = "policy"
	// OutboxKill asks for nothing but the announcement of a kill.
	OutboxKill = "kill"
	// OutboxNone is a write that no cell needs to hear of: a token that was minted.
	OutboxNone = "none"
)

// Pending is all the unfinished work of a tenant in one line.
type Pending struct {
	TenantID controlplane.TenantID
	// Newest is the row that came last, Revision what it holds, Since when the first one was written.
	Newest   int64
	Revision uint64
	Since    time.Time
	// Policy is true when a new generation is asked for.
	Policy bool
}

// OutboxRow is work that a committed write left for the publisher.
type OutboxRow struct {
	ID       int64
	TenantID controlplane.TenantID
	Revision uint64
	Kind     string
	At       time.Time
}

const (
	sqlInsertOutbox = `INSERT INTO outbox (tenant_id, revision, kind, at, done_at) VALUES ($1, $2, $3, $4, $5)`
	sqlNotify       = `SELECT pg_notify($1, $2)`
	sqlOpenOutbox   = `SELECT id, tenant_id::text, revision, kind, at FROM outbox WHERE done_at IS NULL ORDER BY id LIMIT $1`
	sqlPending      = `SELECT tenant_id::text, max(id), max(revision), min(at), bool_or(kind = $1) FROM outbox WHERE done_at IS NULL GROUP BY tenant_id`
	sqlFinishOutbox = `UPDATE outbox SET done_at = $3 WHERE tenant_id = $1 AND revision <= $2 AND kind = $4 AND done_at IS NULL`
	sqlPruneOutbox  = `DELETE FROM outbox WHERE done_at < $1`
)

// SetKind says what kind of work this write leaves behind; OutboxPolicy unless it is said.
func (tx *Tx) SetKind(kind string) { tx.kind = kind }

// announce leaves the outbox row, and the hint that PostgreSQL hands on when the transaction commits.
func (tx *Tx) announce(ctx context.Context) error {
	var done time.Time
	if tx.kind == OutboxNone {
		done = tx.now
	}
	if _, err := tx.exec(ctx, sqlInsertOutbox, tx.tenant, int64(tx.revision), tx.kind, tx.now, done); err != nil {
		return err
	}
	if tx.kind == OutboxNone {
		return nil
	}
	_, err := tx.exec(ctx, sqlNotify, OutboxChannel, tx.tenant)
	return err
}

// OpenOutbox lists work that is not finished, oldest first, of the tenant or, in a platform transaction, of all tenants.
func (tx *Tx) OpenOutbox(ctx context.Context, limit int) ([]OutboxRow, error) {
	return all(ctx, tx, func(row pgx.CollectableRow) (OutboxRow, error) {
		var o OutboxRow
		var rev int64
		err := row.Scan(&o.ID, (*string)(&o.TenantID), &rev, &o.Kind, &o.At)
		o.Revision = uint64(rev)
		return o, err
	}, sqlOpenOutbox, limit)
}

// Pending sums up what is not finished: of the tenant or, in a platform transaction, of each tenant that has any, however
// much of it one of them has.
func (tx *Tx) Pending(ctx context.Context) ([]Pending, error) {
	return all(ctx, tx, func(row pgx.CollectableRow) (Pending, error) {
		var p Pending
		var rev int64
		err := row.Scan((*string)(&p.TenantID), &p.Newest, &rev, &p.Since, &p.Policy)
		p.Revision, p.Since = uint64(rev), p.Since.UTC()
		return p, err
	}, sqlPending, OutboxPolicy)
}

// FinishOutbox marks the tenant's work of one kind as done, up to and including a revision.
func (tx *Tx) FinishOutbox(ctx context.Context, tenant controlplane.TenantID, kind string, upTo uint64) error {
	_, err := tx.exec(ctx, sqlFinishOutbox, tenant, int64(upTo), tx.now, kind)
	return err
}

// PruneOutbox deletes what was done before the time, and says how much that was.
func (tx *Tx) PruneOutbox(ctx context.Context, before time.Time) (int64, error) {
	return tx.exec(ctx, sqlPruneOutbox, before)
}
