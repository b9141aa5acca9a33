// Command mcpvault-controlplane decides: it keeps who may use what, and publishes it to the cells.
package main

import (
	"github.com/mcpvault/mcpvault/controlplane/server"
	"github.com/mcpvault/mcpvault/kit/daemon"
)

const usage = `Example:
  mcpvault-controlplane -config /etc/mcpvault/controlplane.yaml -check   say whether the configuration is good, and exit
  mcpvault-controlplane -config /etc/mcpvault/controlplane.yaml          run the control plane until SIGTERM

A configuration:
  listen: 0.0.0.0:8400
  tls_cert: /etc/mcpvault/tls.pem
  tls_key: /etc/mcpvault/tls.key
  cell_listen: 0.0.0.0:8404
  database_url: postgres://mcpvault@db.internal/mcpvault     # or MCPVAULT_DATABASE_URL
  keys_dir: /var/lib/mcpvault/keys
  identity_dir: /var/lib/mcpvault/identity                   # or SPIFFE_ENDPOINT_SOCKET
  trust_domain: mcpvault.example
  public_url: https://mcpvault.example
  cells: {eu-west: [acme], us-east: ["*"]}
  bootstrap_tenant: acme
  bootstrap_token_file: /run/mcpvault/owner.token
`

func program() daemon.Program[server.Config] {
	return daemon.Program[server.Config]{Name: "mcpvault-controlplane", Usage: usage, Run: server.Run}
}

func main() { program().Main() }
