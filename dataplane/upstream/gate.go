package upstream

import (
	"sync"
	"time"
)

// The breaker opens after so many failures within the window, rests, and then lets one call try.
const (
	breakAfter  = 5
	breakWindow = 10 * time.Second
	breakRest   = 2 * time.Second
)

// gate is one upstream's bulkhead and breaker.
type gate struct {
	max int

	mu       sync.Mutex
	calls    int
	failures [breakAfter]time.Time // a ring; all guarded by mu
	next     int
	openTill time.Time // zero: closed
	trying   bool      // half open, and one call is on its way
}

func (g *gate) enter(now time.Time, long bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.openTill.IsZero() {
		if now.Before(g.openTill) || g.trying {
			return ErrRefused
		}
		g.trying = true
	}
	if long {
		return nil
	}
	if g.calls >= g.max {
		g.trying = false
		return ErrBusy
	}
	g.calls++
	return nil
}

// leave ends a call; ok says that the upstream is alive, or that the caller went away.
func (g *gate) leave(now time.Time, long, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !long {
		g.calls--
	}
	tried := g.trying
	g.trying = false
	if ok {
		if tried {
			g.openTill = time.Time{}
		}
		return
	}
	if tried {
		g.openTill = now.Add(breakRest)
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

// alive closes the breaker: the upstream answered.
func (g *gate) alive() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.trying, g.openTill = false, time.Time{}
}
