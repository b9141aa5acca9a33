package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
)

const (
	sqlInsertUnit = `INSERT INTO units (tenant_id, id, name, parent_id, created_at) VALUES ($1, $2, $3, $4, $5)`
	sqlListUnits  = `SELECT u.id::text, u.name, coalesce(p.name, '') FROM units u
		LEFT JOIN units p ON p.tenant_id = u.tenant_id AND p.id = u.parent_id
		WHERE u.tenant_id = $1 ORDER BY u.name`
	sqlMoveUnit = `UPDATE units SET parent_id = $3 WHERE tenant_id = $1 AND name = $2 AND parent_id IS DISTINCT FROM $3`
	sqlUnitID   = `SELECT id::text FROM units WHERE tenant_id = $1 AND name = $2`

	sqlInsertTeam = `INSERT INTO teams (tenant_id, id, name, unit_id, created_at) VALUES ($1, $2, $3, $4, $5)`
	sqlListTeams  = `SELECT t.id::text, t.name, coalesce(u.name, ''), ARRAY(
			SELECT m.name FROM team_members tm JOIN users m ON m.tenant_id = tm.tenant_id AND m.id = tm.user_id
			WHERE tm.tenant_id = t.tenant_id AND tm.team_id = t.id ORDER BY m.name)
		FROM teams t LEFT JOIN units u ON u.tenant_id = t.tenant_id AND u.id = t.unit_id
		WHERE t.tenant_id = $1 ORDER BY t.name`
	sqlTeamID           = `SELECT id::text FROM teams WHERE tenant_id = $1 AND name = $2`
	sqlInsertTeamMember = `INSERT INTO team_members (tenant_id, team_id, user_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`
	sqlDeleteTeamMember = `DELETE FROM team_members WHERE tenant_id = $1 AND team_id = $2 AND user_id = $3`

	sqlInsertUser = `INSERT INTO users (tenant_id, id, name, kind, unit_id, display_name, supervisor_id, disabled, admin_roles, clearance, region, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`
	sqlUserColumns = `SELECT u.id::text, u.name, u.kind, coalesce(un.name, ''), u.display_name, coalesce(s.name, ''), u.disabled, u.admin_roles,
			u.clearance, u.region, u.created_at,
			ARRAY(SELECT t.name FROM team_members tm JOIN teams t ON t.tenant_id = tm.tenant_id AND t.id = tm.team_id
				WHERE tm.tenant_id = u.tenant_id AND tm.user_id = u.id ORDER BY t.name),
			ARRAY(SELECT g.name FROM group_members gm JOIN groups g ON g.tenant_id = gm.tenant_id AND g.id = gm.group_id
				WHERE gm.tenant_id = u.tenant_id AND gm.user_id = u.id ORDER BY g.name),
			ARRAY(SELECT r.name FROM role_members rm JOIN roles r ON r.tenant_id = rm.tenant_id AND r.id = rm.role_id
				WHERE rm.tenant_id = u.tenant_id AND rm.member_kind = 'user' AND rm.member_id = u.id ORDER BY r.name)
		FROM users u
		LEFT JOIN units un ON un.tenant_id = u.tenant_id AND un.id = u.unit_id
		LEFT JOIN users s ON s.tenant_id = u.tenant_id AND s.id = u.supervisor_id `
	sqlUserByName = sqlUserColumns + `WHERE u.tenant_id = $1 AND u.name = $2`
	sqlListUsers  = sqlUserColumns + `WHERE u.tenant_id = $1 AND u.name > $2 ORDER BY u.name LIMIT $3`
	sqlUserID     = `SELECT id::text FROM users WHERE tenant_id = $1 AND name = $2`
	sqlUpdateUser = `UPDATE users SET unit_id = $3, clearance = $4, region = $5 WHERE tenant_id = $1 AND name = $2
		AND (unit_id IS DISTINCT FROM $3 OR clearance <> $4 OR region <> $5)`
	sqlSetUserDisabled = `UPDATE users SET disabled = $3 WHERE tenant_id = $1 AND name = $2 AND disabled <> $3`
	sqlSetAdminRoles   = `UPDATE users SET admin_roles = $3 WHERE tenant_id = $1 AND name = $2 AND admin_roles <> $3`

	sqlInsertRole        = `INSERT INTO roles (tenant_id, id, name, description, created_at) VALUES ($1, $2, $3, $4, $5)`
	sqlInsertRoleInherit = `INSERT INTO role_inherits (tenant_id, role_id, inherits_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`
	sqlListRoles         = `SELECT r.id::text, r.name, r.description,
			ARRAY(SELECT i.name FROM role_inherits ri JOIN roles i ON i.tenant_id = ri.tenant_id AND i.id = ri.inherits_id
				WHERE ri.tenant_id = r.tenant_id AND ri.role_id = r.id ORDER BY i.name),
			ARRAY(SELECT rm.member_kind || ':' || coalesce(u.name, t.name, g.name, n.name) FROM role_members rm
				LEFT JOIN users u ON u.tenant_id = rm.tenant_id AND u.id = rm.user_id
				LEFT JOIN teams t ON t.tenant_id = rm.tenant_id AND t.id = rm.team_id
				LEFT JOIN groups g ON g.tenant_id = rm.tenant_id AND g.id = rm.group_id
				LEFT JOIN units n ON n.tenant_id = rm.tenant_id AND n.id = rm.unit_id
				WHERE rm.tenant_id = r.tenant_id AND rm.role_id = r.id ORDER BY 1)
		FROM roles r WHERE r.tenant_id = $1 ORDER BY r.name`
	sqlRoleID           = `SELECT id::text FROM roles WHERE tenant_id = $1 AND name = $2`
	sqlInsertRoleMember = `INSERT INTO role_members (tenant_id, role_id, member_kind, member_id) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`
	sqlDeleteRoleMember = `DELETE FROM role_members WHERE tenant_id = $1 AND role_id = $2 AND member_kind = $3 AND member_id = $4`
)

