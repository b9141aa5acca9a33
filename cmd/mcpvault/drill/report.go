package drill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/bench/drill/report"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// keyFile is where the key is that reports are signed with.
func keyFile(a *cli.App) string { return filepath.Join(filepath.Dir(a.ContextFile()), "drill.key") }

// directory is where reports are kept.
func (f *flags) directory(a *cli.App) string {
	switch {
	case f.reports == "":
		return filepath.Join(filepath.Dir(a.ContextFile()), "drills")
	case filepath.IsAbs(f.reports):
		return f.reports
	}
	return filepath.Join(a.WorkDir(), f.reports)
}

func reportCommand(a *cli.App) *cobra.Command {
	var f flags
	g := a.Group("report", "Reports of drills that were run.", "  mcpvault drill report list\n  mcpvault drill report verify FILE", reportList(a, &f), reportShow(a, &f), reportTable(a, &f), reportVerify(a))
	g.PersistentFlags().StringVar(&f.reports, "reports", "", "directory that reports are kept in")
	return g
}

type kept struct {
	Name    string  `json:"name"`
	Started string  `json:"started"`
	Drills  int     `json:"drills"`
	Passed  bool    `json:"passed"`
	Seconds float64 `json:"seconds"`
}

func reportList(a *cli.App, f *flags) *cobra.Command {
	return a.Leaf("list", "Lists the reports that are kept.", "  mcpvault drill report list", cli.Args(), func(context.Context, []string) error {
		names, err := reports(f.directory(a))
		if err != nil {
			return err
		}
		var rows []kept
		for _, name := range names {
			r, err := report.Read(filepath.Join(f.directory(a), name, report.JSONFile))
			if err != nil {
				a.Warnf("%v", err)
				continue
			}
			rows = append(rows, kept{name, r.Started.Format(time.RFC3339), len(r.Drills), r.Passed(), r.Seconds})
		}
		return cli.PrintList(a, rows,
			output.Column[kept]{Head: "NAME", Cell: func(v kept) string { return v.Name }},
			output.Column[kept]{Head: "DRILLS", Cell: func(v kept) string { return fmt.Sprint(v.Drills) }},
			output.Column[kept]{Head: "PASSED", Cell: func(v kept) string { return output.YesNo(v.Passed) }},
			output.Column[kept]{Head: "STARTED", Cell: func(v kept) string { return v.Started }},
			output.Column[kept]{Head: "SECONDS", Cell: func(v kept) string { return fmt.Sprintf("%.0f", v.Seconds) }, Wide: true})
	})
}

// reports are the names of the reports in a directory, the oldest first.
func reports(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if _, err := os.Stat(filepath.Join(dir, e.Name(), report.JSONFile)); err == nil {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, err
}

// find reads the report that an argument means: its name, its file, or the newest for none.
func find(a *cli.App, f *flags, args []string) (*report.Run, string, error) {
	dir := f.directory(a)
	if len(args) == 0 {
		names, err := reports(dir)
		if err != nil {
			return nil, "", err
		}
		if len(names) == 0 {
			return nil, "", problem.Newf(problem.NotFound, "make one with `mcpvault drill run --all`", "there is no report in %s", dir)
		}
		args = []string{names[len(names)-1]}
	}
	for _, file := range []string{filepath.Join(dir, args[0], report.JSONFile), path(a, args[0]), filepath.Join(path(a, args[0]), report.JSONFile)} {
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
			r, err := report.Read(file)
			return r, filepath.Dir(file), err
		}
	}
	return nil, "", problem.Newf(problem.NotFound, "see `mcpvault drill report list`", "there is no report %q", args[0])
}

func path(a *cli.App, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(a.WorkDir(), name)
}

func reportShow(a *cli.App, f *flags) *cobra.Command {
	return a.Leaf("show [NAME]", "Shows a report, the newest when none is named.", "  mcpvault drill report show\n  mcpvault drill report show 20270102T030405Z -o json", cli.Args("[NAME]"),
		func(_ context.Context, args []string) error {
			r, dir, err := find(a, f, args)
			if err != nil {
				return err
			}
			return show(a, r, dir)
		})
}

func reportTable(a *cli.App, f *flags) *cobra.Command {
	return a.Leaf("table [NAME]", "Prints a report as a degradation table, in Markdown: what works when a thing is lost, as measured.", "  mcpvault drill report table > degradation.md", cli.Args("[NAME]"),
		func(_ context.Context, args []string) error {
			r, _, err := find(a, f, args)
			if err != nil {
				return err
			}
			_, err = a.World().Stdout.Write(r.Table())
			return err
		})
}

type verified struct {
	File   string `json:"file"`
	Signed string `json:"signed"`
	Key    string `json:"key"`
}

func reportVerify(a *cli.App) *cobra.Command {
	var keys []string
	cmd := a.Leaf("verify FILE", "Checks that a file of a report is what was signed. Reports are signed with the key drill.key beside the file of contexts, which is made at the first drill.",
		"  mcpvault drill report verify report.md\n  mcpvault drill report verify report.json --key 'base64 of the public key'", cli.Args("FILE"),
		func(_ context.Context, args []string) error {
			if len(keys) == 0 {
				own, err := report.Key(keyFile(a))
				if err != nil {
					return problem.New(problem.Invalid, err.Error(), "or name the key to believe with --key")
				}
				keys = []string{report.PublicKey(own)}
			}
			if _, err := os.Stat(path(a, args[0])); err != nil {
				return problem.New(problem.NotFound, "the report cannot be read: "+err.Error(), "name a file of a report: "+report.JSONFile+", "+report.MarkdownFile+" or "+report.JUnitFile)
			}
			signed, key, err := report.Verify(path(a, args[0]), keys...)
			switch {
			case errors.Is(err, report.ErrUnsigned):
				err = report.ErrUnsigned
				fallthrough
			case errors.Is(err, report.ErrAltered):
				return problem.Newf(problem.Denied, "do not believe it; run the drill again", "%s does not verify: %v", args[0], err)
			case errors.Is(err, report.ErrUnknownKey):
				return problem.Newf(problem.Denied, "ask whoever made it for the public key, and give it with --key", "%s does not verify: it was signed with %s, which is not known here", args[0], key)
			case err != nil:
				return err
			}
			return cli.Print(a, verified{args[0], signed.Format(time.RFC3339), key},
				output.Column[verified]{Head: "FILE", Cell: func(v verified) string { return v.File }},
				output.Column[verified]{Head: "SIGNED", Cell: func(v verified) string { return v.Signed }},
				output.Column[verified]{Head: "KEY", Cell: func(v verified) string { return v.Key }})
		})
	cmd.Flags().StringSliceVar(&keys, "key", nil, "public key to believe, base64, instead of one's own; may be given again")
	return cmd
}
