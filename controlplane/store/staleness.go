package store

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
)

const (
	sqlStaleness    = `SELECT subject, max_ms FROM staleness WHERE tenant_id = $1`
	sqlPutStaleness = `INSERT INTO staleness (tenant_id, subject, max_ms) VALUES ($1, $2, $3)
		ON CONFLICT (tenant_id, subject) DO UPDATE SET max_ms = excluded.max_ms WHERE staleness.max_ms <> excluded.max_ms`
	sqlDeleteStaleness = `DELETE FROM staleness WHERE tenant_id = $1 AND subject = $2`
)

// The subjects of staleness rows.
const (
	staleRead   = "read"
	staleWrite  = "write"
	stalePrefix = "label:"
	// staleAfter is no bound: its row, whatever the time in it, has reads go on after theirs.
	staleAfter = "read_only_after"
)

// Staleness is how stale the tenant lets its cells become, where it is not the default.
func (tx *Tx) Staleness(ctx context.Context) (s controlplane.Staleness, err error) {
	type bound struct {
		Subject string
		MaxMS   int64
	}
	rows, err := all(ctx, tx, pgx.RowToStructByPos[bound], sqlStaleness, tx.tenant)
	s.Labels = map[string]time.Duration{}
	for _, b := range rows {
		d := time.Duration(b.MaxMS) * time.Millisecond
		switch label, ok := strings.CutPrefix(b.Subject, stalePrefix); {
		case ok:
			s.Labels[label] = d
		case b.Subject == staleRead:
			s.Read = d
		case b.Subject == staleWrite:
			s.Write = d
		case b.Subject == staleAfter:
			s.ReadOnlyAfter = true
		}
	}
	return s, err
}

// SetStaleness makes the tenant's bounds what they are in next, and reports whether anything changed.
func (tx *Tx) SetStaleness(ctx context.Context, before, next controlplane.Staleness) (bool, error) {
	want := subjects(next)
	total := int64(0)
	for subject := range subjects(before) {
		if _, ok := want[subject]; ok {
			continue
		}
		n, err := tx.exec(ctx, sqlDeleteStaleness, tx.tenant, subject)
		if total += n; err != nil {
			return false, err
		}
	}
	for subject, d := range want {
		n, err := tx.exec(ctx, sqlPutStaleness, tx.tenant, subject, d.Milliseconds())
		if total += n; err != nil {
			return false, err
		}
	}
	return total > 0, nil
}

// subjects are the bounds that are not the default, as rows name them.
func subjects(s controlplane.Staleness) map[string]time.Duration {
	out := map[string]time.Duration{staleRead: s.Read, staleWrite: s.Write}
	if s.ReadOnlyAfter {
		out[staleAfter] = time.Millisecond
	}
	for label, d := range s.Labels {
		out[stalePrefix+label] = d
	}
	for subject, d := range out {
		if d == 0 {
			delete(out, subject)
		}
	}
	return out
}
