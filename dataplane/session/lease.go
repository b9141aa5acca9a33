package session

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"sync"
	"time"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// Why a session is not opened.
var (
	// ErrNoQuorum means that most of the cell cannot be reached: nobody can agree on a new session.
	ErrNoQuorum = errors.New("the cell has no quorum")
	// ErrPrincipalFull and ErrTenantFull mean that there are as many sessions as are allowed.
	ErrPrincipalFull = errors.New("the principal has too many sessions")
	ErrTenantFull    = errors.New("the tenant has too many sessions")
)

// What holds where a tenant has not decided otherwise, and the longest that it may decide on.
const (
	DefaultIdle         = 30 * time.Minute
	DefaultMax          = 24 * time.Hour
	DefaultPerPrincipal = 512
	DefaultPerTenant    = 100_000
	MaxMax              = 7 * 24 * time.Hour
)

// Grace is for how long after its opening a session is taken at the word of its sealed id on a node that has not heard of its
// lease: the log may be a moment behind the client. On a node that is cut off, it is everything that was opened later than
// Grace before it was.
const Grace = 30 * time.Second

const (
	// openLimit bounds the wait for the cell to agree on a new session, endLimit that for an end, which takes effect here at
	// once.
	openLimit = 3 * time.Second
	endLimit  = time.Second
	// batchIDs and batchBytes keep a batch within what one entry of the log may be.
	batchIDs   = 2000
	batchBytes = 48 << 10
	// maxPending bounds the ends that wait for a quorum.
	maxPending = 1 << 16
)

// LeaseID names a lease: when the session was opened, in milliseconds, and the hash of its id.
type LeaseID [24]byte

// LeaseIDOf is the name of a session's lease.
func LeaseIDOf(id string, created time.Time) (l LeaseID) {
	binary.BigEndian.PutUint64(l[:], uint64(created.UnixMilli()))
	h := Hash(id)
	copy(l[8:], h[:])
	return l
}

// Created is when the session was opened.
func (l LeaseID) Created() time.Time { return time.UnixMilli(int64(binary.BigEndian.Uint64(l[:]))) }

// Limits are what a tenant lets its sessions be.
type Limits struct {
	Idle, Max               time.Duration
	PerPrincipal, PerTenant int
}

// Or is these limits where they are set, and others where they are not.
func (l Limits) Or(others Limits) Limits {
	return Limits{
		cmp.Or(l.Idle, others.Idle), cmp.Or(l.Max, others.Max), cmp.Or(l.PerPrincipal, others.PerPrincipal), cmp.Or(l.PerTenant, others.PerTenant),
	}
}

// LimitsOf reads a tenant's settings; nil has none.
func LimitsOf(s *snapshotv1.Settings) Limits {
	return Limits{
		Idle: time.Duration(s.GetSessionIdleMs()) * time.Millisecond, Max: time.Duration(s.GetSessionMaxMs()) * time.Millisecond,
		PerPrincipal: int(s.GetSessionsPerPrincipal()), PerTenant: int(s.GetSessionsPerTenant()),
	}
}

// Log is the cell's log.
type Log interface {
	// ProposeSessions returns when the cell has agreed on the batch, with what became of each opening in it.
	ProposeSessions(ctx context.Context, b *cellv1.SessionBatch) ([]cellv1.SessionVerdict, error)
	// Leads reports whether this node leads, HasLeader whether anybody does.
	Leads() bool
	HasLeader() bool
	// Current reports whether this node knows all that the cell has agreed on, but for what is on its way.
	Current() bool
}

// Disk is what this node has of the log.
type Disk interface {
	Lease(id [24]byte) (lease *cellv1.SessionLease, ended bool, err error)
	// Find takes hashes alone, and its time.
	Find(hashes ...[16]byte) (leases []*cellv1.SessionLease, err error)
	Counts(tenant string, owner [16]byte) (ofOwner, ofTenant int, err error)
	Unused(tenant string, sinceMS int64, limit int) (ids []byte, err error)
	Tenants() ([]string, error)
	OldestEnded() (ms int64, err error)
	AsOf() (ms int64)
}

// LeasesConfig configures Leases. Log and Disk are required.
type LeasesConfig struct {
	Log  Log
	Disk Disk
	// Settings are those of a tenant, nil when it is not served here.
	Settings func(tenant string) *snapshotv1.Settings
	// Defaults hold where a tenant has decided nothing.
	Defaults Limits
	// FlushEvery is how often uses are told to the cell: 5 s. SweepEvery is how often the leader looks for what was not used:
	// 10 s.
	FlushEvery, SweepEvery time.Duration
	Now                    func() time.Time
	Logger                 *slog.Logger
}

