package limit

import (
	"hash/maphash"
	"sync"
)

// Slots counts what each caller has under way. The zero value is not ready: use NewSlots.
type Slots struct {
	seed  maphash.Seed
	shard [shardCount]slotShard
}

type slotShard struct {
	mu sync.Mutex
	n  map[Key]int // guarded by mu; no zero entries
	_  [32]byte
}

// NewSlots counts nothing yet.
func NewSlots() *Slots {
	s := &Slots{seed: maphash.MakeSeed()}
	for i := range s.shard {
		s.shard[i].n = map[Key]int{}
	}
	return s
}

// Enter takes one of most places of a caller. It reports whether there was one; Leave gives it back.
func (s *Slots) Enter(k Key, most int) bool {
	at := &s.shard[maphash.Comparable(s.seed, k)%shardCount]
	at.mu.Lock()
	defer at.mu.Unlock()
	if at.n[k] >= most {
		return false
	}
	at.n[k]++
	return true
}

// Leave gives a place back.
func (s *Slots) Leave(k Key) {
	at := &s.shard[maphash.Comparable(s.seed, k)%shardCount]
	at.mu.Lock()
	defer at.mu.Unlock()
	if at.n[k]--; at.n[k] <= 0 {
		delete(at.n, k)
	}
}

// Callers counts those with something under way.
func (s *Slots) Callers() int {
	n := 0
	for i := range s.shard {
		at := &s.shard[i]
		at.mu.Lock()
		n += len(at.n)
		at.mu.Unlock()
	}
	return n
}
