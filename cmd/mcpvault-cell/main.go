// Command mcpvault-cell is one node of a cell. It links nothing of the control plane.
package main

import (
	"github.com/mcpvault/mcpvault/dataplane/cell"
	"github.com/mcpvault/mcpvault/kit/daemon"
)

const usage = `Example:
  mcpvault-cell -config /etc/mcpvault/cell.yaml -check   say whether the configuration is good, and exit
  mcpvault-cell -config /etc/mcpvault/cell.yaml          run one node of a cell until SIGTERM
`

func program() daemon.Program[cell.Config] {
	return daemon.Program[cell.Config]{Name: "mcpvault-cell", Usage: usage, Run: cell.Run}
}

func main() { program().Main() }
