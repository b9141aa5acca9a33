package limit_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/mcpvault/mcpvault/dataplane/limit"
)

// clock is moved by the test.
type clock struct{ now time.Time }

func newClock() *clock               { return &clock{time.Unix(1_800_000_000, 0)} }
func (c *clock) Now() time.Time      { return c.now }
func (c *clock) add(d time.Duration) { c.now = c.now.Add(d) }

var errLost = errors.New("lost")

// cell is some limiters that talk to each other without a network.
type cell struct {
	clock *clock
	names []string
	nodes map[string]*limit.Limiter
	// lost decides whether a message, or the answer to it, gets lost.
	lost func(from, to string, answer bool) bool
}

func newCell(names ...string) *cell {
	c := &cell{clock: newClock(), names: names, nodes: map[string]*limit.Limiter{}, lost: func(string, string, bool) bool { return false }}
	for _, n := range names {
		c.start(n)
	}
	return c
}

func (c *cell) start(name string) {
	peers := slices.DeleteFunc(slices.Clone(c.names), func(n string) bool { return n == name })
	c.nodes[name] = limit.New(limit.Config{Peers: peers, Now: c.clock.Now})
}

func (c *cell) exchange(name string) {
	c.nodes[name].Exchange(context.Background(), func(_ context.Context, peer string, out []limit.Entry) ([]limit.Entry, error) {
		if c.lost(name, peer, false) {
			return nil, errLost
		}
		in := c.nodes[peer].Meet(name, out)
		if c.lost(peer, name, true) {
			return nil, errLost
		}
		return in, nil
	})
}

func tenantKey() limit.Key { return limit.Key{Tenant: "acme", Scope: limit.Tenant} }

// offer asks a node for n requests and counts those let through.
func (c *cell) offer(name string, r *limit.Rate, n int) (passed int64) {
	for range n {
		if c.nodes[name].Take(tenantKey(), r).OK {
			passed++
		}
	}
	return passed
}

// TestWhateverGetsLostTheNodesTogetherStayWithinTheLimit is the bound that is promised, with load that jumps between
// nodes and a network that loses messages and answers.
func TestWhateverGetsLostTheNodesTogetherStayWithinTheLimit(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		rate := limit.Rate{
			Requests: rapid.Int64Range(1, 500).Draw(t, "requests"), Per: time.Second,
			Burst: rapid.Int64Range(1, 300).Draw(t, "burst"),
		}
		loss := rapid.IntRange(0, 60).Draw(t, "loss percent")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		c := newCell("n1", "n2", "n3")
		var mu sync.Mutex
		c.lost = func(string, string, bool) bool {
			mu.Lock()
			defer mu.Unlock()
			return rng.IntN(100) < loss
		}
		began, passed := c.clock.now, int64(0)
		for range rapid.IntRange(50, 400).Draw(t, "steps") {
			c.clock.add(time.Duration(rng.IntN(200)) * time.Millisecond)
			passed += c.offer(c.names[rng.IntN(3)], &rate, rng.IntN(200))
			if rng.IntN(2) == 0 {
				c.exchange(c.names[rng.IntN(3)])
			}
			seconds := c.clock.now.Sub(began).Seconds()
			if most := float64(rate.Requests)*seconds + float64(rate.Burst) + 3; float64(passed) > most {
				t.Fatalf("%d requests let through in %.3f s: the bound is %.1f", passed, seconds, most)
			}
		}
	})
}

func TestAPartFollowsTheLoad(t *testing.T) {
	t.Parallel()
	c := newCell("n1", "n2", "n3")
	rate := &limit.Rate{Requests: 300, Per: time.Second, Burst: 30}
	for _, busy := range []string{"n1", "n2", "n3", "n1"} {
		passed := int64(0)
		for tick := range 200 {
			c.clock.add(50 * time.Millisecond)
			n := c.offer(busy, rate, 50)
			if tick >= 100 { // five seconds to move
				passed += n
			}
			if tick%20 == 0 {
				for _, name := range c.names {
					c.exchange(name)
				}
			}
		}
		if want := int64(300 * 5 * 85 / 100); passed < want {
			t.Errorf("all load on %s: %d requests in 5 s, want at least %d of 1500", busy, passed, want)
		}
	}
}

func TestANodeAloneGoesOnWithItsLastPart(t *testing.T) {
	t.Parallel()
	c := newCell("n1", "n2", "n3")
	rate := &limit.Rate{Requests: 240, Per: time.Second, Burst: 24}
	run := func(seconds int, busy ...string) map[string]int64 {
		passed := map[string]int64{}
		for tick := range seconds * 20 {
			c.clock.add(50 * time.Millisecond)
			for _, b := range busy {
				passed[b] += c.offer(b, rate, 50)
			}
			if tick%20 == 0 {
				for _, name := range c.names {
					c.exchange(name)
				}
			}
		}
		return passed
	}
	run(10, "n1")
	c.lost = func(from, to string, _ bool) bool { return from == "n3" || to == "n3" }
	alone := run(10, "n3")["n3"]
	// An eighth of its equal part: 10 a second.
	if alone < 80 || alone > 120+24 {
		t.Errorf("a node whose part had gone elsewhere let %d through in 10 s, want about 100", alone)
	}
	c.lost = func(string, string, bool) bool { return false }
	if back := run(10, "n3")["n3"]; back < 1800 {
		t.Errorf("after the partition it let %d through in 10 s, want nearly 2400", back)
	}
}

