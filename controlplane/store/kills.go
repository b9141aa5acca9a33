package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Kill is a deny-only record, signed, that is never taken back.
type Kill struct {
	ID, Kind, Subject, Reason string
	IssuedAt                  time.Time
	// Envelope is the DSSE envelope of the snapshot.v1.Kill.
	Envelope []byte
}

// KillAck says that a node enforces a kill.
type KillAck struct {
	KillID, Cell, Node string
	At                 time.Time
}

const (
	killColumns   = `id, kind, subject, reason, issued_at, envelope`
	sqlInsertKill = `INSERT INTO kills (tenant_id, id, kind, subject, reason, issued_at, envelope) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING`
	sqlKills      = `SELECT ` + killColumns + ` FROM kills WHERE tenant_id = $1 ORDER BY id`
	sqlResealKill = `UPDATE kills SET envelope = $3 WHERE tenant_id = $1 AND id = $2`
	sqlAckKill    = `INSERT INTO kill_acks (tenant_id, kill_id, cell, node, at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`
	sqlKillAcks   = `SELECT kill_id, cell, node, at FROM kill_acks WHERE tenant_id = $1 ORDER BY kill_id, cell, node`

	sqlInsertPlatformKill = `INSERT INTO platform_kills (id, kind, subject, reason, issued_at, envelope) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING`
	sqlPlatformKills      = `SELECT ` + killColumns + ` FROM platform_kills ORDER BY id`
	sqlResealPlatformKill = `UPDATE platform_kills SET envelope = $2 WHERE id = $1`
	sqlAckPlatformKill    = `INSERT INTO platform_kill_acks (kill_id, cell, node, at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`
	sqlPlatformKillAcks   = `SELECT kill_id, cell, node, at FROM platform_kill_acks ORDER BY kill_id, cell, node`
)

// InsertKill stores a kill of the tenant, and reports false when it was there.
func (tx *Tx) InsertKill(ctx context.Context, k Kill) (fresh bool, err error) {
	n, err := tx.exec(ctx, sqlInsertKill, tx.tenant, k.ID, k.Kind, k.Subject, k.Reason, k.IssuedAt, k.Envelope)
	return n > 0, err
}

// InsertPlatformKill stores a kill of all tenants, and reports false when it was there.
func (tx *Tx) InsertPlatformKill(ctx context.Context, k Kill) (fresh bool, err error) {
	n, err := tx.exec(ctx, sqlInsertPlatformKill, k.ID, k.Kind, k.Subject, k.Reason, k.IssuedAt, k.Envelope)
	return n > 0, err
}

// Kills lists the tenant's kills, oldest first.
func (tx *Tx) Kills(ctx context.Context) ([]Kill, error) {
	return all(ctx, tx, scanKill, sqlKills, tx.tenant)
}

// PlatformKills lists the kills of all tenants, oldest first. Every transaction sees them.
func (tx *Tx) PlatformKills(ctx context.Context) ([]Kill, error) {
	return all(ctx, tx, scanKill, sqlPlatformKills)
}

// ResealKill replaces the signature of a kill of the tenant.
func (tx *Tx) ResealKill(ctx context.Context, id string, envelope []byte) error {
	_, err := tx.exec(ctx, sqlResealKill, tx.tenant, id, envelope)
	return err
}

// ResealPlatformKill replaces the signature of a kill of all tenants.
func (tx *Tx) ResealPlatformKill(ctx context.Context, id string, envelope []byte) error {
	_, err := tx.exec(ctx, sqlResealPlatformKill, id, envelope)
	return err
}

// AckKill notes that a node enforces a kill of the tenant.
func (tx *Tx) AckKill(ctx context.Context, killID, cell, node string) error {
	_, err := tx.exec(ctx, sqlAckKill, tx.tenant, killID, cell, node, tx.now)
	return err
}

// AckPlatformKill notes that a node enforces a kill of all tenants.
func (tx *Tx) AckPlatformKill(ctx context.Context, killID, cell, node string) error {
	_, err := tx.exec(ctx, sqlAckPlatformKill, killID, cell, node, tx.now)
	return err
}

// KillAcks lists which nodes enforce which kills of the tenant.
func (tx *Tx) KillAcks(ctx context.Context) ([]KillAck, error) {
	return all(ctx, tx, pgx.RowToStructByPos[KillAck], sqlKillAcks, tx.tenant)
}

// PlatformKillAcks lists which nodes enforce which kills of all tenants.
func (tx *Tx) PlatformKillAcks(ctx context.Context) ([]KillAck, error) {
	return all(ctx, tx, pgx.RowToStructByPos[KillAck], sqlPlatformKillAcks)
}

func scanKill(row pgx.CollectableRow) (Kill, error) {
	var k Kill
	err := row.Scan(&k.ID, &k.Kind, &k.Subject, &k.Reason, &k.IssuedAt, &k.Envelope)
	return k, err
}
