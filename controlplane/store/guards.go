package store

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
)

const (
	sqlGuards    = `SELECT results, questions, changed_tools, check_arguments, origins, forbidden FROM guards WHERE tenant_id = $1`
	sqlPutGuards = `INSERT INTO guards (tenant_id, results, questions, changed_tools, check_arguments, origins, forbidden)
		VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (tenant_id) DO UPDATE SET results = excluded.results, questions = excluded.questions,
		changed_tools = excluded.changed_tools, check_arguments = excluded.check_arguments, origins = excluded.origins,
		forbidden = excluded.forbidden`
)

// Guards are what the tenant's cells do about what servers say, where it is not the default.
func (tx *Tx) Guards(ctx context.Context) (controlplane.Guards, error) {
	rows, err := all(ctx, tx, pgx.RowToStructByPos[controlplane.Guards], sqlGuards, tx.tenant)
	if err != nil || len(rows) == 0 {
		return controlplane.Guards{}, err
	}
	return rows[0], nil
}

// SetGuards makes them what they are in next, and reports whether anything changed.
func (tx *Tx) SetGuards(ctx context.Context, before, next controlplane.Guards) (bool, error) {
	if before.Equal(next) {
		return false, nil
	}
	origins, forbidden := append([]string{}, next.Origins...), append([]string{}, next.Forbidden...)
	_, err := tx.exec(ctx, sqlPutGuards, tx.tenant, next.Results, next.Questions, next.ChangedTools, next.CheckArguments, origins, forbidden)
	return err == nil, err
}
