package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
)

// CellTenant says that a tenant is homed in a cell.
type CellTenant struct {
	Cell     string
	TenantID controlplane.TenantID
}

// NodeStatus is what a node last said of itself.
type NodeStatus struct {
	Cell, Node string
	// Status is a cell.v1.NodeStatus.
	Status []byte
	SeenAt time.Time
}

// Ack is what a node answered to a generation.
type Ack struct {
	Cell, Node                  string
	Epoch, Generation, Revision uint64
	Rejected                    bool
	Reason                      string
	At                          time.Time
}

const (
	sqlInsertCell   = `INSERT INTO cells (name) VALUES ($1) ON CONFLICT DO NOTHING`
	sqlCells        = `SELECT name FROM cells ORDER BY name`
	sqlNextManifest = `UPDATE cells SET manifest_sequence = manifest_sequence + 1 WHERE name = $1 RETURNING manifest_sequence`
	sqlManifests    = `SELECT name, manifest_sequence FROM cells`
	sqlClock        = `SELECT clock_timestamp()`
	sqlHome         = `INSERT INTO cell_tenants (cell, tenant_id) VALUES ($1, $2) ON CONFLICT DO NOTHING`
	sqlUnhome       = `DELETE FROM cell_tenants WHERE cell = $1 AND tenant_id = $2`
	sqlCellTenants  = `SELECT cell, tenant_id::text FROM cell_tenants ORDER BY cell, tenant_id`
	sqlSetStatus    = `INSERT INTO node_status (cell, node, status, seen_at) VALUES ($1, $2, $3, $4)
		ON CONFLICT (cell, node) DO UPDATE SET status = excluded.status, seen_at = excluded.seen_at`
	sqlStatuses  = `SELECT cell, node, status, seen_at FROM node_status ORDER BY cell, node`
	sqlInsertAck = `INSERT INTO acks (tenant_id, cell, node, epoch, generation, revision, status, reason, at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
		ON CONFLICT (tenant_id, epoch, generation, cell, node) DO UPDATE
		SET status = excluded.status, reason = excluded.reason, at = excluded.at WHERE acks.status <> 'applied'`
	ackColumns = `cell, node, epoch, generation, revision, status, reason, at`
	sqlAcks    = `SELECT ` + ackColumns + ` FROM acks WHERE tenant_id = $1 AND (epoch, generation) >= ($2, $3) ORDER BY epoch, generation, cell, node LIMIT 10000`
)

// EnsureCell makes a cell known.
func (tx *Tx) EnsureCell(ctx context.Context, name string) error {
	_, err := tx.exec(ctx, sqlInsertCell, name)
	return err
}

// Cells lists the names of all cells.
func (tx *Tx) Cells(ctx context.Context) ([]string, error) {
	return all(ctx, tx, scanValue[string], sqlCells)
}

// NextManifest counts up the number of the cell's manifests and returns it. It holds the cell's row until the transaction
// ends, so that manifests of one cell are made one after the other.
func (tx *Tx) NextManifest(ctx context.Context, cell string) (uint64, error) {
	n, err := one(ctx, tx, scanValue[int64], sqlNextManifest, cell)
	return uint64(n), missing(err, "cell %s does not exist", cell)
}

// Manifests are the numbers of the cells' newest manifests: one that goes up tells that somebody published.
func (tx *Tx) Manifests(ctx context.Context) (map[string]uint64, error) {
	numbers := map[string]uint64{}
	_, err := all(ctx, tx, func(row pgx.CollectableRow) (n struct{}, err error) {
		var cell string
		var number int64
		err = row.Scan(&cell, &number)
		numbers[cell] = uint64(number)
		return n, err
	}, sqlManifests)
	return numbers, err
}

// Clock is what PostgreSQL's clock says now: the second opinion about this process's own.
func (tx *Tx) Clock(ctx context.Context) (time.Time, error) {
	return one(ctx, tx, scanValue[time.Time], sqlClock)
}

// Home homes a tenant in a cell.
func (tx *Tx) Home(ctx context.Context, h CellTenant) error {
	_, err := tx.exec(ctx, sqlHome, h.Cell, h.TenantID)
	return err
}

// Unhome takes a tenant out of a cell.
func (tx *Tx) Unhome(ctx context.Context, h CellTenant) error {
	_, err := tx.exec(ctx, sqlUnhome, h.Cell, h.TenantID)
	return err
}

// CellTenants lists who is homed where: the tenant's own rows, or all in a platform transaction.
func (tx *Tx) CellTenants(ctx context.Context) ([]CellTenant, error) {
	return all(ctx, tx, func(row pgx.CollectableRow) (CellTenant, error) {
		var c CellTenant
		err := row.Scan(&c.Cell, (*string)(&c.TenantID))
		return c, err
	}, sqlCellTenants)
}

// SetNodeStatus keeps what a node said of itself.
func (tx *Tx) SetNodeStatus(ctx context.Context, s NodeStatus) error {
	_, err := tx.exec(ctx, sqlSetStatus, s.Cell, s.Node, s.Status, tx.now)
	return err
}

// NodeStatuses lists what all nodes said.
func (tx *Tx) NodeStatuses(ctx context.Context) ([]NodeStatus, error) {
	return all(ctx, tx, func(row pgx.CollectableRow) (NodeStatus, error) {
		var s NodeStatus
		err := row.Scan(&s.Cell, &s.Node, &s.Status, &s.SeenAt)
		return s, err
	}, sqlStatuses)
}

// InsertAck keeps a node's answer; applied is never overwritten.
func (tx *Tx) InsertAck(ctx context.Context, a Ack) error {
	status := "applied"
	if a.Rejected {
		status = "rejected"
	}
	_, err := tx.exec(ctx, sqlInsertAck, tx.tenant, a.Cell, a.Node, int64(a.Epoch), int64(a.Generation), int64(a.Revision), status, a.Reason, a.At)
	return err
}

// Acks lists the answers to a generation and those after it.
func (tx *Tx) Acks(ctx context.Context, epoch, generation uint64) ([]Ack, error) {
	return all(ctx, tx, func(row pgx.CollectableRow) (Ack, error) {
		var a Ack
		var e, g, r int64
		var status string
		err := row.Scan(&a.Cell, &a.Node, &e, &g, &r, &status, &a.Reason, &a.At)
		a.Epoch, a.Generation, a.Revision, a.Rejected = uint64(e), uint64(g), uint64(r), status == "rejected"
		return a, err
	}, sqlAcks, tx.tenant, int64(epoch), int64(generation))
}
