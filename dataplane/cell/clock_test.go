package cell

import (
	"testing"
	"time"
)

func TestTimeDoesNotGoBackWithTheWallClock(t *testing.T) {
	t.Parallel()
	wall := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	now := wall
	c := newClock(func() time.Time { return now }, 0, 0)
	if !c.Now().Equal(wall) || c.behind() != 0 {
		t.Fatal("a sound wall clock is believed")
	}
	now = wall.Add(time.Hour)
	c.Now()
	now = wall
	if got := c.Now(); !got.Equal(wall.Add(time.Hour)) {
		t.Fatalf("the wall clock went back and took the time with it: %s", got)
	}
	if c.behind() != time.Hour || c.behind() <= behindLimit {
		t.Fatalf("behind %s", c.behind())
	}
}

func TestARestartRemembersTheTime(t *testing.T) {
	t.Parallel()
	wall := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	mark, heartbeat := wall.Add(time.Minute), wall.Add(2*time.Minute)
	c := newClock(func() time.Time { return wall }, mark.UnixMilli(), heartbeat.UnixMilli())
	if got := c.Now(); !got.Equal(heartbeat) {
		t.Fatalf("got %s, the newest signed heartbeat says %s", got, heartbeat)
	}
	c.raise(heartbeat.Add(-time.Second).UnixMilli())
	if got := c.Now(); !got.Equal(heartbeat) {
		t.Fatal("an older proof moved the time")
	}
}
