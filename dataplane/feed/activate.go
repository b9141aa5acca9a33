package feed

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/store"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// activateLoop puts into the live index what the store holds and the index does not.
func (f *Feed) activateLoop(ctx context.Context) {
	look := time.NewTicker(timeRetry)
	defer look.Stop()
	for {
		for ctx.Err() == nil && !f.Activate(ctx) {
			pause(ctx, proposeRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-f.activate:
		case <-look.C:
			if !f.waitsForTime() {
				continue
			}
		}
	}
}

// timeRetry is how often heads are looked at again whose time is not now, by this node's clock.
const timeRetry = 2 * time.Second

// bootLimit bounds how long a node that starts waits for shards that its disk has lost.
const bootLimit = 2 * time.Second

// Boot puts into force what this node's own disk proves: kills, the newest heartbeat, the newest generation of each
// tenant if it opens. It asks nobody, except for a shard that is missing, and for that not long.
func (f *Feed) Boot(ctx context.Context) {
	trust := f.cfg.Trust.Current()
	var kills []*snapshotv1.Kill
	for _, env := range f.cfg.Store.Kills() {
		k, err := trust.OpenKill(env)
		if err != nil {
			f.log.ErrorContext(ctx, "a stored kill does not verify", "err", err)
			continue
		}
		kills = append(kills, k)
	}
	f.cfg.PDP.Kill(kills...)
	if env, _ := f.cfg.Store.Heartbeat(); env != nil {
		if hb, err := trust.OpenHeartbeat(env, f.cfg.Cell); err == nil {
			f.connMu.Lock()
			f.heartbeat = hb
			f.connMu.Unlock()
		}
	}
	// What was confirmed before this start still is: the generation on the disk is that one or came after it.
	for id, ms := range f.cfg.Store.Confirmed() {
		f.cfg.PDP.RenewLease(id, ms)
	}
	limited, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	if !f.Activate(limited) {
		f.Applied()
	}
}

// Activate brings the live index up to the store and reports whether nothing is left to do. A tenant whose shards have to
// be waited for holds up no other.
func (f *Feed) Activate(ctx context.Context) bool {
	trust := f.cfg.Trust.Current()
	if trust == nil {
		return true
	}
	began := time.Now()
	state := f.cfg.PDP.Current()
	homed := f.homed()
	keep := func(id snapshot.TenantID) bool { return homed == nil || homed[id] }
	var todo []opening
	for id, chain := range f.cfg.Store.Chains() {
		t := state.Tenant(id)
		switch {
		case !keep(id) || t != nil && !chain.Version.Newer(t.Version):
		case !f.isRefused(chain.Digest):
			todo = append(todo, opening{id: id, chain: chain})
		case t != nil && len(chain.Deltas) > 0:
			f.cfg.PDP.HoldWrites(id, chain.Version)
		}
	}
	if leaves(state, keep) {
		f.cfg.PDP.Activate(nil, keep)
	}
	done := true
	opened := f.openAll(ctx, todo)
	for o := range opened {
		var ready []*pdp.Tenant
		for more := true; more; {
			if t := f.settle(ctx, state, o, &done); t != nil {
				ready = append(ready, t)
			}
			if more = len(opened) > 0; more {
				o = <-opened
			}
		}
		f.goLive(ctx, ready, keep)
		for range ready {
			f.metrics.apply.Observe(time.Since(began).Seconds())
		}
	}
	f.renewLeases()
	return done
}

// opening is a tenant's newest generation on its way into the live index.
type opening struct {
	id    snapshot.TenantID
	chain store.Chain
	assembled
}

// openAtOnce is how many tenants are opened beside each other.
const openAtOnce = 4

// openAll opens generations beside each other; the channel is closed behind the last one.
func (f *Feed) openAll(ctx context.Context, todo []opening) <-chan opening {
	out := make(chan opening, len(todo))
	places := make(chan struct{}, openAtOnce)
	var wg sync.WaitGroup
	for _, o := range todo {
		wg.Go(func() {
			places <- struct{}{}
			o.assembled = f.assemble(ctx, o.chain)
			<-places
			out <- o
		})
	}
	go func() {
		wg.Wait()
		close(out)
	}()
	return out
}

// settle judges what opening a generation came to and returns the tenant when it can go live. When a delta does not apply,
// that is the generation before it, if this node does not serve that already; calls with effects wait for the next head.
func (f *Feed) settle(ctx context.Context, state *pdp.State, o opening, done *bool) *pdp.Tenant {
	live := state.Tenant(o.id)
	behind := o.tenant != nil && (live == nil || o.tenant.Version.Newer(live.Version))
	hold := behind
	switch {
	case o.err == nil:
		return o.tenant
	case errors.Is(o.err, errUnverified):
		f.metrics.unproved.Inc()
		f.log.ErrorContext(ctx, "a stored generation does not verify", append(o.failed.attrs(), "err", o.err)...)
	case errors.Is(o.err, errUnfit):
		f.metrics.unproved.Inc()
		f.nack(o.failed, o.err)
		if o.failed.digest != o.chain.Digest {
			f.refuse(o.chain.Digest, o.err)
		}
		// The cell has gone on by a delta; a head that does not build is one that no node has staged.
		hold = hold || live != nil && len(o.chain.Deltas) > 0
	default:
		f.log.WarnContext(ctx, "generation waits for its shards", append(o.failed.attrs(), "err", o.err)...)
		*done, hold = false, hold || live != nil
	}
	if hold {
		f.cfg.PDP.HoldWrites(o.id, o.chain.Version)
	}
	if behind {
		return o.tenant
	}
	return nil
}

func (f *Feed) goLive(ctx context.Context, ready []*pdp.Tenant, keep func(snapshot.TenantID) bool) {
	if len(ready) == 0 {
		return
	}
	f.cfg.PDP.Activate(ready, keep)
	for _, t := range ready {
		f.connMu.Lock()
		delete(f.refused, t.Digest)
		f.connMu.Unlock()
		f.log.InfoContext(ctx, "generation is live", "tenant", t.Name, "generation", t.Version.String())
		f.ackTenant(t)
	}
}

func leaves(s *pdp.State, keep func(snapshot.TenantID) bool) bool {
	for _, t := range s.Tenants() {
		if !keep(t.ID) {
			return true
		}
	}
	return false
}

// homed is the set of tenants that the stored manifest names; nil when there is no manifest.
func (f *Feed) homed() map[snapshot.TenantID]bool {
	env := f.cfg.Store.Manifest()
	if env == nil {
		return nil
	}
	m, err := f.cfg.Trust.Current().OpenManifest(env, f.cfg.Cell)
	if err != nil {
		f.log.Error("the stored manifest does not verify", "err", err)
		return nil
	}
	set := make(map[snapshot.TenantID]bool, len(m.GetHeads()))
	for _, ref := range m.GetHeads() {
		set[snapshot.TenantID(ref.GetTenantId())] = true
	}
	return set
}

func (f *Feed) ackTenant(t *pdp.Tenant) {
	f.ack(&cellv1.AcknowledgeRequest{
		TenantId: string(t.ID), Epoch: uint64(t.Version.Epoch), Generation: uint64(t.Version.Generation),
		Revision: t.Revision, Status: cellv1.AckStatus_ACK_STATUS_APPLIED,
	})
}

// acknowledgeAll says again what is served: an answer may have been lost with the connection before.
func (f *Feed) acknowledgeAll() {
	for _, t := range f.cfg.PDP.Current().Tenants() {
		f.ackTenant(t)
	}
}

// nack refuses a verified generation: it is not tried again.
func (f *Feed) nack(g generation, cause error) {
	if f.refuse(g.digest, cause) {
		f.log.Error("generation refused, the last good one stays", append(g.attrs(), "err", cause)...)
	}
	f.reject(g, cause)
}

// reject answers that a generation was not taken.
func (f *Feed) reject(g generation, cause error) {
	reason := cause.Error()
	if len(reason) > 1000 {
		reason = reason[:1000]
	}
	f.ack(&cellv1.AcknowledgeRequest{
		TenantId: string(g.tenant), Epoch: uint64(g.version.Epoch), Generation: uint64(g.version.Generation), Revision: g.revision,
		Status: cellv1.AckStatus_ACK_STATUS_REJECTED, Reason: reason,
	})
}

// refuse remembers a refusal and reports whether it is a new one.
func (f *Feed) refuse(digest snapshot.Digest, cause error) bool {
	f.connMu.Lock()
	defer f.connMu.Unlock()
	_, known := f.refused[digest]
	if len(f.refused) > 1000 {
		clear(f.refused)
	}
	f.refused[digest] = !errors.Is(cause, seal.ErrNotYet) && !errors.Is(cause, seal.ErrExpired)
	return !known
}

func (f *Feed) isRefused(d snapshot.Digest) bool {
	f.connMu.Lock()
	defer f.connMu.Unlock()
	return f.refused[d]
}

// waitsForTime reports whether a head was refused for nothing but this node's clock.
func (f *Feed) waitsForTime() bool {
	f.connMu.Lock()
	defer f.connMu.Unlock()
	for _, final := range f.refused {
		if !final {
			return true
		}
	}
	return false
}
