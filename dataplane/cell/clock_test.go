package cell

import (
	"testing"
	"time"
)

// testClock is a clock whose wall clock is set, and whose time passes, when a test says so.
type testClock struct {
	*clock
	wall   time.Time
	passed time.Duration
}

func newTestClock(wall time.Time, highWater, heartbeat time.Time) *testClock {
	ms := func(t time.Time) int64 {
		if t.IsZero() {
			return 0
		}
		return t.UnixMilli()
	}
	c := &testClock{wall: wall}
	c.clock = newClock(func() time.Time { return c.wall }, ms(highWater), ms(heartbeat))
	c.clock.passed = func() time.Duration { return c.passed }
	return c
}

// pass lets time go on, with a look each second, and reports whether the wall clock was found to be set in one of them.
func (c *testClock) pass(d time.Duration) (set bool) {
	for end := c.passed + d; c.passed < end; {
		c.passed += clockEvery
		c.wall = c.wall.Add(clockEvery)
		set = c.look() || set
	}
	return set
}

// told lets the others say, each compareEvery, that their time is right now.
func (c *testClock) told(d time.Duration, right func() time.Time) {
	for end := c.passed + d; c.passed < end; {
		c.hear(right().Sub(c.wall))
		c.pass(compareEvery)
	}
}

func (c *testClock) suspect() bool { return c.behind() > behindLimit || c.astray() != 0 }

var noon = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func TestASoundWallClockIsBelieved(t *testing.T) {
	t.Parallel()
	c := newTestClock(noon, time.Time{}, time.Time{})
	if set := c.pass(time.Hour); set || c.suspect() || !c.Now().Equal(noon.Add(time.Hour)) {
		t.Fatalf("set %t, suspect %t, %s", set, c.suspect(), c.Now())
	}
	if c.pass(time.Minute); c.proved() != c.wall.UnixMilli() {
		t.Fatal("what has passed is proof")
	}
}

func TestTimeGoesOnWhenTheWallClockIsSetBack(t *testing.T) {
	t.Parallel()
	c := newTestClock(noon, time.Time{}, time.Time{})
	c.pass(time.Minute)
	c.wall = c.wall.Add(-10 * time.Minute)
	if !c.pass(time.Second) || !c.suspect() {
		t.Fatal("a clock that was set back was not noticed within a look")
	}
	// A token that ended at five past must not be taken at six past by whoever believes the wall clock.
	c.pass(5 * time.Minute)
	if want := noon.Add(6*time.Minute + time.Second); !c.Now().Equal(want) {
		t.Fatalf("it is %s, and %s has passed since", c.Now(), want.Sub(noon))
	}
	c.wall = c.wall.Add(10 * time.Minute)
	if c.pass(time.Second); c.suspect() {
		t.Fatal("the clock is right again")
	}
}

func TestAClockThatJumpsAheadIsSuspectOnceThePeersSayOtherwise(t *testing.T) {
	t.Parallel()
	c := newTestClock(noon, time.Time{}, time.Time{})
	right := func() time.Time { return noon.Add(c.passed) }
	c.told(time.Minute, right)
	c.wall = c.wall.Add(10 * time.Minute)
	if !c.pass(time.Second) || !c.suspect() {
		t.Fatal("the peers had said what time it is")
	}
	if c.Now().Before(c.wall) {
		t.Fatal("what ends must not last longer, whoever is right")
	}
	c.told(time.Hour, right)
	if !c.suspect() || c.proved() > right().UnixMilli()+behindLimit.Milliseconds() {
		t.Fatal("a time that is contradicted was taken for proof")
	}
	c.wall = right()
	c.told(compareEvery, right)
	if c.suspect() || !c.Now().Equal(right()) {
		t.Fatalf("the clock is right again, and it is %s", c.Now())
	}
}

func TestAJumpAheadThatNobodyContradictsIsProofAfterAWhile(t *testing.T) {
	t.Parallel()
	// A laptop was closed, or a machine was asleep: nobody is there to ask.
	c := newTestClock(noon, time.Time{}, time.Time{})
	c.pass(time.Minute)
	c.wall = c.wall.Add(time.Hour)
	c.pass(provenAfter)
	if c.suspect() || c.proved() >= c.wall.UnixMilli()-behindLimit.Milliseconds() {
		t.Fatal("suspect, or proof too soon")
	}
	c.pass(2 * clockEvery)
	if c.proved() != c.wall.UnixMilli() {
		t.Fatal("it is still no proof")
	}
	c.wall = c.wall.Add(-time.Hour)
	if c.pass(clockEvery); !c.suspect() {
		t.Fatal("what was proved was forgotten")
	}
}

func TestWhatThePeersSaidIsForgottenWhenTheyAreSilent(t *testing.T) {
	t.Parallel()
	c := newTestClock(noon.Add(10*time.Minute), time.Time{}, time.Time{})
	c.hear(-10 * time.Minute)
	if !c.suspect() {
		t.Fatal("ahead of the peers")
	}
	if c.pass(provenAfter + clockEvery); c.suspect() {
		t.Fatal("nobody says so any more: a node that is alone serves")
	}
}

func TestANodeThatIsALittleBehindGoesByThePeersTime(t *testing.T) {
	t.Parallel()
	c := newTestClock(noon, time.Time{}, time.Time{})
	c.hear(20 * time.Second)
	if c.suspect() || c.Now().Before(noon.Add(20*time.Second)) {
		t.Fatalf("suspect %t; a token would live longer here: it is %s", c.suspect(), c.Now())
	}
}

func TestARestartRemembersTheTime(t *testing.T) {
	t.Parallel()
	mark, heartbeat := noon.Add(time.Minute), noon.Add(2*time.Minute)
	c := newTestClock(noon, mark, heartbeat)
	if got := c.Now(); !got.Equal(heartbeat) || !c.suspect() {
		t.Fatalf("got %s, the newest signed heartbeat says %s", got, heartbeat)
	}
	c.raise(heartbeat.Add(-time.Second).UnixMilli())
	if got := c.Now(); !got.Equal(heartbeat) {
		t.Fatal("an older proof moved the time")
	}
}

func TestTheMiddleOfTheClocks(t *testing.T) {
	t.Parallel()
	const wrong = 10 * time.Minute
	for name, tc := range map[string]struct {
		ahead []time.Duration
		want  time.Duration
	}{
		"nobody answers":              {nil, 0},
		"one against one":             {[]time.Duration{wrong}, 0},
		"one of two peers is wrong":   {[]time.Duration{wrong, 0}, 0},
		"this one is ahead":           {[]time.Duration{-wrong, -wrong}, -wrong},
		"this one is behind":          {[]time.Duration{wrong, wrong}, wrong},
		"two of five are wrong":       {[]time.Duration{wrong, -wrong, 0, 0}, 0},
		"two of four that are there":  {[]time.Duration{wrong, wrong, 0}, 0},
		"all differ by milliseconds":  {[]time.Duration{2, 5}, 2},
		"one on each side by a lot":   {[]time.Duration{wrong, -wrong}, 0},
		"four of five say the same":   {[]time.Duration{-wrong, -wrong, -wrong, -wrong}, -wrong},
		"three of four say otherwise": {[]time.Duration{wrong, wrong, wrong}, wrong},
	} {
		if got := middle(tc.ahead); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}