// idOf finds a row of the tenant by name; "" has no id. not_found names the kind and the name.
func (tx *Tx) idOf(ctx context.Context, sql, kind, name string) (string, error) {
	if name == "" {
		return "", nil
	}
	id, err := one(ctx, tx, scanValue[string], sql, tx.tenant, name)
	return id, missing(err, "%s %s does not exist", kind, name)
}

// InsertUnit adds a unit below the one that u.Parent names, and returns it with its id.
func (tx *Tx) InsertUnit(ctx context.Context, u controlplane.Unit) (controlplane.Unit, error) {
	parent, err := tx.idOf(ctx, sqlUnitID, "unit", u.Parent)
	if err != nil {
		return u, err
	}
	u.ID = NewID()
	_, err = tx.exec(ctx, sqlInsertUnit, tx.tenant, u.ID, u.Name, orNull(parent), tx.now)
	return u, err
}

// MoveUnit puts a unit below another one, or at the top when parent is "". It returns ErrNoChange when it is there already.
func (tx *Tx) MoveUnit(ctx context.Context, name, parent string) error {
	if _, err := tx.idOf(ctx, sqlUnitID, "unit", name); err != nil {
		return err
	}
	above, err := tx.idOf(ctx, sqlUnitID, "unit", parent)
	if err != nil {
		return err
	}
	return changed(tx.exec(ctx, sqlMoveUnit, tx.tenant, name, orNull(above)))
}

// Units lists the tenant's units, by name.
func (tx *Tx) Units(ctx context.Context) ([]controlplane.Unit, error) {
	return all(ctx, tx, func(row pgx.CollectableRow) (controlplane.Unit, error) {
		var u controlplane.Unit
		err := row.Scan(&u.ID, &u.Name, &u.Parent)
		return u, err
	}, sqlListUnits, tx.tenant)
}

// InsertTeam adds a team without members, and returns it with its id.
func (tx *Tx) InsertTeam(ctx context.Context, t controlplane.Team) (controlplane.Team, error) {
	unit, err := tx.idOf(ctx, sqlUnitID, "unit", t.Unit)
	if err != nil {
		return t, err
	}
	t.ID, t.Members = NewID(), []string{}
	_, err = tx.exec(ctx, sqlInsertTeam, tx.tenant, t.ID, t.Name, orNull(unit), tx.now)
	return t, err
}

// Teams lists the tenant's teams, by name.
func (tx *Tx) Teams(ctx context.Context) ([]controlplane.Team, error) {
	return all(ctx, tx, func(row pgx.CollectableRow) (controlplane.Team, error) {
		var t controlplane.Team
		err := row.Scan(&t.ID, &t.Name, &t.Unit, &t.Members)
		return t, err
	}, sqlListTeams, tx.tenant)
}

// SetTeamMember puts a user into a team or takes them out. It returns ErrNoChange when that is so already.
func (tx *Tx) SetTeamMember(ctx context.Context, team, user string, remove bool) error {
	teamID, err := tx.idOf(ctx, sqlTeamID, "team", team)
	if err != nil {
		return err
	}
	userID, err := tx.idOf(ctx, sqlUserID, "user", user)
	if err != nil {
		return err
	}
	sql := sqlInsertTeamMember
	if remove {
		sql = sqlDeleteTeamMember
	}
	return changed(tx.exec(ctx, sql, tx.tenant, teamID, userID))
}

// InsertUser adds a user, and returns them with their id.
func (tx *Tx) InsertUser(ctx context.Context, u controlplane.User) (controlplane.User, error) {
	unit, err := tx.idOf(ctx, sqlUnitID, "unit", u.Unit)
	if err != nil {
		return u, err
	}
	supervisor, err := tx.idOf(ctx, sqlUserID, "supervisor", u.Supervisor)
	if err != nil {
		return u, err
	}
	u.ID, u.CreatedAt, u.Teams, u.Groups, u.Roles = NewID(), tx.now, []string{}, []string{}, []string{}
	_, err = tx.exec(ctx, sqlInsertUser, tx.tenant, u.ID, u.Name, u.Kind, orNull(unit), u.DisplayName, orNull(supervisor),
		u.Disabled, orEmpty(u.AdminRoles), int16(u.Clearance), u.Region, tx.now)
	return u, err
}

