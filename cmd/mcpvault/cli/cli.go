// Package cli is the operator's command line: what to type, what is printed where, and how a script learns the outcome.
// It promises that stdout carries data and nothing else, that every failure says what failed and what to type next, and
// that the exit status means the same in every command: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 denied by policy,
// 5 log in again, 6 conflict, 7 unavailable, 124 out of time.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// Config is the world that the command line runs in.
type Config struct {
	// Args are the words after the program's name.
	Args []string
	// Env is the environment, KEY=VALUE.
	Env            []string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Dir is the working directory.
	Dir string
	// Version is what `version` prints.
	Version string
	// Commands are added to the tree. Only those that log in and call tools are here; the others have rooms of their own.
	Commands []func(*App) *cobra.Command
}

// Run runs one command and returns its exit status. It ends early when ctx does.
func Run(ctx context.Context, cfg Config) int {
	a := &App{cfg: cfg, env: map[string]string{}}
	for _, kv := range cfg.Env {
		k, v, _ := strings.Cut(kv, "=")
		a.env[k] = v
	}
	root := a.root()
	root.SetArgs(cfg.Args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	return a.fail(err)
}

// App is one run of the program.
type App struct {
	cfg   Config
	env   map[string]string
	flags struct {
		addr, caFile, context, config, org, as, output string
		timeout                                        time.Duration
		quiet                                          bool
	}
	format output.Format
	// adminURL is the control plane that was asked, for errors.
	adminURL string
}

// Getenv looks up the environment that the program was given.
func (a *App) Getenv(key string) string { return a.env[key] }

// Format is how data is to be printed.
func (a *App) Format() output.Format { return a.format }

// As is the person whose token is to be used, "" when nobody is named.
func (a *App) As() string { return a.flags.as }

// Timeout is how long one question to a server may take.
func (a *App) Timeout() time.Duration { return a.flags.timeout }

// ContextName is the context that was asked for, "" for the current one.
func (a *App) ContextName() string { return a.flags.context }

// Quiet says that only data and errors are wanted.
func (a *App) Quiet() bool { return a.flags.quiet }

// World returns the surroundings that the program was given.
func (a *App) World() Config { return a.cfg }

// tell writes to stderr. When that is gone there is nobody left to tell so.
func (a *App) tell(format string, args ...any) { _, _ = fmt.Fprintf(a.cfg.Stderr, format, args...) }

// Notef tells the person something that is not data.
func (a *App) Notef(format string, args ...any) {
	if !a.flags.quiet {
		a.tell(format+"\n", args...)
	}
}

// Warnf tells the person something that went wrong without failing the command.
func (a *App) Warnf(format string, args ...any) {
	a.tell("warning: "+format+"\n", args...)
}

// exitError ends the program with a status after everything has been said.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// Exit is an error that ends the program with the status and says nothing more.
func Exit(status int) error {
	if status == 0 {
		return nil
	}
	return exitError(status)
}

// fail prints an error and returns the exit status.
func (a *App) fail(err error) int {
	var exit exitError
	if errors.As(err, &exit) {
		return int(exit)
	}
	err = admin.Problem(err, a.adminURL)
	p, ok := problem.As(err)
	if !ok {
		p = a.ordinary(err)
	}
	a.tell("error: %s\n", output.Clean(p.What))
	if p.Cause != nil && a.Getenv("MCPVAULT_DEBUG") != "" {
		a.tell("cause: %s\n", output.Clean(p.Cause.Error()))
	}
	if p.Fix != "" {
		a.tell("hint: %s\n", output.Clean(p.Fix))
	}
	return p.Code.Exit()
}

// ordinary makes a problem of an error that nobody has worded.
func (a *App) ordinary(err error) *problem.Problem {
	if errors.Is(err, context.DeadlineExceeded) {
		return problem.New(problem.Timeout, "out of time: "+err.Error(), "raise --timeout")
	}
	if errors.Is(err, context.Canceled) {
		return problem.New(problem.Internal, "stopped", "")
	}
	return problem.New(problem.Internal, err.Error(), "")
}

// Print prints one thing.
func Print[T any](a *App, v T, columns ...output.Column[T]) error {
	return output.One(a.cfg.Stdout, a.format, v, columns...)
}

// PrintList prints many.
func PrintList[T any](a *App, rows []T, columns ...output.Column[T]) error {
	return output.List(a.cfg.Stdout, a.format, rows, columns...)
}

func (a *App) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "mcpvault",
		Short: "MCPVault decides who may call which tool of which MCP server, and proves it afterwards.",
		Example: `  mcpvault dev                                           # everything on this machine
  mcpvault demo                                          # a tour: refused, granted, audited, offline
  mcpvault mcp call demo/echo message=hi --as alice      # a call through a cell
  mcpvault grant user:alice server:payments/refund --when 'context.args.amount < 100' --for 1h`,
		SilenceErrors: true, SilenceUsage: true,
		Args: cobra.ArbitraryArgs, RunE: a.unknownCommand,
	}
	root.SetOut(a.cfg.Stdout)
	root.SetErr(a.cfg.Stderr)
	root.SetIn(a.cfg.Stdin)
	a.globalFlags(root)
	root.AddCommand(
		a.loginCommand(), a.logoutCommand(), a.whoamiCommand(), a.contextCommand(),
		a.tokenCommand(), a.mcpCommand(), a.versionCommand(),
	)
	for _, f := range a.cfg.Commands {
		root.AddCommand(f(a))
	}
	a.dress(root)
	return root
}

func (a *App) globalFlags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVar(&a.flags.addr, "addr", "", "control plane's address instead of the context's")
	f.StringVar(&a.flags.caFile, "cacert", "", "file of certificates to trust instead of the context's")
	f.StringVar(&a.flags.config, "config", "", "file of contexts")
	f.StringVar(&a.flags.context, "context", "", "context to use instead of the current one")
	f.StringVar(&a.flags.org, "org", "", "organisation (tenant) instead of the context's")
	f.StringVar(&a.flags.as, "as", "", "person of the context whose token is used")
	f.StringVarP(&a.flags.output, "output", "o", "table", "how data is printed: "+strings.Join(output.Formats(), ", "))
	f.DurationVar(&a.flags.timeout, "timeout", 30*time.Second, "how long a command may take")
	f.BoolVarP(&a.flags.quiet, "quiet", "q", false, "print data and errors only")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(output.Formats(), cobra.ShellCompDirectiveNoFileComp))
}

func (a *App) versionCommand() *cobra.Command {
	type version struct {
		Version string `json:"version"`
	}
	return a.Leaf("version", "Prints the program's version.", "  mcpvault version", Args(),
		func(context.Context, []string) error {
			return Print(a, version{a.cfg.Version}, output.Column[version]{Head: "VERSION", Cell: func(v version) string { return v.Version }})
		})
}

// WorkDir is the directory that relative paths mean.
func (a *App) WorkDir() string {
	if a.cfg.Dir != "" {
		return a.cfg.Dir
	}
	d, err := os.Getwd()
	if err != nil {
		return "."
	}
	return d
}
