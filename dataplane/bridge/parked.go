package bridge

import (
	"sync"
	"time"
)

// Nonce names a parked call.
type Nonce [16]byte

// Parked keeps calls that wait, between two rounds, for their clients to come back with answers: so many in all, so many of
// each owner, so long.
type Parked[T any] struct {
	all, each int
	now       func() time.Time

	mu     sync.Mutex
	m      map[Nonce]slot[T] // guarded by mu
	owners map[[16]byte]int  // guarded by mu
}

type slot[T any] struct {
	owner [16]byte
	until time.Time
	call  T
}

// NewParked makes an empty one.
func NewParked[T any](all, each int, now func() time.Time) *Parked[T] {
	return &Parked[T]{all: all, each: each, now: now, m: map[Nonce]slot[T]{}, owners: map[[16]byte]int{}}
}

// Put keeps a call until then; false when there is no room.
func (p *Parked[T]) Put(n Nonce, owner [16]byte, until time.Time, call T) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.m) >= p.all || p.owners[owner] >= p.each {
		return false
	}
	p.m[n] = slot[T]{owner, until, call}
	p.owners[owner]++
	return true
}

// Room reports whether Put would find room.
func (p *Parked[T]) Room(owner [16]byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.m) < p.all && p.owners[owner] < p.each
}

// Take takes a call out, once, when fits says that it may be; false when there is none, or it is too late.
func (p *Parked[T]) Take(n Nonce, fits func(T) bool) (call T, found, fit bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.m[n]
	if !ok || !p.now().Before(s.until) {
		return call, false, false
	}
	if !fits(s.call) {
		return call, true, false
	}
	p.drop(n, s)
	return s.call, true, true
}

// drop needs mu.
func (p *Parked[T]) drop(n Nonce, s slot[T]) {
	delete(p.m, n)
	if p.owners[s.owner]--; p.owners[s.owner] == 0 {
		delete(p.owners, s.owner)
	}
}

// Overdue takes out the calls whose time is over, or all of them.
func (p *Parked[T]) Overdue(all bool) []T {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []T
	now := p.now()
	for n, s := range p.m {
		if all || !now.Before(s.until) {
			p.drop(n, s)
			out = append(out, s.call)
		}
	}
	return out
}

// Len counts the calls kept.
func (p *Parked[T]) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.m)
}
