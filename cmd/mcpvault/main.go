// Command mcpvault is the operator's command line, and `mcpvault dev`: everything on one machine with one command.
package main

import (
	"context"
	"io"
	"os"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/start"
	"github.com/mcpvault/mcpvault/kit/run"
)

func main() {
	ctx, stop := run.Signals(context.Background())
	code := program(ctx, os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// program runs one command and returns its exit status.
func program(ctx context.Context, args, env []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return cli.Run(ctx, cli.Config{
		Args: args, Env: env, Stdin: stdin, Stdout: stdout, Stderr: stderr, Version: run.Version().Version,
		Commands: start.Commands(),
	})
}
