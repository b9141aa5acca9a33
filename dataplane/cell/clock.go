package cell

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mcpvault/mcpvault/kit/run"
)

// clock is the time that this node believes: never before anything it has proof of. Wall clocks are set back, by mistake or
// on purpose, and a lease or a token must not live longer for it.
//
// Proof is the persisted mark, a signed heartbeat, the peers, and the wall clock itself as long as it goes on as time does. A
// wall clock that jumps ahead is believed at once for what ends, and becomes proof when nobody contradicts it for a while:
// else a clock that was wrong for a minute would leave the node with a time that it can never go back from.
type clock struct {
	wall func() time.Time
	// passed is the time since the start, whatever the wall clock is set to.
	passed func() time.Duration
	// floorMS is the highest time that was proved, as of the last look.
	floorMS atomic.Int64

	mu sync.Mutex // guards what follows
	// floor is the highest time that was proved, as it would have been at the start: it goes on by itself.
	floor int64
	// jumped is when the wall clock was first seen ahead of what is proved, by more than the limit; negative while it is not.
	jumped time.Duration
	// others is the others' time, in milliseconds, as it would have been at the start, and heard when they last said it; negative
	// for never. Like the floor it goes on by itself, so that a jump of the wall clock shows at once.
	others int64
	heard  time.Duration
	// stride is how far the wall clock is ahead of the time that has passed: it changes when the clock is set, or when this
	// machine was suspended.
	stride int64
}

const (
	// behindLimit is how far the wall clock may be behind what is proved, or off from the others', before it is not believed.
	behindLimit = 30 * time.Second
	// provenAfter is how long a jump ahead must stand uncontradicted, and how long what the others say counts.
	provenAfter = 3 * compareEvery
	never       = time.Duration(-1)
)

func newClock(wall func() time.Time, highWaterMS, heartbeatMS int64) *clock {
	start := time.Now()
	c := &clock{wall: wall, passed: func() time.Duration { return time.Since(start) }, jumped: never, heard: never}
	c.floor, c.stride = max(highWaterMS, heartbeatMS), wall().UnixMilli()
	c.floorMS.Store(c.floor)
	return c
}

// Now is the wall clock, or the highest time that was proved when that is later.
func (c *clock) Now() time.Time {
	now := c.wall()
	if floor := c.floorMS.Load(); floor > now.UnixMilli() {
		return time.UnixMilli(floor)
	}
	return now
}

// proved is the highest time that was proved, in milliseconds.
func (c *clock) proved() int64 { return c.floorMS.Load() }

// raise takes a proof that it is ms now.
func (c *clock) raise(ms int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lift(ms, c.passed())
}

// lift is called with mu held.
func (c *clock) lift(ms int64, passed time.Duration) {
	c.floor = max(c.floor, ms-passed.Milliseconds())
	c.floorMS.Store(c.floor + passed.Milliseconds())
}

// hear takes how far the others' clocks are ahead of this one, in the middle; negative for behind.
func (c *clock) hear(ahead time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	passed := c.passed()
	theirs := c.wall().Add(ahead).UnixMilli()
	c.others, c.heard = theirs-passed.Milliseconds(), passed
	if ahead > 0 && ahead <= behindLimit {
		// Not so far that somebody must look, but tokens must not live longer here than elsewhere.
		c.lift(theirs, passed)
	}
}

// off is how far the others are ahead, as far as they have said so lately. mu is held.
func (c *clock) off(passed time.Duration, wall int64) time.Duration {
	if c.heard == never || passed-c.heard > provenAfter {
		return 0
	}
	return time.Duration(c.others+passed.Milliseconds()-wall) * time.Millisecond
}

// look lets time go on. It reports whether the wall clock was set since the last look, so that the others should be asked.
func (c *clock) look() (set bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	passed, wall := c.passed(), c.wall().UnixMilli()
	c.lift(c.floor+passed.Milliseconds(), passed)
	switch ahead := time.Duration(wall-c.floorMS.Load()) * time.Millisecond; {
	case ahead <= behindLimit:
		c.jumped = never
		c.lift(wall, passed)
	case c.jumped == never || c.off(passed, wall) < -behindLimit:
		c.jumped = passed // just so, or contradicted
	case passed-c.jumped >= provenAfter:
		c.lift(wall, passed)
	}
	stride := wall - passed.Milliseconds()
	set = (time.Duration(stride-c.stride) * time.Millisecond).Abs() > time.Second
	c.stride = stride
	return set
}

// behind is how far the wall clock is behind the highest time that was proved.
func (c *clock) behind() time.Duration {
	return time.Duration(max(0, c.floorMS.Load()-c.wall().UnixMilli())) * time.Millisecond
}

// astray is how far the others are ahead when that is more than anybody should be; 0 when it is not.
func (c *clock) astray() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if off := c.off(c.passed(), c.wall().UnixMilli()); off.Abs() > behindLimit {
		return off
	}
	return 0
}

// middle is the median of how far clocks are ahead of this one, which has a voice, too. Of two in the middle it is the one
// that is nearer to this clock: one voice against another proves nothing.
func middle(ahead []time.Duration) time.Duration {
	all := append([]time.Duration{0}, ahead...)
	slices.Sort(all)
	a, b := all[(len(all)-1)/2], all[len(all)/2]
	if a.Abs() < b.Abs() {
		return a
	}
	return b
}

// keepHouse does what has to be done now and then: remembering the time, dropping shards that no kept generation names.
func (n *Node) keepHouse(ctx context.Context) error {
	minute := time.NewTicker(time.Minute)
	defer minute.Stop()
	for {
		select {
		case <-ctx.Done():
			return n.store.PutHighWater(n.clock.proved())
		case <-minute.C:
			n.sweep()
			n.retireKeys()
			if err := n.store.PutHighWater(n.clock.proved()); err != nil {
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

// clockEvery is how often the clock is looked at.
const clockEvery = time.Second

// keepTime judges the clock, and how old the policy is by it, until ctx ends. It waits for no disk.
func (n *Node) keepTime(ctx context.Context) error {
	return run.Every(ctx, clockEvery, func(ctx context.Context) {
		n.judgeClock()
		n.warnOfStaleness(ctx)
	})
}

// judgeClock closes what is leased while the wall clock contradicts what is proved, or the others.
func (n *Node) judgeClock() {
	if hb := n.feed.Heartbeat(); hb != nil {
		n.clock.raise(hb.GetTimeMs())
	}
	if n.clock.look() {
		select {
		case n.askClocks <- struct{}{}:
		default:
		}
	}
	suspect := n.clock.behind() > behindLimit || n.clock.astray() != 0
	if suspect != n.clockSuspect.Swap(suspect) {
		n.log.Error("this node's clock", "suspect", suspect, "behind", n.clock.behind(), "others_ahead", n.clock.astray())
	}
	n.pdp.SuspectClock(suspect)
}

// compareClocks asks the peers for their time now and then, and when the wall clock has jumped, until ctx ends.
func (n *Node) compareClocks(ctx context.Context) error {
	tick := time.NewTicker(compareEvery)
	defer tick.Stop()
	for {
		actx, cancel := context.WithTimeout(ctx, clockAnswer)
		if ahead := n.peers.Clocks(actx, n.clock.wall); len(ahead) > 0 {
			n.clock.hear(middle(ahead))
			n.judgeClock()
		}
		cancel()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-n.askClocks:
		}
	}
}

// clockAnswer bounds how long a peer may think about its time: an answer is as exact as it is quick.
const clockAnswer = 2 * time.Second
