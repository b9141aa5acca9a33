package start

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/devmode"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// devFault is `mcpvault dev fault`.
func devFault(a *cli.App, dataDir *string) *cobra.Command {
	return a.Group("fault", "Breaks links, clocks, disks, identities and servers of a running installation on purpose.",
		"  mcpvault dev --faults                          # in another terminal\n  mcpvault dev fault set cut n1 n2\n  mcpvault dev fault list\n  mcpvault dev fault clear --all",
		faultSet(a, dataDir), faultClear(a, dataDir), faultList(a, dataDir))
}

func faultSet(a *cli.App, dataDir *string) *cobra.Command {
	var only []string
	cmd := a.Leaf("set KIND NAME...", "Breaks something until it is cleared. A second fault of one kind on the same takes the place of the first.",
		`  mcpvault dev fault set cut n1 n2                 # neither hears the other
  mcpvault dev fault set one-way n1 controlplane   # what n1 says does not arrive
  mcpvault dev fault set delay n1 n2 200ms         # what n1 says to n2 arrives later
  mcpvault dev fault set clock n2 +10m
  mcpvault dev fault set clock n2 behind 10m       # or: clock n2 -- -10m
  mcpvault dev fault set disk n1 hang              # or full, or error
  mcpvault dev fault set disk n1 full --only audit # or raft, or store
  mcpvault dev fault set svid n3 5s                # ends then, and is not renewed
  mcpvault dev fault set upstream demo slow 5s     # or: upstream demo hang`,
		cobra.MinimumNArgs(2),
		func(ctx context.Context, args []string) error {
			f, err := devmode.ParseFault(args, only, false)
			if err != nil {
				return err
			}
			dir, err := devDir(a, *dataDir, false)
			if err != nil {
				return err
			}
			return devmode.SetFault(ctx, dir, f)
		})
	cmd.Flags().StringSliceVar(&only, "only", nil, "the parts of the disk that it is on: raft, audit, store; all when not given")
	return cmd
}

func faultClear(a *cli.App, dataDir *string) *cobra.Command {
	var all bool
	cmd := a.Leaf("clear [KIND NAME...]", "Ends a fault, or all of them.",
		"  mcpvault dev fault clear cut n1 n2\n  mcpvault dev fault clear disk n1\n  mcpvault dev fault clear --all", cobra.ArbitraryArgs,
		func(ctx context.Context, args []string) error {
			var f *devmode.Fault
			switch {
			case all == (len(args) > 0):
				return problem.New(problem.Invalid, "say what is to be cleared", "name one fault, as in `mcpvault dev fault clear cut n1 n2`, or use --all")
			case !all:
				one, err := devmode.ParseFault(args, nil, true)
				if err != nil {
					return err
				}
				f = &one
			}
			dir, err := devDir(a, *dataDir, false)
			if err != nil {
				return err
			}
			return devmode.ClearFault(ctx, dir, f)
		})
	cmd.Flags().BoolVar(&all, "all", false, "end every fault")
	return cmd
}

func faultList(a *cli.App, dataDir *string) *cobra.Command {
	return a.Leaf("list", "Lists what is broken.", "  mcpvault dev fault list\n  mcpvault dev fault list -o json", cli.Args(),
		func(ctx context.Context, _ []string) error {
			dir, err := devDir(a, *dataDir, false)
			if err != nil {
				return err
			}
			all, err := devmode.Faults(ctx, dir)
			if err != nil {
				return err
			}
			return cli.PrintList(a, all,
				output.Column[devmode.Fault]{Head: "KIND", Cell: func(f devmode.Fault) string { return string(f.Kind) }},
				output.Column[devmode.Fault]{Head: "ON", Cell: func(f devmode.Fault) string { return strings.Join(f.On, " ") }},
				output.Column[devmode.Fault]{Head: "HOW", Cell: faultHow})
		})
}

// faultHow says in a few words what a fault does.
func faultHow(f devmode.Fault) string {
	var words []string
	if f.How != "" {
		words = append(words, f.How)
	}
	if f.For != 0 {
		words = append(words, time.Duration(f.For).String())
	}
	if len(f.Parts) > 0 {
		words = append(words, fmt.Sprintf("only %v", f.Parts))
	}
	return strings.Join(words, " ")
}
