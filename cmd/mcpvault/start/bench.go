package start

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/bench/authz"
	"github.com/mcpvault/mcpvault/bench/cell"
	"github.com/mcpvault/mcpvault/bench/measure"
	"github.com/mcpvault/mcpvault/bench/peer"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// benchReport is what a run prints; a part that was not asked for is absent.
type benchReport struct {
	Machine     string            `json:"machine"`
	Authz       *authz.Figures    `json:"authz,omitempty"`
	Call        []*cell.Call      `json:"call,omitempty"`
	Propagation *cell.Propagation `json:"propagation,omitempty"`
	Revocation  *cell.Revocation  `json:"revocation,omitempty"`
	Restart     *cell.Restart     `json:"restart,omitempty"`
	Soak        *cell.Soak        `json:"soak,omitempty"`
}

type benchFlags struct {
	users, rounds, edits, restarts, sessions, principals int

	c                    []int
	round, delay, length time.Duration
	tls                  bool
}

// Bench is `mcpvault bench`.
func Bench(a *cli.App) *cobra.Command {
	var f benchFlags
	leaf := func(name, short string, run func(ctx context.Context, r *benchReport) error) *cobra.Command {
		cmd := a.LongLeaf(name, short, "  mcpvault bench "+name+"\n  mcpvault bench "+name+" -o json", cli.Args(),
			func(ctx context.Context, _ []string) error {
				r := &benchReport{Machine: measure.Machine()}
				if err := run(ctx, r); err != nil {
					return err
				}
				return printBench(a, r)
			})
		return cmd
	}
	commands := []*cobra.Command{
		a.LongLeaf("authz", "Measures the decision alone, in this process: live, cold, lists, opening and compiling.",
			"  mcpvault bench authz\n  mcpvault bench authz --users 1000000 -o json", cli.Args(),
			func(context.Context, []string) error {
				x, err := f.decision(a)
				if err != nil {
					return err
				}
				if format := a.Format(); format == output.JSON || format == output.YAML {
					return output.Value(a.World().Stdout, format, x)
				}
				return printAuthz(a, x)
			}),
		leaf("call", "Measures a call through a cell beside a bare reverse proxy to the same upstream, in interleaved rounds.",
			func(ctx context.Context, r *benchReport) error { return f.running(ctx, a, r, nil, f.call) }),
		leaf("propagation", "Measures the time from an edit's commit to the last node.",
			func(ctx context.Context, r *benchReport) error { return f.running(ctx, a, r, nil, f.propagation) }),
		leaf("revocation", "Measures the time from taking a right away to the last node, which hear the control plane late, and counts calls that are allowed after that.",
			func(ctx context.Context, r *benchReport) error {
				return f.running(ctx, a, r, []string{"--link-delay", f.delay.String()}, f.revocation)
			}),
		leaf("restart", "Measures the time from starting a killed node to its first decision.",
			func(ctx context.Context, r *benchReport) error { return f.running(ctx, a, r, nil, f.restart) }),
		leaf("soak", "Holds many sessions of many principals on one node under mixed load; --sessions, --principals and --for say how much.",
			func(ctx context.Context, r *benchReport) error {
				return f.running(ctx, a, r, []string{"--nodes", "1"}, func(ctx context.Context, b *cell.Bench, r *benchReport) (err error) {
					r.Soak, err = b.Soak(ctx, f.sessions, f.principals, f.length, a.Notef)
					return err
				})
			}),
		leaf("all", "Measures everything.", func(ctx context.Context, r *benchReport) error {
			var err error
			if r.Authz, err = f.decision(a); err != nil {
				return err
			}
			return f.running(ctx, a, r, nil, f.call, f.propagation, f.restart)
		}),
	}
	for _, cmd := range commands {
		cmd.Flags().IntVar(&f.users, "users", 10_000, "users of the measured tenants, 10,000 each: 10000 to 1000000")
		cmd.Flags().IntVar(&f.rounds, "rounds", 5, "interleaved rounds of calls")
		cmd.Flags().DurationVar(&f.round, "round", 1500*time.Millisecond, "length of one round")
		cmd.Flags().IntSliceVar(&f.c, "in-flight", []int{16, 64}, "calls kept in flight")
		cmd.Flags().BoolVar(&f.tls, "tls", false, "measure calls with TLS 1.3 in front of the cell and of the baseline")
		cmd.Flags().IntVar(&f.sessions, "sessions", 1000, "live sessions: idle ones with an open stream whose memory is measured (0 for none), busy ones of a soak")
		cmd.Flags().IntVar(&f.principals, "principals", 100, "principals of a soak")
		cmd.Flags().DurationVar(&f.length, "for", time.Minute, "length of a soak")
		cmd.Flags().IntVar(&f.edits, "edits", 40, "edits whose propagation is measured")
		cmd.Flags().DurationVar(&f.delay, "delay", 20*time.Millisecond, "how much later the nodes hear of a revocation")
		cmd.Flags().IntVar(&f.restarts, "restarts", 5, "restarts of a node")
	}
	return a.Group("bench", "Measures MCPVault on this machine, in a throw-away installation.", "  mcpvault bench all\n  mcpvault bench call -o json", commands...)
}

func (f *benchFlags) decision(a *cli.App) (*authz.Figures, error) {
	return authz.Run(authz.Config{Users: f.users, Rounds: f.rounds, Note: a.Notef})
}

