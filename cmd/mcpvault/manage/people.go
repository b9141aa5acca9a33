package manage

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

type orgView struct {
	Name     string   `json:"name"`
	ID       string   `json:"id"`
	Hosts    []string `json:"hosts"`
	Revision uint64   `json:"revision"`
	Created  string   `json:"created"`
}

func viewOrg(t *adminv1.Tenant) orgView {
	return orgView{t.GetName(), t.GetId(), t.GetHosts(), t.GetRevision(), output.Time(t.GetCreatedMs())}
}

func orgColumns() []output.Column[orgView] {
	return []output.Column[orgView]{
		{Head: "NAME", Cell: func(v orgView) string { return v.Name }},
		{Head: "HOSTS", Cell: func(v orgView) string { return strings.Join(v.Hosts, ",") }},
		{Head: "CREATED", Cell: func(v orgView) string { return v.Created }},
		{Head: "ID", Cell: func(v orgView) string { return v.ID }, Wide: true},
	}
}

func orgCommand(a *cli.App) *cobra.Command {
	var hosts []string
	create := a.AdminLeaf("create NAME", "Makes an organisation.", "  mcpvault org create globex --host globex.example.com", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, _ string, args []string) error {
			resp, err := c.Organisations.CreateTenant(ctx, &adminv1.CreateTenantRequest{Name: args[0], Hosts: hosts})
			if err != nil {
				return err
			}
			return cli.Print(a, viewOrg(resp.GetTenant()), orgColumns()...)
		})
	create.Flags().StringSliceVar(&hosts, "host", nil, "public host name that leads to it; may be given again")
	orgs := lookup[orgView]{
		command: "org", noun: "organisation", a: "an organisation", listFlags: " -o wide", example: "acme",
		all: func(ctx context.Context, c *admin.Client, _ string) ([]orgView, error) {
			resp, err := c.Organisations.ListTenants(ctx, &adminv1.ListTenantsRequest{})
			return output.Map(resp.GetTenants(), viewOrg), err
		},
		columns: orgColumns(), name: func(v orgView) string { return v.Name },
	}
	return a.Group("org", "Organisations: the tenants of the installation.", "  mcpvault org list", orgs.list(a), orgs.get(a), create)
}

type unitView struct {
	Name   string `json:"name"`
	ID     string `json:"id"`
	Parent string `json:"parent,omitempty"`
}

func viewUnit(u *adminv1.Unit) unitView { return unitView{u.GetName(), u.GetId(), u.GetParent()} }

func unitColumns() []output.Column[unitView] {
	return []output.Column[unitView]{
		{Head: "NAME", Cell: func(v unitView) string { return v.Name }},
		{Head: "PARENT", Cell: func(v unitView) string { return v.Parent }},
		{Head: "ID", Cell: func(v unitView) string { return v.ID }, Wide: true},
	}
}

func unitCommand(a *cli.App) *cobra.Command {
	var parent string
	create := a.AdminLeaf("create NAME", "Makes a unit.", "  mcpvault unit create emea --parent sales", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := c.Directory.CreateUnit(ctx, &adminv1.CreateUnitRequest{Tenant: tenant, Name: args[0], Parent: parent})
			if err != nil {
				return err
			}
			return cli.Print(a, viewUnit(resp.GetUnit()), unitColumns()...)
		})
	create.Flags().StringVar(&parent, "parent", "", "unit above it")
	units := lookup[unitView]{
		command: "unit", noun: "unit",
		all: func(ctx context.Context, c *admin.Client, tenant string) ([]unitView, error) {
			resp, err := c.Directory.ListUnits(ctx, &adminv1.ListUnitsRequest{Tenant: tenant})
			return output.Map(resp.GetUnits(), viewUnit), err
		},
		columns: unitColumns(),
	}
	return a.Group("unit", "Units: the parts of an organisation, in a tree.", "  mcpvault unit list", units.list(a), create, moveUnit(a))
}

func moveUnit(a *cli.App) *cobra.Command {
	var w cli.Waiting
	var parent string
	cmd := a.AdminLeaf("move NAME", "Puts a unit, and everything below it, under another one; at the top without --parent.",
		"  mcpvault unit move emea --parent sales", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := c.Directory.MoveUnit(ctx, &adminv1.MoveUnitRequest{Tenant: tenant, Name: args[0], Parent: parent})
			if err != nil {
				return err
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			return nil
		})
	cmd.Flags().StringVar(&parent, "parent", "", "unit above it")
	return a.Publishes(cmd, &w)
}

type teamView struct {
	Name    string   `json:"name"`
	ID      string   `json:"id"`
	Unit    string   `json:"unit,omitempty"`
	Members []string `json:"members"`
}

func viewTeam(t *adminv1.Team) teamView {
	return teamView{t.GetName(), t.GetId(), t.GetUnit(), append([]string{}, t.GetMembers()...)}
}

func teamColumns() []output.Column[teamView] {
	return []output.Column[teamView]{
		{Head: "NAME", Cell: func(v teamView) string { return v.Name }},
		{Head: "UNIT", Cell: func(v teamView) string { return v.Unit }},
		{Head: "MEMBERS", Cell: func(v teamView) string { return strings.Join(v.Members, ",") }},
		{Head: "ID", Cell: func(v teamView) string { return v.ID }, Wide: true},
	}
}