// UserByName finds a user or service account of the tenant, or not_found.
func (tx *Tx) UserByName(ctx context.Context, name string) (controlplane.User, error) {
	u, err := one(ctx, tx, scanUser, sqlUserByName, tx.tenant, name)
	return u, missing(err, "user %s does not exist", name)
}

// Users lists the tenant's users by name, those after the given name, at most limit of them.
func (tx *Tx) Users(ctx context.Context, after string, limit int) ([]controlplane.User, error) {
	return all(ctx, tx, scanUser, sqlListUsers, tx.tenant, after, limit)
}

// UpdateUser writes the unit, the clearance and the region of the user that u.Name names. It returns ErrNoChange when they
// are so already.
func (tx *Tx) UpdateUser(ctx context.Context, u controlplane.User) error {
	unit, err := tx.idOf(ctx, sqlUnitID, "unit", u.Unit)
	if err != nil {
		return err
	}
	return changed(tx.exec(ctx, sqlUpdateUser, tx.tenant, u.Name, orNull(unit), int16(u.Clearance), u.Region))
}

// SetUserDisabled shuts a user out or lets them in again. It returns ErrNoChange when that is so already.
func (tx *Tx) SetUserDisabled(ctx context.Context, name string, disabled bool) error {
	if _, err := tx.idOf(ctx, sqlUserID, "user", name); err != nil {
		return err
	}
	return changed(tx.exec(ctx, sqlSetUserDisabled, tx.tenant, name, disabled))
}

// SetAdminRoles replaces what a user may do through the admin API. It returns ErrNoChange when that is so already.
func (tx *Tx) SetAdminRoles(ctx context.Context, name string, roles []string) error {
	if _, err := tx.idOf(ctx, sqlUserID, "user", name); err != nil {
		return err
	}
	return changed(tx.exec(ctx, sqlSetAdminRoles, tx.tenant, name, orEmpty(roles)))
}

// InsertRole adds a role that inherits from the roles named, and returns it with its id.
func (tx *Tx) InsertRole(ctx context.Context, r controlplane.Role) (controlplane.Role, error) {
	r.ID, r.Members = NewID(), []string{}
	if _, err := tx.exec(ctx, sqlInsertRole, tx.tenant, r.ID, r.Name, r.Description, tx.now); err != nil {
		return r, err
	}
	for _, name := range r.Inherits {
		id, err := tx.idOf(ctx, sqlRoleID, "role", name)
		if err != nil {
			return r, err
		}
		if _, err := tx.exec(ctx, sqlInsertRoleInherit, tx.tenant, r.ID, id); err != nil {
			return r, err
		}
	}
	return r, nil
}

// Roles lists the tenant's roles, by name.
func (tx *Tx) Roles(ctx context.Context) ([]controlplane.Role, error) {
	return all(ctx, tx, func(row pgx.CollectableRow) (controlplane.Role, error) {
		var r controlplane.Role
		err := row.Scan(&r.ID, &r.Name, &r.Description, &r.Inherits, &r.Members)
		return r, err
	}, sqlListRoles, tx.tenant)
}

// MemberKind is what a role can be given to.
type MemberKind string

// The kinds of members.
const (
	MemberUser  MemberKind = "user"
	MemberTeam  MemberKind = "team"
	MemberGroup MemberKind = "group"
	MemberUnit  MemberKind = "unit"
)

// SetRoleMember gives a role to a user, team, group or unit, or takes it away. It returns ErrNoChange when that is so already.
func (tx *Tx) SetRoleMember(ctx context.Context, role string, kind MemberKind, member string, remove bool) error {
	roleID, err := tx.idOf(ctx, sqlRoleID, "role", role)
	if err != nil {
		return err
	}
	lookup := map[MemberKind]string{MemberUser: sqlUserID, MemberTeam: sqlTeamID, MemberGroup: sqlGroupID, MemberUnit: sqlUnitID}[kind]
	memberID, err := tx.idOf(ctx, lookup, string(kind), member)
	if err != nil {
		return err
	}
	sql := sqlInsertRoleMember
	if remove {
		sql = sqlDeleteRoleMember
	}
	return changed(tx.exec(ctx, sql, tx.tenant, roleID, string(kind), memberID))
}

// changed makes ErrNoChange of a statement that wrote nothing.
func changed(rows int64, err error) error {
	if err == nil && rows == 0 {
		return ErrNoChange
	}
	return err
}

func scanUser(row pgx.CollectableRow) (controlplane.User, error) {
	var u controlplane.User
	var at time.Time
	err := row.Scan(&u.ID, &u.Name, (*string)(&u.Kind), &u.Unit, &u.DisplayName, &u.Supervisor, &u.Disabled, &u.AdminRoles,
		&u.Clearance, &u.Region, &at, &u.Teams, &u.Groups, &u.Roles)
	u.CreatedAt = at.UTC()
	return u, err
}
