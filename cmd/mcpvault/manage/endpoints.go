package manage

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

type endpointView struct {
	Name    string     `json:"name"`
	ID      string     `json:"id"`
	Owner   string     `json:"owner,omitempty"`
	Class   string     `json:"class"`
	Regions []string   `json:"regions"`
	Access  []string   `json:"access"`
	Links   []linkView `json:"links"`
}

type linkView struct {
	Target string   `json:"target"`
	Access []string `json:"access"`
}

func viewEndpoint(e *adminv1.Endpoint) endpointView {
	return endpointView{
		e.GetName(), e.GetId(), e.GetOwner(), level(e.GetClass()), append([]string{}, e.GetRegions()...), append([]string{}, e.GetAccess()...),
		output.Map(e.GetLinks(), func(l *adminv1.EndpointLink) linkView {
			return linkView{l.GetTarget(), append([]string{}, l.GetAccess()...)}
		}),
	}
}

// touched says what touches the endpoint, and how.
func (v endpointView) touched() string {
	return strings.Join(output.Map(v.Links, func(l linkView) string { return l.Target + " (" + strings.Join(l.Access, ",") + ")" }), "; ")
}

func endpointColumns() []output.Column[endpointView] {
	return []output.Column[endpointView]{
		{Head: "NAME", Cell: func(v endpointView) string { return v.Name }},
		{Head: "CLASS", Cell: func(v endpointView) string { return v.Class }},
		{Head: "OWNER", Cell: func(v endpointView) string { return v.Owner }},
		{Head: "REGIONS", Cell: func(v endpointView) string { return strings.Join(v.Regions, ",") }},
		{Head: "ACCESS", Cell: func(v endpointView) string { return strings.Join(v.Access, ",") }},
		{Head: "TOUCHED BY", Cell: endpointView.touched},
		{Head: "ID", Cell: func(v endpointView) string { return v.ID }, Wide: true},
	}
}

func endpointCommand(a *cli.App) *cobra.Command {
	endpoints := lookup[endpointView]{
		command: "endpoint", noun: "endpoint", a: "a data endpoint", example: "crm",
		all: func(ctx context.Context, c *admin.Client, tenant string) ([]endpointView, error) {
			resp, err := c.Endpoints.ListEndpoints(ctx, &adminv1.ListEndpointsRequest{Tenant: tenant})
			return output.Map(resp.GetEndpoints(), viewEndpoint), err
		},
		columns: endpointColumns(), name: func(v endpointView) string { return v.Name },
	}
	return a.Group("endpoint", "Data endpoints: the databases, buckets and APIs that tools touch.", "  mcpvault endpoint list",
		endpoints.list(a), endpoints.get(a), createEndpoint(a), editEndpoint(a), deleteEndpoint(a),
		linkEndpoint(a, "link", "Says that a tool, a prompt or resources touch an endpoint, and how.", false),
		linkEndpoint(a, "unlink", "Says that something does not touch an endpoint.", true))
}

// endpointFlags describe an endpoint.
type endpointFlags struct {
	owner, class    string
	regions, access []string
}

func (f *endpointFlags) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.owner, "owner", "", "who answers for the data")
	cmd.Flags().StringVar(&f.class, "class", "", "class of the data: public, internal, confidential, restricted, or 0 to 7")
	cmd.Flags().StringSliceVar(&f.regions, "region", nil, "where the data is; several with commas")
	cmd.Flags().StringSliceVar(&f.access, "access", nil, "the ways to use it; read,write when not given")
}

func createEndpoint(a *cli.App) *cobra.Command {
	var f endpointFlags
	cmd := a.AdminLeaf("create NAME", "Makes an endpoint.", "  mcpvault endpoint create crm --class confidential --owner sales --region eu --access read,write", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			if f.class == "" {
				return problem.New(problem.Invalid, "mcpvault endpoint create needs --class", "say which class of data it holds: public, internal, confidential, restricted, or 0 to 7")
			}
			class, err := levelOf(f.class)
			if err != nil {
				return err
			}
			resp, err := c.Endpoints.CreateEndpoint(ctx, &adminv1.CreateEndpointRequest{
				Tenant: tenant, Name: args[0], Owner: f.owner, Class: class, Regions: f.regions, Access: f.access,
			})
			if err != nil {
				return err
			}
			return cli.Print(a, viewEndpoint(resp.GetEndpoint()), endpointColumns()...)
		})
	f.flags(cmd)
	return cmd
}

func editEndpoint(a *cli.App) *cobra.Command {
	var w cli.Waiting
	var f endpointFlags
	var cmd *cobra.Command
	cmd = a.AdminLeaf("edit NAME", "Changes an endpoint. What is not given stays.", "  mcpvault endpoint edit crm --class restricted", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			req := &adminv1.UpdateEndpointRequest{Tenant: tenant, Name: args[0], Regions: f.regions, Access: f.access}
			if cmd.Flags().Changed("owner") {
				req.Owner = &f.owner
			}
			if cmd.Flags().Changed("class") {
				class, err := levelOf(f.class)
				if err != nil {
					return err
				}
				req.Class = &class
			}
			resp, err := c.Endpoints.UpdateEndpoint(ctx, req)
			if err != nil {
				return err
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			return cli.Print(a, viewEndpoint(resp.GetEndpoint()), endpointColumns()...)
		})
	f.flags(cmd)
	return a.Publishes(cmd, &w)
}

func deleteEndpoint(a *cli.App) *cobra.Command {
	var w cli.Waiting
	return a.Publishes(a.AdminLeaf("delete NAME", "Takes an endpoint and its links away. Grants on it stay, and reach nothing.", "  mcpvault endpoint delete crm", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := c.Endpoints.DeleteEndpoint(ctx, &adminv1.DeleteEndpointRequest{Tenant: tenant, Name: args[0]})
			if err != nil {
				return err
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			return nil
		}), &w)
}

func linkEndpoint(a *cli.App, verb, short string, remove bool) *cobra.Command {
	var w cli.Waiting
	var access []string
	example := "  mcpvault endpoint " + verb + " crm server:crm/export"
	if !remove {
		example += " --access read"
	}
	cmd := a.AdminLeaf(verb+" NAME TARGET", short, example+"\n  mcpvault endpoint "+verb+" crm 'server:crm/resource:crm://accounts/*'", cli.Args("NAME", "TARGET"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := c.Endpoints.SetLink(ctx, &adminv1.SetLinkRequest{Tenant: tenant, Endpoint: args[0], Target: target(args[1]), Access: access, Remove: remove})
			if err != nil {
				return err
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			return nil
		})
	if !remove {
		cmd.Flags().StringSliceVar(&access, "access", nil, "the ways in which it does; every way that the endpoint has when not given")
	}
	return a.Publishes(cmd, &w)
}
