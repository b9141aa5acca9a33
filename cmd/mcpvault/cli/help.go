package cli

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// helpTemplate begins with what to type: that is what most readers came for.
const helpTemplate = `{{if .HasExample}}Examples:
{{.Example}}

{{end}}{{with (or .Long .Short)}}{{. | trimTrailingWhitespaces}}

{{end}}{{.UsageString}}`

const usageTemplate = `Usage:
  {{if .Runnable}}{{.UseLine}}{{end}}{{if .HasAvailableSubCommands}}{{if .HasParent}}{{.CommandPath}} COMMAND{{end}}

Commands:{{range .Commands}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableInheritedFlags}}

Flags of every command:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}
`

// Leaf makes a command that does something, within --timeout.
func (a *App) Leaf(use, short, example string, args cobra.PositionalArgs, run func(ctx context.Context, args []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Example: example, Args: args, DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if a.flags.timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, a.flags.timeout)
				defer cancel()
			}
			return run(ctx, args)
		},
	}
}

// LongLeaf makes a command that runs until it is stopped.
func (a *App) LongLeaf(use, short, example string, args cobra.PositionalArgs, run func(ctx context.Context, args []string) error) *cobra.Command {
	c := a.Leaf(use, short, example, args, run)
	c.RunE = func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), args) }
	return c
}

// Group makes a noun: it has commands and does nothing itself.
func (a *App) Group(use, short, example string, commands ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: use, Short: short, Example: example, RunE: a.unknownCommand}
	g.AddCommand(commands...)
	return g
}

// unknownCommand is what a group does: it helps.
func (a *App) unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(append(names, c.Name()), c.Aliases...)
		}
	}
	fix := "see `" + cmd.CommandPath() + " --help`"
	if s := closest(args[0], names); s != "" {
		fix = "did you mean `" + cmd.CommandPath() + " " + s + "`?"
	}
	return problem.Newf(problem.Invalid, fix, "%s has no command %q", cmd.CommandPath(), args[0])
}

// Args demands exactly the named words; a name that ends in "..." may come any number of times, one in brackets may be
// left out.
func Args(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		least, most := 0, len(names)
		for _, n := range names {
			if !strings.HasPrefix(n, "[") {
				least++
			}
			if strings.Contains(n, "...") {
				most = int(^uint(0) >> 1)
			}
		}
		fix := "for example: " + firstExample(cmd)
		if len(args) < least {
			return problem.Newf(problem.Invalid, fix, "%s needs %s", cmd.CommandPath(), strings.Join(names[len(args):least], " and "))
		}
		if len(args) > most {
			return problem.Newf(problem.Invalid, fix, "%s does not take %q", cmd.CommandPath(), args[most])
		}
		return nil
	}
}

func firstExample(cmd *cobra.Command) string {
	line, _, _ := strings.Cut(strings.TrimSpace(cmd.Example), "\n")
	line, _, _ = strings.Cut(line, "  #")
	return "`" + strings.TrimSpace(line) + "`"
}

// dress gives every command the help, the flag errors and the environment that all share.
func (a *App) dress(root *cobra.Command) {
	root.SetHelpTemplate(helpTemplate)
	root.SetUsageTemplate(usageTemplate)
	root.SetFlagErrorFunc(flagError)
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := a.fromEnv(cmd); err != nil {
			return err
		}
		f, err := output.Parse(a.flags.output)
		a.format = f
		return err
	}
	walk(root, func(c *cobra.Command) {
		if c.Example != "" {
			return
		}
		switch {
		case c.Name() == "help":
			c.Example = "  mcpvault help grant"
		case c.Name() == "completion":
			c.Example = "  source <(mcpvault completion bash)"
		case c.HasParent() && c.Parent().Name() == "completion":
			c.Example = "  mcpvault completion " + c.Name() + " > FILE"
		}
	})
}

func walk(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, sub := range c.Commands() {
		walk(sub, f)
	}
}

// fromEnv takes flags that were not given from MCPVAULT_<FLAG>. The servers' own commands are left alone: their settings
// come from their file.
func (a *App) fromEnv(cmd *cobra.Command) error {
	for c := cmd; c != nil; c = c.Parent() {
		if c.Name() == "internal" {
			return nil
		}
	}
	var err error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		v := a.Getenv("MCPVAULT_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_")))
		if f.Changed || v == "" || f.Name == "help" {
			return
		}
		if e := cmd.Flags().Set(f.Name, v); e != nil {
			err = errors.Join(err, problem.Newf(problem.Invalid, "correct or unset it", "the environment's MCPVAULT_%s is not a value for --%s",
				strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_")), f.Name))
		}
	})
	return err
}

// flagError words what is wrong with a flag and which was probably meant.
func flagError(cmd *cobra.Command, err error) error {
	fix := "see `" + cmd.CommandPath() + " --help`"
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		var names []string
		add := func(f *pflag.Flag) { names = append(names, f.Name) }
		cmd.Flags().VisitAll(add)
		cmd.InheritedFlags().VisitAll(add)
		name := unknown.GetSpecifiedName()
		if s := closest(name, names); s != "" {
			fix = "did you mean --" + s + "?"
		}
		dashes := "--"
		if unknown.GetSpecifiedShortnames() != "" {
			dashes = "-"
		}
		return problem.Newf(problem.Invalid, fix, "%s has no flag %s%s", cmd.CommandPath(), dashes, name)
	}
	return problem.New(problem.Invalid, err.Error(), fix)
}

// closest returns the candidate that a typist probably meant, or "".
func closest(word string, candidates []string) string {
	word = strings.ToLower(word)
	best, bestCost := "", 3
	for _, c := range slices.Sorted(slices.Values(candidates)) {
		cost := distance(word, strings.ToLower(c))
		if len(word) >= 2 && strings.HasPrefix(c, word) {
			cost = min(cost, 1)
		}
		if cost < bestCost && cost < len(c) {
			best, bestCost = c, cost
		}
	}
	return best
}

// distance counts the single-character edits between two words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// Duration reads Go's form and days: 1h30m, 7d.
func Duration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil && n > 0 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, problem.Newf(problem.Invalid, "write it like 90m, 1h or 7d", "%q is not a length of time", s)
	}
	return d, nil
}

// Missing says that a thing does not exist and which command lists those that do.
func Missing(noun, name, command string) error {
	return problem.Newf(problem.NotFound, "see `mcpvault "+command+" list`", "%s %q does not exist", noun, name)
}
