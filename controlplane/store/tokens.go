package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
)

const (
	sqlInsertToken = `INSERT INTO tokens (tenant_id, id, principal, issued_at, expires_at, created_by) VALUES ($1, $2, $3, $4, $5, $6)`
	sqlListTokens  = `SELECT id, principal, issued_at, expires_at, revoked_at, created_by FROM tokens WHERE tenant_id = $1 ORDER BY id DESC`
	sqlTokenByID   = `SELECT id, principal, issued_at, expires_at, revoked_at, created_by FROM tokens WHERE tenant_id = $1 AND id = $2`
	sqlRevokeToken = `UPDATE tokens SET revoked_at = $3 WHERE tenant_id = $1 AND id = $2 AND revoked_at IS NULL`
	sqlBearer      = `SELECT t.principal, u.disabled, u.admin_roles,
			t.revoked_at IS NOT NULL OR EXISTS (SELECT 1 FROM kills k WHERE k.tenant_id = t.tenant_id
				AND (k.kind = 'token' AND k.subject = t.id OR k.kind = 'user' AND k.subject = t.principal))
		FROM tokens t
		JOIN users u ON u.tenant_id = t.tenant_id AND u.name = t.principal
		WHERE t.tenant_id = $1 AND t.id = $2`
)

// InsertToken notes a token down. It is made to be called before the token is given to anybody.
func (tx *Tx) InsertToken(ctx context.Context, t controlplane.Token) error {
	_, err := tx.exec(ctx, sqlInsertToken, tx.tenant, t.ID, t.Principal, t.IssuedAt, t.ExpiresAt, t.CreatedBy)
	return err
}

// Tokens lists the tenant's tokens, newest first.
func (tx *Tx) Tokens(ctx context.Context) ([]controlplane.Token, error) {
	return all(ctx, tx, scanToken, sqlListTokens, tx.tenant)
}

// TokenByID finds a token of the tenant, or not_found.
func (tx *Tx) TokenByID(ctx context.Context, id string) (controlplane.Token, error) {
	t, err := one(ctx, tx, scanToken, sqlTokenByID, tx.tenant, id)
	return t, missing(err, "token %s does not exist", id)
}

// RevokeToken notes that a token is good no more. It returns ErrNoChange when it was not before.
func (tx *Tx) RevokeToken(ctx context.Context, id string) error {
	return changed(tx.exec(ctx, sqlRevokeToken, tx.tenant, id, tx.now))
}

// Bearer is what the directory says now about whoever holds a token.
type Bearer struct {
	Principal string
	// Revoked is also true when the token or its holder was killed.
	Revoked    bool
	Disabled   bool
	AdminRoles []string
}

// Bearer looks up the holder of a token of the tenant, or not_found.
func (tx *Tx) Bearer(ctx context.Context, tokenID string) (Bearer, error) {
	b, err := one(ctx, tx, func(row pgx.CollectableRow) (Bearer, error) {
		var b Bearer
		err := row.Scan(&b.Principal, &b.Disabled, &b.AdminRoles, &b.Revoked)
		return b, err
	}, sqlBearer, tx.tenant, tokenID)
	return b, missing(err, "token %s does not exist", tokenID)
}

func scanToken(row pgx.CollectableRow) (controlplane.Token, error) {
	var t controlplane.Token
	var issued, expires time.Time
	var revoked *time.Time
	err := row.Scan(&t.ID, &t.Principal, &issued, &expires, &revoked, &t.CreatedBy)
	t.IssuedAt, t.ExpiresAt, t.RevokedAt = issued.UTC(), expires.UTC(), timeOrZero(revoked)
	return t, err
}
