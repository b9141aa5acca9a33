package start

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/contexts"
	"github.com/mcpvault/mcpvault/controlplane/server"
	"github.com/mcpvault/mcpvault/dataplane/cell"
	"github.com/mcpvault/mcpvault/kit/conf"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// Config is `mcpvault config`.
func Config(a *cli.App) *cobra.Command {
	var kind string
	validate := a.Leaf("validate FILE", "Checks a configuration file and says everything that is wrong with it.",
		"  mcpvault config validate cell.yaml --kind cell\n  mcpvault config validate controlplane.yaml --kind controlplane", cli.Args("FILE"),
		func(_ context.Context, args []string) error {
			var err error
			switch kind {
			case "controlplane":
				_, err = conf.Load[server.Config](args[0], "MCPVAULT")
			case "cell":
				_, err = conf.Load[cell.Config](args[0], "MCPVAULT")
			case "cli":
				_, err = contexts.Load(args[0])
			default:
				return problem.Newf(problem.Invalid, "give --kind controlplane, cell or cli", "%q is not a kind of configuration", kind)
			}
			if err != nil {
				return err
			}
			a.Notef("%s is good", args[0])
			return nil
		})
	validate.Flags().StringVar(&kind, "kind", "", "whose configuration it is: controlplane, cell or cli")
	return a.Group("config", "Configuration files.", "  mcpvault config validate cell.yaml --kind cell", validate)
}
