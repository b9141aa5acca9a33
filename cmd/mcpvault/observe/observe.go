// Package observe holds the commands that look: at cells, snapshots and the audit, and at what may be wrong. What can be
// proven is proven here, with keys of the reader's own, and not taken from the control plane's word.
package observe

import (
	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
)

// Commands are what this package adds to the command line.
func Commands() []func(*cli.App) *cobra.Command {
	return []func(*cli.App) *cobra.Command{cellCommand, snapshotCommand, auditCommand, doctorCommand, netcheckCommand}
}