func TestANodeThatStartsAnewAddsNoMoreThanItsEqualPart(t *testing.T) {
	t.Parallel()
	c := newCell("n1", "n2", "n3")
	rate := &limit.Rate{Requests: 300, Per: time.Second, Burst: 30}
	began, passed := c.clock.now, int64(0)
	step := func(busy string, seconds int) {
		for tick := range seconds * 20 {
			c.clock.add(50 * time.Millisecond)
			passed += c.offer(busy, rate, 40)
			if tick%20 == 0 {
				for _, name := range c.names {
					c.exchange(name)
				}
			}
		}
	}
	step("n1", 5)
	for range 5 {
		c.start("n2")
		step("n2", 2)
		step("n1", 2)
	}
	seconds := c.clock.now.Sub(began).Seconds()
	// Of each start a third of the burst, and of the rate for the second until the next exchange.
	if most := int64(300*seconds) + 30 + 3 + 5*(10+100); passed > most {
		t.Fatalf("%d requests let through in %.0f s: the bound is %d", passed, seconds, most)
	}
	step("n1", 5)
	before, at := passed, c.clock.now
	step("n1", 5)
	if got, want := passed-before, int64(300*c.clock.now.Sub(at).Seconds()); got < want*85/100 || got > want+33 {
		t.Errorf("afterwards %d in 5 s, want about %d: parts were lost or doubled", got, want)
	}
}

func TestACallerOfOneNodeGetsNearlyTheWholeBurst(t *testing.T) {
	t.Parallel()
	c := newCell("n1", "n2", "n3")
	rate := &limit.Rate{Requests: 30, Per: time.Hour, Burst: 30}
	passed := c.offer("n1", rate, 40)
	if passed != 10 {
		t.Fatalf("%d of an equal part of a burst of 30", passed)
	}
	for range 5 {
		c.clock.add(time.Second)
		for _, name := range c.names {
			c.exchange(name)
		}
		passed += c.offer("n1", rate, 40)
	}
	// Each of the others keeps an eighth of its ten.
	if passed < 26 || passed > 30 {
		t.Errorf("%d of a burst of 30 passed: what the others had saved up was lost or doubled", passed)
	}
	for range 5 {
		c.clock.add(time.Second)
		for _, name := range c.names {
			c.exchange(name)
		}
		passed += c.offer("n2", rate, 40) + c.offer("n3", rate, 40)
	}
	if passed > 30+3 {
		t.Errorf("%d passed in all", passed)
	}
}

func TestStrangersAndNonsenseChangeNothing(t *testing.T) {
	t.Parallel()
	c := newCell("n1", "n2", "n3")
	rate := &limit.Rate{Requests: 30, Per: time.Second, Burst: 30}
	full := c.offer("n1", rate, 100)
	if full != 10 {
		t.Fatalf("an equal part of a burst of 30 let %d through", full)
	}
	gift := limit.Entry{Key: tenantKey(), Born: 7, PeerBorn: 1, Gave: 1 << 29}
	if out := c.nodes["n1"].Meet("n9", []limit.Entry{gift}); out != nil {
		t.Error("a stranger was answered:", out)
	}
	for _, bad := range []func(*limit.Entry){
		func(e *limit.Entry) { e.Born = 0 },
		func(e *limit.Entry) { e.Key.Scope = 99 },
		func(e *limit.Entry) { e.Demand = -1 },
		func(e *limit.Entry) { e.Parts = 1 << 40 },
		func(e *limit.Entry) { e.Key.Name = string(make([]byte, 1000)) },
	} {
		e := gift
		bad(&e)
		if out := c.nodes["n1"].Meet("n2", []limit.Entry{e}); len(out) != 0 {
			t.Errorf("%+v was taken: %+v", e, out)
		}
	}
	c.nodes["n1"].Meet("n2", []limit.Entry{gift}) // between memories that never met
	c.clock.add(10 * time.Second)
	if again := c.offer("n1", rate, 100); again > 10 {
		t.Errorf("a gift from nowhere let %d through", again)
	}
}

func FuzzMeet(f *testing.F) {
	f.Add(uint64(1), uint64(0), uint64(5), uint64(5), 1.0, int64(3), "acme", "alice", uint8(1))
	f.Fuzz(func(t *testing.T, born, peerBorn, gave, saved uint64, demand float64, parts int64, tenant, name string, scope uint8) {
		c := newCell("n1", "n2", "n3")
		rate := &limit.Rate{Requests: 3, Per: time.Second, Burst: 30}
		c.offer("n1", rate, 1)
		e := limit.Entry{
			Key: limit.Key{Tenant: tenant, Scope: limit.Scope(scope), Name: name}, Born: born, PeerBorn: peerBorn, Gave: gave, Saved: saved, Rate: *rate,
			Demand: demand, Parts: parts,
		}
		c.nodes["n1"].Meet("n2", []limit.Entry{e, e})
		c.exchange("n1")
		c.clock.add(time.Hour)
		if passed := c.offer("n1", rate, 100); passed < 1 || passed > 30 {
			t.Fatalf("%+v: a full bucket let %d through", e, passed)
		}
	})
}
