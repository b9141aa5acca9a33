// Package demo is `mcpvault demo`: a tour through what MCPVault promises, on an installation of its own that is gone
// afterwards. It types the same commands that a person would and believes nothing: each step is checked, and the tour ends
// well only if every step held.
package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/contexts"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/devmode"
	"github.com/mcpvault/mcpvault/kit/ports"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// CLI runs one command line and returns its exit status.
type CLI func(ctx context.Context, args, env []string, stdout, stderr io.Writer) int

// Config is what the tour needs.
type Config struct {
	CLI        CLI
	Executable string
	Env        []string
	// Out takes what a person reads.
	Out io.Writer
	// Colour marks what held and what did not.
	Colour bool
}

// Summary is how the tour went.
type Summary struct {
	OK      bool    `json:"ok"`
	Seconds float64 `json:"seconds"`
	Steps   []Step  `json:"steps"`
}

// Step is one promise, tried.
type Step struct {
	Name    string             `json:"name"`
	OK      bool               `json:"ok"`
	Seconds float64            `json:"seconds"`
	Error   string             `json:"error,omitempty"`
	Figures map[string]float64 `json:"figures,omitempty"`
}

// Run takes the tour. The error says that it could not be taken; a promise that did not hold is in the summary.
func Run(ctx context.Context, cfg Config) (*Summary, error) {
	began := time.Now()
	dir, err := os.MkdirTemp("", "mcpvault-demo-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the demo: %w", err)
	}
	block, err := ports.Take()
	if err != nil {
		return nil, errors.Join(problem.New(problem.Unavailable, err.Error(), "stop other servers on this machine"), os.RemoveAll(dir))
	}
	defer func() { _ = block.Close() }()
	t := &tour{cfg: cfg, dir: dir, ports: block, sum: &Summary{OK: true}, ids: map[string]bool{}}
	dev, err := t.install()
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	person := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ready := make(chan *devmode.Info, 1)
	ended := make(chan error, 1)
	go func() { ended <- dev.Run(ctx, func(i *devmode.Info) { ready <- i }) }()
	select {
	case t.info = <-ready:
		t.take(ctx, time.Since(began))
		cancel()
		err = <-ended
	case err = <-ended:
	}
	err = errors.Join(err, person.Err())
	t.sum.Seconds = time.Since(began).Seconds()
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return t.sum, os.RemoveAll(dir)
}

// tour is one run.
type tour struct {
	cfg   Config
	dir   string
	ports *ports.Block
	info  *devmode.Info
	sum   *Summary
	step  *Step

	mu sync.Mutex // Guards ids: calls are made at the same time.
	// ids are the decisions that were shown to us, so that none may be missing in the audit.
	ids map[string]bool
}

func (t *tour) install() (*devmode.Dev, error) {
	cfg := devmode.Config{
		DataDir: filepath.Join(t.dir, contexts.DevDataDir), Nodes: 3, Cells: 1, Ephemeral: true, Executable: t.cfg.Executable,
		Env: t.cfg.Env, Logger: slog.New(slog.DiscardHandler),
	}
	cfg.PortBase = t.ports.Base
	t.say("mcpvault demo: PostgreSQL, a control plane, three cell nodes and two MCP servers, for this run only\n")
	return devmode.New(cfg)
}

// take goes through the promises; the first that does not hold ends the tour.
func (t *tour) take(ctx context.Context, start time.Duration) {
	t.sum.Steps = append(t.sum.Steps, Step{Name: "everything starts", OK: true, Seconds: start.Seconds()})
	t.say("  everything is ready after %.1f s\n\n$ export MCPVAULT_CONFIG=%s MCPVAULT_DATA_DIR=%s\n", start.Seconds(), t.info.CLIConfig, t.info.DataDir)
	for _, s := range []struct {
		name string
		f    func(context.Context) error
	}{
		{"a call that alice may make", t.allowed},
		{"a call that she may not make, and why", t.refused},
		{"a grant with a condition is law within a second", t.granted},
		{"every call is in the audit, and the audit is whole", t.audited},
		{"without control plane and database every node decides right", t.outage},
		{"a node that restarts alone decides right", t.lonely},
		{"the leader dies and no call fails", t.failover},
		{"the control plane comes back: nothing is missing, nothing is twice", t.returned},
		{"a revoked grant is law on every node", t.revoked},
	} {
		if !t.try(ctx, s.name, s.f) {
			return
		}
	}
}

