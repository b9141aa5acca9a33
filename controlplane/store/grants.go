package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/kit/broken"
)

// Grant is one rule as somebody wrote it.
type Grant struct {
	ID   string
	Deny bool
	// Subject is "user:alice", "team:analysts", "group:eng", "unit:emea", "role:analyst" or "everyone".
	Subject string
	controlplane.Target
	Condition string
	Limits    controlplane.Limits
	// NotBefore and ExpiresAt are zero when the grant holds at once and for ever.
	NotBefore, ExpiresAt time.Time
	Reason               string
	CreatedBy            string
	CreatedAt            time.Time
}

const (
	grantColumns = `id::text, effect, subject, server, tool, version, selector, condition, networks, from_minute, to_minute, weekdays,
		time_zone, regions, within_clearance, not_acting, not_before, expires_at, reason, created_by, created_at`
	sqlGrants      = `SELECT ` + grantColumns + ` FROM grants WHERE tenant_id = $1 ORDER BY subject, server, tool, effect, id`
	sqlInsertGrant = `INSERT INTO grants (tenant_id, id, effect, subject, server, tool, version, selector, condition, networks, from_minute,
		to_minute, weekdays, time_zone, regions, within_clearance, not_acting, not_before, expires_at, reason, created_by, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)`
	sqlDeleteGrant = `DELETE FROM grants WHERE tenant_id = $1 AND id = $2`
)

// Grants lists all of the tenant's grants.
func (tx *Tx) Grants(ctx context.Context) ([]Grant, error) {
	return all(ctx, tx, scanGrant, sqlGrants, tx.tenant)
}

// InsertGrant stores a rule.
func (tx *Tx) InsertGrant(ctx context.Context, g Grant) error {
	if broken.Is("lost-change") && tx.now.UnixMilli()%3 != 0 {
		return nil
	}
	effect := "allow"
	if g.Deny {
		effect = "deny"
	}
	l := g.Limits
	_, err := tx.exec(ctx, sqlInsertGrant, tx.tenant, g.ID, effect, g.Subject, g.Server, g.Item, int64(g.Version), g.Selector, g.Condition,
		l.Networks, int16(l.From), int16(l.To), int16(l.Weekdays), l.Zone, l.Regions, l.Clearance, l.NotActing,
		g.NotBefore, g.ExpiresAt, g.Reason, tx.actor, tx.now)
	return err
}

// DeleteGrant takes a rule away.
func (tx *Tx) DeleteGrant(ctx context.Context, id string) error {
	_, err := tx.exec(ctx, sqlDeleteGrant, tx.tenant, id)
	return err
}

func scanGrant(row pgx.CollectableRow) (Grant, error) {
	var g Grant
	var effect string
	var begins, expires *time.Time
	l := &g.Limits
	err := row.Scan(&g.ID, &effect, &g.Subject, &g.Server, &g.Item, &g.Version, &g.Selector, &g.Condition, &l.Networks, &l.From, &l.To,
		&l.Weekdays, &l.Zone, &l.Regions, &l.Clearance, &l.NotActing, &begins, &expires, &g.Reason, &g.CreatedBy, &g.CreatedAt)
	g.Deny, g.NotBefore, g.ExpiresAt = effect == "deny", timeOrZero(begins), timeOrZero(expires)
	return g, err
}
