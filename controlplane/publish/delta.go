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

// rebase says why a generation is a head with shards of its own.
type rebase string

func (r rebase) Error() string { return "rebase: " + string(r) }

// difference makes the next generation a delta on the one before. The error is a rebase when it has to be a head.
func (p *Publisher) difference(ctx context.Context, tx *store.Tx, c *candidate) (store.Generation, error) {
	g, err := c.number()
	if err != nil {
		return g, err
	}
	before, err := p.rebaseFirst(tx.Tenant(), c)
	if err != nil {
		return g, err
	}
	old, err := p.indexOf(ctx, tx, before)
	if err != nil {
		p.log.ErrorContext(ctx, "the generation before cannot be opened", "tenant", c.tenant.Name, "generation", before.Version.String(), "error", err)
		return g, rebase("the generation before cannot be opened")
	}
	d, next, err := p.apply(ctx, c, old, g)
	if err != nil {
		return g, err
	}
	signed, err := seal.SignDelta(d, c.keys.Head)
	if errors.Is(err, seal.ErrSize) {
		return g, rebase(err.Error())
	}
	if err != nil {
		return g, err
	}
	bytes := len(signed.GetBody())
	for _, before := range before.Deltas {
		bytes += len(before.Signed.GetBody())
	}
	if bytes > maxDeltaBytes {
		return g, rebase(fmt.Sprintf("%d bytes of deltas on one head", bytes))
	}
	if g.Delta, err = proto.Marshal(signed); err != nil {
		return g, err
	}
	digest := seal.DeltaDigest(signed)
	g.Base, g.PayloadSHA256 = uint64(before.Base.Version.Generation), digest[:]
	g.Size = uint64(len(signed.GetBody()) + len(signed.GetSignature()))
	c.index = next
	return g, nil
}

// rebaseFirst judges what can be known without looking at the difference.
func (p *Publisher) rebaseFirst(id controlplane.TenantID, c *candidate) (*Head, error) {
	switch {
	case len(c.last) == 0:
		return nil, rebase("the first generation")
	case c.last[0].Epoch != uint64(c.keys.Trust.Epoch()):
		return nil, rebase("a new epoch")
	case c.force:
		return nil, rebase("asked for")
	}
	before, err := headOf(id, c.last)
	if err != nil {
		return nil, err
	}
	head, err := ReadHead(before.Envelope)
	if err != nil {
		return nil, err
	}
	catalogue, _, _ := seal.ShardOf(head, snapshotv1.ShardKind_SHARD_KIND_CATALOGUE)
	fresh := slices.ContainsFunc(c.out.Shards, func(s *snapshotv1.Shard) bool {
		return s.GetKind() == snapshotv1.ShardKind_SHARD_KIND_CATALOGUE && string(s.GetSha256()) == string(catalogue[:])
	})
	switch {
	case !fresh:
		return nil, rebase("the catalogue changed")
	case len(before.Deltas) >= MaxDeltas:
		return nil, rebase(fmt.Sprintf("%d deltas on one head", len(before.Deltas)))
	case p.now().Sub(before.SealedAt) > HeadLife/2:
		return nil, rebase("half of the head's life is over")
	case !slices.Contains(before.Signers, c.keys.Head.KeyID()):
		return nil, rebase("the signing key changed")
	}
	return before, nil
}

// apply makes the delta and applies it here first: what comes of it must be what was compiled, by its state hash.
func (p *Publisher) apply(ctx context.Context, c *candidate, old *index.Index, g store.Generation) (*snapshotv1.Delta, *index.Index, error) {
	d, err := index.Diff(old, c.index)
	if errors.Is(err, index.ErrRebase) {
		return nil, nil, rebase(err.Error())
	}
	if err != nil {
		return nil, nil, err
	}
	id, ok := seal.TenantBytes(c.tenant.ID)
	if !ok {
		return nil, nil, rebase("the tenant's id is no UUID")
	}
	state := c.index.StateHash()
	d.TenantId, d.Epoch, d.Generation, d.Revision = id, g.Epoch, g.Generation, g.Revision
	d.Parent, d.StateHash = c.parent(), state[:]
	next, err := index.Apply(old, d)
	if err == nil && next.StateHash() != state {
		err = index.ErrState
	}
	if err != nil {
		p.log.ErrorContext(ctx, "a delta does not come to what was compiled: a new head is sent instead", "tenant", c.tenant.Name,
			"generation", g.Generation, "error", err)
		return nil, nil, rebase("the delta does not come to what was compiled")
	}
	if replaced, total := next.Touched(); replaced > replacedFree && replaced*replacedPart > total {
		return nil, nil, rebase(fmt.Sprintf("%d of %d records were replaced", replaced, total))
	}
	return d, next, nil
}

// Rebase asks for a head in place of a delta that a node refused. It is for generations on top of the head in force only, so
// that one head answers all that refused: by whom and how often a delta is refused does not matter.
func (p *Publisher) Rebase(id controlplane.TenantID, refused snapshot.Version) {
	p.mu.Lock()
	t := p.tenants[id]
	owed := t != nil && t.head != nil && refused.Newer(t.head.Base.Version) && !refused.Newer(t.head.Version)
	if owed {
		t.rebase = true
	}
	p.mu.Unlock()
	if !owed {
		return
	}
	select {
	case p.asked <- struct{}{}:
	default:
	}
}

// rebaseAsked reports whether a head is owed.
func (p *Publisher) rebaseAsked(id controlplane.TenantID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.tenants[id]
	return t != nil && t.rebase
}
