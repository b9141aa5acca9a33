package start

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/drill"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/manage"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/observe"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/policy"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/trust"
)

// Commands are the whole command line besides what package cli brings itself: the tour types them all, so that whoever
// starts servers knows them.
func Commands() []func(*cli.App) *cobra.Command {
	return slices.Concat(manage.Commands(), observe.Commands(), []func(*cli.App) *cobra.Command{policy.Command, trust.Command, drill.Command, Dev, Demo, Config, Bench, Internal})
}
