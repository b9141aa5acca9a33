package feed

import (
	"errors"
	"fmt"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// generation names one head or delta for answers and logs.
type generation struct {
	tenant   snapshot.TenantID
	name     string
	version  snapshot.Version
	revision uint64
	digest   snapshot.Digest
}

func generationOf(h *snapshotv1.Head, digest snapshot.Digest) generation {
	return generation{snapshot.TenantID(h.GetTenantId()), h.GetTenant(), snapshot.VersionOf(h), h.GetRevision(), digest}
}

// openedHead is a verified head.
type openedHead struct {
	envelope []byte
	head     *snapshotv1.Head
	digest   snapshot.Digest
	// committed is set by the proposer, for itself, when the log has the head and this node's disk may not yet.
	committed bool
}

func (h *openedHead) generation() generation { return generationOf(h.head, h.digest) }

// openedDelta is a verified delta.
type openedDelta struct {
	signed *snapshotv1.SignedDelta
	body   *snapshotv1.Delta
	digest snapshot.Digest
	// committed is set by the proposer, for itself, when the log has the delta and this node's disk may not yet.
	committed bool
}

func openDelta(t *seal.Trust, d *snapshotv1.SignedDelta) (*openedDelta, error) {
	body, err := t.OpenDelta(d)
	if err != nil {
		return nil, err
	}
	return &openedDelta{signed: d, body: body, digest: seal.DeltaDigest(d)}, nil
}

func (d *openedDelta) generation() generation {
	id := seal.DeltaTenant(d.body)
	return generation{id, string(id), seal.DeltaVersion(d.body), d.body.GetRevision(), d.digest}
}

// follows reports whether the delta was made from the generation given.
func (d *openedDelta) follows(v snapshot.Version, digest snapshot.Digest) bool {
	own := seal.DeltaVersion(d.body)
	return own.Epoch == v.Epoch && own.Generation == v.Generation+1 && string(d.body.GetParent()) == string(digest[:])
}

// offer is what one update brings of a tenant.
type offer struct {
	head   *openedHead
	deltas []*openedDelta
}

func (o *offer) end() generation {
	if n := len(o.deltas); n > 0 {
		return o.deltas[n-1].generation()
	}
	return o.head.generation()
}

// open verifies what an update brings. What does not verify is answered with the reason and holds up no other tenant.
func (f *Feed) open(trust *seal.Trust, u *cellv1.Update) (map[snapshot.TenantID]*offer, error) {
	offers := map[snapshot.TenantID]*offer{}
	var bad error
	for _, env := range u.GetHeads() {
		head, digest, err := openHead(trust, env)
		if err != nil {
			bad = errors.Join(bad, fmt.Errorf("head: %w", err))
			f.rejectHead(env, err)
			continue
		}
		offers[snapshot.TenantID(head.GetTenantId())] = &offer{head: &openedHead{envelope: env, head: head, digest: digest}}
	}
	for _, d := range u.GetDeltas() {
		o, err := openDelta(trust, d)
		if err != nil {
			bad = errors.Join(bad, fmt.Errorf("delta: %w", err))
			f.rejectDelta(d, err)
			continue
		}
		id := seal.DeltaTenant(o.body)
		if offers[id] == nil {
			offers[id] = &offer{}
		}
		offers[id].deltas = append(offers[id].deltas, o)
	}
	return offers, bad
}

// pending is what the stream has brought of a tenant and the log has not taken: a head, deltas, or a head and the deltas
// behind it.
type pending struct {
	head   *openedHead
	deltas []*openedDelta
}

// maxPending is how many deltas of a tenant wait for the log: more than the control plane makes of one head.
const maxPending = 128

// errGap marks a delta that does not follow what this node has.
var errGap = errors.New("the delta does not follow what was taken before")

// addHead keeps a head for the proposer. It needs mu.
func (f *Feed) addHead(h *openedHead) {
	id := snapshot.TenantID(h.head.GetTenantId())
	p := f.pending[id]
	if p != nil && p.head != nil && !snapshot.VersionOf(h.head).Newer(snapshot.VersionOf(p.head.head)) {
		return
	}
	f.pending[id] = &pending{head: h}
}

// addDelta keeps a delta for the proposer when it follows what waits already, or what was taken. It needs mu.
func (f *Feed) addDelta(d *openedDelta) error {
	g := d.generation()
	floor, digest := f.cfg.Store.FloorDigest(g.tenant)
	if !g.version.Newer(floor) {
		if g.version == floor && g.digest != digest {
			return fmt.Errorf("%w: another delta %s was taken before", errBehind, g.version)
		}
		return nil
	}
	p := f.pending[g.tenant]
	if p != nil {
		f.prune(g.tenant, p)
	}
	last, lastDigest := floor, digest
	switch {
	case p == nil:
		p = &pending{}
	case len(p.deltas) > 0:
		end := p.deltas[len(p.deltas)-1]
		last, lastDigest = seal.DeltaVersion(end.body), end.digest
	case p.head != nil:
		last, lastDigest = snapshot.VersionOf(p.head.head), p.head.digest
	}
	switch {
	case !g.version.Newer(last):
		return nil // the cell's log was quicker than this stream, or the stream says it twice
	case !d.follows(last, lastDigest):
		return fmt.Errorf("%w: generation %s is offered, %s is the newest", errGap, g.version, last)
	case len(p.deltas) >= maxPending:
		return fmt.Errorf("%w: %d deltas wait already", errGap, len(p.deltas))
	}
	p.deltas = append(p.deltas, d)
	f.pending[g.tenant] = p
	return nil
}

// prune drops what the log has taken by now, and reports whether anything is left. It needs mu.
func (f *Feed) prune(id snapshot.TenantID, p *pending) bool {
	floor, _ := f.cfg.Store.FloorDigest(id)
	if p.head != nil && !snapshot.VersionOf(p.head.head).Newer(floor) {
		p.head = nil
	}
	for len(p.deltas) > 0 && !seal.DeltaVersion(p.deltas[0].body).Newer(floor) {
		p.deltas = p.deltas[1:]
	}
	if p.head == nil && len(p.deltas) == 0 {
		delete(f.pending, id)
		return false
	}
	return true
}

// batch is what the log does not have.
type batch struct {
	// manifest is nil when the log has the newest.
	manifest []byte
	heads    []*openedHead
	// runs are the deltas that are next, of each tenant in order.
	runs [][]*openedDelta
}

func (b *batch) empty() bool { return b.manifest == nil && len(b.runs) == 0 }

// takePending returns what can be proposed now. Deltas behind a head wait until the log has taken that head.
func (f *Feed) takePending() batch {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b batch
	for id, p := range f.pending {
		if !f.prune(id, p) {
			continue
		}
		floor, digest := f.cfg.Store.FloorDigest(id)
		switch {
		case p.head != nil && !p.head.committed:
			b.heads = append(b.heads, p.head)
		case p.head != nil, p.deltas[len(p.deltas)-1].committed:
			// This node's disk is about to have it.
		case p.deltas[0].follows(floor, digest):
			b.runs = append(b.runs, append([]*openedDelta(nil), p.deltas...))
		case !seal.DeltaVersion(p.deltas[0].body).Newer(next(floor)):
			delete(f.pending, id) // the log has taken another way; the stream brings what follows
		}
	}
	if len(b.heads) > 0 || string(f.manifest) != string(f.cfg.Store.Manifest()) {
		b.manifest = f.manifest
	}
	return b
}

func next(v snapshot.Version) snapshot.Version {
	return snapshot.Version{Epoch: v.Epoch, Generation: v.Generation + 1}
}

// dropHead forgets a head that cannot be served, and the deltas behind it.
func (f *Feed) dropHead(h *openedHead) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if id := snapshot.TenantID(h.head.GetTenantId()); f.pending[id] != nil && f.pending[id].head == h {
		delete(f.pending, id)
	}
}

// dropDeltas forgets what waits of a tenant from a delta on.
func (f *Feed) dropDeltas(from *openedDelta) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := seal.DeltaTenant(from.body)
	p := f.pending[id]
	if p == nil {
		return
	}
	for i, d := range p.deltas {
		if d == from {
			p.deltas = p.deltas[:i]
			break
		}
	}
	if p.head == nil && len(p.deltas) == 0 {
		delete(f.pending, id)
	}
}
