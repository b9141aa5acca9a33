// Command mcpvault-cell is one node of a cell. It links nothing of the control plane.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/mcpvault/mcpvault/dataplane/cell"
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
		fmt.Fprintln(os.Stderr, "mcpvault-cell:", err)
		os.Exit(problem.CodeOf(err).Exit())
	}
}

const usage = `Example:
  mcpvault-cell -config /etc/mcpvault/cell.yaml -check   say whether the configuration is good, and exit
  mcpvault-cell -config /etc/mcpvault/cell.yaml          run one node of a cell until SIGTERM

Flags:
`

func start(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("mcpvault-cell", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		_, _ = io.WriteString(stderr, usage)
		fs.PrintDefaults()
	}
	path := fs.String("config", "", "the node's configuration file (YAML)")
	check := fs.Bool("check", false, "validate the configuration and exit")
	version := fs.Bool("version", false, "print the version and exit")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return problem.New(problem.Invalid, err.Error(), "run mcpvault-cell -help")
	case *version:
		_, err := fmt.Fprintln(stdout, run.Version())
		return err
	case *path == "":
		return problem.New(problem.Invalid, "-config is required", "run mcpvault-cell -help for an example")
	}
	cfg, err := conf.Load[cell.Config](*path, "MCPVAULT")
	if err != nil {
		return err
	}
	if *check {
		_, err := fmt.Fprintf(stdout, "%s: ok\n", *path)
		return err
	}
	log, err := tele.Logger(stderr, tele.LogConfig{Level: cfg.LogLevel, Format: cfg.LogFormat})
	if err != nil {
		return err
	}
	return cell.Run(ctx, cfg, log)
}
