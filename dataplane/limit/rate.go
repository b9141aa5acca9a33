package limit

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Scope is what shares one bucket.
type Scope uint8

// The scopes, in the order in which they are looked at: what refuses one caller must not use up what is everybody's.
const (
	Principal Scope = iota
	Tenant
	Tool
	Server
	// Discover is each principal's server/discover, Resume each principal's reopening of streams.
	Discover
	Resume
	scopes
)

var scopeNames = [scopes]string{"principal", "tenant", "tool", "server", "discover", "resume"}

// String is the word of settings, headers and metrics.
func (s Scope) String() string {
	if s < scopes {
		return scopeNames[s]
	}
	return fmt.Sprintf("scope(%d)", uint8(s))
}

// Scopes are the words of all scopes.
func Scopes() []string { return slices.Clone(scopeNames[:]) }

// ParseScope reads the word of a scope.
func ParseScope(word string) (Scope, bool) {
	for i, name := range scopeNames {
		if name == word {
			return Scope(i), true
		}
	}
	return 0, false
}

// Rate is a token bucket: Requests in every Per on average, Burst at once.
type Rate struct {
	Requests int64
	Per      time.Duration
	Burst    int64
}

// The bounds of a rate. They keep the arithmetic of buckets exact for years.
const (
	MaxRequests = 1_000_000
	MinPer      = time.Second
	MaxPer      = 24 * time.Hour
)

// Valid reports whether the rate is within the bounds.
func (r Rate) Valid() bool {
	return r.Requests > 0 && r.Requests <= MaxRequests && r.Per >= MinPer && r.Per <= MaxPer && r.Burst > 0 && r.Burst <= MaxRequests
}

// String is how people write it: "100 per 1s".
func (r Rate) String() string {
	per := r.Per.String()
	if strings.HasSuffix(per, "m0s") {
		per = strings.TrimSuffix(per, "0s")
	}
	if strings.HasSuffix(per, "h0m") {
		per = strings.TrimSuffix(per, "0m")
	}
	return fmt.Sprintf("%d per %s", r.Requests, per)
}

// Key names one bucket. Name is the principal or the server, Item the tool; both are "" for a tenant's.
type Key struct {
	Tenant string
	Scope  Scope
	Name   string
	Item   string
}

// Plan is what one tenant allows. It is never changed once it is in use; a nil Plan limits nothing.
type Plan struct {
	each  [scopes]*Rate
	named map[Key]*Rate
	// MaxCalls bounds the requests of one principal that are under way on one node; 0 for no bound.
	MaxCalls int
}

// Set gives every member of a scope a rate, or the one that is named. A rate out of bounds is an error.
func (p *Plan) Set(s Scope, name, item string, r Rate) error {
	switch {
	case s >= scopes:
		return fmt.Errorf("there is no %s", s)
	case !r.Valid():
		return fmt.Errorf("the rate %d per %s with a burst of %d is out of bounds", r.Requests, r.Per, r.Burst)
	case name == "":
		p.each[s] = &r
		return nil
	}
	if p.named == nil {
		p.named = map[Key]*Rate{}
	}
	p.named[Key{Scope: s, Name: name, Item: item}] = &r
	return nil
}

// Rate is that of one bucket, nil for none.
func (p *Plan) Rate(s Scope, name, item string) *Rate {
	if p == nil {
		return nil
	}
	if p.named != nil {
		if r, ok := p.named[Key{Scope: s, Name: name, Item: item}]; ok {
			return r
		}
	}
	return p.each[s]
}

// unit is one request in the fixed point of buckets.
const unit = 1 << 16

// credit is what a bucket has been given: a line over time. A node's part of the rate is its slope.
type credit struct {
	rate  Rate
	part  float64 // of the cell's budget that this node may spend
	at    int64   // ns
	base  float64 // units, at that time
	perNS float64 // units
	size  int64   // units that can be saved up
}

func (c *credit) value(now int64) int64 { return int64(c.base + float64(now-c.at)*c.perNS) }

// bucket is a token bucket without locks: what was spent catches up with the credit. Its part changes by the replacement of
// the credit, which is continuous: no token appears or is lost by it.
type bucket struct {
	credit atomic.Pointer[credit]
	spent  atomic.Int64 // units
	asked  atomic.Int64 // requests since the last look, refused ones too
	idle   int          // looks without a request; for the limiter's own loop
	demand float64      // requests a second, smoothed; as idle
}

func newBucket(r Rate, part float64, now int64) *bucket {
	b := &bucket{}
	c := lineOf(r, part, now, 0)
	b.credit.Store(c)
	b.spent.Store(-c.size)
	return b
}

func lineOf(r Rate, part float64, now int64, base float64) *credit {
	// A part of less than one request would never let one through.
	size := max(unit, int64(math.Round(part*float64(r.Burst)*unit)))
	return &credit{
		rate: r, part: part, at: now, base: base, size: size,
		perNS: part * float64(r.Requests) * unit / float64(r.Per.Nanoseconds()),
	}
}

// take spends one request. left is how many more could be spent now; wait is how long it takes until one can be.
func (b *bucket) take(now int64) (ok bool, left int64, wait time.Duration) {
	b.asked.Add(1)
	for {
		c := b.credit.Load()
		v := c.value(now)
		s := b.spent.Load()
		from := max(s, v-c.size)
		if from+unit > v {
			return false, 0, c.until(from + unit - v)
		}
		if b.spent.CompareAndSwap(s, from+unit) {
			left = v - from - unit
			if left < unit {
				wait = c.until(unit - left)
			}
			return true, left / unit, wait
		}
	}
}

// until is how long it takes to be given so many units.
func (c *credit) until(units int64) time.Duration {
	ns := math.Ceil(float64(units) / c.perNS)
	if ns >= math.MaxInt64 || c.perNS <= 0 {
		return math.MaxInt64
	}
	return time.Duration(ns)
}

// adjust gives the bucket another rate or part from now on, and returns what it had saved up and can no longer keep. It is
// for one goroutine at a time.
func (b *bucket) adjust(r Rate, part float64, now int64) (over int64) {
	old := b.credit.Load()
	if old.rate == r && old.part == part {
		return 0
	}
	next := lineOf(r, part, now, old.base+float64(now-old.at)*old.perNS)
	v := old.value(now)
	for {
		s := b.spent.Load()
		// What could not have been saved up before must not be there afterwards.
		from := max(s, v-old.size)
		over = max(0, v-from-next.size)
		if b.spent.CompareAndSwap(s, from+over) {
			break
		}
	}
	b.credit.Store(next)
	return over
}

// deposit adds what another node had saved up.
func (b *bucket) deposit(units, now int64) {
	c := b.credit.Load()
	for {
		s := b.spent.Load()
		if b.spent.CompareAndSwap(s, max(s-units, c.value(now)-c.size)) {
			return
		}
	}
}

// full reports whether nothing is missing.
func (b *bucket) full(now int64) bool {
	c := b.credit.Load()
	return c.value(now)-b.spent.Load() >= c.size
}
