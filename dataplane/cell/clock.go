package cell

import (
	"context"
	"sync/atomic"
	"time"
)

// clock is the time that this node believes: never before anything it has proof of. Wall clocks are set back, by mistake or
// on purpose, and a lease or a token must not live longer for it.
type clock struct {
	wall func() time.Time
	// floorMS is the highest time ever seen: the persisted mark, a signed heartbeat, the wall clock itself.
	floorMS atomic.Int64
}

// behindLimit is how far the wall clock may be behind what is proved before it is not believed.
const behindLimit = 30 * time.Second

func newClock(wall func() time.Time, highWaterMS, heartbeatMS int64) *clock {
	c := &clock{wall: wall}
	c.floorMS.Store(max(highWaterMS, heartbeatMS))
	return c
}

// Now is the wall clock, or the highest time ever seen when that is later.
func (c *clock) Now() time.Time {
	now := c.wall()
	ms := now.UnixMilli()
	if floor := c.raise(ms); floor > ms {
		return time.UnixMilli(floor)
	}
	return now
}

// raise lifts the floor to ms and returns the floor.
func (c *clock) raise(ms int64) int64 {
	for {
		floor := c.floorMS.Load()
		if ms <= floor {
			return floor
		}
		if c.floorMS.CompareAndSwap(floor, ms) {
			return ms
		}
	}
}

// behind is how far the wall clock is behind the highest time ever seen.
func (c *clock) behind() time.Duration {
	return time.Duration(max(0, c.floorMS.Load()-c.wall().UnixMilli())) * time.Millisecond
}

// keepHouse does what has to be done now and then: remembering the time, judging the clock, dropping shards that no kept
// generation names.
func (n *Node) keepHouse(ctx context.Context) error {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	minute := time.NewTicker(time.Minute)
	defer minute.Stop()
	for {
		n.judgeClock()
		n.warnOfStaleness(ctx)
		select {
		case <-ctx.Done():
			return n.store.PutHighWater(n.clock.Now().UnixMilli())
		case <-look.C:
		case <-minute.C:
			n.sweep()
			n.retireKeys()
			if err := n.store.PutHighWater(n.clock.Now().UnixMilli()); err != nil {
				n.log.ErrorContext(ctx, "remember the time", "err", err)
			}
			if removed, err := n.store.CollectBlobs(ctx); err != nil {
				n.log.ErrorContext(ctx, "drop old shards", "err", err)
			} else if removed > 0 {
				n.log.InfoContext(ctx, "dropped shards that nothing names any more", "shards", removed)
			}
		}
	}
}

// judgeClock closes what is leased while the wall clock contradicts what is proved.
func (n *Node) judgeClock() {
	if hb := n.feed.Heartbeat(); hb != nil {
		n.clock.raise(hb.GetTimeMs())
	}
	n.clock.Now()
	suspect := n.clock.behind() > behindLimit
	if suspect != n.clockSuspect.Swap(suspect) {
		n.log.Error("this node's clock", "suspect", suspect, "behind", n.clock.behind())
	}
	n.pdp.SuspectClock(suspect)
}
