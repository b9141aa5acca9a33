package feed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/store"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"google.golang.org/protobuf/proto"
)

// Store is the part of the node's disk that the feed needs.
type Store interface {
	Manifest() []byte
	// Chains is each tenant's newest generation: a head and the deltas behind it.
	Chains() map[snapshot.TenantID]store.Chain
	// Refs are the manifest's references, advanced by deltas.
	Refs() []*snapshotv1.HeadRef
	Floor(id snapshot.TenantID) snapshot.Version
	FloorDigest(id snapshot.TenantID) (snapshot.Version, snapshot.Digest)
	// Mend puts back what the disk has lost of the generation at the floor.
	Mend(head []byte, deltas []*snapshotv1.SignedDelta) error
	Heartbeat() (env []byte, timeMS int64)
	PutHeartbeat(env []byte, timeMS int64) error
	// Confirmed is when heartbeats last confirmed what was served.
	Confirmed() map[snapshot.TenantID]int64
	PutConfirmed(at map[snapshot.TenantID]int64) error
	Kills() [][]byte
	// AddKill reports false when the kill was already there.
	AddKill(id string, env []byte) (bool, error)
	PutBlob(d snapshot.Digest, b []byte) error
	AppendBlob(dst []byte, d snapshot.Digest, limit int64) ([]byte, error)
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
	b := f.takePending()
	if b.empty() {
		return true
	}
	heads, done := f.stageHeads(ctx, b.heads)
	b.heads = heads
	runs, ok := f.stageDeltas(ctx, b.runs)
	b.runs, done = runs, done && ok
	if b.manifest == nil && len(b.runs) == 0 {
		return done
	}
	if !f.cfg.Log.Leads() && f.leaderDoesIt(ctx, b) {
		return done
	}
	return f.proposeDeltas(ctx, b.runs) && f.proposeUpdate(ctx, b) && done
}

// stageHeads keeps the heads that can be served. One that cannot is answered; one whose shards are not here is waited for.
func (f *Feed) stageHeads(ctx context.Context, heads []*openedHead) (ready []*openedHead, done bool) {
	done = true
	for _, h := range heads {
		switch err := f.stage(ctx, h.head); {
		case err == nil:
			ready = append(ready, h)
		case errors.Is(err, errUnfit):
			f.nack(h.generation(), err)
			f.dropHead(h)
		default:
			f.log.WarnContext(ctx, "shards are not here yet", append(h.generation().attrs(), "err", err)...)
			done = false
		}
	}
	return ready, done
}

// stageDeltas keeps of each run what applies, and answers the first delta that does not.
func (f *Feed) stageDeltas(ctx context.Context, runs [][]*openedDelta) (ready [][]*openedDelta, done bool) {
	done = true
	chains := f.cfg.Store.Chains()
	for _, run := range runs {
		g := run[0].generation()
		c := chains[g.tenant]
		for _, d := range run {
			c.Deltas = append(c.Deltas[:len(c.Deltas):len(c.Deltas)], d.signed)
			c.Version, c.Digest = seal.DeltaVersion(d.body), d.digest
		}
		a := f.assemble(ctx, c)
		switch {
		case a.err == nil:
		case errors.Is(a.err, errUnfit):
			f.nack(a.failed, a.err)
			bad := slices.IndexFunc(run, func(d *openedDelta) bool { return d.digest == a.failed.digest })
			if bad < 0 {
				f.dropDeltas(run[0])
				continue
			}
			f.dropDeltas(run[bad])
			run = run[:bad]
		default:
			f.log.WarnContext(ctx, "what a delta is made from is not here yet", append(g.attrs(), "err", a.err)...)
			done = false
			continue
		}
		if len(run) > 0 {
			ready = append(ready, run)
		}
	}
	return ready, done
}