// Leases knows which sessions live, and tells the cell of openings, uses and ends. It is safe for concurrent use.
//
// A session that this node has used lately is known in memory; all others are looked up on disk.
type Leases struct {
	cfg  LeasesConfig
	wake chan struct{} // has something to propose

	mu      sync.Mutex              // guards what follows
	live    map[LeaseID]*use        // used here lately
	ends    map[LeaseID]*pendingEnd // ended here, and not yet applied here
	openers []*opening              // waiting for the cell
	killed  [][16]byte              // to be ended
	current time.Time               // when this node last knew all
}

type use struct {
	usedMS, toldMS int64
	// every is how old the last use may be before it is told again.
	every time.Duration
}

type pendingEnd struct {
	closed bool
	sent   bool
	agreed bool          // done is closed
	done   chan struct{} // closed when the cell has agreed
}

// agree tells who waits. Leases.mu is held.
func (e *pendingEnd) agree() {
	if !e.agreed {
		e.agreed = true
		close(e.done)
	}
}

type opening struct {
	o    *cellv1.SessionOpening
	done chan error
}

// NewLeases makes Leases; Run has to run for anything to reach the cell.
func NewLeases(cfg LeasesConfig) *Leases {
	cfg.Defaults = cfg.Defaults.Or(Limits{DefaultIdle, DefaultMax, DefaultPerPrincipal, DefaultPerTenant})
	cfg.FlushEvery, cfg.SweepEvery = cmp.Or(cfg.FlushEvery, 5*time.Second), cmp.Or(cfg.SweepEvery, 10*time.Second)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Settings == nil {
		cfg.Settings = func(string) *snapshotv1.Settings { return nil }
	}
	return &Leases{
		cfg: cfg, wake: make(chan struct{}, 1), live: map[LeaseID]*use{}, ends: map[LeaseID]*pendingEnd{},
		current: time.UnixMilli(cfg.Disk.AsOf()),
	}
}

// limits are those of a tenant's settings, defaults included.
func (l *Leases) limits(s *snapshotv1.Settings) Limits { return LimitsOf(s).Or(l.cfg.Defaults) }

// slack is how much longer than its idle time a session may live because its uses are told in batches.
func (l *Leases) slack(lim Limits) time.Duration { return l.every(lim) + 2*l.cfg.FlushEvery }

func (l *Leases) every(lim Limits) time.Duration {
	return min(max(lim.Idle/32, l.cfg.FlushEvery), time.Minute)
}

// Room says whether a session could be opened now: nil, ErrNoQuorum, ErrPrincipalFull or ErrTenantFull. Only Open decides.
func (l *Leases) Room(tenant string, owner Owner, s *snapshotv1.Settings) error {
	if !l.cfg.Log.HasLeader() {
		return ErrNoQuorum
	}
	lim := l.limits(s)
	ofOwner, ofTenant, err := l.cfg.Disk.Counts(tenant, owner)
	switch {
	case err != nil:
		return err
	case ofOwner >= lim.PerPrincipal:
		return ErrPrincipalFull
	case ofTenant >= lim.PerTenant:
		return ErrTenantFull
	}
	return nil
}

// Owned counts a principal's sessions in the cell.
func (l *Leases) Owned(tenant string, owner Owner) (int, error) {
	n, _, err := l.cfg.Disk.Counts(tenant, owner)
	return n, err
}

