package store

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
)

const (
	sqlLabels = `SELECT s.name, l.tool, l.key, l.value FROM labels l
		JOIN servers s ON s.tenant_id = l.tenant_id AND s.id = l.server_id WHERE l.tenant_id = $1 ORDER BY s.name, l.tool, l.key`
	sqlServerLabels = `SELECT s.name, l.tool, l.key, l.value FROM labels l
		JOIN servers s ON s.tenant_id = l.tenant_id AND s.id = l.server_id
		WHERE l.tenant_id = $1 AND l.server_id = $2 ORDER BY l.tool, l.key`
	sqlPutLabel = `INSERT INTO labels (tenant_id, server_id, tool, key, value) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (tenant_id, server_id, tool, key) DO UPDATE SET value = excluded.value WHERE labels.value <> excluded.value`
	sqlDeleteLabel = `DELETE FROM labels WHERE tenant_id = $1 AND server_id = $2 AND tool = $3 AND key = $4`
)

// Labels lists every label of the tenant's servers and their tools.
func (tx *Tx) Labels(ctx context.Context) ([]controlplane.Label, error) {
	return all(ctx, tx, pgx.RowToStructByPos[controlplane.Label], sqlLabels, tx.tenant)
}

// ServerLabels lists the labels of one server and its tools.
func (tx *Tx) ServerLabels(ctx context.Context, serverID string) ([]controlplane.Label, error) {
	return all(ctx, tx, pgx.RowToStructByPos[controlplane.Label], sqlServerLabels, tx.tenant, serverID)
}

// SetLabel labels a server, or a tool of it, and with remove takes the label away. It returns ErrNoChange when that is so
// already.
func (tx *Tx) SetLabel(ctx context.Context, serverID string, l controlplane.Label, remove bool) error {
	if remove {
		return changed(tx.exec(ctx, sqlDeleteLabel, tx.tenant, serverID, l.Tool, l.Key))
	}
	return changed(tx.exec(ctx, sqlPutLabel, tx.tenant, serverID, l.Tool, l.Key, l.Value))
}
