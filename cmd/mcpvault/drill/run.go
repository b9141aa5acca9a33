package drill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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

// flags are those of `drill run`.
type flags struct {
	all, long, dryRun, yes  bool
	load, cell, reports     string
	canaryListen, canaryURL string
	length                  time.Duration
	abortAfter              int
	skip                    []string
	// given says that an installation was asked for.
	given bool
}

// The short form, which is the usual one, and the full form.
const (
	shortLoad, longLoad = 200, 1000
	shortFor, longFor   = 12 * time.Second, time.Minute
)

func run(a *cli.App) *cobra.Command {
	var f flags
	cmd := a.LongLeaf("run [NAME]", "Runs one drill, or all of them: in a private installation that is started for it, or in the one of --context.",
		`  mcpvault drill run leader-kill --dry-run
  mcpvault drill run leader-kill --load 200 --for 20s
  mcpvault drill run --all -o json
  mcpvault drill run control-plane-loss --context dev --cell local --abort-after 20 --yes`, cli.Args("[NAME]"), nil)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f.given = cmd.Flags().Changed("context") || cmd.Flags().Changed("addr")
		return f.run(cmd.Context(), a, args)
	}
	fl := cmd.Flags()
	fl.BoolVar(&f.all, "all", false, "run every drill")
	fl.BoolVar(&f.long, "long", false, "the full form: 1,000 decisions, 50 calls and 5 policy changes a second, a minute each")
	fl.BoolVar(&f.dryRun, "dry-run", false, "say what would be done, and do nothing")
	fl.BoolVar(&f.yes, "yes", false, "break something in the installation of --context")
	fl.StringVar(&f.load, "load", "", "decisions a second, like 200; calls are a twentieth of it, policy changes a two-hundredth")
	fl.DurationVar(&f.length, "for", 0, "how long each drill is under load: a quarter before, half while it is broken, a quarter after")
	fl.IntVar(&f.abortAfter, "abort-after", rehearse.Any, "abort budget: mend and end after more failed calls than this, or after one wrong decision")
	fl.StringVar(&f.cell, "cell", "", "the cell that is drilled; the first when not given")
	fl.StringVar(&f.reports, "reports", "", "directory that reports are kept in; drills beside the file of contexts when not given")
	fl.StringSliceVar(&f.skip, "skip", nil, "with --all, drills that are left out")
	fl.StringVar(&f.canaryListen, "canary-listen", "", "address on which the counting server of the drill listens; any on loopback when not given")
	fl.StringVar(&f.canaryURL, "canary-url", "", "address at which the nodes reach it, ending in /mcp")
	return cmd
}

func (f *flags) run(ctx context.Context, a *cli.App, args []string) error {
	drills, err := f.drills(args)
	if err != nil {
		return err
	}
	cfg, err := f.config()
	if err != nil {
		return err
	}
	if f.dryRun {
		return f.describe(ctx, a, drills, cfg)
	}
	if err := f.consent(); err != nil {
		return err
	}
	key, err := report.Key(keyFile(a))
	if err != nil {
		return problem.New(problem.Invalid, "reports cannot be signed: "+err.Error(), "see `mcpvault drill report verify --help`")
	}
	v := newView(a)
	cfg.Tell, cfg.Live = v.tell, v.live
	out := &report.Run{Form: report.Form, Started: time.Now().UTC(), Version: a.World().Version, Machine: measure.Machine(), Load: cfg.Load, Drills: []report.Drill{}}
	err = f.rehearse(ctx, a, drills, cfg, out)
	out.Seconds = time.Since(out.Started).Seconds()
	if len(out.Drills) == 0 {
		return err
	}
	order(out, drills)
	dir := filepath.Join(f.directory(a), out.Started.Format("20060102T150405Z"))
	if e := out.Write(dir, key); e != nil {
		return errors.Join(err, e)
	}
	if e := show(a, out, dir); e != nil || err != nil {
		return errors.Join(err, e)
	}
	return cli.Exit(status(out))
}

// status is the exit status: 0 only if every drill passed; 7 when none failed and some could not be run.
func status(r *report.Run) int {
	if r.Passed() {
		return 0
	}
	for _, d := range r.Drills {
		if !d.Passed && d.Unavailable == "" {
			return problem.Internal.Exit()
		}
	}
	return problem.Unavailable.Exit()
}

// order puts the results into the order in which the drills are listed.
func order(r *report.Run, drills []*rehearse.Drill) {
	at := func(d report.Drill) int {
		return slices.IndexFunc(drills, func(x *rehearse.Drill) bool { return x.Name == d.Name })
	}
	slices.SortStableFunc(r.Drills, func(x, y report.Drill) int { return at(x) - at(y) })
}

