package feed

import (
	"context"
	"errors"
	"fmt"
	"time"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"google.golang.org/protobuf/proto"
)

// Store is the part of the node's disk that the feed needs.
type Store interface {
	Manifest() []byte
	Heads() map[snapshot.TenantID][]byte
	Floor(id snapshot.TenantID) snapshot.Version
	Heartbeat() (env []byte, timeMS int64)
	PutHeartbeat(env []byte, timeMS int64) error
	Kills() [][]byte
	// AddKill reports false when the kill was already there.
	AddKill(id string, env []byte) (bool, error)
	PutBlob(d snapshot.Digest, b []byte) error
	GetBlob(d snapshot.Digest, limit int64) ([]byte, error)
	HasBlob(d snapshot.Digest) bool
}

// Source gives shards by digest: the control plane, or a peer.
type Source interface {
	Fetch(ctx context.Context, d snapshot.Digest, size int64) ([]byte, error)
}

const (
	// stageLimit bounds fetching one head's shards from all sources.
	stageLimit = 30 * time.Second
	// followerPatience is how long a follower leaves the proposal to the leader, who hears the same stream.
	followerPatience = 150 * time.Millisecond
	proposeRetry     = 300 * time.Millisecond
	// entryBytes keeps an entry, with the manifest and the roots in it, below the log's 60 KiB.
	entryBytes = 58 << 10
)

// propose takes what the stream brought, stages it and hands it to the cell's log, until the log has it.
func (f *Feed) propose(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
		for ctx.Err() == nil && !f.proposeOnce(ctx) {
			pause(ctx, proposeRetry)
		}
	}
}

// proposeOnce reports whether nothing is left to propose.
func (f *Feed) proposeOnce(ctx context.Context) bool {
	manifest, heads := f.takePending()
	if manifest == nil {
		return true
	}
	done := true
	var ready []*pendingHead
	for _, p := range heads {
		switch err := f.stage(ctx, p.head); {
		case err == nil:
			ready = append(ready, p)
		case errors.Is(err, errUnfit):
			f.nack(p.head, p.digest, err)
			f.drop(p)
		default:
			f.log.WarnContext(ctx, "shards are not here yet", append(f.attrs(p.head), "err", err)...)
			done = false
		}
	}
	if !f.cfg.Log.Leads() && f.leaderDoesIt(ctx, manifest, ready) {
		return done
	}
	roots := f.cfg.Trust.Envelope()
	for _, batch := range batches(ready, entryBytes-len(manifest)-len(roots)) {
		entry := &cellv1.Update{Manifest: manifest, Roots: roots}
		for _, p := range batch {
			entry.Heads = append(entry.Heads, p.envelope)
		}
		if err := f.cfg.Log.Propose(ctx, &cellv1.RaftEntry{Command: &cellv1.RaftEntry_Update{Update: entry}}); err != nil {
			f.log.WarnContext(ctx, "the cell's log did not take the update", "err", err)
			return false
		}
		for _, p := range batch {
			f.drop(p)
		}
	}
	return done
}

// takePending returns what the log does not have; a nil manifest when it has all.
func (f *Feed) takePending() ([]byte, []*pendingHead) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var heads []*pendingHead
	for id, p := range f.pending {
		if !snapshot.VersionOf(p.head).Newer(f.cfg.Store.Floor(id)) {
			delete(f.pending, id)
			continue
		}
		heads = append(heads, p)
	}
	if len(heads) == 0 && string(f.manifest) == string(f.cfg.Store.Manifest()) {
		return nil, nil
	}
	return f.manifest, heads
}

func (f *Feed) drop(p *pendingHead) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := snapshot.TenantID(p.head.GetTenantId())
	if f.pending[id] == p {
		delete(f.pending, id)
	}
}

// leaderDoesIt waits for the leader's own proposal and reports whether it came.
func (f *Feed) leaderDoesIt(ctx context.Context, manifest []byte, heads []*pendingHead) bool {
	deadline := time.Now().Add(followerPatience)
	for time.Now().Before(deadline) && ctx.Err() == nil {
		if f.logHas(manifest, heads) {
			return true
		}
		pause(ctx, 5*time.Millisecond)
	}
	return f.logHas(manifest, heads)
}

func (f *Feed) logHas(manifest []byte, heads []*pendingHead) bool {
	for _, p := range heads {
		if snapshot.VersionOf(p.head).Newer(f.cfg.Store.Floor(snapshot.TenantID(p.head.GetTenantId()))) {
			return false
		}
	}
	return len(heads) > 0 || string(manifest) == string(f.cfg.Store.Manifest())
}

// batches splits heads so that those of each entry take no more than room bytes, unless one alone does; with no head there
// is one entry that carries the manifest alone.
func batches(heads []*pendingHead, room int) [][]*pendingHead {
	const framing = 8 // tag and length of a head within its entry
	out := [][]*pendingHead{nil}
	size := 0
	for _, p := range heads {
		if size+len(p.envelope)+framing > room && size > 0 {
			out = append(out, nil)
			size = 0
		}
		out[len(out)-1] = append(out[len(out)-1], p)
		size += len(p.envelope) + framing
	}
	return out
}

// errUnfit marks shards that are here, are what the head names, and cannot be served.
var errUnfit = errors.New("generation does not build")

// stage brings a head's shards onto this node's disk and proves that they build.
func (f *Feed) stage(ctx context.Context, head *snapshotv1.Head) error {
	ctx, cancel := context.WithTimeout(ctx, stageLimit)
	defer cancel()
	for _, s := range head.GetShards() {
		d, ok := snapshot.DigestFrom(s.GetSha256())
		if !ok {
			return fmt.Errorf("%w: shard digest is %d bytes long", errUnfit, len(s.GetSha256()))
		}
		if f.cfg.Store.HasBlob(d) {
			continue
		}
		if err := f.fetch(ctx, d, int64(s.GetSize())); err != nil {
			return err
		}
	}
	if _, err := f.open(ctx, head, snapshot.Digest{}); err != nil {
		return err
	}
	return nil
}

func (f *Feed) fetch(ctx context.Context, d snapshot.Digest, size int64) error {
	var errs error
	for _, src := range f.cfg.Sources {
		b, err := src.Fetch(ctx, d, size)
		if err == nil {
			if err = f.cfg.Store.PutBlob(d, b); err == nil {
				return nil
			}
		}
		errs = errors.Join(errs, err)
	}
	return fmt.Errorf("fetch shard %s: %w", d, errs)
}

func (f *Feed) nackUnreadable(env []byte, cause error) {
	// The tenant can only be read from an unverified body; it is used to say where the refusal belongs, for nothing else.
	var e snapshotv1.Envelope
	var h snapshotv1.Head
	if proto.Unmarshal(env, &e) != nil || proto.Unmarshal(e.GetPayload(), &h) != nil || len(h.GetTenantId()) > 64 {
		return
	}
	f.nack(&h, snapshot.DigestOf(e.GetPayload()), cause)
}