func (t *tour) try(ctx context.Context, name string, f func(context.Context) error) bool {
	t.say("\n%s\n", t.paint("1", name))
	t.sum.Steps = append(t.sum.Steps, Step{Name: name, Figures: map[string]float64{}})
	t.step = &t.sum.Steps[len(t.sum.Steps)-1]
	began := time.Now()
	err := f(ctx)
	t.step.Seconds, t.step.OK = time.Since(began).Seconds(), err == nil
	if err != nil {
		t.step.Error, t.sum.OK = err.Error(), false
		t.say("  %s %v\n", t.paint("31", "✘"), err)
		return false
	}
	return true
}

// held says that something was checked.
func (t *tour) held(format string, args ...any) {
	t.say("  %s %s\n", t.paint("32", "✔"), fmt.Sprintf(format, args...))
}

func (t *tour) figure(name string, v float64) { t.step.Figures[name] = v }

func (t *tour) say(format string, args ...any) { _, _ = fmt.Fprintf(t.cfg.Out, format, args...) }

func (t *tour) paint(code, s string) string {
	if !t.cfg.Colour {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// result is what a command came to.
type result struct {
	status      int
	out, errout string
}

// decisionLine is how `mcp call` tells the decision.
var decisionLine = regexp.MustCompile(`(?m)^decision (allow|deny) (\S+)`)

// decision returns the id that the caller was shown.
func (r result) decision() (effect, id string) {
	m := decisionLine.FindStringSubmatch(r.errout)
	if m == nil {
		return "", ""
	}
	return m[1], m[2]
}

// run runs a command without showing it.
func (t *tour) run(ctx context.Context, args ...string) result {
	var out, errout bytes.Buffer
	env := []string{"MCPVAULT_CONFIG=" + t.info.CLIConfig, "MCPVAULT_DATA_DIR=" + t.info.DataDir, "NO_COLOR=1"}
	status := t.cfg.CLI(ctx, args, env, &out, &errout)
	r := result{status, out.String(), errout.String()}
	if _, id := r.decision(); id != "" {
		t.mu.Lock()
		t.ids[id] = true
		t.mu.Unlock()
	}
	return r
}

// enter shows a command and what it printed, and demands its exit status.
func (t *tour) enter(ctx context.Context, want int, args ...string) (result, error) {
	t.say("$ mcpvault %s\n", quoted(args))
	r := t.run(ctx, args...)
	t.show(r)
	if r.status != want {
		return r, fmt.Errorf("mcpvault %s: exit status %d, expected %d", quoted(args), r.status, want)
	}
	return r, nil
}

// show prints a command's output, not too much of it.
func (t *tour) show(r result) {
	const most = 8
	lines := strings.Split(strings.TrimRight(r.out+r.errout, "\n"), "\n")
	for i, l := range lines {
		if i == most {
			t.say("    … %d more lines\n", len(lines)-most)
			return
		}
		if l != "" {
			t.say("    %s\n", short(l))
		}
	}
}

func short(l string) string {
	const width = 150
	if r := []rune(l); len(r) > width {
		return string(r[:width]) + "…"
	}
	return l
}

// quoted writes words as a shell takes them.
func quoted(args []string) string {
	out := make([]string, 0, len(args))
	for _, a := range args {
		if strings.ContainsAny(a, " <>&|;$*?()'\"") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		out = append(out, a)
	}
	return strings.Join(out, " ")
}

// until polls for something that other processes bring about.
func until(ctx context.Context, limit time.Duration, what string, f func() error) (time.Duration, error) {
	began := time.Now()
	var last error
	for {
		if last = f(); last == nil {
			return time.Since(began), nil
		}
		if time.Since(began) > limit || ctx.Err() != nil {
			return 0, fmt.Errorf("%s: not within %s: %w", what, limit, last)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
