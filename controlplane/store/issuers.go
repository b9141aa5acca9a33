package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Issuer is an authorization server that a tenant trusts. Definition is what the room that owns issuers makes of it.
type Issuer struct {
	Name, URL            string
	Definition           []byte
	UpdatedBy            string
	CreatedAt, UpdatedAt time.Time
}

const (
	issuerColumns = `name, url, definition, updated_by, created_at, updated_at`
	sqlIssuers    = `SELECT ` + issuerColumns + ` FROM issuers WHERE tenant_id = $1 ORDER BY name`
	sqlIssuer     = `SELECT ` + issuerColumns + ` FROM issuers WHERE tenant_id = $1 AND name = $2`
	sqlPutIssuer  = `INSERT INTO issuers (tenant_id, name, url, definition, updated_by, created_at, updated_at)
		VALUES ($1, $2, $3, $4, $5, $6, $6)
		ON CONFLICT (tenant_id, name) DO UPDATE SET url = excluded.url, definition = excluded.definition,
			updated_by = excluded.updated_by, updated_at = excluded.updated_at
		RETURNING ` + issuerColumns
	sqlDeleteIssuer = `DELETE FROM issuers WHERE tenant_id = $1 AND name = $2`
)

// Issuers lists the tenant's issuers by name.
func (tx *Tx) Issuers(ctx context.Context) ([]Issuer, error) {
	return all(ctx, tx, pgx.RowToStructByPos[Issuer], sqlIssuers, tx.tenant)
}

// Issuer finds one by name; not_found when there is none.
func (tx *Tx) Issuer(ctx context.Context, name string) (Issuer, error) {
	i, err := one(ctx, tx, pgx.RowToStructByPos[Issuer], sqlIssuer, tx.tenant, name)
	return i, missing(err, "issuer %s does not exist", name)
}

// PutIssuer writes an issuer, the first time or again. It is a conflict when another one has its URL.
func (tx *Tx) PutIssuer(ctx context.Context, i Issuer) (Issuer, error) {
	return one(ctx, tx, pgx.RowToStructByPos[Issuer], sqlPutIssuer, tx.tenant, i.Name, i.URL, i.Definition, tx.actor, tx.now)
}

// DeleteIssuer takes an issuer away.
func (tx *Tx) DeleteIssuer(ctx context.Context, name string) error {
	_, err := tx.exec(ctx, sqlDeleteIssuer, tx.tenant, name)
	return err
}
