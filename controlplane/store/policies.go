package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Policy is one text of Cedar policies.
type Policy struct {
	Name, Text, Description string
	// Version counts the writes of the text, from 1.
	Version              uint64
	UpdatedBy            string
	CreatedAt, UpdatedAt time.Time
}

const (
	policyColumns = `name, text, description, version, updated_by, created_at, updated_at`
	sqlPolicies   = `SELECT ` + policyColumns + ` FROM policies WHERE tenant_id = $1 ORDER BY name`
	sqlPolicy     = `SELECT ` + policyColumns + ` FROM policies WHERE tenant_id = $1 AND name = $2`
	sqlPutPolicy  = `INSERT INTO policies (tenant_id, name, text, description, version, updated_by, created_at, updated_at)
		VALUES ($1, $2, $3, $4, 1, $5, $6, $6)
		ON CONFLICT (tenant_id, name) DO UPDATE SET text = excluded.text, description = excluded.description,
			version = policies.version + 1, updated_by = excluded.updated_by, updated_at = excluded.updated_at
		RETURNING ` + policyColumns
	sqlDeletePolicy = `DELETE FROM policies WHERE tenant_id = $1 AND name = $2`
)

// Policies lists the tenant's policies by name.
func (tx *Tx) Policies(ctx context.Context) ([]Policy, error) {
	return all(ctx, tx, scanPolicy, sqlPolicies, tx.tenant)
}

// Policy finds one by name; not_found when there is none.
func (tx *Tx) Policy(ctx context.Context, name string) (Policy, error) {
	p, err := one(ctx, tx, scanPolicy, sqlPolicy, tx.tenant, name)
	return p, missing(err, "policy %s does not exist", name)
}

// PutPolicy writes a text, the first or another one, and counts it.
func (tx *Tx) PutPolicy(ctx context.Context, p Policy) (Policy, error) {
	return one(ctx, tx, scanPolicy, sqlPutPolicy, tx.tenant, p.Name, p.Text, p.Description, tx.actor, tx.now)
}

// DeletePolicy takes a text away.
func (tx *Tx) DeletePolicy(ctx context.Context, name string) error {
	_, err := tx.exec(ctx, sqlDeletePolicy, tx.tenant, name)
	return err
}

func scanPolicy(row pgx.CollectableRow) (Policy, error) {
	var p Policy
	var version int64
	err := row.Scan(&p.Name, &p.Text, &p.Description, &version, &p.UpdatedBy, &p.CreatedAt, &p.UpdatedAt)
	p.Version = uint64(version)
	return p, err
}
