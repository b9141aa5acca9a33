// Package start holds the commands that start servers: dev, demo, and the two roles that dev starts this program in
// again. It is apart from package cli, which talks to servers and links none of them.
package start

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/contexts"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/devmode"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
)

// defaultPortBase is the first of dev's ports.
const defaultPortBase = 18400

// Dev is `mcpvault dev`.
func Dev(a *cli.App) *cobra.Command {
	cfg := devmode.Config{}
	var dataDir string
	var verbose bool
	cmd := a.LongLeaf("dev", "Runs everything on this machine: PostgreSQL, a control plane, a cell of three nodes and two demo MCP servers. Not for production.",
		`  mcpvault dev
  mcpvault dev --nodes 1 --no-demo
  mcpvault dev --ephemeral --port-base 19400    # leaves nothing behind
  mcpvault dev status
  mcpvault dev kill controlplane                # break something and watch
  mcpvault dev restart controlplane`, cli.Args(),
		func(ctx context.Context, _ []string) error {
			dir, err := devDir(a, dataDir, cfg.Ephemeral)
			if err != nil {
				return err
			}
			if cfg.NodeConfig != "" && !filepath.IsAbs(cfg.NodeConfig) {
				cfg.NodeConfig = filepath.Join(a.WorkDir(), cfg.NodeConfig)
			}
			cfg.DataDir, cfg.Env, cfg.Events = dir, a.World().Env, a.World().Stderr
			if cfg.Executable, err = os.Executable(); err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			level := slog.LevelWarn
			if verbose {
				level = slog.LevelInfo
			}
			cfg.Logger = slog.New(slog.NewTextHandler(a.World().Stderr, &slog.HandlerOptions{Level: level}))
			d, err := devmode.New(cfg)
			if err != nil {
				return err
			}
			began := time.Now()
			a.Notef("starting in %s", dir)
			return d.Run(ctx, func(info *devmode.Info) { banner(a.World().Stdout, info, time.Since(began)) })
		})
	cmd.PersistentFlags().StringVar(&dataDir, "data-dir", contexts.DevDataDir, "where everything is kept")
	f := cmd.Flags()
	f.IntVar(&cfg.Nodes, "nodes", 3, "nodes of each cell: 1, 3 or 5")
	f.IntVar(&cfg.Cells, "cells", 1, "cells, 1 to 4")
	f.IntVar(&cfg.PortBase, "port-base", defaultPortBase, "first of the ports, all on 127.0.0.1")
	f.BoolVar(&cfg.NoDemo, "no-demo", false, "leave out the demo servers and the grants on them")
	f.BoolVar(&cfg.Ephemeral, "ephemeral", false, "begin with nothing and leave nothing; in a temporary directory unless --data-dir names an empty one")
	f.StringVar(&cfg.DatabaseURL, "database-url", "", "use this PostgreSQL instead of a private one")
	f.StringVar(&cfg.NodeConfig, "node-config", "", "a YAML file with settings for every node, as in its own config file: they win over dev's")
	f.DurationVar(&cfg.LinkDelay, "link-delay", 0, "let the nodes hear the control plane that much later, as over a long line")
	f.BoolVarP(&verbose, "verbose", "v", false, "say more while starting")
	f.BoolVar(&cfg.Faults, "faults", false, "allow `mcpvault dev fault` to break links, clocks, disks, identities and servers")
	cmd.AddCommand(devStatus(a, &dataDir), devFault(a, &dataDir),
		devTell(a, &dataDir, "restart", "Starts a process again, ending it first when it runs.", true),
		devTell(a, &dataDir, "stop", "Ends processes in order; `all` ends the whole installation.", false),
		devTell(a, &dataDir, "kill", "Ends processes at once, as a crash would (SIGKILL).", false))
	return cmd
}

// devDir is the data directory as an absolute path.
func devDir(a *cli.App, dir string, ephemeral bool) (string, error) {
	if ephemeral && dir == contexts.DevDataDir {
		return os.MkdirTemp("", "mcpvault-dev-")
	}
	if filepath.IsAbs(dir) {
		return dir, nil
	}
	return filepath.Join(a.WorkDir(), dir), nil
}

func devStatus(a *cli.App, dataDir *string) *cobra.Command {
	return a.Leaf("status", "Lists the processes of a running installation.", "  mcpvault dev status", cli.Args(),
		func(ctx context.Context, _ []string) error {
			dir, err := devDir(a, *dataDir, false)
			if err != nil {
				return err
			}
			all, err := devmode.Tell(ctx, dir, "status")
			if err != nil {
				return err
			}
			return printProcesses(a, all)
		})
}

func printProcesses(a *cli.App, all []devmode.Process) error {
	return cli.PrintList(a, all,
		output.Column[devmode.Process]{Head: "NAME", Cell: func(p devmode.Process) string { return p.Name }},
		output.Column[devmode.Process]{Head: "PID", Cell: func(p devmode.Process) string { return fmt.Sprint(p.PID) }},
		output.Column[devmode.Process]{Head: "RUNNING", Cell: func(p devmode.Process) string { return output.YesNo(p.Running) }},
		output.Column[devmode.Process]{Head: "ENDED", Cell: func(p devmode.Process) string { return p.Ended }},
		output.Column[devmode.Process]{Head: "LOG", Cell: func(p devmode.Process) string { return p.Log }, Wide: true})
}

func devTell(a *cli.App, dataDir *string, op, short string, one bool) *cobra.Command {
	use, args := op+" NAME...", cli.Args("NAME...")
	if one {
		use, args = op+" NAME", cli.Args("NAME")
	}
	cmd := a.Leaf(use, short, "  mcpvault dev "+op+" n2\n  mcpvault dev "+op+" controlplane", args,
		func(ctx context.Context, args []string) error {
			dir, err := devDir(a, *dataDir, false)
			if err != nil {
				return err
			}
			_, err = devmode.Tell(ctx, dir, op, args...)
			return err
		})
	return cmd
}

// banner is what a person sees when everything serves.
func banner(w io.Writer, info *devmode.Info, took time.Duration) {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	row := func(name, value string) { say("  %-14s %s\n", name, value) }
	say("\nDEV MODE - not for production                                   ready in %.1f s\n\n", took.Seconds())
	row("admin API", info.AdminURL)
	for i, url := range info.MCPURLs {
		row(fmt.Sprintf("MCP node n%d", i+1), url+"   "+info.MCPTLSURLs[i])
	}
	row("PostgreSQL", info.DatabaseURL)
	row("certificates", info.CAFile)
	row("data", info.DataDir)
	row("admin token", info.AdminToken)
	say("\n  alice is an analyst of acme, bob is her supervisor, mallory belongs to globex.\n")
	if info.Demo {
		say("  alice may use everything of the server demo, and payments/balance.\n")
	}
	say("\nTry, in another terminal:\n  export MCPVAULT_CONFIG=%s\n", info.CLIConfig)
	for _, c := range nextCommands(info.Demo) {
		say("  %s\n", c)
	}
	say("\nCtrl-C ends everything.\n")
	_, _ = io.WriteString(w, b.String()) // dev.json says it all again.
}

// nextCommands are what to try first.
func nextCommands(demo bool) []string {
	if demo {
		return []string{
			"mcpvault mcp call demo/echo message=hi --as alice",
			"mcpvault mcp call payments/refund amount=5 --as alice",
			"mcpvault grant user:alice server:payments/refund --when 'context.args.amount < 100' --for 1h",
		}
	}
	return []string{"mcpvault server add NAME --url URL", "mcpvault server approve NAME --effect hints", "mcpvault grant user:alice server:NAME"}
}
