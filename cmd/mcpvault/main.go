// Command mcpvault is the operator's command line, and `mcpvault dev`: everything on one machine with one command.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/start"
	"github.com/mcpvault/mcpvault/kit/run"
)

func main() {
	ctx, stop := interruptible(context.Background())
	code := program(ctx, os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// echo is how long a repeated signal counts as the same one: make, npm and timeout pass on what the terminal has sent to
// everybody already, and a stop that has begun must not be cut short by that.
const echo = time.Second

// interruptible returns a context that ends at the first SIGINT or SIGTERM, which mean the same. Another one, later than an
// echo, ends the process at once.
func interruptible(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		for first := time.Now(); ; {
			if <-signals; time.Since(first) > echo {
				os.Exit(exitInterrupted)
			}
		}
	}()
	return ctx, cancel
}

// exitInterrupted is what a shell reports of a program that a person has interrupted.
const exitInterrupted = 130

// program runs one command and returns its exit status.
func program(ctx context.Context, args, env []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return cli.Run(ctx, cli.Config{
		Args: args, Env: env, Stdin: stdin, Stdout: stdout, Stderr: stderr, Version: run.Version().Version,
		Commands: start.Commands(),
	})
}
