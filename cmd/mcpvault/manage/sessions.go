package manage

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

type sessionView struct {
	ID        string `json:"id"`
	Principal string `json:"principal"`
	Server    string `json:"server"`
	Cell      string `json:"cell"`
	Node      string `json:"node"`
	Client    string `json:"client"`
	Revision  string `json:"revision"`
	Created   string `json:"created"`
	Used      string `json:"last_used"`
	Upstream  bool   `json:"upstream_session"`
}

func viewSession(s *adminv1.Session) sessionView {
	return sessionView{
		s.GetId(), s.GetPrincipal(), s.GetServer(), s.GetCell(), s.GetNode(), s.GetClient(), s.GetRevision(),
		output.Time(s.GetCreatedMs()), output.Time(s.GetUsedMs()), s.GetUpstream(),
	}
}

func (v sessionView) endpoint() string {
	if v.Server == "" {
		return "(all)"
	}
	return v.Server
}

func sessionColumns() []output.Column[sessionView] {
	return []output.Column[sessionView]{
		{Head: "ID", Cell: func(v sessionView) string { return v.ID }},
		{Head: "PRINCIPAL", Cell: func(v sessionView) string { return v.Principal }},
		{Head: "SERVER", Cell: sessionView.endpoint},
		{Head: "NODE", Cell: func(v sessionView) string { return v.Cell + "/" + v.Node }},
		{Head: "CLIENT", Cell: func(v sessionView) string { return v.Client }},
		{Head: "CREATED", Cell: func(v sessionView) string { return v.Created }},
		{Head: "LAST USED", Cell: func(v sessionView) string { return v.Used }},
		{Head: "REVISION", Cell: func(v sessionView) string { return v.Revision }, Wide: true},
		{Head: "UPSTREAM", Cell: func(v sessionView) string { return output.YesNo(v.Upstream) }, Wide: true},
	}
}

// askSessions lists sessions and says which cells are missing from the list.
func askSessions(ctx context.Context, a *cli.App, c *admin.Client, req *adminv1.ListSessionsRequest) (*adminv1.ListSessionsResponse, error) {
	resp, err := c.Sessions.ListSessions(ctx, req)
	if len(resp.GetSilent()) > 0 {
		a.Warnf("no node answers for cell %s: its sessions are not shown", strings.Join(resp.GetSilent(), ", "))
	}
	return resp, err
}

func sessionsCommand(a *cli.App) *cobra.Command {
	var user, server string
	var limit uint32
	list := a.AdminLeaf("list", "Lists the sessions of legacy clients, last used first, as the cells know them now.",
		`  mcpvault sessions list --user alice
  mcpvault sessions list --server payments -o json`, cli.Args(),
		func(ctx context.Context, c *admin.Client, tenant string, _ []string) error {
			resp, err := askSessions(ctx, a, c, &adminv1.ListSessionsRequest{Tenant: tenant, Principal: user, Server: server, Limit: limit})
			if err != nil {
				return err
			}
			if resp.GetMore() {
				a.Notef("there are more: give --limit, --user or --server")
			}
			return cli.PrintList(a, output.Map(resp.GetSessions(), viewSession), sessionColumns()...)
		})
	list.Flags().StringVar(&user, "user", "", "only those of one principal")
	list.Flags().StringVar(&server, "server", "", "only those on one server")
	list.Flags().Uint32Var(&limit, "limit", 100, "how many")
	show := a.AdminLeaf("show ID", "Shows one session.", "  mcpvault sessions show 5c0e9f3a51c1d9b0a2f7748d6f1b2c3d -o json", cli.Args("ID"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := askSessions(ctx, a, c, &adminv1.ListSessionsRequest{Tenant: tenant, Id: args[0]})
			if err != nil {
				return err
			}
			if len(resp.GetSessions()) == 0 {
				return problem.Newf(problem.NotFound, "look with `mcpvault sessions list`: it may have ended", "there is no session %s", args[0])
			}
			return cli.Print(a, viewSession(resp.GetSessions()[0]), sessionColumns()...)
		})
	return a.Group("sessions", "Sessions of legacy clients.", "  mcpvault sessions list", list, show, endSession(a))
}

func endSession(a *cli.App) *cobra.Command {
	var reason string
	wait := 3 * time.Second
	cmd := a.AdminLeaf("end ID", "Ends a session on every node at once: it is killed, and its client has to begin another.",
		`  mcpvault sessions end 5c0e9f3a51c1d9b0a2f7748d6f1b2c3d --reason "left unattended"`, cli.Args("ID"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			// A kill of an id that misses by a letter would end nothing and say that it had.
			found, err := askSessions(ctx, a, c, &adminv1.ListSessionsRequest{Tenant: tenant, Id: args[0]})
			if err != nil {
				return err
			}
			if len(found.GetSessions()) == 0 && len(found.GetSilent()) == 0 {
				return problem.Newf(problem.NotFound, "look with `mcpvault sessions list`: it may have ended", "there is no session %s", args[0])
			}
			resp, err := c.Access.Kill(ctx, &adminv1.KillRequest{Tenant: tenant, Kind: "session", Subject: args[0], Reason: reason})
			if err != nil {
				return err
			}
			v, err := awaitKill(ctx, c, tenant, resp.GetId(), wait)
			switch {
			case err != nil:
				a.Warnf("the end is signed and on its way as kill %s, but who enforces it is not known: %s", resp.GetId(), admin.Wait(err, c.URL))
				v = killView{ID: resp.GetId(), Kind: "session", Subject: args[0], Acks: []killAck{}, Waiting: []string{}}
			case len(v.Waiting) > 0:
				a.Warnf("not acknowledged by %s: look with `mcpvault kill list`", strings.Join(v.Waiting, ", "))
			default:
				a.Notef("ended, and refused by %s nodes: %s", v.nodes(), v.acknowledged())
			}
			return cli.Print(a, v, killColumns()...)
		})
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	cmd.Flags().DurationVar(&wait, "wait", wait, "how long to wait for the nodes to acknowledge")
	return cmd
}
