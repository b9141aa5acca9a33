package manage

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

func labelServer(a *cli.App) *cobra.Command {
	var w cli.Waiting
	cmd := a.AdminLeaf("label NAME[/TOOL] KEY=VALUE...", "Labels a server, or one of its tools, whose own labels count more. KEY- takes a label away.",
		`  mcpvault server label payments env=prod pci=true
  mcpvault server label payments/refund pci=true
  mcpvault server label payments env-`, cli.Args("NAME[/TOOL]", "KEY=VALUE..."),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			name, tool, _ := strings.Cut(strings.TrimPrefix(args[0], "server:"), "/")
			req := &adminv1.SetLabelsRequest{Tenant: tenant, Name: name, Tool: tool, Set: map[string]string{}}
			for _, word := range args[1:] {
				key, value, ok := strings.Cut(word, "=")
				gone, isGone := strings.CutSuffix(word, "-")
				switch {
				case ok && key != "" && value != "":
					req.Set[key] = value
				case !ok && isGone && gone != "":
					req.Remove = append(req.Remove, gone)
				default:
					return problem.Newf(problem.Invalid, "write KEY=VALUE to set it, or KEY- to take it away", "%q is no label", word)
				}
			}
			resp, err := c.Registry.SetLabels(ctx, req)
			if err != nil {
				return err
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			return printServer(a, resp.GetServer(), resp.GetVersion())
		})
	return a.Publishes(cmd, &w)
}