// running measures parts of an installation that is started for it.
func (f *benchFlags) running(ctx context.Context, a *cli.App, r *benchReport, flags []string, parts ...func(context.Context, *cell.Bench, *benchReport) error) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	a.Notef("starting a throw-away installation")
	b, err := cell.Start(ctx, exe, flags...)
	if err != nil {
		return err
	}
	for _, part := range parts {
		if err = part(ctx, b, r); err != nil {
			break
		}
	}
	return errors.Join(err, b.Stop())
}

func (f *benchFlags) call(ctx context.Context, b *cell.Bench, r *benchReport) error {
	var idle float64
	if f.sessions > 0 {
		var err error
		if idle, err = b.Idle(ctx, f.sessions); err != nil { // first, while the node is fresh
			return err
		}
	}
	for _, c := range f.c {
		got, err := b.Call(ctx, c, f.rounds, f.round, f.tls)
		if err != nil {
			return err
		}
		got.IdleKB = idle
		r.Call = append(r.Call, got)
	}
	return nil
}

func (f *benchFlags) propagation(ctx context.Context, b *cell.Bench, r *benchReport) (err error) {
	r.Propagation, err = b.Propagation(ctx, f.edits)
	return err
}

func (f *benchFlags) revocation(ctx context.Context, b *cell.Bench, r *benchReport) (err error) {
	r.Revocation, err = b.Revocation(ctx, f.edits, f.delay)
	return err
}

func (f *benchFlags) restart(ctx context.Context, b *cell.Bench, r *benchReport) (err error) {
	r.Restart, err = b.Restart(ctx, f.restarts)
	return err
}

func printBench(a *cli.App, r *benchReport) error {
	if f := a.Format(); f == output.JSON || f == output.YAML {
		return output.Value(a.World().Stdout, f, r)
	}
	w := a.World().Stdout
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	if r.Authz == nil {
		line("machine      %s", r.Machine)
	} else {
		if err := printAuthz(a, r.Authz); err != nil {
			return err
		}
		line("")
	}
	for _, x := range r.Call {
		line("call C=%-4d  against a bare reverse proxy: calls/s x%.2f, CPU a call x%.2f, p99 x%.2f; with effects, durable before and after: calls/s x%.2f",
			x.C, x.RPSRatio, x.CPURatio, x.P99Ratio, x.SyncRPSRatio)
		line("             %.1f us of CPU a call (baseline %.1f)", x.CPUus, x.BaselineCPU)
		line("             %.0f calls/s (baseline %.0f), p50 %.0f us, p99 %.0f us, %d wrong answers and %d failed calls of %d", x.RPS, x.BaselineRPS, x.P50us, x.P99us, x.Wrong, x.Failed, x.Calls)
		if x.FirstError != "" {
			line("             the first that went wrong: %s", x.FirstError)
		}
		if x.IdleKB > 0 {
			line("             an idle session with an open stream: %.1f KB", x.IdleKB)
		}
	}
	if x := r.Propagation; x != nil {
		line("edit -> law  %d edits, %d nodes: commit to last node p50 %.1f ms, p99 %.1f ms, max %.1f ms", x.Edits, x.Nodes, x.P50, x.P99, x.Max)
	}
	if x := r.Revocation; x != nil {
		line("revocation   %d, %d nodes that hear the control plane %.0f ms late: commit to last node p50 %.1f ms, p99 %.1f ms, max %.1f ms; %d were deltas",
			x.Revocations, x.Nodes, x.DelayMS, x.P50, x.P99, x.Max, x.Deltas)
		line("             %d calls meanwhile, %d allowed after their node had acknowledged", x.Calls, x.LateAllows)
	}
	if x := r.Soak; x != nil {
		line("soak         %d sessions (%d streams) of %d principals for %.0f s: %d requests, %d errors, %d streams lost, at most %.0f MB",
			x.Sessions, x.Streams, x.Principals, x.Seconds, x.Requests, x.Errors, x.Lost, x.MaxMB)
		if x.FirstError != "" {
			line("             first error: %s", x.FirstError)
		}
	}
	if x := r.Restart; x != nil {
		line("restart      %d kills: process start to first decision p50 %.0f ms, max %.0f ms", x.Restarts, x.P50, x.Max)
	}
	return nil
}

func printAuthz(a *cli.App, x *authz.Figures) error {
	w := a.World().Stdout
	if _, err := fmt.Fprintf(w, "machine      %s\nworld        %d users in %d tenants, %d grants; conditions settle %.0f %% of the calls, %.0f %% are allowed\n\n",
		x.Machine, x.Users, x.Tenants, x.Grants, 100*x.ConditionalShare, 100*x.AllowedShare); err != nil {
		return err
	}
	return output.List(w, output.Table, x.Rows(),
		output.Column[authz.Row]{Head: "FIGURE", Cell: func(r authz.Row) string { return r.What }},
		output.Column[authz.Row]{Head: "HERE", Cell: func(r authz.Row) string { return r.Value }},
		output.Column[authz.Row]{Head: "AT MOST", Cell: func(r authz.Row) string { return r.Bound }})
}

// benchPeer is one of the two processes that a cell is measured against.
func benchPeer(a *cli.App) *cobra.Command {
	var listen, target string
	cmd := a.LongLeaf("bench-peer KIND", "Serves the bench upstream, or the baseline proxy.", "  mcpvault internal bench-peer upstream --listen 127.0.0.1:9000", cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			if listen == "" {
				return problem.New(problem.Invalid, "--listen is required", "it is given by `mcpvault bench`")
			}
			return peer.Serve(ctx, args[0], listen, target)
		})
	cmd.Flags().StringVar(&listen, "listen", "", "address")
	cmd.Flags().StringVar(&target, "target", "", "upstream of the proxy")
	return cmd
}
