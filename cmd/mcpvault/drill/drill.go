// Package drill is `mcpvault drill`: rehearsed failures with a measured result and a signed report.
package drill

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/drill/catalog"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/drill/rehearse"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
)

// Command is `mcpvault drill`.
func Command(a *cli.App) *cobra.Command {
	return a.Group("drill", "Rehearses failures and measures what they cost.",
		"  mcpvault drill list\n  mcpvault drill run leader-kill\n  mcpvault drill run --all\n  mcpvault drill report show", list(a), run(a), reportCommand(a))
}

type listed struct {
	Name     string   `json:"name"`
	Breaks   string   `json:"breaks"`
	Blast    string   `json:"blast_radius"`
	Recovers string   `json:"recovers"`
	Needs    []string `json:"needs"`
}

func list(a *cli.App) *cobra.Command {
	return a.Leaf("list", "Lists the drills.", "  mcpvault drill list\n  mcpvault drill list -o wide", cli.Args(), func(context.Context, []string) error {
		rows := output.Map(catalog.All(), func(d *rehearse.Drill) listed {
			return listed{d.Name, d.Breaks, d.Blast, d.Recovers, output.Map(d.Needs, func(n rehearse.Need) string { return string(n) })}
		})
		return cli.PrintList(a, rows,
			output.Column[listed]{Head: "NAME", Cell: func(v listed) string { return v.Name }},
			output.Column[listed]{Head: "WHAT IT DOES", Cell: func(v listed) string { return v.Breaks }},
			output.Column[listed]{Head: "WHO NOTICES", Cell: func(v listed) string { return v.Blast }, Wide: true},
			output.Column[listed]{Head: "RTO IS UNTIL", Cell: func(v listed) string { return v.Recovers }, Wide: true})
	})
}
