package manage

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
)

// lookup is the pair of commands that show the things of one kind: all of them, or one by its name.
type lookup[T any] struct {
	// command is the group of commands: "org". noun is the kind: "organisation", a with its article.
	command, noun, a string
	// listFlags and example fill the examples of the help.
	listFlags, example string
	all                func(ctx context.Context, c *admin.Client, tenant string) ([]T, error)
	columns            []output.Column[T]
	name               func(T) string
}

func (l lookup[T]) list(a *cli.App) *cobra.Command {
	return a.AdminLeaf("list", "Lists the "+l.noun+"s.", "  mcpvault "+l.command+" list"+l.listFlags, cli.Args(),
		func(ctx context.Context, c *admin.Client, tenant string, _ []string) error {
			rows, err := l.all(ctx, c, tenant)
			if err != nil {
				return err
			}
			return cli.PrintList(a, rows, l.columns...)
		})
}

func (l lookup[T]) get(a *cli.App) *cobra.Command {
	return a.AdminLeaf("get NAME", "Shows "+l.a+".", "  mcpvault "+l.command+" get "+l.example, cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			rows, err := l.all(ctx, c, tenant)
			if err != nil {
				return err
			}
			for _, r := range rows {
				if l.name(r) == args[0] {
					return cli.Print(a, r, l.columns...)
				}
			}
			return cli.Missing(l.noun, args[0], l.command)
		})
}
