package publish

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/keyring"
	"github.com/mcpvault/mcpvault/controlplane/store"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// Head is a tenant's policy in force: a sealed head and the deltas on top of it.
type Head struct {
	TenantID controlplane.TenantID
	// Version, Revision and Digest are those of the newest generation: of the head itself, or of the last delta.
	Version  snapshot.Version
	Revision uint64
	Digest   snapshot.Digest
	// Base names the head itself, Envelope is its sealed form.
	Base     Ref
	Envelope []byte
	Shards   []snapshot.Digest
	// Signers are the ids of the keys that signed it.
	Signers []string
	// State is the state hash of the head's index; empty for a head of before there were any.
	State []byte
	// Deltas lead from the head to the newest generation. The slice is never written to.
	Deltas []Delta
	// CommittedAt is when the newest revision it holds was written, CreatedAt when it was sealed, SealedAt when the head was.
	CommittedAt, CreatedAt, SealedAt time.Time
}

// Ref names a generation.
type Ref struct {
	Version snapshot.Version
	// Digest is that of the head's payload or the delta's body.
	Digest snapshot.Digest
}

// Delta is one generation that was made without a new shard.
type Delta struct {
	Ref
	// State is the state hash after it.
	State  []byte
	Signed *snapshotv1.SignedDelta
}

// StateOf is the state hash of a version of this policy; ok is false when that is not known.
func (h *Head) StateOf(v snapshot.Version) (state []byte, ok bool) {
	if v == h.Base.Version {
		return h.State, len(h.State) > 0
	}
	for _, d := range h.Deltas {
		if d.Version == v {
			return d.State, true
		}
	}
	return nil, false
}

// Behind is what leads from a version of this policy to the newest one. ok is false when the version is neither the head nor
// one of its deltas: then the head is needed.
func (h *Head) Behind(v snapshot.Version) (deltas []Delta, ok bool) {
	if v == h.Base.Version {
		return h.Deltas, true
	}
	for i, d := range h.Deltas {
		if d.Version == v {
			return h.Deltas[i+1:], true
		}
	}
	return nil, false
}

// View is what a cell should know. It is read-only.
type View struct {
	Roots, Manifest, Heartbeat []byte
	// Earlier are the roots before, oldest first.
	Earlier [][]byte
	// Heads are those of the manifest, by tenant id.
	Heads []*Head
	// Kills only ever grows at its end.
	Kills []KillRecord
	// KilledNodes are told of their kill and of nothing else.
	KilledNodes map[string]bool
	// Resigned goes up when the kills are to be sent again: they got another signature, or there are new roots.
	Resigned uint64
}

// KillRecord is a sealed kill of a tenant homed in the cell, or of all tenants.
type KillRecord struct {
	ID string
	// TenantID is "" for all.
	TenantID controlplane.TenantID
	Envelope []byte
}

// cellState is a cell's view and who waits for the next one. p.mu guards it.
type cellState struct {
	name     string
	view     View
	sequence uint64
	// number is the newest manifest's anywhere: a higher one in PostgreSQL is another control plane's.
	number uint64
	// owed is true while a head in force is in no manifest yet.
	owed bool
	root snapshot.Digest
	// keys are those of the view: a heartbeat is signed by a key that its roots name.
	keys *keyring.Set
	// sent is where in view.Kills an id is.
	sent map[string]int
	// recent are the shards that the cell may fetch: those of its heads and of the heads just before.
	recent  map[snapshot.Digest]uint64
	changed chan struct{}
}

func newCell(name string) *cellState {
	return &cellState{name: name, sent: map[string]int{}, recent: map[snapshot.Digest]uint64{}, changed: make(chan struct{})}
}

// announce wakes whoever waits. p.mu is held.
func (c *cellState) announce() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// View is what a cell should know now, and a channel that is closed when there is more. ok is false for a cell that is not
// configured, or while the stored heads are not known yet.
func (p *Publisher) View(cell string) (v View, changed <-chan struct{}, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.cells[cell]
	if c == nil || !p.loaded || len(c.view.Manifest) == 0 {
		return View{}, nil, false
	}
	return c.view, c.changed, true
}

// MayFetch reports whether a shard belongs to a head homed in the cell, or to one of its last few predecessors.
func (p *Publisher) MayFetch(cell string, shard snapshot.Digest) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.cells[cell]
	if c == nil {
		return false
	}
	_, ok := c.recent[shard]
	return ok
}

