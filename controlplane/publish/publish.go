// Package publish makes law of what was written: it numbers, seals, stores and announces generations, and keeps for each
// cell the signed manifest and heartbeat that its nodes are sent.
//
// The outbox is the truth and notifications are hints: what was committed is published even when every hint is lost, by
// whichever control plane gets the tenant's lock first. Generations only go up; one tenant whose rows do not compile
// delays nobody else, and its last good generation stays in force. A heartbeat is signed only while PostgreSQL was heard
// from in the last seconds: without it nobody here knows that a root is still the newest.
//
// Every revision leads to a new generation, also one that changes nothing that decides, and "which generation holds this
// revision" has one plain answer. Every revision is compiled afresh; what is sent is the difference to the generation before,
// a delta, when that is small and fits, and else a head with new shards.
package publish

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/keyring"
	"github.com/mcpvault/mcpvault/controlplane/store"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// The publisher's times and bounds.
const (
	// PollEvery is how long a commit waits for its generation when the hint is lost.
	PollEvery = time.Second
	// HeartbeatEvery is the rhythm of heartbeats.
	HeartbeatEvery = 2 * time.Second
	// HeadLife is how long a head is in force. It is renewed after half of that.
	HeadLife = 30 * 24 * time.Hour
	// KeepGenerations is how many generations of a tenant are kept however old they are, KeepFor how long all are, and what
	// they rest on: for as long a recorded decision can be made again.
	KeepGenerations = 64
	KeepFor         = 90 * 24 * time.Hour
	// MaxDeltas is how many deltas are made of one head, maxDeltaBytes how long they are together.
	MaxDeltas     = 64
	maxDeltaBytes = 1 << 20
	// A head follows when deltas have replaced one record in replacedPart, if those are more than replacedFree.
	replacedPart = 20
	replacedFree = 256
	// maxOpen bounds how many indexes are kept open.
	maxOpen = 256

	clockSkew     = 5 * time.Minute
	contactLimit  = 10 * time.Second
	skewLimit     = 30 * time.Second
	failureRetry  = 30 * time.Second
	outboxKeep    = time.Hour
	housekeepEach = time.Minute
	workers       = 3

	// How long PostgreSQL may take: the loop must not wait for a connection that died without a word.
	pollLimit    = 5 * time.Second
	publishLimit = 2 * time.Minute
	tidyLimit    = housekeepEach / 2
)

// Everyone in a cell's list of tenants homes every tenant there.
const Everyone = "*"