// consent refuses to break what was not started for it unless that is wanted and bounded.
func (f *flags) consent() error {
	if !f.given {
		return nil
	}
	if !f.yes {
		return problem.New(problem.Denied, "a drill breaks something in the installation of the context, and nobody has said yes",
			"see what it does with --dry-run, then add --yes; without --context it runs in an installation of its own")
	}
	if f.abortAfter < 0 {
		return problem.New(problem.Denied, "a drill in the installation of a context needs an abort budget", "say after how many failed calls it is to be aborted, for example --abort-after 20")
	}
	return nil
}

// rehearse runs the drills, each in an installation that can run it. What was done is in out, also when it fails.
func (f *flags) rehearse(ctx context.Context, a *cli.App, drills []*rehearse.Drill, cfg rehearse.Config, out *report.Run) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if f.given {
		site, err := open(ctx, a, exe)
		if err != nil {
			return err
		}
		return perform(ctx, site, drills, cfg, out)
	}
	for _, g := range groups(drills) {
		words := g[0].DevFlags()
		a.Notef("starting a private installation %s", strings.Join(words, " "))
		site, err := rehearse.Private(ctx, exe, words...)
		if err != nil {
			return err
		}
		if err := errors.Join(perform(ctx, site, g, cfg, out), site.Close()); err != nil {
			return err
		}
	}
	return nil
}

// groups are the drills that can share a private installation.
func groups(drills []*rehearse.Drill) (all [][]*rehearse.Drill) {
	for _, d := range drills {
		at := slices.IndexFunc(all, func(g []*rehearse.Drill) bool { return slices.Equal(g[0].DevFlags(), d.DevFlags()) })
		if at < 0 {
			all = append(all, nil)
			at = len(all) - 1
		}
		all[at] = append(all[at], d)
	}
	return all
}

func open(ctx context.Context, a *cli.App, exe string) (*rehearse.Site, error) {
	client, c, err := a.Admin()
	if err != nil {
		return nil, err
	}
	return rehearse.Open(ctx, exe, a.ContextFile(), c, client)
}

// perform runs drills in one installation, one after the other. One that leaves it broken is the last.
func perform(ctx context.Context, site *rehearse.Site, drills []*rehearse.Drill, cfg rehearse.Config, out *report.Run) error {
	if out.Installation != "" {
		out.Installation += "; "
	}
	out.Installation += site.Name()
	if !slices.ContainsFunc(drills, func(d *rehearse.Drill) bool { return site.Lacks(d, cfg.Cell) == "" }) {
		for _, d := range drills {
			out.Drills = append(out.Drills, report.Drill{Name: d.Name, Breaks: d.Breaks, Blast: d.Blast, Unavailable: site.Lacks(d, cfg.Cell), Findings: []string{}})
		}
		return nil
	}
	stage, err := rehearse.Prepare(ctx, site, cfg)
	if err != nil {
		return err
	}
	for _, d := range drills {
		got, e := stage.Run(ctx, d)
		out.Drills = append(out.Drills, *got)
		if err = e; err != nil || ctx.Err() != nil {
			break
		}
	}
	if err == nil && ctx.Err() == nil {
		err = audit(ctx, stage, &out.Drills[len(out.Drills)-1])
	}
	return errors.Join(err, stage.Close(context.WithoutCancel(ctx)))
}

// audit verifies the logs that the drills have left; what is wrong with them the last drill has not passed for.
func audit(ctx context.Context, stage *rehearse.Stage, last *report.Drill) error {
	wrong, err := stage.Audit(ctx)
	for _, w := range wrong {
		last.Findings, last.Passed = append(last.Findings, "the audit logs do not verify after all drills: "+w), false
	}
	return err
}

// drills are those that were asked for.
func (f *flags) drills(args []string) ([]*rehearse.Drill, error) {
	if f.all == (len(args) == 1) {
		return nil, problem.New(problem.Invalid, "it is not said which drill", "name one of `mcpvault drill list`, or give --all")
	}
	if len(args) == 1 {
		d, ok := catalog.Find(args[0])
		if !ok {
			return nil, cli.Missing("drill", args[0], "drill")
		}
		return []*rehearse.Drill{d}, nil
	}
	for _, name := range f.skip {
		if _, ok := catalog.Find(name); !ok {
			return nil, cli.Missing("drill", name, "drill")
		}
	}
	return slices.DeleteFunc(catalog.All(), func(d *rehearse.Drill) bool { return slices.Contains(f.skip, d.Name) }), nil
}