func teamCommand(a *cli.App) *cobra.Command {
	var unit string
	var w cli.Waiting
	create := a.AdminLeaf("create NAME", "Makes a team.", "  mcpvault team create analysts", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := c.Directory.CreateTeam(ctx, &adminv1.CreateTeamRequest{Tenant: tenant, Name: args[0], Unit: unit})
			if err != nil {
				return err
			}
			return cli.Print(a, viewTeam(resp.GetTeam()), teamColumns()...)
		})
	create.Flags().StringVar(&unit, "unit", "", "unit that it belongs to")
	teams := lookup[teamView]{
		command: "team", noun: "team", a: "a team", example: "analysts",
		all: func(ctx context.Context, c *admin.Client, tenant string) ([]teamView, error) {
			resp, err := c.Directory.ListTeams(ctx, &adminv1.ListTeamsRequest{Tenant: tenant})
			return output.Map(resp.GetTeams(), viewTeam), err
		},
		columns: teamColumns(), name: func(v teamView) string { return v.Name },
	}
	member := func(verb, short string, remove bool) *cobra.Command {
		return a.Publishes(a.AdminLeaf(verb+" TEAM USER", short, "  mcpvault team "+verb+" analysts alice", cli.Args("TEAM", "USER"),
			func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
				resp, err := c.Directory.SetTeamMember(ctx, &adminv1.SetTeamMemberRequest{Tenant: tenant, Team: args[0], User: args[1], Remove: remove})
				if err != nil {
					return err
				}
				a.Published(ctx, c, tenant, resp.GetRevision(), w)
				return nil
			}), &w)
	}
	return a.Group("team", "Teams: people who work together.", "  mcpvault team list",
		teams.list(a), teams.get(a),
		create,
		member("add-member", "Puts a person into a team.", false),
		member("remove-member", "Takes a person out of a team.", true))
}

type roleView struct {
	Name        string   `json:"name"`
	ID          string   `json:"id"`
	Description string   `json:"description,omitempty"`
	Inherits    []string `json:"inherits"`
	Members     []string `json:"members"`
}

func viewRole(r *adminv1.Role) roleView {
	return roleView{
		r.GetName(), r.GetId(), r.GetDescription(),
		append([]string{}, r.GetInherits()...), append([]string{}, r.GetMembers()...),
	}
}

func roleColumns() []output.Column[roleView] {
	return []output.Column[roleView]{
		{Head: "NAME", Cell: func(v roleView) string { return v.Name }},
		{Head: "MEMBERS", Cell: func(v roleView) string { return strings.Join(v.Members, ",") }},
		{Head: "INHERITS", Cell: func(v roleView) string { return strings.Join(v.Inherits, ",") }},
		{Head: "DESCRIPTION", Cell: func(v roleView) string { return v.Description }},
		{Head: "ID", Cell: func(v roleView) string { return v.ID }, Wide: true},
	}
}

func roleCommand(a *cli.App) *cobra.Command {
	var w cli.Waiting
	roles := lookup[roleView]{
		command: "role", noun: "role", a: "a role", example: "analyst",
		all: func(ctx context.Context, c *admin.Client, tenant string) ([]roleView, error) {
			resp, err := c.Directory.ListRoles(ctx, &adminv1.ListRolesRequest{Tenant: tenant})
			return output.Map(resp.GetRoles(), viewRole), err
		},
		columns: roleColumns(), name: func(v roleView) string { return v.Name },
	}
	assign := func(verb, short string, remove bool) *cobra.Command {
		return a.Publishes(a.AdminLeaf(verb+" ROLE MEMBER", short, "  mcpvault role "+verb+" analyst user:alice\n  mcpvault role "+verb+" analyst group:eng", cli.Args("ROLE", "MEMBER"),
			func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
				resp, err := c.Directory.SetRoleMember(ctx, &adminv1.SetRoleMemberRequest{Tenant: tenant, Role: args[0], Member: subject(args[1]), Remove: remove})
				if err != nil {
					return err
				}
				a.Published(ctx, c, tenant, resp.GetRevision(), w)
				return nil
			}), &w)
	}
	return a.Group("role", "Roles: what people are allowed because of what they do.", "  mcpvault role list",
		roles.list(a), roles.get(a),
		createRole(a),
		assign("assign", "Gives a role to a user, team, group or unit.", false),
		assign("unassign", "Takes a role from a user, team, group or unit.", true))
}

func createRole(a *cli.App) *cobra.Command {
	var description string
	var inherits []string
	create := a.AdminLeaf("create NAME", "Makes a role.", "  mcpvault role create lead --inherits analyst", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := c.Directory.CreateRole(ctx, &adminv1.CreateRoleRequest{Tenant: tenant, Name: args[0], Description: description, Inherits: inherits})
			if err != nil {
				return err
			}
			return cli.Print(a, viewRole(resp.GetRole()), roleColumns()...)
		})
	create.Flags().StringVar(&description, "description", "", "what the role is for")
	create.Flags().StringSliceVar(&inherits, "inherits", nil, "role whose grants this one has too; may be given again")
	return create
}
