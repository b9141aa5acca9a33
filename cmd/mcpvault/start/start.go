package start

import (
	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
)

// Commands are what this package adds to the command line.
func Commands() []func(*cli.App) *cobra.Command {
	return []func(*cli.App) *cobra.Command{Dev, Demo, Config, Bench, Internal}
}
