package store

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
)

const (
	sqlInsertGroup  = `INSERT INTO groups (tenant_id, id, name, source, created_at) VALUES ($1, $2, $3, $4, $5)`
	sqlGroupColumns = `SELECT g.id::text, g.name, g.source, ARRAY(
			SELECT m.name FROM group_members gm JOIN users m ON m.tenant_id = gm.tenant_id AND m.id = gm.user_id
			WHERE gm.tenant_id = g.tenant_id AND gm.group_id = g.id ORDER BY m.name)
		FROM groups g WHERE g.tenant_id = $1 `
	sqlListGroups        = sqlGroupColumns + `ORDER BY g.name`
	sqlGroupByName       = sqlGroupColumns + `AND g.name = $2`
	sqlGroupID           = `SELECT id::text FROM groups WHERE tenant_id = $1 AND name = $2`
	sqlDeleteGroup       = `DELETE FROM groups WHERE tenant_id = $1 AND name = $2`
	sqlInsertGroupMember = `INSERT INTO group_members (tenant_id, group_id, user_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`
	sqlDeleteGroupMember = `DELETE FROM group_members WHERE tenant_id = $1 AND group_id = $2 AND user_id = $3`
)

// InsertGroup adds a group without members, and returns it with its id.
func (tx *Tx) InsertGroup(ctx context.Context, g controlplane.Group) (controlplane.Group, error) {
	g.ID, g.Members = NewID(), []string{}
	_, err := tx.exec(ctx, sqlInsertGroup, tx.tenant, g.ID, g.Name, g.Source, tx.now)
	return g, err
}

// Groups lists the tenant's groups, by name.
func (tx *Tx) Groups(ctx context.Context) ([]controlplane.Group, error) {
	return all(ctx, tx, scanGroup, sqlListGroups, tx.tenant)
}

// Group finds one by name; not_found when there is none.
func (tx *Tx) Group(ctx context.Context, name string) (controlplane.Group, error) {
	g, err := one(ctx, tx, scanGroup, sqlGroupByName, tx.tenant, name)
	return g, missing(err, "group %s does not exist", name)
}

// DeleteGroup removes a group and its memberships; not_found when there is none.
func (tx *Tx) DeleteGroup(ctx context.Context, name string) error {
	if _, err := tx.Group(ctx, name); err != nil {
		return err
	}
	_, err := tx.exec(ctx, sqlDeleteGroup, tx.tenant, name)
	return err
}

// SetGroupMember puts a user into a group or takes them out. It returns ErrNoChange when that is so already.
func (tx *Tx) SetGroupMember(ctx context.Context, group, user string, remove bool) error {
	groupID, err := tx.idOf(ctx, sqlGroupID, "group", group)
	if err != nil {
		return err
	}
	userID, err := tx.idOf(ctx, sqlUserID, "user", user)
	if err != nil {
		return err
	}
	sql := sqlInsertGroupMember
	if remove {
		sql = sqlDeleteGroupMember
	}
	return changed(tx.exec(ctx, sql, tx.tenant, groupID, userID))
}

func scanGroup(row pgx.CollectableRow) (controlplane.Group, error) {
	var g controlplane.Group
	err := row.Scan(&g.ID, &g.Name, &g.Source, &g.Members)
	return g, err
}
