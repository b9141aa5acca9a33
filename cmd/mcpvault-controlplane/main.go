// Command mcpvault-controlplane decides: it keeps who may use what, and publishes it to the cells.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/mcpvault/mcpvault/controlplane/server"
	"github.com/mcpvault/mcpvault/kit/conf"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/run"
	"github.com/mcpvault/mcpvault/kit/tele"
)

func main() {
	ctx, stop := run.Signals(context.Background())
	err := start(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mcpvault-controlplane:", err)
		os.Exit(problem.CodeOf(err).Exit())
	}
}

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

Flags:
`

func start(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("mcpvault-controlplane", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		_, _ = io.WriteString(stderr, usage)
		fs.PrintDefaults()
	}
	path := fs.String("config", "", "the configuration file (YAML)")
	check := fs.Bool("check", false, "validate the configuration and exit: 0 good, 2 not")
	version := fs.Bool("version", false, "print the version and exit")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return problem.New(problem.Invalid, err.Error(), "run mcpvault-controlplane -help")
	case *version:
		_, err := fmt.Fprintln(stdout, run.Version())
		return err
	case *path == "":
		return problem.New(problem.Invalid, "-config is required", "run mcpvault-controlplane -help for an example")
	}
	cfg, err := conf.Load[server.Config](*path, "MCPVAULT")
	if *check && err != nil {
		// A file that is not there is no good configuration either.
		p, ok := problem.As(err)
		if ok {
			return problem.New(problem.Invalid, p.What, p.Fix)
		}
	}
	if err != nil {
		return err
	}
	if *check {
		_, err := fmt.Fprintf(stdout, "%s: ok\n", *path)
		return err
	}
	log, err := tele.Logger(stderr, cfg.Log)
	if err != nil {
		return err
	}
	return server.Run(ctx, cfg, log)
}