func (f *Feed) proposeUpdate(ctx context.Context, b batch) bool {
	if b.manifest == nil {
		return true
	}
	roots := f.cfg.Trust.Envelope()
	for _, heads := range batches(b.heads, entryBytes-len(b.manifest)-len(roots)) {
		entry := &cellv1.Update{Manifest: b.manifest, Roots: roots}
		for _, h := range heads {
			entry.Heads = append(entry.Heads, h.envelope)
		}
		if err := f.cfg.Log.Propose(ctx, &cellv1.RaftEntry{Command: &cellv1.RaftEntry_Update{Update: entry}}); err != nil {
			f.log.WarnContext(ctx, "the cell's log did not take the update", "err", err)
			return false
		}
		for _, h := range heads {
			h.committed = true
		}
	}
	return true
}

func (f *Feed) proposeDeltas(ctx context.Context, runs [][]*openedDelta) bool {
	for _, deltas := range entries(runs, entryBytes) {
		entry := &cellv1.RaftEntry{Command: &cellv1.RaftEntry_Deltas{Deltas: &cellv1.Deltas{Deltas: deltas}}}
		if err := f.cfg.Log.Propose(ctx, entry); err != nil {
			f.log.WarnContext(ctx, "the cell's log did not take deltas", "err", err)
			return false
		}
	}
	for _, run := range runs {
		for _, d := range run {
			d.committed = true
		}
	}
	return true
}

// leaderDoesIt waits for the leader's own proposal and reports whether it came.
func (f *Feed) leaderDoesIt(ctx context.Context, b batch) bool {
	deadline := time.Now().Add(followerPatience)
	for time.Now().Before(deadline) && ctx.Err() == nil {
		if f.logHas(b) {
			return true
		}
		pause(ctx, 5*time.Millisecond)
	}
	return f.logHas(b)
}

func (f *Feed) logHas(b batch) bool {
	for _, h := range b.heads {
		if snapshot.VersionOf(h.head).Newer(f.cfg.Store.Floor(snapshot.TenantID(h.head.GetTenantId()))) {
			return false
		}
	}
	for _, run := range b.runs {
		if last := run[len(run)-1].generation(); last.version.Newer(f.cfg.Store.Floor(last.tenant)) {
			return false
		}
	}
	return b.manifest == nil || len(b.heads) > 0 || string(b.manifest) == string(f.cfg.Store.Manifest())
}

// entries packs what the log does not have of runs of deltas, so that those of one entry take no more than room bytes, unless one alone does.
func entries(runs [][]*openedDelta, room int) [][]*snapshotv1.SignedDelta {
	var out [][]*snapshotv1.SignedDelta
	size := room
	for _, run := range runs {
		for _, d := range run {
			if d.committed {
				continue
			}
			n := len(d.signed.GetBody()) + len(d.signed.GetSignature()) + 2*framing
			if size+n > room {
				out, size = append(out, nil), 0
			}
			out[len(out)-1] = append(out[len(out)-1], d.signed)
			size += n
		}
	}
	return out
}

// framing is the tag and length of a part of an entry, at most.
const framing = 8

// batches splits heads so that those of each entry take no more than room bytes, unless one alone does; with no head there
// is one entry that carries the manifest alone.
func batches(heads []*openedHead, room int) [][]*openedHead {
	out := [][]*openedHead{nil}
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
	if _, err := f.build(ctx, head, snapshot.Digest{}); err != nil {
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

// rejectHead answers a head that does not verify. The tenant can only be read from an unverified body; it is used to say where
// the refusal belongs, for nothing else: the same body may come again under a good signature.
func (f *Feed) rejectHead(env []byte, cause error) {
	var e snapshotv1.Envelope
	var h snapshotv1.Head
	if proto.Unmarshal(env, &e) != nil || proto.Unmarshal(e.GetPayload(), &h) != nil || len(h.GetTenantId()) > 64 {
		return
	}
	f.reject(generationOf(&h, snapshot.Digest{}), cause)
}

// rejectDelta is the same for a delta.
func (f *Feed) rejectDelta(d *snapshotv1.SignedDelta, cause error) {
	var body snapshotv1.Delta
	if len(d.GetBody()) > seal.MaxDelta || proto.Unmarshal(d.GetBody(), &body) != nil || seal.DeltaTenant(&body) == "" {
		return
	}
	f.reject((&openedDelta{body: &body}).generation(), cause)
}
