package start

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/demo"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// Demo is `mcpvault demo`.
func Demo(a *cli.App) *cobra.Command {
	return a.LongLeaf("demo", "Shows in some seconds what MCPVault promises, on an installation of its own: refused, granted, audited, and right with the control plane dead. Exit status 0 only if every step held.",
		"  mcpvault demo\n  mcpvault demo -o json", cli.Args(),
		func(ctx context.Context, _ []string) error {
			exe, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			w := a.World()
			data := a.Format() == output.JSON || a.Format() == output.YAML
			out := w.Stdout
			if data {
				out = w.Stderr
			}
			sum, err := demo.Run(ctx, demo.Config{
				CLI: command(w), Executable: exe, Env: w.Env, Out: out, Colour: a.Getenv("NO_COLOR") == "" && terminal(out),
			})
			if err != nil {
				return err
			}
			if data {
				if err := output.Value(w.Stdout, a.Format(), sum); err != nil {
					return err
				}
			}
			if !sum.OK {
				return problem.New(problem.Internal, "not every promise held", "see the step marked above")
			}
			_, err = fmt.Fprintf(out, "\nevery step held, in %.1f s\n", sum.Seconds)
			return err
		})
}

// command runs this program's command line in this process.
func command(w cli.Config) demo.CLI {
	return func(ctx context.Context, args, env []string, stdout, stderr io.Writer) int {
		return cli.Run(ctx, cli.Config{
			Args: args, Env: env, Stdout: stdout, Stderr: stderr, Version: w.Version, Dir: w.Dir, Commands: Commands(),
		})
	}
}

// terminal reports whether a person looks at w.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
