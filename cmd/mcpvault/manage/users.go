package manage

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/machines"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

type userView struct {
	Name        string   `json:"name"`
	ID          string   `json:"id"`
	Kind        string   `json:"kind"`
	DisplayName string   `json:"display_name,omitempty"`
	Unit        string   `json:"unit,omitempty"`
	Supervisor  string   `json:"supervisor,omitempty"`
	Clearance   string   `json:"clearance"`
	Region      string   `json:"region,omitempty"`
	Teams       []string `json:"teams"`
	Groups      []string `json:"groups"`
	Roles       []string `json:"roles"`
	Disabled    bool     `json:"disabled"`
}

func viewUser(u *adminv1.User) userView {
	return userView{
		u.GetName(), u.GetId(), output.Word(u.GetKind().String(), "USER_KIND_"), u.GetDisplayName(), u.GetUnit(), u.GetSupervisor(),
		level(u.GetClearance()), u.GetRegion(), append([]string{}, u.GetTeams()...), append([]string{}, u.GetGroups()...),
		append([]string{}, u.GetRoles()...), u.GetDisabled(),
	}
}

func (u userView) state() string {
	if u.Disabled {
		return "disabled"
	}
	return "active"
}

func userColumns() []output.Column[userView] {
	return []output.Column[userView]{
		{Head: "NAME", Cell: func(v userView) string { return v.Name }},
		{Head: "KIND", Cell: func(v userView) string { return v.Kind }},
		{Head: "ROLES", Cell: func(v userView) string { return strings.Join(v.Roles, ",") }},
		{Head: "TEAMS", Cell: func(v userView) string { return strings.Join(v.Teams, ",") }},
		{Head: "GROUPS", Cell: func(v userView) string { return strings.Join(v.Groups, ",") }, Wide: true},
		{Head: "SUPERVISOR", Cell: func(v userView) string { return v.Supervisor }},
		{Head: "STATE", Cell: userView.state},
		{Head: "UNIT", Cell: func(v userView) string { return v.Unit }, Wide: true},
		{Head: "CLEARANCE", Cell: func(v userView) string { return v.Clearance }, Wide: true},
		{Head: "REGION", Cell: func(v userView) string { return v.Region }, Wide: true},
		{Head: "DISPLAY NAME", Cell: func(v userView) string { return v.DisplayName }, Wide: true},
		{Head: "ID", Cell: func(v userView) string { return v.ID }, Wide: true},
	}
}

func userCommand(a *cli.App) *cobra.Command {
	var w cli.Waiting
	disable := func(verb, short string, disabled bool) *cobra.Command {
		return a.Publishes(a.AdminLeaf(verb+" NAME", short, "  mcpvault user "+verb+" mallory", cli.Args("NAME"),
			func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
				resp, err := c.Directory.SetUserDisabled(ctx, &adminv1.SetUserDisabledRequest{Tenant: tenant, Name: args[0], Disabled: disabled})
				if err != nil {
					return err
				}
				a.Published(ctx, c, tenant, resp.GetRevision(), w)
				return nil
			}), &w)
	}
	return a.Group("user", "People, service accounts and workloads.", "  mcpvault user list",
		listUsers(a),
		a.AdminLeaf("get NAME", "Shows a user.", "  mcpvault user get alice", cli.Args("NAME"),
			func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
				resp, err := c.Directory.GetUser(ctx, &adminv1.GetUserRequest{Tenant: tenant, Name: args[0]})
				if err != nil {
					return err
				}
				return cli.Print(a, viewUser(resp.GetUser()), userColumns()...)
			}),
		createUser(a), editUser(a),
		disable("disable", "Takes away everything that a user may do.", true),
		disable("enable", "Gives a disabled user everything back.", false))
}

func listUsers(a *cli.App) *cobra.Command {
	return a.AdminLeaf("list", "Lists the users.", "  mcpvault user list -o wide", cli.Args(),
		func(ctx context.Context, c *admin.Client, tenant string, _ []string) error {
			rows, err := allUsers(ctx, c, tenant)
			if err != nil {
				return err
			}
			return cli.PrintList(a, rows, userColumns()...)
		})
}

func allUsers(ctx context.Context, c *admin.Client, tenant string) ([]userView, error) {
	var rows []userView
	for page := ""; ; {
		resp, err := c.Directory.ListUsers(ctx, &adminv1.ListUsersRequest{Tenant: tenant, PageSize: 1000, PageToken: page})
		if err != nil {
			return nil, err
		}
		rows = append(rows, output.Map(resp.GetUsers(), viewUser)...)
		if page = resp.GetNextPageToken(); page == "" {
			return rows, nil
		}
	}
}

// attributes are the flags of what conditions ask about a user.
type attributes struct {
	unit, clearance, region string
}

func (f *attributes) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.unit, "unit", "", "unit that the user belongs to")
	cmd.Flags().StringVar(&f.clearance, "clearance", "", "highest class of data that the user may touch: public, internal, confidential, restricted, or 0 to 7")
	cmd.Flags().StringVar(&f.region, "region", "", "where the user belongs, for example eu")
}

