package run_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/mcpvault/mcpvault/kit/run"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errBroken = errors.New("broken")

// diary notes what happened in which order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) write(s string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, s)
}

func (d *diary) read() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.lines)
}

// patient is a part that is ready after a while and takes its time to stop.
type patient struct {
	name     string
	book     *diary
	ready    chan struct{}
	getReady time.Duration
	stop     time.Duration
}

func (p *patient) Ready() <-chan struct{} { return p.ready }

func (p *patient) Run(ctx context.Context) error {
	p.book.write("start " + p.name)
	time.Sleep(p.getReady)
	p.book.write("ready " + p.name)
	close(p.ready)
	<-ctx.Done()
	time.Sleep(p.stop)
	p.book.write("end " + p.name)
	return ctx.Err()
}

func newPatient(book *diary, name string) *patient {
	return &patient{name: name, book: book, ready: make(chan struct{}), getReady: time.Second, stop: time.Second}
}

func TestPartsStartInOrderAndStopInReverse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		book := &diary{}
		g := run.New(nil)
		for _, name := range []string{"store", "feed", "edge"} {
			g.Add(name, newPatient(book, name), 0)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := g.Run(ctx); err != nil {
			t.Fatal(err)
		}
		want := []string{
			"start store", "ready store", "start feed", "ready feed", "start edge", "ready edge",
			"end edge", "end feed", "end store",
		}
		if got := book.read(); !slices.Equal(got, want) {
			t.Fatalf("got %q", got)
		}
	})
}

func TestTheFirstFailureStopsAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		book := &diary{}
		g := run.New(nil)
		g.Add("store", newPatient(book, "store"), 0)
		g.Add("feed", run.Func(func(context.Context) error {
			time.Sleep(time.Hour)
			return errBroken
		}), 0)
		err := g.Run(t.Context())
		if !errors.Is(err, errBroken) || err.Error() != "feed: broken" {
			t.Fatalf("got %v", err)
		}
		if got := book.read(); got[len(got)-1] != "end store" {
			t.Fatalf("got %q", got)
		}
	})
}

func TestAPartThatFailsBeforeItIsReadyKeepsTheNextFromStarting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		book := &diary{}
		g := run.New(nil)
		g.Add("broken", brokenBeforeReady{}, 0)
		g.Add("never", newPatient(book, "never"), 0)
		if err := g.Run(t.Context()); !errors.Is(err, errBroken) {
			t.Fatalf("got %v", err)
		}
		if got := book.read(); len(got) != 0 {
			t.Fatalf("got %q", got)
		}
	})
}

func TestAFailureIsSeenWhileAnotherPartGetsReady(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		book := &diary{}
		g := run.New(nil)
		g.Add("broken", run.Func(func(context.Context) error { return errBroken }), 0)
		slow := newPatient(book, "slow")
		slow.getReady = time.Hour
		g.Add("slow", slow, 2*time.Hour)
		g.Add("never", newPatient(book, "never"), 0)
		if err := g.Run(t.Context()); !errors.Is(err, errBroken) {
			t.Fatalf("got %v", err)
		}
		if slices.Contains(book.read(), "start never") {
			t.Fatal("a part was started after a failure")
		}
	})
}

type brokenBeforeReady struct{}

func (brokenBeforeReady) Ready() <-chan struct{}    { return nil }
func (brokenBeforeReady) Run(context.Context) error { return errBroken }

func TestOneThatHangsDoesNotUseUpTheOthersTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		book := &diary{}
		free := make(chan struct{})
		g := run.New(nil)
		g.Add("store", newPatient(book, "store"), 2*time.Second)
		g.Add("stuck", run.Func(func(context.Context) error { <-free; return nil }), 3*time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		began := time.Now()
		err := g.Run(ctx)
		if !errors.Is(err, run.ErrStuck) || !strings.HasPrefix(err.Error(), "stuck: ") {
			t.Fatalf("got %v", err)
		}
		if took := time.Since(began); took != time.Minute+4*time.Second {
			t.Fatalf("took %v", took)
		}
		if got := book.read(); got[len(got)-1] != "end store" {
			t.Fatalf("got %q", got)
		}
		close(free)
	})
}

func TestAPartThatHasDoneItsWorkStopsNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := run.New(nil)
		g.Add("job", run.Func(func(context.Context) error { return nil }), 0)
		finished := false
		g.Add("longer", run.Func(func(context.Context) error {
			time.Sleep(time.Hour)
			finished = true
			return nil
		}), 0)
		if err := g.Run(t.Context()); err != nil || !finished {
			t.Fatalf("%v, finished %v", err, finished)
		}
	})
}

func TestAnErrorWhileStoppingIsReported(t *testing.T) {
	t.Parallel()
	g := run.New(nil)
	g.Add("audit", run.Func(func(ctx context.Context) error {
		<-ctx.Done()
		return errBroken
	}), 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// Nothing starts when the end was asked for before the beginning.
	if err := g.Run(ctx); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		g := run.New(nil)
		g.Add("audit", run.Func(func(ctx context.Context) error {
			<-ctx.Done()
			return errBroken
		}), 0)
		if err := g.Run(ctx); !errors.Is(err, errBroken) {
			t.Fatalf("got %v", err)
		}
	})
}

// Not parallel: it sends signals to the test process.
func TestSIGTERMIsSIGINT(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		ctx, stop := run.Signals(t.Context())
		if err := syscall.Kill(syscall.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Second):
			t.Fatalf("%v did not end the context", sig)
		}
		stop()
	}
}

func TestVersionNamesTheToolchain(t *testing.T) {
	t.Parallel()
	v := run.Version()
	if v.Version == "" || !strings.HasPrefix(v.Go, "go") || !strings.Contains(v.String(), v.Go) {
		t.Fatalf("got %+v", v)
	}
}
