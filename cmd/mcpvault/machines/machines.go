// Package machines holds the commands that give machines their identities: join tokens for nodes, joining, SVIDs for
// workloads, and the authorities that sign them. Keys are made where they are used, and stay there.
package machines

import (
	"context"
	"flag"
	"time"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/dataplane/enroll"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

type tokenView struct {
	ID        string `json:"id"`
	Node      string `json:"node"`
	State     string `json:"state"`
	Created   string `json:"created"`
	Expires   string `json:"expires"`
	Used      string `json:"used,omitempty"`
	CreatedBy string `json:"created_by"`
	// Token is there once, when it has been made.
	Token string `json:"token,omitempty"`
}

func viewToken(t *adminv1.JoinToken) tokenView {
	v := tokenView{
		ID: t.GetId(), Node: t.GetCell() + "/" + t.GetNode(), Created: output.Time(t.GetCreatedMs()), Expires: output.Time(t.GetExpiresMs()),
		Used: output.Time(t.GetUsedMs()), CreatedBy: t.GetCreatedBy(), State: "unused",
	}
	switch {
	case t.GetUsedMs() > 0:
		v.State = "used"
	case t.GetRevoked():
		v.State = "revoked"
	case time.Now().UnixMilli() >= t.GetExpiresMs():
		v.State = "expired"
	}
	return v
}

func tokenColumns() []output.Column[tokenView] {
	return []output.Column[tokenView]{
		{Head: "ID", Cell: func(v tokenView) string { return v.ID }},
		{Head: "NODE", Cell: func(v tokenView) string { return v.Node }},
		{Head: "STATE", Cell: func(v tokenView) string { return v.State }},
		{Head: "EXPIRES", Cell: func(v tokenView) string { return v.Expires }},
		{Head: "USED", Cell: func(v tokenView) string { return v.Used }},
		{Head: "CREATED BY", Cell: func(v tokenView) string { return v.CreatedBy }},
	}
}

// JoinTokens are the commands of `cell token`.
func JoinTokens(a *cli.App) *cobra.Command {
	list := a.AdminLeaf("list", "Lists the join tokens of the last thirty days and what became of them; the tokens themselves are not kept.",
		"  mcpvault cell token list", cli.Args(),
		func(ctx context.Context, c *admin.Client, _ string, _ []string) error {
			resp, err := c.Identity.ListJoinTokens(ctx, &adminv1.ListJoinTokensRequest{})
			if err != nil {
				return err
			}
			return cli.PrintList(a, output.Map(resp.GetTokens(), viewToken), tokenColumns()...)
		})
	revoke := a.AdminLeaf("revoke ID", "Makes a join token useless. A machine that has used it is a node: that takes `mcpvault kill node`.",
		"  mcpvault cell token revoke 01K8Z3V9QJ7W2M5T4R6Y8X0ABC", cli.Args("ID"),
		func(ctx context.Context, c *admin.Client, _ string, args []string) error {
			_, err := c.Identity.RevokeJoinToken(ctx, &adminv1.RevokeJoinTokenRequest{Id: args[0]})
			return err
		})
	return a.Group("token", "Join tokens: each makes one machine one node, once.", "  mcpvault cell token create n4 --cell eu-west", createToken(a), list, revoke)
}

func createToken(a *cli.App) *cobra.Command {
	var cell, address string
	cmd := a.AdminLeaf("create NODE", "Makes a token with which one machine becomes the node, once and within ten minutes, and prints it.",
		`  mcpvault cell token create n4 --cell eu-west
  mcpvault cell token create n4 --cell eu-west -q -o json | jq -r .token | ssh n4 sudo mcpvault-cell join -token - -public-url https://mcp.example.com/mcp`,
		cli.Args("NODE"),
		func(ctx context.Context, c *admin.Client, _ string, args []string) error {
			if cell == "" {
				return problem.New(problem.Invalid, "--cell is required", "see `mcpvault cell list`")
			}
			resp, err := c.Identity.CreateJoinToken(ctx, &adminv1.CreateJoinTokenRequest{Cell: cell, Node: args[0], ControlPlane: address})
			if err != nil {
				return err
			}
			v := viewToken(resp.GetToken())
			v.Token = resp.GetSecret()
			a.Notef("join token %s for node %s, once and until %s; it is not shown again. On the machine:\n  mcpvault-cell join -token TOKEN -public-url https://HOST/mcp", v.ID, v.Node, v.Expires)
			return cli.Print(a, v, output.Column[tokenView]{Head: "TOKEN", Cell: func(v tokenView) string { return v.Token }})
		})
	cmd.Flags().StringVar(&cell, "cell", "", "the cell that the node is to be of")
	cmd.Flags().StringVar(&address, "control-plane", "", "where the machine reaches the control plane's cell listener, https://HOST:PORT; its own setting cell_url when not given")
	return cmd
}

// Join is `cell join`, the same as `mcpvault-cell join`.
func Join(a *cli.App) *cobra.Command {
	var o enroll.Order
	fs := flag.NewFlagSet("join", flag.ContinueOnError)
	enroll.Flags(fs, &o)
	cmd := a.LongLeaf("join", "Makes this machine a node of a cell, with a token of `mcpvault cell token create`.",
		"  mcpvault cell join --token - --public-url https://mcp.example.com/mcp < token.txt     # as mcpvault-cell join", cli.Args(),
		func(ctx context.Context, _ []string) error {
			return enroll.Do(ctx, o, a.World().Stdin, a.World().Stdout)
		})
	cmd.Flags().AddGoFlagSet(fs)
	return cmd
}
