// Package manage holds the commands that change what is law: people, what they are granted, the servers that they are
// granted and the data behind these. A change that cells have to enforce is reported only when they do.
package manage

import (
	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
)

// Commands are what this package adds to the command line.
func Commands() []func(*cli.App) *cobra.Command {
	return []func(*cli.App) *cobra.Command{
		orgCommand, unitCommand, teamCommand, groupCommand, userCommand, workloadCommand, roleCommand,
		grantCommand, revokeCommand, grantsCommand, accessCommand, killCommand, sessionsCommand, serverCommand, endpointCommand, settingsCommand,
		issuerCommand,
	}
}
