package publish

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// headOf reads what a generation is made of: the head first.
func headOf(id controlplane.TenantID, chain []store.Generation) (*Head, error) {
	h := &Head{TenantID: id, Envelope: chain[0].Envelope, Signers: seal.Signers(chain[0].Envelope), SealedAt: chain[0].CreatedAt}
	for i, g := range chain {
		digest, ok := snapshot.DigestFrom(g.PayloadSHA256)
		if !ok {
			return nil, fmt.Errorf("stored generation %d has a digest of %d bytes", g.Generation, len(g.PayloadSHA256))
		}
		ref := Ref{snapshot.Version{Epoch: snapshot.Epoch(g.Epoch), Generation: snapshot.Generation(g.Generation)}, digest}
		h.Version, h.Digest, h.Revision = ref.Version, ref.Digest, g.Revision
		h.CreatedAt, h.CommittedAt = g.CreatedAt, g.CommittedAt
		if i == 0 {
			h.Base = ref
			continue
		}
		signed, body := &snapshotv1.SignedDelta{}, &snapshotv1.Delta{}
		if err := errors.Join(proto.Unmarshal(g.Delta, signed), proto.Unmarshal(signed.GetBody(), body)); err != nil || seal.DeltaDigest(signed) != digest {
			return nil, fmt.Errorf("stored delta %d is not what its digest says", g.Generation)
		}
		h.Deltas = append(h.Deltas, Delta{ref, body.GetStateHash(), signed})
	}
	head, err := ReadHead(h.Envelope)
	if err != nil {
		return nil, err
	}
	h.State = head.GetStateHash()
	for _, s := range head.GetShards() {
		if d, ok := snapshot.DigestFrom(s.GetSha256()); ok {
			h.Shards = append(h.Shards, d)
		}
	}
	return h, nil
}

// Opened is an index and the generation that it is of; the zero value is none.
type Opened struct {
	Digest snapshot.Digest
	Index  *index.Index
}

// keep remembers an open index. p.mu is held.
func (p *Publisher) keep(id controlplane.TenantID, o Opened) {
	if _, ok := p.open[id]; !ok && len(p.open) >= maxOpen {
		for other := range p.open {
			delete(p.open, other)
			break
		}
	}
	p.open[id] = o
}

// indexOf is the index of a tenant's newest generation: the one that is open, or made again of what is stored.
func (p *Publisher) indexOf(ctx context.Context, tx *store.Tx, h *Head) (*index.Index, error) {
	p.mu.Lock()
	have := p.open[h.TenantID]
	p.mu.Unlock()
	return h.Open(ctx, tx, have)
}

// Open makes the index of the newest generation: of one that is open, when that is of the same head, else of the stored
// shard; and of the deltas behind it.
func (h *Head) Open(ctx context.Context, tx *store.Tx, have Opened) (*index.Index, error) {
	x, rest := have.Index, h.Deltas
	at := slices.IndexFunc(h.Deltas, func(d Delta) bool { return d.Digest == have.Digest })
	switch {
	case x != nil && at >= 0:
		rest = h.Deltas[at+1:]
	case x != nil && have.Digest == h.Base.Digest:
	default:
		var err error
		if x, err = h.openShard(ctx, tx); err != nil {
			return nil, err
		}
	}
	for _, d := range rest {
		body := &snapshotv1.Delta{}
		err := proto.Unmarshal(d.Signed.GetBody(), body)
		if err == nil {
			x, err = index.Apply(x, body)
		}
		if err != nil {
			return nil, fmt.Errorf("apply generation %s: %w", d.Version, err)
		}
	}
	return x, nil
}

func (h *Head) openShard(ctx context.Context, tx *store.Tx) (*index.Index, error) {
	head, err := ReadHead(h.Envelope)
	if err != nil {
		return nil, err
	}
	digest, _, ok := seal.ShardOf(head, snapshotv1.ShardKind_SHARD_KIND_INDEX)
	if !ok {
		return nil, fmt.Errorf("generation %s has no index", h.Base.Version)
	}
	blob, err := tx.Blob(ctx, digest[:])
	if err != nil {
		return nil, err
	}
	if snapshot.DigestOf(blob) != digest {
		return nil, fmt.Errorf("stored shard %s has other bytes", digest)
	}
	x, err := index.Open(blob)
	if err != nil {
		return nil, fmt.Errorf("open generation %s: %w", h.Base.Version, err)
	}
	return x, nil
}

// Load reads a generation, the newest for version 0, and what it is made of. The error is that of store's GenerationAt.
func Load(ctx context.Context, tx *store.Tx, v snapshot.Version) (*Head, error) {
	g, err := tx.GenerationAt(ctx, v)
	if err != nil {
		return nil, err
	}
	chain, err := tx.Chain(ctx, g)
	if err != nil {
		return nil, err
	}
	return headOf(tx.Tenant(), chain)
}

// ReadHead reads a head that this control plane sealed and stored: the signature is not checked.
func ReadHead(envelope []byte) (*snapshotv1.Head, error) {
	env, head := &snapshotv1.Envelope{}, &snapshotv1.Head{}
	if err := proto.Unmarshal(envelope, env); err != nil {
		return nil, fmt.Errorf("stored envelope: %w", err)
	}
	if env.GetPayloadType() != seal.TypeHead {
		return nil, fmt.Errorf("stored envelope is a %q", env.GetPayloadType())
	}
	if err := proto.Unmarshal(env.GetPayload(), head); err != nil {
		return nil, fmt.Errorf("stored head: %w", err)
	}
	return head, nil
}
