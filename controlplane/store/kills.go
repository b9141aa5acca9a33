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

const (
	sqlInsertKill = `INSERT INTO kills (tenant_id, id, kind, subject, reason, issued_at, envelope) VALUES ($1, $2, $3, $4, $5, $6, $7)`
	sqlKills      = `SELECT id, kind, subject, reason, issued_at, envelope FROM kills WHERE tenant_id = $1 ORDER BY id`
	sqlAckKill    = `INSERT INTO kill_acks (tenant_id, kill_id, cell, node, at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`
)

// InsertKill stores a kill.
func (tx *Tx) InsertKill(ctx context.Context, k Kill) error {
	_, err := tx.exec(ctx, sqlInsertKill, tx.tenant, k.ID, k.Kind, k.Subject, k.Reason, k.IssuedAt, k.Envelope)
	return err
}

// Kills lists the tenant's kills, oldest first.
func (tx *Tx) Kills(ctx context.Context) ([]Kill, error) {
	return all(ctx, tx, func(row pgx.CollectableRow) (Kill, error) {
		var k Kill
		err := row.Scan(&k.ID, &k.Kind, &k.Subject, &k.Reason, &k.IssuedAt, &k.Envelope)
		return k, err
	}, sqlKills, tx.tenant)
}

// AckKill notes that a node enforces a kill.
func (tx *Tx) AckKill(ctx context.Context, killID, cell, node string) error {
	_, err := tx.exec(ctx, sqlAckKill, tx.tenant, killID, cell, node, tx.now)
	return err
}
