package store

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/oklog/ulid/v2"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// Tx is one transaction. It is good until the function it was given to returns, and for one goroutine.
type Tx struct {
	tx       pgx.Tx
	tenant   controlplane.TenantID
	actor    string
	kind     string
	revision uint64
	changes  int
	now      time.Time
}

// Tenant is whose rows the transaction sees; "" for a platform transaction.
func (tx *Tx) Tenant() controlplane.TenantID { return tx.tenant }

// Actor is who makes the write.
func (tx *Tx) Actor() string { return tx.actor }

// Revision is the one this write makes; 0 outside Write.
func (tx *Tx) Revision() uint64 { return tx.revision }

// Now is the time of the transaction, UTC, in whole milliseconds: every row it writes carries the same one.
func (tx *Tx) Now() time.Time { return tx.now }

// NewID makes a row's id: a UUIDv7, so that rows made together lie together.
func NewID() string { return uuid.Must(uuid.NewV7()).String() }

// NewULID makes the id of a token or a kill.
func NewULID(now time.Time) string { return ulid.MustNew(ulid.Timestamp(now), rand.Reader).String() }

const sqlBumpRevision = `UPDATE tenants SET revision = revision + 1 WHERE id = $1 RETURNING revision`

// bumpRevision takes the tenant's row lock, so it comes first in every write.
func (tx *Tx) bumpRevision(ctx context.Context) error {
	if tx.tenant == "" {
		return problem.New(problem.Invalid, "the request names no tenant", "name one with --tenant")
	}
	rev, err := one(ctx, tx, scanValue[int64], sqlBumpRevision, tx.tenant)
	if err != nil {
		return missing(err, "tenant %s does not exist", tx.tenant)
	}
	tx.revision = uint64(rev)
	return nil
}

// exec runs a statement and returns the number of rows it wrote.
func (tx *Tx) exec(ctx context.Context, sql string, args ...any) (int64, error) {
	tag, err := tx.tx.Exec(ctx, sql, plain(args)...)
	if err != nil {
		return 0, err
	}
	return tag.RowsAffected(), nil
}

// one runs a query that gives one row. Without a row the error is pgx.ErrNoRows: see missing.
func one[T any](ctx context.Context, tx *Tx, scan func(pgx.CollectableRow) (T, error), sql string, args ...any) (T, error) {
	rows, err := tx.tx.Query(ctx, sql, plain(args)...)
	if err != nil {
		var zero T
		return zero, err
	}
	return pgx.CollectOneRow(rows, scan)
}

// all runs a query and returns its rows, never nil.
func all[T any](ctx context.Context, tx *Tx, scan func(pgx.CollectableRow) (T, error), sql string, args ...any) ([]T, error) {
	rows, err := tx.tx.Query(ctx, sql, plain(args)...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}

// scanValue reads a row of one column.
func scanValue[T any](row pgx.CollectableRow) (T, error) {
	var v T
	err := row.Scan(&v)
	return v, err
}

// plain turns the house's own string types into strings, and the zero time into NULL.
func plain(args []any) []any {
	out := make([]any, len(args))
	for i, a := range args {
		switch v := a.(type) {
		case controlplane.TenantID:
			out[i] = string(v)
		case controlplane.UserKind:
			out[i] = string(v)
		case time.Time:
			if v.IsZero() {
				out[i] = nil
			} else {
				out[i] = v.UTC()
			}
		default:
			out[i] = a
		}
	}
	return out
}

// orNull is for an optional reference: "" is NULL.
func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// timeOrZero reads an optional time.
func timeOrZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

// missing turns "no row" into a not_found problem with these words, and passes every other error on.
func missing(err error, format string, args ...any) error {
	if err == nil || !isNoRows(err) {
		return err
	}
	return problem.New(problem.NotFound, fmt.Sprintf(format, args...), "").Because(ErrNotFound)
}
