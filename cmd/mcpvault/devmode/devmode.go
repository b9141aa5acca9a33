// Package devmode is `mcpvault dev`: PostgreSQL, a control plane, cells of several nodes and two demo MCP servers on one
// machine, each server a process of its own, started from the one binary with one command.
//
// It promises that what it announces is true when it announces it (dev.json appears when every node serves the newest
// generation, and goes away first), that it never revives a server that was killed, so that people can break things and
// watch, and that it leaves no process behind, however it ends: children end when the pipe to their parent closes.
package devmode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/demoserver"
	"github.com/mcpvault/mcpvault/kit/flock"
	"github.com/mcpvault/mcpvault/kit/pgdev"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// Limits of a start and of a stop.
const (
	readyLimit = 60 * time.Second
	stopGrace  = 5 * time.Second
	pollEvery  = 5 * time.Millisecond
)

// Config is what `mcpvault dev` was told.
type Config struct {
	DataDir  string
	PortBase int
	// Nodes is the number of nodes of each cell: 1, 3 or 5.
	Nodes int
	Cells int
	// NoDemo leaves out the demo servers and the grants on them.
	NoDemo bool
	// Ephemeral begins with nothing and leaves nothing.
	Ephemeral bool
	// DatabaseURL is used instead of a private PostgreSQL.
	DatabaseURL string
	// NodeConfig is a file with settings for every node, which win over dev's own; none when empty.
	NodeConfig string
	// LinkDelay is how much later than said the nodes hear the control plane; for drills.
	LinkDelay time.Duration
	// Faults lets `mcpvault dev fault` break things: links go through this process, nodes take orders.
	Faults bool
	// Executable is this program, which the children are.
	Executable string
	// Env is the environment of the children.
	Env    []string
	Logger *slog.Logger
	// Events takes a line for whatever a person should know while it runs; nil for nobody.
	Events io.Writer
}

// Dev is one running installation.
type Dev struct {
	cfg  Config
	plan *plan
	log  *slog.Logger
	// links are made before anything is started.
	links *links

	ops sync.Mutex // Held while one command is carried out; taken before mu.

	mu       sync.Mutex // Guards what is below.
	children map[string]*child
	demos    map[string]*demoserver.Server
	faults   map[string]Fault // by what they are on
	pg       *pgdev.Server
	info     *Info
	stopping bool
	// halt ends Run.
	halt context.CancelFunc
	// watchers wait for children to end.
	watchers sync.WaitGroup
}

// New checks the configuration. It does no IO.
func New(cfg Config) (*Dev, error) {
	p, err := newPlan(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Events == nil {
		cfg.Events = io.Discard
	}
	return &Dev{
		cfg: cfg, plan: p, log: cfg.Logger, children: map[string]*child{}, halt: func() {},
		faults: map[string]Fault{}, links: newLinks(), demos: map[string]*demoserver.Server{},
	}, nil
}

// Run starts everything, calls ready once all of it serves, and stops everything when ctx ends or when it is told to
// through its socket. It returns when no process of it is left.
func (d *Dev) Run(ctx context.Context, ready func(*Info)) (err error) {
	lock, err := d.plan.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.plan.close(lock)) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d.mu.Lock()
	d.halt = cancel
	d.mu.Unlock()

	demos := newBackground()
	control := newBackground()
	defer func() {
		err = errors.Join(err, d.stop(), control.stop(), demos.stop())
		d.watchers.Wait()
	}()
	info, err := d.start(ctx, demos)
	if err != nil {
		if ctx.Err() != nil {
			return nil // Stopped while it was starting.
		}
		return err
	}
	if err := d.serveControl(control); err != nil {
		return err
	}
	if err := d.announce(info); err != nil {
		return err
	}
	if ready != nil {
		ready(info)
	}
	<-ctx.Done()
	return nil
}

// start brings everything up, as much of it at once as can be.
func (d *Dev) start(ctx context.Context, demos *background) (*Info, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, readyLimit, problem.Newf(problem.Timeout,
		"look into "+d.plan.logs(), "not everything was ready within %s", readyLimit))
	defer cancel()
	if err := d.plan.checkPorts(); err != nil {
		return nil, err
	}
	if err := d.plan.issueIdentities(); err != nil {
		return nil, err
	}
	if err := d.startLinks(demos); err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.startDemos(demos) })
	g.Go(func() error { return d.startControlPlane(gctx) })
	g.Go(func() error { return d.startNodes(gctx) })
	if err := g.Wait(); err != nil {
		return nil, cause(gctx, err)
	}
	info, err := d.settle(ctx)
	if err != nil {
		return nil, cause(ctx, err)
	}
	return info, nil
}

// cause prefers the reason for which a context ended over the fact.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return c
	}
	return err
}

func (d *Dev) startDemos(bg *background) error {
	if d.cfg.NoDemo {
		return nil
	}
	for _, s := range []struct {
		server *demoserver.Server
		port   int
	}{{demoserver.Demo(), d.plan.demoPort()}, {demoserver.Payments(), d.plan.paymentsPort()}} {
		d.mu.Lock()
		d.demos[s.server.Name] = s.server
		d.mu.Unlock()
		l, err := listen(s.port)
		if err != nil {
			return portTaken(s.port, err)
		}
		bg.run(func(ctx context.Context) error { return s.server.Run(ctx, l) })
	}
	return nil
}

// background runs functions until it is stopped.
type background struct {
	ctx    context.Context
	cancel context.CancelFunc
	group  errgroup.Group
}

func newBackground() *background {
	ctx, cancel := context.WithCancel(context.Background())
	return &background{ctx: ctx, cancel: cancel}
}

func (b *background) run(f func(context.Context) error) {
	b.group.Go(func() error { return f(b.ctx) })
}

func (b *background) stop() error {
	b.cancel()
	return b.group.Wait()
}

func (d *Dev) event(format string, args ...any) {
	_, _ = fmt.Fprintf(d.cfg.Events, format+"\n", args...) // Nobody is left to tell.
}

// open makes the data directory and locks it against a second dev.
func (p *plan) open() (*flock.Lock, error) {
	if p.cfg.Ephemeral {
		if left, err := os.ReadDir(p.dir); err == nil && len(left) > 0 {
			return nil, problem.Newf(problem.Conflict, "name an empty directory, or leave --ephemeral out",
				"%s is not empty, and --ephemeral would remove it", p.dir)
		}
	}
	for _, dir := range []string{p.dir, p.logs(), filepath.Join(p.dir, "run")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, problem.New(problem.Unavailable, "the data directory cannot be made: "+err.Error(), "choose another with --data-dir")
		}
	}
	lock, err := flock.Open(filepath.Join(p.dir, "dev.lock"))
	if errors.Is(err, flock.ErrHeld) {
		return nil, problem.Newf(problem.Conflict, "stop it with `mcpvault dev stop all`, or choose another with --data-dir",
			"another mcpvault dev uses %s", p.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	return lock, nil
}

// close gives the data directory free, and removes it when it was for this run only.
func (p *plan) close(lock *flock.Lock) error {
	var err error
	if p.cfg.Ephemeral {
		err = os.RemoveAll(p.dir)
	}
	return errors.Join(err, lock.Close())
}
