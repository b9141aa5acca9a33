// Package run starts the parts of a process in order and stops them in reverse. It promises that nothing it started is
// still running when Run returns, unless the error says so by name; that the first part to fail stops all others; and
// that each part has its own time to stop, so that one that hangs cannot use up the others' time.
package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/signal"
	"syscall"
	"time"
)

// DefaultStopLimit is how long a part may take to stop when it does not say.
const DefaultStopLimit = 5 * time.Second

// ErrStuck is in the chain of Run's error when a part did not stop within its limit. It is then still running, and the
// process should end.
var ErrStuck = errors.New("did not stop in time")

// Runner is a part of a process. Run blocks until ctx ends or the part fails, and returns only when everything that it
// started has ended. Returning nil before ctx ends means that the part has done its work; the others go on.
type Runner interface {
	Run(ctx context.Context) error
}

// Func makes a function a Runner.
type Func func(ctx context.Context) error

// Run calls the function.
func (f Func) Run(ctx context.Context) error { return f(ctx) }

// Readier is a Runner that others depend on: the next part starts when the channel is closed.
type Readier interface {
	Ready() <-chan struct{}
}

// Group is the parts of one process. It is filled by one goroutine and run once.
type Group struct {
	log   *slog.Logger
	parts []*part
}

type part struct {
	name   string
	runner Runner
	limit  time.Duration
	cancel context.CancelFunc
	// done is closed after err is set.
	done chan struct{}
	err  error
}

// New returns an empty group; log may be nil.
func New(log *slog.Logger) *Group {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Group{log: log}
}

// Add appends a part. It starts after, and stops before, those already there. A limit of 0 means DefaultStopLimit.
func (g *Group) Add(name string, r Runner, stopLimit time.Duration) {
	if stopLimit <= 0 {
		stopLimit = DefaultStopLimit
	}
	g.parts = append(g.parts, &part{name: name, runner: r, limit: stopLimit, done: make(chan struct{})})
}

// Run starts the parts in order, waits until ctx ends, a part fails or all have done their work, and stops them in
// reverse order. It returns the failures, nil when there were none; that ctx ended is no failure.
func (g *Group) Run(ctx context.Context) error {
	// The parts live on a context of their own: a signal must not stop all of them at the same time.
	base := context.WithoutCancel(ctx)
	ended := make(chan *part, len(g.parts))
	started, err := 0, error(nil)
	running := 0
	for _, p := range g.parts {
		if ctx.Err() != nil || err != nil {
			break
		}
		g.start(base, p, ended)
		started++
		running++
		if r, ok := p.runner.(Readier); ok {
			running, err = g.wait(ctx, ended, running, r.Ready(), p)
		}
	}
	if err == nil {
		_, err = g.wait(ctx, ended, running, nil, nil)
	}
	for i := started - 1; i >= 0; i-- {
		err = errors.Join(err, g.stop(g.parts[i], err))
	}
	return err
}

func (g *Group) start(base context.Context, p *part, ended chan<- *part) {
	ctx, cancel := context.WithCancel(base)
	p.cancel = cancel
	g.log.Debug("starting", "part", p.name)
	go func() {
		defer close(p.done)
		if err := p.runner.Run(ctx); err != nil && (ctx.Err() == nil || !errors.Is(err, context.Canceled)) {
			p.err = fmt.Errorf("%s: %w", p.name, err)
		}
		ended <- p
	}()
}

// wait returns when ready is closed or this part has ended, ctx has ended, nothing runs any more, or any part has failed.
// It returns that part's error and how many parts still run.
func (g *Group) wait(ctx context.Context, ended <-chan *part, running int, ready <-chan struct{}, this *part) (int, error) {
	for running > 0 {
		select {
		case <-ctx.Done():
			return running, nil
		case <-ready:
			return running, nil
		case p := <-ended:
			running--
			if p.err != nil {
				return running, p.err
			}
			g.log.Debug("done", "part", p.name)
			if p == this {
				return running, nil
			}
		}
	}
	return running, nil
}

// stop ends one part. Its error is returned unless it is known already.
func (g *Group) stop(p *part, known error) error {
	began := time.Now()
	p.cancel()
	t := time.NewTimer(p.limit)
	defer t.Stop()
	select {
	case <-p.done:
		g.log.Debug("stopped", "part", p.name, "took", time.Since(began))
		if p.err != nil && !errors.Is(known, p.err) {
			return p.err
		}
		return nil
	case <-t.C:
		g.log.Error("a part does not stop", "part", p.name, "limit", p.limit)
		return fmt.Errorf("%s: %w (%s)", p.name, ErrStuck, p.limit)
	}
}

// Signals returns a context that ends at the first SIGINT or SIGTERM, which mean the same. A second one ends the process
// at once, as if it had not been caught.
func Signals(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}
