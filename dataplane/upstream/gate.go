package upstream

import (
	"sync"
	"sync/atomic"
	"time"
)

// The breaker opens after so many failures within the window, rests, and then lets one call try.
const (
	breakAfter  = 5
	breakWindow = 10 * time.Second
	breakRest   = 2 * time.Second
)

// verdict is what a call tells about its upstream.
type verdict byte

const (
	// unproven: the caller went away, or nothing was tried.
	unproven verdict = iota
	alive
	failing
)

// breaker is the state of a gate, numbered as its metric is.
type breaker byte

const (
	closed breaker = iota
	halfOpen
	open
)

// gate is one upstream's bulkhead and breaker.
type gate struct {
	maxCalls, maxStreams int

	mu       sync.Mutex
	calls    int
	streams  int
	failures [breakAfter]time.Time // a ring; all guarded by mu
	next     int
	openTill time.Time // zero: closed
	trying   bool      // half open, and one call is on its way
}

// enter lets a call pass; a probe is the one call by which a half-open breaker decides.
func (g *gate) enter(now time.Time, long bool) (probe bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.openTill.IsZero() {
		if now.Before(g.openTill) || g.trying {
			return false, ErrRefused
		}
		probe = true
	}
	if long {
		if g.streams >= g.maxStreams {
			return false, ErrBusy
		}
		g.streams++
	} else {
		if g.calls >= g.maxCalls {
			return false, ErrBusy
		}
		g.calls++
	}
	g.trying = probe
	return probe, nil
}

// leave ends a call that entered.
func (g *gate) leave(now time.Time, long, probe bool, v verdict) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if long {
		g.streams--
	} else {
		g.calls--
	}
	g.judge(now, probe, v)
}

// learn judges a call that goes on: the head of its stream has come.
func (g *gate) learn(now time.Time, probe bool, v verdict) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.judge(now, probe, v)
}

func (g *gate) judge(now time.Time, probe bool, v verdict) {
	if probe {
		g.trying = false
		switch v {
		case alive:
			g.openTill = time.Time{}
		case failing:
			g.openTill = now.Add(breakRest)
		case unproven: // the next call is the probe
		}
		return
	}
	if v != failing || !g.openTill.IsZero() {
		return
	}
	g.failures[g.next] = now
	g.next = (g.next + 1) % breakAfter
	if first := g.failures[g.next]; !first.IsZero() && now.Sub(first) <= breakWindow {
		g.openTill = now.Add(breakRest)
		g.failures = [breakAfter]time.Time{}
		g.next = 0
	}
}

// look returns what the metrics show.
func (g *gate) look(now time.Time) (b breaker, calls, streams int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.openTill.IsZero():
	case now.Before(g.openTill):
		b = open
	default:
		b = halfOpen
	}
	return b, g.calls, g.streams
}

// The retry budget: each call earns a tenth of a retry. What is saved is bounded, and there is something to begin with, so
// that the first call to a host of which one address is dead can use the other.
const (
	retryCost    = 10
	retrySavings = 10 * retryCost
)

// budget keeps retries below a tenth of the calls.
type budget struct {
	spent atomic.Int64 // of the savings
}

// earn is called once for each call.
func (b *budget) earn() {
	if n := b.spent.Load(); n > 0 {
		b.spent.CompareAndSwap(n, n-1) // who loses against another call forgoes a tenth of a retry
	}
}

func (b *budget) take() bool {
	for {
		n := b.spent.Load()
		if n+retryCost > retrySavings {
			return false
		}
		if b.spent.CompareAndSwap(n, n+retryCost) {
			return true
		}
	}
}