// create makes a principal of one kind.
func (f *attributes) create(ctx context.Context, a *cli.App, c *admin.Client, req *adminv1.CreateUserRequest) error {
	class, err := levelOf(f.clearance)
	if err != nil {
		return err
	}
	req.Unit, req.Clearance, req.Region = f.unit, class, f.region
	resp, err := c.Directory.CreateUser(ctx, req)
	if err != nil {
		return err
	}
	return cli.Print(a, viewUser(resp.GetUser()), userColumns()...)
}

func createUser(a *cli.App) *cobra.Command {
	var f attributes
	var display, supervisor, kind string
	var service bool
	create := a.AdminLeaf("create NAME", "Makes a user.",
		"  mcpvault user create carol --supervisor bob\n  mcpvault user create nightly --service-account --clearance internal", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			req := &adminv1.CreateUserRequest{Tenant: tenant, Name: args[0], DisplayName: display, Supervisor: supervisor}
			switch {
			case service || kind == "service_account" || kind == "service-account":
				req.Kind = adminv1.UserKind_USER_KIND_SERVICE_ACCOUNT
			case kind == "workload":
				req.Kind = adminv1.UserKind_USER_KIND_WORKLOAD
			case kind == "" || kind == "person":
				req.Kind = adminv1.UserKind_USER_KIND_PERSON
			default:
				return problem.Newf(problem.Invalid, "use person, service-account or workload", "%q is no kind of user", kind)
			}
			return f.create(ctx, a, c, req)
		})
	f.flags(create)
	create.Flags().StringVar(&display, "display-name", "", "name as people write it")
	create.Flags().StringVar(&supervisor, "supervisor", "", "user who supervises this one")
	create.Flags().StringVar(&kind, "kind", "", "person, service-account or workload; person when not given")
	create.Flags().BoolVar(&service, "service-account", false, "a program, not a person")
	return create
}

func editUser(a *cli.App) *cobra.Command {
	var w cli.Waiting
	var f attributes
	var cmd *cobra.Command
	cmd = a.AdminLeaf("edit NAME", "Changes what conditions ask about a user. What is not given stays.",
		"  mcpvault user edit alice --clearance confidential --region eu\n  mcpvault user edit alice --unit ''", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			req := &adminv1.UpdateUserRequest{Tenant: tenant, Name: args[0]}
			if cmd.Flags().Changed("clearance") {
				class, err := levelOf(f.clearance)
				if err != nil {
					return err
				}
				req.Clearance = &class
			}
			if cmd.Flags().Changed("region") {
				req.Region = &f.region
			}
			if cmd.Flags().Changed("unit") {
				req.Unit = &f.unit
			}
			if req.Clearance == nil && req.Region == nil && req.Unit == nil {
				return problem.New(problem.Invalid, "nothing to change was given", "give --clearance, --region or --unit")
			}
			resp, err := c.Directory.UpdateUser(ctx, req)
			if err != nil {
				return err
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			return cli.Print(a, viewUser(resp.GetUser()), userColumns()...)
		})
	f.flags(cmd)
	return a.Publishes(cmd, &w)
}

func workloadCommand(a *cli.App) *cobra.Command {
	var f attributes
	create := a.AdminLeaf("create SPIFFE-ID", "Makes a principal of a workload that proves this SPIFFE ID.",
		"  mcpvault workload create spiffe://prod.example.com/agent/billing --clearance internal", cli.Args("SPIFFE-ID"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			return f.create(ctx, a, c, &adminv1.CreateUserRequest{Tenant: tenant, Name: args[0], Kind: adminv1.UserKind_USER_KIND_WORKLOAD})
		})
	f.flags(create)
	list := a.AdminLeaf("list", "Lists the workloads.", "  mcpvault workload list", cli.Args(),
		func(ctx context.Context, c *admin.Client, tenant string, _ []string) error {
			rows, err := allUsers(ctx, c, tenant)
			if err != nil {
				return err
			}
			rows = slices.DeleteFunc(rows, func(v userView) bool { return v.Kind != "workload" })
			return cli.PrintList(a, rows, userColumns()...)
		})
	return a.Group("workload", "Workloads: programs that prove a SPIFFE ID. They are users, and `mcpvault user` shows and changes them too.",
		"  mcpvault workload list", list, create, machines.WorkloadSVID(a))
}

// levels are the words for the classes of data that have one.
func levels() []string { return []string{"public", "internal", "confidential", "restricted"} }

// level is the word for a class of data, or its number.
func level(n uint32) string {
	if n < uint32(len(levels())) {
		return levels()[n]
	}
	return strconv.FormatUint(uint64(n), 10)
}

// levelOf reads a class of data; "" is public.
func levelOf(word string) (uint32, error) {
	if i := slices.Index(levels(), word); i >= 0 {
		return uint32(i), nil
	}
	n, err := strconv.ParseUint(word, 10, 32)
	if word == "" || err == nil && n <= 7 {
		return uint32(n), nil
	}
	return 0, problem.Newf(problem.Invalid, "use public, internal, confidential, restricted, or a number from 0 to 7", "%q is no class of data", word)
}