// Head is a tenant's policy in force; nil when there is none.
func (p *Publisher) Head(tenant controlplane.TenantID) *Head {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.tenants[tenant]; t != nil {
		return t.head
	}
	return nil
}

// Homes lists the cells that a tenant is homed in, by name.
func (p *Publisher) Homes(tenant string) []string {
	var out []string
	for _, cell := range sortedNames(p.cfg.Cells) {
		if p.homedIn(tenant, cell) {
			out = append(out, cell)
		}
	}
	return out
}

// Cells lists the configured cells.
func (p *Publisher) Cells() []string { return sortedNames(p.cfg.Cells) }

func sortedNames[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// install puts a committed round in force here, and shows it to the cells.
func (p *Publisher) install(ctx context.Context, id controlplane.TenantID, w work) error {
	p.mu.Lock()
	t := p.tenant(id)
	if w.tenant.Name != "" {
		t.name = w.tenant.Name
	}
	newer := p.enforce(t, w.head)
	if newer && w.index != nil {
		p.keep(id, Opened{w.head.Digest, w.index})
	}
	t.failure = nil
	p.mu.Unlock()
	p.showKills(id, w.kills)
	if !newer {
		return nil
	}
	return p.show(ctx, id, w.sequences)
}

// enforce puts a newer policy in force and reports whether it is. A new head is owed to the tenant's cells. p.mu is held.
func (p *Publisher) enforce(t *tenantState, h *Head) (newer bool) {
	if h == nil || t.head != nil && !h.Version.Newer(t.head.Version) {
		return false
	}
	if t.head == nil || h.Base != t.head.Base {
		t.rebase = false
		p.owe(t.name)
	}
	t.head = h
	return true
}

// show brings what is in force for a tenant before its cells: a new head by a new manifest, deltas without one. sequences
// are numbers that were taken for the manifests.
func (p *Publisher) show(ctx context.Context, id controlplane.TenantID, sequences map[string]uint64) error {
	p.mu.Lock()
	name := p.tenant(id).name
	p.mu.Unlock()
	var errs []error
	for _, cell := range p.Homes(name) {
		done, err := p.advance(cell, id, sequences[cell])
		if !done && err == nil {
			err = p.manifest(ctx, cell, sequences[cell])
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// advance shows a cell the newest deltas of a tenant whose head its manifest names, together with a heartbeat over them, so
// that no node sees one without the other. It reports false when a manifest is needed. number is what the round took.
func (p *Publisher) advance(cell string, id controlplane.TenantID, number uint64) (done bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, h := p.cells[cell], p.tenant(id).head
	at := slices.IndexFunc(c.view.Heads, func(shown *Head) bool { return shown.TenantID == id })
	if c.owed || at < 0 || c.view.Heads[at].Base != h.Base {
		return false, nil
	}
	heads := slices.Clone(c.view.Heads)
	heads[at] = h
	root, err := seal.ManifestRoot(refs(heads))
	if err != nil {
		return true, err
	}
	beat, err := p.beat(c.keys, cell, root, c.sequence)
	if err != nil {
		return true, err
	}
	c.root, c.view.Heads, c.view.Heartbeat = root, heads, beat
	c.number = max(c.number, number)
	c.announce()
	return true, nil
}

// refs names the newest generations, in the order of heads.
func refs(heads []*Head) []*snapshotv1.HeadRef {
	out := make([]*snapshotv1.HeadRef, 0, len(heads))
	for _, h := range heads {
		out = append(out, headRef(h.TenantID, Ref{h.Version, h.Digest}))
	}
	return out
}

func headRef(id controlplane.TenantID, r Ref) *snapshotv1.HeadRef {
	return &snapshotv1.HeadRef{
		TenantId: string(id), Epoch: uint64(r.Version.Epoch), Generation: uint64(r.Version.Generation), HeadSha256: r.Digest[:],
	}
}

// owe notes that the tenant's cells need a new manifest. p.mu is held.
func (p *Publisher) owe(tenant string) {
	for name, c := range p.cells {
		c.owed = c.owed || p.homedIn(tenant, name)
	}
}

// manifest makes the cell's next manifest of the heads in force. sequence is a number that was taken for it; 0 takes one.
// A number that came too late is replaced: manifests of a cell are numbered in the order in which they are shown.
func (p *Publisher) manifest(ctx context.Context, cell string, sequence uint64) error {
	for {
		p.mu.Lock()
		c := p.cells[cell]
		if sequence > c.sequence {
			err := p.showManifest(c, sequence)
			p.mu.Unlock()
			return err
		}
		p.mu.Unlock()
		limited, cancel := context.WithTimeout(ctx, pollLimit)
		err := p.st.Platform(limited, func(tx *store.Tx) (err error) {
			if err := tx.EnsureCell(limited, cell); err != nil {
				return err
			}
			sequence, err = tx.NextManifest(limited, cell)
			return err
		})
		cancel()
		if err != nil {
			return fmt.Errorf("number the manifest of cell %s: %w", cell, err)
		}
	}
}

// showManifest signs manifest and heartbeat and shows both at once, so that no node sees one without the other. p.mu is held.
func (p *Publisher) showManifest(c *cellState, sequence uint64) error {
	m := &snapshotv1.Manifest{Cell: c.name, Sequence: sequence, IssuedMs: p.now().UnixMilli()}
	var heads []*Head
	for _, t := range p.tenants {
		if t.head != nil && p.homedIn(t.name, c.name) {
			heads = append(heads, t.head)
		}
	}
	slices.SortFunc(heads, func(a, b *Head) int {
		if a.TenantID < b.TenantID {
			return -1
		}
		return 1
	})
	for _, h := range heads {
		m.Heads = append(m.Heads, headRef(h.TenantID, h.Base))
		for _, s := range h.Shards {
			c.recent[s] = sequence
		}
	}
	named, err := seal.ManifestRoot(m.GetHeads())
	if err != nil {
		return err
	}
	m.Root = named[:]
	// What deltas add to the heads is confirmed by the heartbeat alone.
	root, err := seal.ManifestRoot(refs(heads))
	if err != nil {
		return err
	}
	keys := p.cfg.Keys.Current()
	env, err := seal.SignManifest(m, keys.Head)
	if err != nil {
		return err
	}
	beat, err := p.beat(keys, c.name, root, sequence)
	if err != nil {
		return err
	}
	c.sequence, c.root, c.owed = sequence, root, false
	c.number = max(c.number, sequence)
	if c.keys != nil && c.keys != keys {
		// A kill that was signed with a new key may have been refused by nodes that had not heard of the key.
		c.view.Resigned++
	}
	c.view.Earlier = keys.Earlier
	c.view.Roots, c.view.Manifest, c.view.Heartbeat, c.view.Heads, c.keys = keys.Roots, env, beat, heads, keys
	c.forget(heads)
	c.announce()
	return nil
}

// forget drops shards that left the manifest some manifests ago.
func (c *cellState) forget(heads []*Head) {
	const grace = 64
	used := map[snapshot.Digest]bool{}
	for _, h := range heads {
		for _, s := range h.Shards {
			used[s] = true
		}
	}
	for s, at := range c.recent {
		if !used[s] && at+grace < c.sequence {
			delete(c.recent, s)
		}
	}
}

// beat signs a heartbeat; nil while this clock is not to be believed. It needs mu.
func (p *Publisher) beat(keys *keyring.Set, cell string, root snapshot.Digest, sequence uint64) ([]byte, error) {
	if p.skew.Abs() > skewLimit {
		return nil, nil
	}
	return seal.SignHeartbeat(&snapshotv1.Heartbeat{Cell: cell, Root: root[:], TimeMs: p.now().UnixMilli(), Sequence: sequence}, keys.Heartbeat)
}

// heartbeats signs a new one for each cell, unless nobody here can know that its root is still the newest.
func (p *Publisher) heartbeats() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.loaded || p.now().Sub(p.contact) > contactLimit || p.skew.Abs() > skewLimit {
		return
	}
	for _, c := range p.cells {
		if len(c.view.Manifest) == 0 {
			continue
		}
		beat, err := p.beat(c.keys, c.name, c.root, c.sequence)
		if err != nil {
			p.log.Error("heartbeat cannot be signed", "cell", c.name, "error", err)
			continue
		}
		c.view.Heartbeat = beat
		c.announce()
	}
}
