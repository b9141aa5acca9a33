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

type groupView struct {
	Name    string   `json:"name"`
	ID      string   `json:"id"`
	Source  string   `json:"source"`
	Members []string `json:"members"`
}

func viewGroup(g *adminv1.Group) groupView {
	return groupView{g.GetName(), g.GetId(), g.GetSource(), append([]string{}, g.GetMembers()...)}
}

func groupColumns() []output.Column[groupView] {
	return []output.Column[groupView]{
		{Head: "NAME", Cell: func(v groupView) string { return v.Name }},
		{Head: "SOURCE", Cell: func(v groupView) string { return v.Source }},
		{Head: "MEMBERS", Cell: func(v groupView) string { return strings.Join(v.Members, ",") }},
		{Head: "ID", Cell: func(v groupView) string { return v.ID }, Wide: true},
	}
}

func groupCommand(a *cli.App) *cobra.Command {
	var w cli.Waiting
	groups := lookup[groupView]{
		command: "group", noun: "group", a: "a group", example: "engineers",
		all: func(ctx context.Context, c *admin.Client, tenant string) ([]groupView, error) {
			resp, err := c.Directory.ListGroups(ctx, &adminv1.ListGroupsRequest{Tenant: tenant})
			return output.Map(resp.GetGroups(), viewGroup), err
		},
		columns: groupColumns(), name: func(v groupView) string { return v.Name },
	}
	create := a.AdminLeaf("create NAME", "Makes a group.", "  mcpvault group create engineers", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := c.Directory.CreateGroup(ctx, &adminv1.CreateGroupRequest{Tenant: tenant, Name: args[0]})
			if err != nil {
				return err
			}
			return cli.Print(a, viewGroup(resp.GetGroup()), groupColumns()...)
		})
	remove := a.Publishes(a.AdminLeaf("delete NAME", "Takes a group away. Grants to it stay, and reach nobody.", "  mcpvault group delete engineers", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := c.Directory.DeleteGroup(ctx, &adminv1.DeleteGroupRequest{Tenant: tenant, Name: args[0]})
			if err != nil {
				return err
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			return nil
		}), &w)
	member := func(verb, short string, remove bool) *cobra.Command {
		return a.Publishes(a.AdminLeaf(verb+" GROUP USER", short, "  mcpvault group "+verb+" engineers alice", cli.Args("GROUP", "USER"),
			func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
				resp, err := c.Directory.SetGroupMember(ctx, &adminv1.SetGroupMemberRequest{Tenant: tenant, Group: args[0], User: args[1], Remove: remove})
				if err != nil {
					return err
				}
				a.Published(ctx, c, tenant, resp.GetRevision(), w)
				return nil
			}), &w)
	}
	return a.Group("group", "Groups: sets of users, kept by hand or by an identity provider. They do not nest.", "  mcpvault group list",
		groups.list(a), groups.get(a), create, remove,
		member("add-member", "Puts a user into a group.", false),
		member("remove-member", "Takes a user out of a group.", true))
}
