// Package drill is `mcpvault drill`: rehearsed failures with a measured result.
package drill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/bench/drill/load"
	"github.com/mcpvault/mcpvault/bench/drill/report"
	"github.com/mcpvault/mcpvault/bench/measure"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/drill/catalog"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/drill/rehearse"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// Command is `mcpvault drill`.
func Command(a *cli.App) *cobra.Command {
	return a.Group("drill", "Rehearses failures and measures what they cost.", "  mcpvault drill list\n  mcpvault drill run leader-kill\n  mcpvault drill run --all", list(a), run(a))
}

func list(a *cli.App) *cobra.Command {
	type view struct {
		Name     string `json:"name"`
		Breaks   string `json:"breaks"`
		Blast    string `json:"blast_radius"`
		Recovers string `json:"recovers"`
	}
	return a.Leaf("list", "Lists the drills.", "  mcpvault drill list -o wide", cli.Args(), func(context.Context, []string) error {
		return cli.PrintList(a, output.Map(catalog.All(), func(d *rehearse.Drill) view { return view{d.Name, d.Breaks, d.Blast, d.Recovers} }),
			output.Column[view]{Head: "NAME", Cell: func(v view) string { return v.Name }},
			output.Column[view]{Head: "WHAT IT DOES", Cell: func(v view) string { return v.Breaks }},
			output.Column[view]{Head: "WHO NOTICES", Cell: func(v view) string { return v.Blast }, Wide: true},
			output.Column[view]{Head: "MEASURES", Cell: func(v view) string { return v.Recovers }, Wide: true})
	})
}

type flags struct {
	all, long, dryRun, yes bool
	load, cell             string
	length                 time.Duration
	abortAfter             int
}

// Loads and lengths of the forms.
const (
	shortLoad, longLoad = 200, 1000
	shortFor, longFor   = 12 * time.Second, time.Minute
)

func run(a *cli.App) *cobra.Command {
	var f flags
	cmd := a.LongLeaf("run [NAME]", "Runs one drill, or all: in a private installation that is started for it, or in that of the context given.",
		`  mcpvault drill run leader-kill --dry-run
  mcpvault drill run leader-kill --load 200 --for 20s
  mcpvault drill run --all -o json
  mcpvault drill run slow-upstream --context prod --cell eu-west --abort-after 20 --yes`, cli.Args("[NAME]"),
		func(ctx context.Context, args []string) error { return f.run(ctx, a, args) })
	fl := cmd.Flags()
	fl.BoolVar(&f.all, "all", false, "run every drill")
	fl.BoolVar(&f.long, "long", false, "the full form: 1,000 decisions a second, a minute each")
	fl.BoolVar(&f.dryRun, "dry-run", false, "say what would be done, and do nothing")
	fl.BoolVar(&f.yes, "yes", false, "break something in the installation of the context")
	fl.StringVar(&f.load, "load", "", "decisions a second; calls are a twentieth of it and policy changes a two-hundredth")
	fl.StringVar(&f.cell, "cell", "", "the cell that is drilled; the first when not given")
	fl.DurationVar(&f.length, "for", 0, "how long each drill is under load")
	fl.IntVar(&f.abortAfter, "abort-after", rehearse.Any, "abort after more failed calls than this, or one wrong decision")
	return cmd
}

func (f *flags) run(ctx context.Context, a *cli.App, args []string) error {
	drills, err := f.drills(args)
	if err != nil {
		return err
	}
	cfg, err := f.config(a)
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	started := time.Now()
	out := &report.Run{Form: report.Form, Started: started.UTC(), Version: a.World().Version, Machine: measure.Machine(), Load: cfg.Load, Drills: []report.Drill{}}
	a.Notef("starting a private installation")
	site, err := rehearse.Private(ctx, exe)
	if err != nil {
		return err
	}
	out.Installation = site.Name()
	err = func() error {
		stage, err := rehearse.Prepare(ctx, site, cfg)
		if err != nil {
			return err
		}
		for _, d := range drills {
			got, e := stage.Run(ctx, d)
			out.Drills = append(out.Drills, *got)
			if e != nil {
				err = e
				break
			}
		}
		return errors.Join(err, stage.Close(context.WithoutCancel(ctx)))
	}()
	out.Seconds = time.Since(started).Seconds()
	if err := errors.Join(err, site.Close()); err != nil {
		return err
	}
	if err := output.Value(a.World().Stdout, output.JSON, out); err != nil {
		return err
	}
	if !out.Passed() {
		return cli.Exit(problem.Internal.Exit())
	}
	return nil
}

func (f *flags) drills(args []string) ([]*rehearse.Drill, error) {
	if f.all == (len(args) == 1) {
		return nil, problem.New(problem.Invalid, "it is not said which drill", "name one of `mcpvault drill list`, or give --all")
	}
	if f.all {
		return catalog.All(), nil
	}
	d, ok := catalog.Find(args[0])
	if !ok {
		return nil, cli.Missing("drill", args[0], "drill")
	}
	return []*rehearse.Drill{d}, nil
}

func (f *flags) config(a *cli.App) (rehearse.Config, error) {
	cfg := rehearse.Config{Load: load.Scaled(shortLoad), For: shortFor, Cell: f.cell, Budget: f.abortAfter, Tell: a.Notef}
	if f.long {
		cfg.Load, cfg.For = load.Scaled(longLoad), longFor
	}
	if f.length > 0 {
		cfg.For = f.length
	}
	if f.load != "" {
		n, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSuffix(f.load, "rps"), "/s"), 64)
		if err != nil || n < 1 || n > 100_000 {
			return cfg, problem.Newf(problem.Invalid, "write it like 200, 200/s or 200rps", "%q is not a load", f.load)
		}
		cfg.Load = load.Scaled(n)
	}
	return cfg, nil
}
