package session

import (
	"context"
	"errors"
	"sync"
	"time"
)

// ErrFull means that no more upstream sessions may be kept.
var ErrFull = errors.New("too many upstream sessions")

// TableKey names an upstream session that the gateway owns: for one caller (the hash of who they are) on one server.
type TableKey struct {
	Owner  [16]byte
	Server string
}

// Upstream is a session that the gateway opened.
type Upstream struct {
	// Tenant and Server say which server it is, for whoever closes it.
	Tenant, Server string
	URL            string
	ID             string
	Revision       string
}

// Table keeps the upstream sessions of the gateway's own making: made when first needed, once for all who ask at the
// same time, dropped when idle.
type Table struct {
	max  int
	idle time.Duration
	now  func() time.Time

	mu      sync.Mutex
	entries map[TableKey]*entry // guarded by mu
}

type entry struct {
	ready chan struct{} // closed when up and err are set
	up    Upstream
	err   error
	used  time.Time // guarded by Table.mu
}

// NewTable makes a table of at most limit sessions; one that was not used for idle may be swept.
func NewTable(limit int, idle time.Duration, now func() time.Time) *Table {
	if now == nil {
		now = time.Now
	}
	return &Table{max: limit, idle: idle, now: now, entries: map[TableKey]*entry{}}
}

// Get returns the session of the key, opening it with open when there is none. Who comes second waits for the first; a
// failure is told to all who waited and forgotten, but for the first one's leaving, after which the next one opens.
func (t *Table) Get(ctx context.Context, key TableKey, open func(context.Context) (Upstream, error)) (Upstream, error) {
	for {
		e, mine, err := t.entry(key)
		if err != nil {
			return Upstream{}, err
		}
		if mine {
			e.up, e.err = open(ctx)
			if e.err != nil {
				t.drop(key, e)
			}
			close(e.ready)
			return e.up, e.err
		}
		select {
		case <-e.ready:
			if !errors.Is(e.err, context.Canceled) {
				return e.up, e.err
			}
		case <-ctx.Done():
			return Upstream{}, ctx.Err()
		}
	}
}

// entry finds the key's entry, or makes one for the caller to fill.
func (t *Table) entry(key TableKey) (e *entry, mine bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := t.entries[key]; ok {
		e.used = t.now()
		return e, false, nil
	}
	if len(t.entries) >= t.max {
		return nil, false, ErrFull
	}
	e = &entry{ready: make(chan struct{}), used: t.now()}
	t.entries[key] = e
	return e, true, nil
}

// Drop forgets a session that its upstream no longer knows; a newer one of the same key stays.
func (t *Table) Drop(key TableKey, up Upstream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := t.entries[key]; ok && e.done() && e.up == up {
		delete(t.entries, key)
	}
}

func (t *Table) drop(key TableKey, e *entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.entries[key] == e {
		delete(t.entries, key)
	}
}

// End takes out all upstream sessions of a caller, for the caller of End to close.
func (t *Table) End(owner [16]byte) []Upstream {
	return t.take(func(k TableKey, _ *entry) bool { return k.Owner == owner })
}

// Sweep takes out the sessions that were idle too long, for the caller to close.
func (t *Table) Sweep() []Upstream {
	limit := t.now().Add(-t.idle)
	return t.take(func(_ TableKey, e *entry) bool { return e.used.Before(limit) })
}

// Len counts the sessions kept.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.entries)
}

func (t *Table) take(pick func(TableKey, *entry) bool) []Upstream {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Upstream
	for k, e := range t.entries {
		if e.done() && pick(k, e) {
			out = append(out, e.up)
			delete(t.entries, k)
		}
	}
	return out
}

func (e *entry) done() bool {
	select {
	case <-e.ready:
		return true
	default:
		return false
	}
}