// Config is what a publisher stands on.
type Config struct {
	Store *store.Store
	// Keys are what signs, and the roots that name it; they may change at any time.
	Keys Keys
	// Cells maps each cell to the names of the tenants homed there, or Everyone.
	Cells map[string][]string
	// Issuers are whose tokens a tenant's callers may bring, besides those of the issuers that the tenant has named.
	Issuers func(controlplane.Tenant) []*snapshotv1.Issuer
	// KeepFor is how long every generation is kept; 0 means the constant of that name.
	KeepFor time.Duration
	Logger  *slog.Logger
	// Metrics counts; nil keeps none.
	Metrics prometheus.Registerer
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Keys are the keys that sign now.
type Keys interface {
	Current() *keyring.Set
	// Changed is closed when Current is another set.
	Changed() <-chan struct{}
}

// Publisher publishes. Run it; the other methods may be called at any time by anybody.
type Publisher struct {
	cfg Config
	st  *store.Store
	log *slog.Logger
	now func() time.Time
	m   *metrics

	// id tells our own announcements from those of other control planes.
	id      string
	sem     chan struct{}
	running sync.WaitGroup
	// asked wakes the loop for tenants that owe a head.
	asked chan struct{}

	mu sync.Mutex // guards all below
	// loaded is true once the stored heads were read.
	loaded  bool
	contact time.Time
	away    bool
	// skew is how far the clock is ahead of PostgreSQL's.
	skew time.Duration
	// waiting is when the oldest write was made that the last look at the outbox found unpublished; zero for none.
	waiting time.Time
	tenants map[controlplane.TenantID]*tenantState
	cells   map[string]*cellState
	// busy are the tenants being published; true asks for another round afterwards.
	busy map[controlplane.TenantID]bool
	// open are indexes of newest generations, so that the next one is compared without reading it again.
	open map[controlplane.TenantID]Opened
}

// tenantState is what is in force for a tenant.
type tenantState struct {
	name    string
	head    *Head
	kills   []store.Kill
	failure *Failure
	// rebase is set while a head is owed to nodes that a delta did not fit.
	rebase bool
}

// Failure says why a tenant's newest revisions are not in force.
type Failure struct {
	Tenant  string
	Message string
	Since   time.Time
	retryAt time.Time
	rows    int64 // the newest outbox row that was tried
}

// New makes a publisher.
func New(cfg Config) *Publisher {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.KeepFor <= 0 {
		cfg.KeepFor = KeepFor
	}
	p := &Publisher{
		cfg: cfg, st: cfg.Store, log: cfg.Logger, now: cfg.Now,
		id:      store.NewID(),
		sem:     make(chan struct{}, workers),
		tenants: map[controlplane.TenantID]*tenantState{},
		cells:   map[string]*cellState{},
		busy:    map[controlplane.TenantID]bool{},
		open:    map[controlplane.TenantID]Opened{},
		asked:   make(chan struct{}, 1),
	}
	for name := range cfg.Cells {
		p.cells[name] = newCell(name)
	}
	p.m = newMetrics(cfg.Metrics, p)
	return p
}

// Run publishes until ctx ends. It survives PostgreSQL being away, at the start too.
func (p *Publisher) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer p.running.Wait()
	defer stop()
	// Listen first: what is committed while the heads are being read gives a hint that waits in the channel.
	written := p.st.Listen(ctx, store.OutboxChannel)
	published := p.st.Listen(ctx, store.GenerationChannel)
	defer drain(written)
	defer drain(published)
	defer stop()

	poll := time.NewTicker(PollEvery)
	defer poll.Stop()
	beat := time.NewTicker(HeartbeatEvery)
	defer beat.Stop()
	tidy := time.NewTicker(housekeepEach)
	defer tidy.Stop()
	keys := p.cfg.Keys.Changed()
	p.poll(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case tenant := <-written:
			p.hint(ctx, tenant)
		case who := <-published:
			p.follow(ctx, who)
		case <-p.asked:
			p.renew(ctx)
		case <-poll.C:
			p.poll(ctx)
		case <-keys:
			keys = p.cfg.Keys.Changed()
			p.rotate(ctx)
		case <-beat.C:
			p.heartbeats()
		case <-tidy.C:
			p.tidy(ctx)
		}
	}
}

// drain waits until the listener has ended.
func drain(c <-chan string) {
	for range c { // only the end matters
	}
}

// poll looks at the outbox itself, and at what hints may not have brought.
func (p *Publisher) poll(ctx context.Context) {
	if !p.isLoaded() && (!p.askClock(ctx) || !p.load(ctx)) {
		return
	}
	var open []store.Pending
	var manifests map[string]uint64
	var clock time.Time
	limited, cancel := context.WithTimeout(ctx, pollLimit)
	defer cancel()
	err := p.st.Platform(limited, func(tx *store.Tx) (err error) {
		if open, err = tx.Pending(limited); err != nil {
			return err
		}
		if manifests, err = tx.Manifests(limited); err != nil {
			return err
		}
		clock, err = tx.Clock(limited)
		return err
	})
	if p.lost(ctx, err) {
		return
	}
	p.judgeClock(ctx, p.now().Sub(clock))
	var oldest time.Time
	for _, t := range open {
		if oldest.IsZero() || t.Since.Before(oldest) {
			oldest = t.Since
		}
		if p.worthTrying(t.TenantID, t.Newest) {
			p.start(ctx, t.TenantID, false)
		}
	}
	p.mu.Lock()
	p.waiting = oldest
	p.mu.Unlock()
	p.renew(ctx)
	p.catchUp(ctx, manifests)
}

// lost keeps whether PostgreSQL answers, and says so when that changes.
func (p *Publisher) lost(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err != nil && !p.away:
		p.log.WarnContext(ctx, "nothing can be published until PostgreSQL answers", "error", err)
	case err == nil && p.away:
		p.log.InfoContext(ctx, "PostgreSQL answers again")
	}
	p.away = err != nil
	if err == nil {
		p.contact = p.now()
	}
	return err != nil
}

// askClock compares the clocks before the first heartbeat is signed; false when PostgreSQL does not answer.
func (p *Publisher) askClock(ctx context.Context) bool {
	limited, cancel := context.WithTimeout(ctx, pollLimit)
	defer cancel()
	var clock time.Time
	err := p.st.Platform(limited, func(tx *store.Tx) (err error) {
		clock, err = tx.Clock(limited)
		return err
	})
	if p.lost(ctx, err) {
		return false
	}
	p.judgeClock(ctx, p.now().Sub(clock))
	return true
}

