package session

import (
	"context"
	"errors"
	"sync"
	"time"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"google.golang.org/protobuf/proto"
)

// lookEvery is how often Run notes that this node is current.
const lookEvery = 250 * time.Millisecond

// Run tells the cell of what is new until ctx ends: openings and ends at once, as many as wait in one entry; uses now and then;
// and, on the leader, the end of what was not used for too long.
func (l *Leases) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	// Two, so that those who come while an entry is on its way do not wait for its end.
	for range 2 {
		wg.Go(func() { l.tellUrgent(ctx) })
	}
	look, flush, sweep := time.NewTicker(lookEvery), time.NewTicker(l.cfg.FlushEvery), time.NewTicker(l.cfg.SweepEvery)
	defer look.Stop()
	defer flush.Stop()
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			l.look()
		case <-flush.C:
			l.tellUses(ctx)
			l.kick() // ends that found no quorum
		case <-sweep.C:
			l.sweep(ctx)
		}
	}
}

func (l *Leases) look() {
	if !l.cfg.Log.Current() {
		return
	}
	now := l.cfg.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current = now
}

// tellUrgent proposes openings and ends as they come.
func (l *Leases) tellUrgent(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		}
		l.endKilled()
		for ctx.Err() == nil && l.tellSome(ctx) {
		}
	}
}

// tellSome proposes one batch of what waits; false when nothing did, or nobody takes it.
func (l *Leases) tellSome(ctx context.Context) bool {
	openers, ends, b := l.takeSome()
	if len(openers)+len(ends) == 0 {
		return false
	}
	l.kick() // the other one may go on with the rest
	pctx, cancel := context.WithTimeout(ctx, openLimit)
	verdicts, err := l.cfg.Log.ProposeSessions(pctx, b)
	cancel()
	for i, w := range openers {
		w.done <- verdict(verdicts, i, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ends {
		e := l.ends[id]
		switch {
		case e == nil:
		case err != nil:
			e.sent = false
		default:
			e.agree() // it stays until it is applied here
		}
	}
	if err != nil {
		l.cfg.Logger.Debug("the cell did not take changes of sessions", "openings", len(openers), "ends", len(ends), "error", err)
	}
	return err == nil
}

// takeSome takes what waits, as much as one entry holds.
func (l *Leases) takeSome() (openers []*opening, ends []LeaseID, b *cellv1.SessionBatch) {
	b = &cellv1.SessionBatch{AtMs: l.cfg.Now().UnixMilli()}
	l.mu.Lock()
	defer l.mu.Unlock()
	size := 0
	for len(l.openers) > 0 && size < batchBytes {
		w := l.openers[0]
		l.openers = l.openers[1:]
		openers, b.Opened = append(openers, w), append(b.GetOpened(), w.o)
		size += proto.Size(w.o) + 8
	}
	for id, e := range l.ends {
		if e.sent {
			continue
		}
		if size += len(id); size >= batchBytes {
			break
		}
		e.sent = true
		ends = append(ends, id)
		if e.closed {
			b.Ended = append(b.Ended, id[:]...)
		} else {
			b.Dropped = append(b.Dropped, id[:]...)
		}
	}
	return openers, ends, b
}

func verdict(all []cellv1.SessionVerdict, i int, err error) error {
	switch {
	case err != nil:
		return errors.Join(ErrNoQuorum, err)
	case i >= len(all):
		return errors.Join(ErrNoQuorum, errors.New("the cell gave no verdict"))
	}
	switch all[i] {
	case cellv1.SessionVerdict_SESSION_VERDICT_OPENED:
		return nil
	case cellv1.SessionVerdict_SESSION_VERDICT_PRINCIPAL_FULL:
		return ErrPrincipalFull
	case cellv1.SessionVerdict_SESSION_VERDICT_TENANT_FULL:
		return ErrTenantFull
	case cellv1.SessionVerdict_SESSION_VERDICT_UNSPECIFIED:
	}
	return ErrNoQuorum
}

// tellUses tells the cell which sessions were used here, and lets go of those that were not.
func (l *Leases) tellUses(ctx context.Context) {
	for ctx.Err() == nil {
		now := l.cfg.Now().UnixMilli()
		b := &cellv1.SessionBatch{AtMs: now, TouchedMs: now, Touched: l.takeUses(now)}
		if len(b.GetTouched()) == 0 {
			return
		}
		pctx, cancel := context.WithTimeout(ctx, openLimit)
		_, err := l.cfg.Log.ProposeSessions(pctx, b)
		cancel()
		if err != nil {
			l.cfg.Logger.Debug("the cell was not told of uses of sessions", "error", err)
			return
		}
		l.mu.Lock()
		for ids := b.GetTouched(); len(ids) > 0; ids = ids[len(LeaseID{}):] {
			if u := l.live[LeaseID(ids[:len(LeaseID{})])]; u != nil {
				u.toldMS = now
			}
		}
		l.mu.Unlock()
		if len(b.GetTouched()) < batchIDs*len(LeaseID{}) {
			return
		}
	}
}

func (l *Leases) takeUses(now int64) (ids []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, u := range l.live {
		switch {
		case u.usedMS > u.toldMS && now-u.toldMS >= u.every.Milliseconds():
			if len(ids) < batchIDs*len(id) {
				ids = append(ids, id[:]...)
			}
		case u.usedMS <= u.toldMS && now-u.usedMS > 2*u.every.Milliseconds():
			delete(l.live, id) // the disk knows as much
		}
	}
	return ids
}

// sweep ends what was not used for too long, and forgets ends that nobody needs to know of any more. The leader does it.
func (l *Leases) sweep(ctx context.Context) {
	if !l.cfg.Log.Leads() || !l.cfg.Log.Current() {
		return
	}
	tenants, err := l.cfg.Disk.Tenants()
	if err != nil {
		l.cfg.Logger.Error("sessions cannot be swept", "error", err)
		return
	}
	for _, tenant := range tenants {
		if !l.sweepTenant(ctx, tenant) {
			return
		}
	}
	// Three times: a node that is behind must learn of the end before it may forget it.
	before := l.cfg.Now().Add(-3 * Grace).UnixMilli()
	for {
		oldest, err := l.cfg.Disk.OldestEnded()
		if err != nil || oldest == 0 || oldest >= before ||
			!l.propose(ctx, &cellv1.SessionBatch{AtMs: l.cfg.Now().UnixMilli(), ForgetBeforeMs: before}) {
			return
		}
	}
}

func (l *Leases) sweepTenant(ctx context.Context, tenant string) bool {
	lim := l.limits(l.cfg.Settings(tenant))
	for {
		now := l.cfg.Now()
		since := now.Add(-lim.Idle - l.slack(lim)).UnixMilli()
		ids, err := l.cfg.Disk.Unused(tenant, since, batchIDs)
		if err != nil || len(ids) == 0 {
			return err == nil
		}
		b := &cellv1.SessionBatch{AtMs: now.UnixMilli(), Expired: []*cellv1.SessionExpiry{{UnusedSinceMs: since, Leases: ids}}}
		if !l.propose(ctx, b) {
			return false
		}
		if len(ids) < batchIDs*len(LeaseID{}) {
			return true
		}
	}
}

func (l *Leases) propose(ctx context.Context, b *cellv1.SessionBatch) bool {
	ctx, cancel := context.WithTimeout(ctx, openLimit)
	defer cancel()
	_, err := l.cfg.Log.ProposeSessions(ctx, b)
	if err != nil {
		l.cfg.Logger.Debug("the cell did not take an end of sessions", "error", err)
	}
	return err == nil
}
