package limit

import (
	"sync"
	"time"
)

// Flood decides which of many equal refusals is recorded in full: one a second of each source. The others are counted, and
// the count goes with the next that is recorded or is collected when the source has gone quiet.
type Flood[T any] struct {
	every time.Duration
	max   int

	mu      sync.Mutex
	sources map[Key]*source[T] // guarded by mu
}

type source[T any] struct {
	kept    time.Time
	id      string
	skipped uint64
	first   T
}

// Skipped is what was not recorded of one source since its last record.
type Skipped[T any] struct {
	// First is the first of them.
	First T
	Count uint64
}

// NewFlood keeps one of each source in so long a time, and remembers so many sources; those beyond share one.
func NewFlood[T any](every time.Duration, most int) *Flood[T] {
	return &Flood[T]{every: every, max: most, sources: map[Key]*source[T]{}}
}

// Keep reports whether this one, with this id, is recorded in full, and how many before it were not. One that is not is
// counted; of the first of those since the last record, first makes what Due will return. kept is the id of the record that
// stands for this one.
func (f *Flood[T]) Keep(k Key, id string, now time.Time, first func() T) (kept string, skipped uint64, keep bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, known := f.sources[k]
	if !known && len(f.sources) >= f.max {
		k = Key{Tenant: overflow}
		s, known = f.sources[k]
	}
	if !known {
		f.sources[k] = &source[T]{kept: now, id: id}
		return id, 0, true
	}
	if since := now.Sub(s.kept); since >= f.every || since < 0 {
		skipped = s.skipped
		s.kept, s.id, s.skipped = now, id, 0
		return id, skipped, true
	}
	if s.skipped++; s.skipped == 1 {
		s.first = first()
	}
	return s.id, 0, false
}

// Due collects what was skipped of sources that have been quiet for as long as one is kept, or of all, and forgets them.
func (f *Flood[T]) Due(now time.Time, all bool) []Skipped[T] {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Skipped[T]
	for k, s := range f.sources {
		if !all && now.Sub(s.kept) < 2*f.every {
			continue
		}
		if s.skipped > 0 {
			out = append(out, Skipped[T]{First: s.first, Count: s.skipped})
		}
		delete(f.sources, k)
	}
	return out
}