// Open returns when the cell has agreed on a new session. The error is ErrNoQuorum, ErrPrincipalFull or ErrTenantFull, or that
// of ctx; then there is none, or nobody who could use it.
func (l *Leases) Open(ctx context.Context, lease *cellv1.SessionLease, s *snapshotv1.Settings) error {
	lim := l.limits(s)
	w := &opening{
		o:    &cellv1.SessionOpening{Lease: lease, PrincipalCap: uint32(lim.PerPrincipal), TenantCap: uint32(lim.PerTenant)},
		done: make(chan error, 1),
	}
	if !l.cfg.Log.HasLeader() {
		return ErrNoQuorum
	}
	l.mu.Lock()
	l.openers = append(l.openers, w)
	l.mu.Unlock()
	l.kick()
	ctx, cancel := context.WithTimeoutCause(ctx, openLimit, ErrNoQuorum)
	defer cancel()
	select {
	case err := <-w.done:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live[LeaseID(lease.GetId())] = &use{usedMS: lease.GetUsedMs(), toldMS: lease.GetUsedMs(), every: l.every(lim)}
	return nil
}

// Use says that a session is used; ErrUnknown when it does not live any more. It reads the disk only for a session that was
// not used here lately, and waits for nobody.
func (l *Leases) Use(id LeaseID, s *snapshotv1.Settings) error {
	lim, now := l.limits(s), l.cfg.Now()
	if now.Sub(id.Created()) > lim.Max {
		return ErrUnknown
	}
	l.mu.Lock()
	if _, ended := l.ends[id]; ended {
		l.mu.Unlock()
		return ErrUnknown
	}
	if u := l.live[id]; u != nil && now.UnixMilli()-u.usedMS <= lim.Idle.Milliseconds() {
		u.usedMS = max(u.usedMS, now.UnixMilli())
		l.mu.Unlock()
		return nil
	}
	current := l.current
	l.mu.Unlock()
	if l.cfg.Log.Current() {
		current = now
	}
	lease, ended, err := l.cfg.Disk.Lease(id)
	switch {
	case err != nil:
		l.cfg.Logger.Error("a session cannot be read", "error", err)
		return ErrUnknown
	case ended:
		return ErrUnknown
	case lease == nil:
		// Opened where this node has not heard of it, or ended long ago: what is younger than what this node knows is
		// believed, as only the cell can have sealed it.
		if current.Sub(id.Created()) > Grace {
			return ErrUnknown
		}
		return nil
	// Of a cut-off node the others' uses are not known: what it knew is what counts.
	case current.UnixMilli()-lease.GetUsedMs() > (lim.Idle + l.slack(lim)).Milliseconds():
		return ErrUnknown
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ended := l.ends[id]; ended {
		return ErrUnknown
	}
	l.live[id] = &use{usedMS: now.UnixMilli(), toldMS: lease.GetUsedMs(), every: l.every(lim)}
	return nil
}

// End ends a session: here at once, and in the cell as soon as it has agreed, for which End waits a moment. closed says that
// the upstream's session is closed, or was never open; else the node that opened the session closes it.
func (l *Leases) End(ctx context.Context, id LeaseID, closed bool) {
	e := l.leave(id, closed)
	l.kick()
	if !l.cfg.Log.HasLeader() {
		return
	}
	t := time.NewTimer(endLimit)
	defer t.Stop()
	select {
	case <-e.done:
	case <-ctx.Done():
	case <-t.C:
	}
}

// Kill ends the session of which only the hash is known, as soon as it is found. It does not block.
func (l *Leases) Kill(hash [16]byte) {
	l.mu.Lock()
	if len(l.killed) < maxPending {
		l.killed = append(l.killed, hash)
	}
	l.mu.Unlock()
	l.kick()
}

// endKilled looks for what was killed and leaves it to be told.
func (l *Leases) endKilled() {
	l.mu.Lock()
	killed := l.killed
	l.killed = nil
	l.mu.Unlock()
	if len(killed) == 0 {
		return
	}
	leases, err := l.cfg.Disk.Find(killed...)
	if err != nil {
		l.cfg.Logger.Error("sessions that were killed cannot be looked for", "error", err)
	}
	for _, lease := range leases {
		l.leave(LeaseID(lease.GetId()), false)
	}
}

// leave ends a session here and leaves the end to be told to the cell.
func (l *Leases) leave(id LeaseID, closed bool) *pendingEnd {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.live, id)
	e := l.ends[id]
	if e == nil {
		e = &pendingEnd{closed: closed, done: make(chan struct{})}
		if len(l.ends) < maxPending {
			l.ends[id] = e
		}
	}
	return e
}

// Applied hears of a batch that the log has put on this node's disk; nil says that the log has replaced everything there.
func (l *Leases) Applied(b *cellv1.SessionBatch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b == nil {
		clear(l.live)
		return
	}
	for _, ids := range [][]byte{b.GetEnded(), b.GetDropped()} {
		for ; len(ids) >= len(LeaseID{}); ids = ids[len(LeaseID{}):] {
			l.forget(LeaseID(ids[:len(LeaseID{})]))
		}
	}
	for _, x := range b.GetExpired() {
		for ids := x.GetLeases(); len(ids) >= len(LeaseID{}); ids = ids[len(LeaseID{}):] {
			// One that is used here meanwhile is on disk still, or was too late.
			delete(l.live, LeaseID(ids[:len(LeaseID{})]))
		}
	}
}

// forget leaves a session to the disk. l.mu is held.
func (l *Leases) forget(id LeaseID) {
	delete(l.live, id)
	if e := l.ends[id]; e != nil {
		e.agree()
		delete(l.ends, id)
	}
}

// Live counts the sessions that this node knows in memory.
func (l *Leases) Live() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.live)
}

func (l *Leases) kick() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}
