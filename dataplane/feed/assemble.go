package feed

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/store"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/shard"
)

// errUnverified marks what is on this disk and does not verify by the roots of now.
var errUnverified = errors.New("does not verify")

// assembled is what a chain came to: a tenant that can serve or, with an error, the last generation that could be made, nil
// when none could, and the one that could not.
type assembled struct {
	tenant *pdp.Tenant
	failed generation
	err    error
}

// assemble makes the newest generation of a chain: by applying the deltas that are missing to what is live, when that is one
// of the chain's generations, else from the head on.
func (f *Feed) assemble(ctx context.Context, chain store.Chain) assembled {
	trust := f.cfg.Trust.Current()
	head, digest, err := openHead(trust, chain.Head)
	if err != nil {
		return assembled{err: fmt.Errorf("head: %w: %w", errUnverified, err)}
	}
	base := generationOf(head, digest)
	// Time is judged here and nowhere before: a head whose time comes later, or that a wrong clock refused, is on the disk.
	if err := seal.CheckTime(head, f.cfg.Now()); err != nil {
		return assembled{failed: base, err: fmt.Errorf("%w: %w", errUnfit, err)}
	}
	t, rest := f.startOf(chain, base)
	if t == nil {
		if t, err = f.build(ctx, head, digest); err != nil {
			return assembled{failed: base, err: err}
		}
	}
	for _, signed := range rest {
		d, err := openDelta(trust, signed)
		if err != nil {
			return assembled{tenant: t, failed: base, err: fmt.Errorf("delta: %w: %w", errUnverified, err)}
		}
		failed := d.generation()
		failed.name = base.name
		if !d.follows(t.Version, t.Digest) || failed.tenant != t.ID {
			return assembled{t, failed, fmt.Errorf("%w: %w: after %s", errUnfit, errGap, t.Version)}
		}
		x, err := index.Apply(t.Index, d.body)
		if err != nil {
			return assembled{t, failed, fmt.Errorf("%w: %w", errUnfit, err)}
		}
		t = t.Next(d.body, d.digest, x)
	}
	return assembled{tenant: t}
}

// startOf is the live tenant when it is at one of the chain's generations, and the deltas that come behind it.
func (f *Feed) startOf(chain store.Chain, base generation) (*pdp.Tenant, []*snapshotv1.SignedDelta) {
	live := f.cfg.PDP.Current().Tenant(base.tenant)
	switch {
	case live == nil || live.HeadDigest != base.digest:
		return nil, chain.Deltas
	case live.Digest == base.digest:
		return live, chain.Deltas
	}
	at := slices.IndexFunc(chain.Deltas, func(d *snapshotv1.SignedDelta) bool { return seal.DeltaDigest(d) == live.Digest })
	if at < 0 {
		return nil, chain.Deltas
	}
	return live, chain.Deltas[at+1:]
}

// build makes a tenant of a head's shards on this disk; one that is missing or spoilt is fetched again.
func (f *Feed) build(ctx context.Context, head *snapshotv1.Head, digest snapshot.Digest) (*pdp.Tenant, error) {
	ctx, cancel := context.WithTimeout(ctx, stageLimit)
	defer cancel()
	var missing error
	x, c, err := shard.OpenTenant(head, func(dst []byte, d snapshot.Digest, size uint64) ([]byte, error) {
		b, err := f.cfg.Store.AppendBlob(dst, d, int64(size))
		if err == nil {
			return b, nil
		}
		if missing = f.fetch(ctx, d, int64(size)); missing != nil {
			return nil, missing
		}
		b, missing = f.cfg.Store.AppendBlob(dst, d, int64(size))
		return b, missing
	})
	if missing != nil {
		return nil, missing
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnfit, err)
	}
	t, err := pdp.NewTenant(head, digest, x, c)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnfit, err)
	}
	return t, nil
}
