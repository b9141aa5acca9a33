// Package daemon is the command line that every server of the house has: -config, -check, -version, an example in -help,
// one log, and an orderly end on SIGTERM. What a server does is the caller's; how it is started is the same everywhere.
package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/mcpvault/mcpvault/kit/conf"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/run"
	"github.com/mcpvault/mcpvault/kit/tele"
)

// envPrefix begins the variables that override values of a configuration file.
const envPrefix = "MCPVAULT"

// Config is a server's configuration.
type Config interface {
	// Logging says what is logged and how.
	Logging() tele.LogConfig
}

// Program is one server.
type Program[C Config] struct {
	Name string
	// Usage is what -help begins with: an example first.
	Usage string
	// Run is the server's life; it returns when ctx has ended and everything has stopped.
	Run func(ctx context.Context, cfg C, log *slog.Logger) error
}

// Main runs the program with the process's arguments and ends the process.
func (p Program[C]) Main() {
	ctx, stop := run.Signals(context.Background())
	err := p.Start(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", p.Name, err)
		os.Exit(problem.CodeOf(err).Exit())
	}
}

// Start does what the arguments say. Its errors are problems where a person can do something.
func (p Program[C]) Start(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet(p.Name, flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		_, _ = io.WriteString(stderr, p.Usage+"\nFlags:\n")
		fs.PrintDefaults()
	}
	path := fs.String("config", "", "the configuration file (YAML)")
	check := fs.Bool("check", false, "validate the configuration and exit: 0 good, 2 not")
	version := fs.Bool("version", false, "print the version and exit")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return problem.New(problem.Invalid, err.Error(), "run "+p.Name+" -help")
	case *version:
		_, err := fmt.Fprintln(stdout, run.Version())
		return err
	case *path == "":
		return problem.New(problem.Invalid, "-config is required", "run "+p.Name+" -help for an example")
	}
	cfg, log, err := Load[C](*path, stderr)
	if found, ok := problem.As(err); ok && *check {
		// A file that is not there is no good configuration either.
		return problem.New(problem.Invalid, found.What, found.Fix)
	}
	if err != nil {
		return err
	}
	if *check {
		_, err := fmt.Fprintf(stdout, "%s: ok\n", *path)
		return err
	}
	return p.Run(ctx, cfg, log)
}

// Load reads a server's configuration and opens the log that it names.
func Load[C Config](path string, stderr io.Writer) (C, *slog.Logger, error) {
	cfg, err := conf.Load[C](path, envPrefix)
	if err != nil {
		return cfg, nil, err
	}
	log, err := tele.Logger(stderr, cfg.Logging())
	return cfg, log, err
}
