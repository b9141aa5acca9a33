package store

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
)

// PolicyRows is everything in the directory that decides about calls, in no particular order.
type PolicyRows struct {
	Tenant controlplane.Tenant
	Users  []PolicyUser
	// Units, Teams, Groups and Roles, each with what is directly above it.
	Units, Teams, Groups, Roles []PolicyNode
}

// PolicyUser is a principal and what it belongs to directly.
type PolicyUser struct {
	Name      string
	Kind      controlplane.UserKind
	Disabled  bool
	Clearance uint8
	Region    string
	Unit      string
	Teams     []string
	Groups    []string
	Roles     []string
}

// PolicyNode is a unit, team, group or role. Unit is the one above a unit, or the one that a team belongs to; Roles are
// what it was given, or what a role inherits from.
type PolicyNode struct {
	Name  string
	Unit  string
	Roles []string
}

const (
	sqlPolicyUsers = `SELECT u.id, u.name, u.kind, u.disabled, u.clearance, u.region, coalesce(n.name, '') FROM users u
		LEFT JOIN units n ON n.tenant_id = u.tenant_id AND n.id = u.unit_id WHERE u.tenant_id = $1 ORDER BY u.name`
	// One row per team, group or role: its members come as one array, in which a user is a number and not a name again.
	sqlPolicyTeamUsers = `SELECT t.name, array_agg(m.user_id) FROM team_members m
		JOIN teams t ON t.tenant_id = m.tenant_id AND t.id = m.team_id WHERE m.tenant_id = $1 GROUP BY t.name ORDER BY t.name`
	sqlPolicyGroupUsers = `SELECT g.name, array_agg(m.user_id) FROM group_members m
		JOIN groups g ON g.tenant_id = m.tenant_id AND g.id = m.group_id WHERE m.tenant_id = $1 GROUP BY g.name ORDER BY g.name`
	sqlPolicyRoleUsers = `SELECT r.name, array_agg(m.user_id) FROM role_members m
		JOIN roles r ON r.tenant_id = m.tenant_id AND r.id = m.role_id
		WHERE m.tenant_id = $1 AND m.member_kind = 'user' GROUP BY r.name ORDER BY r.name`

	sqlPolicyUnits = `SELECT u.name, coalesce(p.name, ''),
		array(SELECT r.name FROM role_members m JOIN roles r ON r.tenant_id = m.tenant_id AND r.id = m.role_id
			WHERE m.tenant_id = u.tenant_id AND m.member_kind = 'unit' AND m.member_id = u.id ORDER BY r.name)
		FROM units u LEFT JOIN units p ON p.tenant_id = u.tenant_id AND p.id = u.parent_id WHERE u.tenant_id = $1 ORDER BY u.name`
	sqlPolicyTeams = `SELECT t.name, coalesce(n.name, ''),
		array(SELECT r.name FROM role_members m JOIN roles r ON r.tenant_id = m.tenant_id AND r.id = m.role_id
			WHERE m.tenant_id = t.tenant_id AND m.member_kind = 'team' AND m.member_id = t.id ORDER BY r.name)
		FROM teams t LEFT JOIN units n ON n.tenant_id = t.tenant_id AND n.id = t.unit_id WHERE t.tenant_id = $1 ORDER BY t.name`
	sqlPolicyGroups = `SELECT g.name, '',
		array(SELECT r.name FROM role_members m JOIN roles r ON r.tenant_id = m.tenant_id AND r.id = m.role_id
			WHERE m.tenant_id = g.tenant_id AND m.member_kind = 'group' AND m.member_id = g.id ORDER BY r.name)
		FROM groups g WHERE g.tenant_id = $1 ORDER BY g.name`
	sqlPolicyRoles = `SELECT r.name, '',
		array(SELECT p.name FROM role_inherits i JOIN roles p ON p.tenant_id = i.tenant_id AND p.id = i.inherits_id
			WHERE i.tenant_id = r.tenant_id AND i.role_id = r.id ORDER BY p.name)
		FROM roles r WHERE r.tenant_id = $1 ORDER BY r.name`
)

// PolicyRows reads the directory as the compiler needs it. In a Read it is one consistent view with everything else that
// the transaction reads.
func (tx *Tx) PolicyRows(ctx context.Context) (rows PolicyRows, err error) {
	if rows.Tenant, err = tx.Self(ctx); err != nil {
		return rows, err
	}
	if rows.Users, err = tx.policyUsers(ctx); err != nil {
		return rows, err
	}
	for _, q := range []struct {
		into *[]PolicyNode
		sql  string
	}{
		{&rows.Units, sqlPolicyUnits}, {&rows.Teams, sqlPolicyTeams}, {&rows.Groups, sqlPolicyGroups}, {&rows.Roles, sqlPolicyRoles},
	} {
		if *q.into, err = all(ctx, tx, pgx.RowToStructByPos[PolicyNode], q.sql, tx.tenant); err != nil {
			return rows, err
		}
	}
	return rows, nil
}

// policyUsers joins in Go: four plain scans are several times quicker than a subquery for each of many users.
func (tx *Tx) policyUsers(ctx context.Context) ([]PolicyUser, error) {
	at := map[[16]byte]int{}
	n := 0
	users, err := all(ctx, tx, func(row pgx.CollectableRow) (PolicyUser, error) {
		var u PolicyUser
		var id [16]byte
		err := row.Scan(&id, &u.Name, (*string)(&u.Kind), &u.Disabled, &u.Clearance, &u.Region, &u.Unit)
		at[id] = n
		n++
		return u, err
	}, sqlPolicyUsers, tx.tenant)
	if err != nil {
		return nil, err
	}
	for _, q := range []struct {
		sql string
		of  func(*PolicyUser) *[]string
	}{
		{sqlPolicyTeamUsers, func(u *PolicyUser) *[]string { return &u.Teams }},
		{sqlPolicyGroupUsers, func(u *PolicyUser) *[]string { return &u.Groups }},
		{sqlPolicyRoleUsers, func(u *PolicyUser) *[]string { return &u.Roles }},
	} {
		sets, err := all(ctx, tx, pgx.RowToStructByPos[memberSet], q.sql, tx.tenant)
		if err != nil {
			return nil, err
		}
		for _, s := range sets {
			for _, id := range s.Users {
				if i, ok := at[id]; ok {
					list := q.of(&users[i])
					*list = append(*list, s.Name)
				}
			}
		}
	}
	return users, nil
}

// memberSet is a team, group or role and the users who belong to it directly.
type memberSet struct {
	Name  string
	Users [][16]byte
}
