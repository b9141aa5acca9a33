package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// JoinToken is a token with which one machine becomes one node.
type JoinToken struct {
	ID         string
	Cell, Node string
	// TenantID is whose ledger says what becomes of it.
	TenantID             controlplane.TenantID
	CreatedBy            string
	CreatedAt, ExpiresAt time.Time
	// UsedAt and RevokedAt are zero until then.
	UsedAt, RevokedAt time.Time
}

const (
	joinTokenColumns   = `id, cell, node, ledger::text, created_by, created_at, expires_at, used_at, revoked_at`
	sqlInsertJoinToken = `INSERT INTO join_tokens (id, secret, cell, node, ledger, created_by, created_at, expires_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`
	sqlJoinTokens    = `SELECT ` + joinTokenColumns + ` FROM join_tokens WHERE created_at >= $1 ORDER BY id DESC LIMIT 1000`
	sqlJoinToken     = `SELECT ` + joinTokenColumns + ` FROM join_tokens WHERE secret = $1`
	sqlJoinTokenByID = `SELECT ` + joinTokenColumns + ` FROM join_tokens WHERE id = $1`
	// One statement decides who is first: another machine finds the row used.
	sqlUseJoinToken = `UPDATE join_tokens SET used_at = coalesce(used_at, $3), used_key = $2
		WHERE id = $1 AND revoked_at IS NULL AND expires_at > $3 AND (used_key IS NULL OR used_key = $2)`
	sqlRevokeJoinToken = `UPDATE join_tokens SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL`
	sqlKilledNode      = `SELECT EXISTS (SELECT 1 FROM platform_kills WHERE kind = 'node' AND subject = $1)`
)

// InsertJoinToken notes a token down by the SHA-256 of its secret, before anybody has it.
func (tx *Tx) InsertJoinToken(ctx context.Context, t JoinToken, secret []byte) error {
	_, err := tx.exec(ctx, sqlInsertJoinToken, t.ID, secret, t.Cell, t.Node, t.TenantID, t.CreatedBy, t.CreatedAt, t.ExpiresAt)
	return err
}

// JoinTokens lists those made since a time, newest first.
func (tx *Tx) JoinTokens(ctx context.Context, since time.Time) ([]JoinToken, error) {
	return all(ctx, tx, scanJoinToken, sqlJoinTokens, since)
}

// JoinTokenBySecret finds a token by the SHA-256 of its secret, or not_found.
func (tx *Tx) JoinTokenBySecret(ctx context.Context, secret []byte) (JoinToken, error) {
	t, err := one(ctx, tx, scanJoinToken, sqlJoinToken, secret)
	return t, missing(err, "there is no such join token")
}

// UseJoinToken uses a token up for a machine, by the SHA-256 of its public key; again is fine for the same one. It is a
// conflict when another was first, denied when its time is over or it was revoked.
func (tx *Tx) UseJoinToken(ctx context.Context, id string, key []byte) (JoinToken, error) {
	n, err := tx.exec(ctx, sqlUseJoinToken, id, key, tx.now)
	if err != nil {
		return JoinToken{}, err
	}
	t, err := one(ctx, tx, scanJoinToken, sqlJoinTokenByID, id)
	switch {
	case err != nil:
		return t, missing(err, "there is no such join token")
	case n > 0:
		return t, nil
	case !t.RevokedAt.IsZero():
		return t, problem.New(problem.Denied, "the join token was revoked", "make another: mcpvault cell token create")
	case !t.ExpiresAt.After(tx.now):
		return t, problem.Newf(problem.Denied, "make another: mcpvault cell token create", "the join token's time was over at %s", t.ExpiresAt.Format(time.RFC3339))
	}
	return t, problem.New(problem.Conflict, "the join token was used by another machine, or with another key",
		"if that was not you, kill the node at once: mcpvault kill node "+t.Cell+"/"+t.Node)
}

// RevokeJoinToken makes a token useless. It is not_found without one, and ErrNoChange when it was revoked before.
func (tx *Tx) RevokeJoinToken(ctx context.Context, id string) (JoinToken, error) {
	t, err := one(ctx, tx, scanJoinToken, sqlJoinTokenByID, id)
	if err != nil {
		return t, missing(err, "join token %s does not exist", id)
	}
	return t, changed(tx.exec(ctx, sqlRevokeJoinToken, id, tx.now))
}

// NodeKilled reports whether a node was killed, CELL/NODE.
func (tx *Tx) NodeKilled(ctx context.Context, node string) (bool, error) {
	return one(ctx, tx, scanValue[bool], sqlKilledNode, node)
}

func scanJoinToken(row pgx.CollectableRow) (JoinToken, error) {
	var t JoinToken
	var used, revoked *time.Time
	err := row.Scan(&t.ID, &t.Cell, &t.Node, (*string)(&t.TenantID), &t.CreatedBy, &t.CreatedAt, &t.ExpiresAt, &used, &revoked)
	t.CreatedAt, t.ExpiresAt, t.UsedAt, t.RevokedAt = t.CreatedAt.UTC(), t.ExpiresAt.UTC(), timeOrZero(used), timeOrZero(revoked)
	return t, err
}
