package limit

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

// Config configures a Limiter. Zero values take the defaults named.
type Config struct {
	// Peers are the other nodes of the cell, always in the same order; none for a cell of one.
	Peers []string
	// MaxBuckets bounds the buckets that are kept: 100,000 of about 300 bytes. Callers beyond that share one bucket of
	// their scope.
	MaxBuckets int
	// Born tells this life of the node from earlier ones: higher in each. The time in ns when 0.
	Born uint64
	// Now reads a clock that does not go back.
	Now func() time.Time
}

const (
	shardCount = 64
	// idleLooks is for how many looks a full bucket is kept without a request.
	idleLooks = 60
)

// Limiter holds the buckets of one node. It is safe for concurrent use; Take takes no lock that more than a 64th of the
// buckets share, and that one for reading.
type Limiter struct {
	cfg   Config
	start time.Time
	seed  maphash.Seed
	count atomic.Int64
	shard [shardCount]bucketShard

	// mu guards the shares, and is held by whoever changes a bucket's credit.
	mu     sync.Mutex
	shares map[Key]*share
	born   uint64
	looked int64 // ns of the last look
	looks  int
}

type bucketShard struct {
	mu sync.RWMutex
	m  map[Key]*bucket // guarded by mu
	_  [32]byte        // neighbours are other callers'
}

// New makes a limiter without buckets.
func New(cfg Config) *Limiter {
	if cfg.MaxBuckets <= 0 {
		cfg.MaxBuckets = 100_000
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	l := &Limiter{cfg: cfg, start: cfg.Now(), seed: maphash.MakeSeed(), shares: map[Key]*share{}}
	if l.born = cfg.Born; l.born == 0 {
		l.born = uint64(max(l.start.UnixNano(), 1))
	}
	for i := range l.shard {
		l.shard[i].m = map[Key]*bucket{}
	}
	return l
}

// Verdict is what a bucket says.
type Verdict struct {
	Scope Scope
	Rate  Rate
	OK    bool
	// Left is how many more requests this node would let through now, Wait how long until the next one when that is none.
	Left int64
	Wait time.Duration
}

func (l *Limiter) now() int64 { return int64(l.cfg.Now().Sub(l.start)) }

// Take spends one request of the bucket with this key, which has the rate given. It allocates nothing for a bucket that is
// there.
func (l *Limiter) Take(k Key, r *Rate) Verdict {
	now := l.now()
	b := l.find(&k)
	if b == nil {
		b = l.make(k, *r, now)
	}
	if b.credit.Load().rate != *r {
		l.change(b, *r, now)
	}
	v := Verdict{Scope: k.Scope, Rate: *r}
	v.OK, v.Left, v.Wait = b.take(now)
	return v
}

func (l *Limiter) of(k *Key) *bucketShard { return &l.shard[maphash.Comparable(l.seed, *k)%shardCount] }

func (l *Limiter) find(k *Key) *bucket {
	s := l.of(k)
	s.mu.RLock()
	b := s.m[*k]
	s.mu.RUnlock()
	return b
}

// make adds a bucket, or finds the one that all share who come when there is no room for more.
func (l *Limiter) make(k Key, r Rate, now int64) *bucket {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count.Load() >= int64(l.cfg.MaxBuckets) {
		k.Name, k.Item = overflow, ""
	}
	return l.put(k, r, now)
}

// put adds a bucket, unless it is there. The lock is held.
func (l *Limiter) put(k Key, r Rate, now int64) *bucket {
	s := l.of(&k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.m[k]; ok {
		return b
	}
	b := newBucket(r, l.part(k), now)
	s.m[k] = b
	l.count.Add(1)
	return b
}

// overflow is no name of a principal, server or tool.
const overflow = "\x00"

func (l *Limiter) change(b *bucket, r Rate, now int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b.adjust(r, b.credit.Load().part, now)
}

// Buckets counts the buckets that are kept.
func (l *Limiter) Buckets() int { return int(l.count.Load()) }

// look measures what was asked for since the last look, and drops what nobody has used for a minute and is full.
func (l *Limiter) look() {
	now := l.now()
	seconds := float64(now-l.looked) / 1e9
	if seconds < minLook {
		return
	}
	l.looked = now
	l.looks++
	for i := range l.shard {
		s := &l.shard[i]
		s.mu.Lock()
		for k, b := range s.m {
			asked := b.asked.Swap(0)
			b.demand = b.demand/2 + float64(asked)/seconds/2
			if b.idle++; asked > 0 {
				b.idle = 0
			}
			if b.idle >= idleLooks && b.full(now) {
				delete(s.m, k)
				l.count.Add(-1)
			}
		}
		s.mu.Unlock()
	}
}

// minLook is the shortest time, in seconds, over which a demand is measured.
const minLook = 0.05