// judgeClock keeps how far this process's clock is from PostgreSQL's. A heartbeat from the future would raise the clocks of
// every node for good, so none is signed while the two contradict each other.
func (p *Publisher) judgeClock(ctx context.Context, skew time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if was, is := p.skew.Abs() > skewLimit, skew.Abs() > skewLimit; is && !was {
		p.log.ErrorContext(ctx, "this clock and PostgreSQL's contradict each other: heartbeats are paused", "apart", skew)
	} else if was && !is {
		p.log.InfoContext(ctx, "this clock and PostgreSQL's agree again")
	}
	p.skew = skew
}

// worthTrying is false for a tenant that failed a moment ago and was not written to since.
func (p *Publisher) worthTrying(tenant controlplane.TenantID, row int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.tenants[tenant]
	return t == nil || t.failure == nil || row > t.failure.rows || !p.now().Before(t.failure.retryAt)
}

func (p *Publisher) hint(ctx context.Context, tenant string) {
	if tenant == "" || !p.isLoaded() {
		p.poll(ctx)
		return
	}
	p.start(ctx, controlplane.TenantID(tenant), false)
}

// start publishes a tenant beside the others. A tenant that is being published is published once more afterwards.
func (p *Publisher) start(ctx context.Context, tenant controlplane.TenantID, force bool) {
	p.mu.Lock()
	if _, busy := p.busy[tenant]; busy {
		p.busy[tenant] = true
		p.mu.Unlock()
		// A kill must not wait for a policy that is being compiled.
		p.aside(func() { p.refreshKills(ctx, tenant) })
		return
	}
	p.busy[tenant] = false
	p.mu.Unlock()
	p.aside(func() {
		for {
			if p.enter(ctx, tenant) {
				p.publish(ctx, tenant, force)
				<-p.sem
			}
			if force = false; !p.again(ctx, tenant) {
				return
			}
		}
	})
}

// enter waits for a worker's place; false when ctx ends. A kill does not wait for other tenants' policies either.
func (p *Publisher) enter(ctx context.Context, tenant controlplane.TenantID) bool {
	select {
	case p.sem <- struct{}{}:
		return true
	default:
	}
	p.refreshKills(ctx, tenant)
	select {
	case p.sem <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// again reports whether somebody asked for the tenant while it was being published.
func (p *Publisher) again(ctx context.Context, tenant controlplane.TenantID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.busy[tenant] || ctx.Err() != nil {
		delete(p.busy, tenant)
		return false
	}
	p.busy[tenant] = false
	return true
}

// aside runs fn beside the loop; Run waits for it.
func (p *Publisher) aside(fn func()) {
	p.running.Add(1)
	go func() {
		defer p.running.Done()
		fn()
	}()
}

// tidy drops what nobody needs.
func (p *Publisher) tidy(ctx context.Context) {
	p.aside(func() { p.sweep(ctx) })
}

func (p *Publisher) sweep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, tidyLimit)
	defer cancel()
	err := p.st.Platform(ctx, func(tx *store.Tx) error {
		if _, err := tx.PruneOutbox(ctx, p.now().Add(-outboxKeep)); err != nil {
			return err
		}
		_, err := tx.SweepBlobs(ctx)
		return err
	})
	if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
		p.log.WarnContext(ctx, "old generations cannot be dropped", "error", err)
	}
}

func (p *Publisher) isLoaded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.loaded
}

// Status is how publishing goes.
type Status struct {
	// Loaded is true once the stored heads are known: before that no cell is sent anything.
	Loaded bool
	// Contact is when PostgreSQL was last heard from.
	Contact time.Time
	// Skew is how far this process's clock is ahead of PostgreSQL's; heartbeats pause beyond half a minute.
	Skew     time.Duration
	Failures []Failure
	// Outdated are the tenants whose generation in force only an older key has signed: it must not be withdrawn yet.
	Outdated []string
}

// Status says how publishing goes.
func (p *Publisher) Status() Status {
	keys := p.cfg.Keys.Current()
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Status{Loaded: p.loaded, Contact: p.contact, Skew: p.skew}
	for _, t := range p.tenants {
		if t.failure != nil {
			s.Failures = append(s.Failures, *t.failure)
		}
		if t.head != nil && keys.Outdated(snapshotv1.KeyRole_KEY_ROLE_HEAD, t.head.Signers) {
			s.Outdated = append(s.Outdated, t.name)
		}
	}
	return s
}
