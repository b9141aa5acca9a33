// Command mcpvault-cell is one node of a cell. It links nothing of the control plane.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/cell"
	"github.com/mcpvault/mcpvault/dataplane/enroll"
	"github.com/mcpvault/mcpvault/dataplane/upstream/stdio"
	"github.com/mcpvault/mcpvault/kit/daemon"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/run"
)

const usage = `Example:
  mcpvault-cell -config /etc/mcpvault/cell.yaml -check   say whether the configuration is good, and exit
  mcpvault-cell -config /etc/mcpvault/cell.yaml          run one node of a cell until SIGTERM
  mcpvault-cell join -token TOKEN -public-url URL        make this machine a node, with a token of mcpvault cell token create
  mcpvault-cell stdio scan files -config FILE            print what a server under stdio offers, for mcpvault server add --surface
`

func program() daemon.Program[cell.Config] {
	return daemon.Program[cell.Config]{Name: "mcpvault-cell", Usage: usage, Run: cell.Run}
}

func main() {
	if len(os.Args) > 1 && (os.Args[1] == "stdio" || os.Args[1] == "join") {
		ctx, stop := run.Signals(context.Background())
		var err error
		if os.Args[1] == "join" {
			err = join(ctx, os.Args[2:], os.Stdin, os.Stdout, os.Stderr)
		} else {
			err = scan(ctx, os.Args[2:], os.Stdout, os.Stderr)
		}
		stop()
		if err != nil {
			fmt.Fprintln(os.Stderr, "mcpvault-cell:", err)
			os.Exit(problem.CodeOf(err).Exit())
		}
		return
	}
	program().Main()
}

// join makes this machine a node.
func join(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("join", flag.ContinueOnError)
	fs.SetOutput(stderr)
	var o enroll.Order
	enroll.Flags(fs, &o)
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil || fs.NArg() > 0:
		return problem.New(problem.Invalid, "join takes settings only", "run mcpvault-cell join -help")
	}
	return enroll.Do(ctx, o, stdin, stdout)
}

// scanLimit is how long a server has to say what it offers.
const scanLimit = 30 * time.Second

// scan prints the surface of a server that this node's configuration names.
func scan(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	wrong := func(what string) error {
		return problem.New(problem.Invalid, what, "for example: mcpvault-cell stdio scan files -config /etc/mcpvault/cell.yaml")
	}
	if len(args) < 2 || args[0] != "scan" {
		return wrong("stdio knows one command: scan NAME")
	}
	fs := flag.NewFlagSet("stdio scan", flag.ContinueOnError)
	fs.SetOutput(stderr)
	path := fs.String("config", "", "the node's configuration file (YAML)")
	if err := fs.Parse(args[2:]); err != nil || *path == "" {
		return wrong("-config is required")
	}
	cfg, log, err := daemon.Load[cell.Config](*path, stderr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, scanLimit)
	defer cancel()
	surface, err := stdio.Scan(ctx, args[1], cfg.Stdio, run.Version().Version, log)
	if err != nil {
		return err
	}
	out := json.NewEncoder(stdout)
	out.SetEscapeHTML(false)
	return out.Encode(surface)
}
