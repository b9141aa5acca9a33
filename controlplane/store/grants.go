package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Grant is one rule as somebody wrote it.
type Grant struct {
	ID   string
	Deny bool
	// Subject is "user:alice", "team:analysts", "role:analyst" or "everyone".
	Subject string
	// Server is a name or "*", Tool a name or "" for the whole server.
	Server, Tool string
	Condition    string
	ExpiresAt    time.Time
	Reason       string
	CreatedBy    string
	CreatedAt    time.Time
}

const (
	grantColumns   = `id::text, effect, subject, server, tool, condition, expires_at, reason, created_by, created_at`
	sqlGrants      = `SELECT ` + grantColumns + ` FROM grants WHERE tenant_id = $1 ORDER BY subject, server, tool, effect, id`
	sqlInsertGrant = `INSERT INTO grants (tenant_id, id, effect, subject, server, tool, condition, expires_at, reason, created_by, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`
	sqlDeleteGrant = `DELETE FROM grants WHERE tenant_id = $1 AND id = $2`
)

// Grants lists all of the tenant's grants.
func (tx *Tx) Grants(ctx context.Context) ([]Grant, error) {
	return all(ctx, tx, func(row pgx.CollectableRow) (Grant, error) {
		var g Grant
		var effect string
		var expires *time.Time
		err := row.Scan(&g.ID, &effect, &g.Subject, &g.Server, &g.Tool, &g.Condition, &expires, &g.Reason, &g.CreatedBy, &g.CreatedAt)
		g.Deny, g.ExpiresAt = effect == "deny", timeOrZero(expires)
		return g, err
	}, sqlGrants, tx.tenant)
}

// InsertGrant stores a rule.
func (tx *Tx) InsertGrant(ctx context.Context, g Grant) error {
	effect := "allow"
	if g.Deny {
		effect = "deny"
	}
	_, err := tx.exec(ctx, sqlInsertGrant, tx.tenant, g.ID, effect, g.Subject, g.Server, g.Tool, g.Condition, g.ExpiresAt, g.Reason, tx.actor, tx.now)
	return err
}

// DeleteGrant takes a rule away.
func (tx *Tx) DeleteGrant(ctx context.Context, id string) error {
	_, err := tx.exec(ctx, sqlDeleteGrant, tx.tenant, id)
	return err
}