func (f *flags) config() (rehearse.Config, error) {
	cfg := rehearse.Config{Load: load.Scaled(shortLoad), For: shortFor, Cell: f.cell, Budget: f.abortAfter, CanaryListen: f.canaryListen, CanaryURL: f.canaryURL}
	if f.long {
		cfg.Load, cfg.For = load.Scaled(longLoad), longFor
	}
	if f.length != 0 {
		cfg.For = f.length
	}
	if cfg.For < 2*time.Second || cfg.For > time.Hour {
		return cfg, problem.Newf(problem.Invalid, "give 2s to 1h", "a drill cannot be %s long", cfg.For)
	}
	if f.load != "" {
		n, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSuffix(f.load, "rps"), "/s"), 64)
		if err != nil || !(n >= 1 && n <= 100_000) {
			return cfg, problem.Newf(problem.Invalid, "write it like 200, 200/s or 200rps", "%q is not a load", f.load)
		}
		cfg.Load = load.Scaled(n)
	}
	return cfg, nil
}

// plan is what --dry-run says of a drill.
type plan struct {
	Name        string   `json:"name"`
	Breaks      string   `json:"breaks"`
	Blast       string   `json:"blast_radius"`
	Where       string   `json:"where"`
	Load        string   `json:"load"`
	Abort       string   `json:"abort_condition"`
	Passes      []string `json:"passes_if"`
	Unavailable string   `json:"unavailable,omitempty"`
}

// describe says what would be done.
func (f *flags) describe(ctx context.Context, a *cli.App, drills []*rehearse.Drill, cfg rehearse.Config) error {
	var site *rehearse.Site
	if f.given {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		if site, err = open(ctx, a, exe); err != nil {
			return err
		}
	}
	rows := output.Map(drills, func(d *rehearse.Drill) plan { return f.plan(d, cfg, site) })
	columns := []output.Column[plan]{
		{Head: "NAME", Cell: func(v plan) string { return v.Name }},
		{Head: "WHAT IT DOES", Cell: func(v plan) string { return v.Breaks }},
		{Head: "WHO NOTICES", Cell: func(v plan) string { return v.Blast }},
		{Head: "WHERE", Cell: func(v plan) string { return v.Where }},
		{Head: "ABORTS", Cell: func(v plan) string { return v.Abort }},
		{Head: "PASSES IF", Cell: func(v plan) string { return strings.Join(v.Passes, "; ") }},
		{Head: "LOAD", Cell: func(v plan) string { return v.Load }},
		{Head: "UNAVAILABLE", Cell: func(v plan) string { return v.Unavailable }},
	}
	if a.Format() == output.Table && len(rows) == 1 {
		return cli.Print(a, rows[0], columns...)
	}
	return cli.PrintList(a, rows, columns...)
}

func (f *flags) plan(d *rehearse.Drill, cfg rehearse.Config, site *rehearse.Site) plan {
	p := plan{
		Name: d.Name, Breaks: d.Breaks, Blast: d.Blast, Where: "a private installation: mcpvault dev --ephemeral " + strings.Join(d.DevFlags(), " "),
		Load:   fmt.Sprintf("%.0f decisions/s, %.0f calls/s, %.1f policy changes/s for %s", cfg.Load.Decisions, cfg.Load.Calls, cfg.Load.Changes, cfg.For),
		Passes: []string{"0 wrong decisions", "0 lost audit records", atMost(d.Limits.Failed, "failed calls"), atMost(d.Limits.Unknown, "unknown calls"), atMost(d.Limits.Changes, "failed policy changes")},
	}
	p.Where = strings.TrimSpace(p.Where)
	if d.Limits.RTO > 0 {
		p.Passes = append(p.Passes, fmt.Sprintf("%s within %s", d.Recovers, d.Limits.RTO))
	}
	p.Abort = "never: nobody else uses it"
	if f.abortAfter >= 0 {
		p.Abort = fmt.Sprintf("more than %d failed calls, or one wrong decision", f.abortAfter)
	}
	if site != nil {
		p.Where, p.Unavailable = site.Name(), site.Lacks(d, cfg.Cell)
		if f.abortAfter < 0 {
			p.Abort = "it has no abort budget yet, and will not run without one: give --abort-after"
		}
	}
	return p
}

func atMost(n int, what string) string {
	if n < 0 {
		return "any number of " + what
	}
	return fmt.Sprintf("at most %d %s", n, what)
}
