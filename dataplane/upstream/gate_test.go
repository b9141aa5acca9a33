package upstream

import (
	"errors"
	"testing"
	"time"
)

func TestTheBreakersProbeIsOneCallWhateverElseEnds(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	g := &gate{maxCalls: 10, maxStreams: 1}
	enter := func(wantProbe bool, want error) {
		t.Helper()
		probe, err := g.enter(now, false)
		if probe != wantProbe || !errors.Is(err, want) {
			t.Fatalf("entered as probe %v with %v", probe, err)
		}
	}
	state := func(want breaker) {
		t.Helper()
		if b, _, _ := g.look(now); b != want {
			t.Fatalf("the breaker is %d, not %d", b, want)
		}
	}
	enter(false, nil) // a slow call, from before the trouble
	for range breakAfter {
		state(closed)
		enter(false, nil)
		g.leave(now, false, false, failing)
	}
	state(open)
	enter(false, ErrRefused)
	now = now.Add(breakRest)
	state(halfOpen)
	enter(true, nil)
	enter(false, ErrRefused)
	g.leave(now, false, false, alive) // the slow call ends well: it says nothing about now
	enter(false, ErrRefused)
	g.leave(now, false, true, unproven) // the probe's caller went away
	enter(true, nil)
	g.leave(now, false, true, failing)
	state(open)
	now = now.Add(breakRest)
	enter(true, nil)
	g.leave(now, false, true, alive)
	state(closed)
	if _, calls, _ := g.look(now); calls != 0 {
		t.Errorf("%d calls are left", calls)
	}
}

func TestFailuresThatAreFarBetweenDoNotOpenTheBreaker(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	g := &gate{maxCalls: 1, maxStreams: 1}
	for range 10 * breakAfter {
		if _, err := g.enter(now, false); err != nil {
			t.Fatal(err)
		}
		g.leave(now, false, false, failing)
		now = now.Add(breakWindow / (breakAfter - 2))
	}
}

func TestStreamsAndCallsHavePlacesOfTheirOwn(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	g := &gate{maxCalls: 1, maxStreams: 1}
	for _, long := range []bool{false, true} {
		if _, err := g.enter(now, long); err != nil {
			t.Fatal(err)
		}
	}
	for _, long := range []bool{false, true} {
		if _, err := g.enter(now, long); !errors.Is(err, ErrBusy) {
			t.Fatal(err)
		}
		g.leave(now, long, false, alive)
		if _, err := g.enter(now, long); err != nil {
			t.Fatal(err)
		}
	}
}
