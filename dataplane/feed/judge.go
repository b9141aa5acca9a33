package feed

import (
	"errors"
	"fmt"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// takeRoots renews the roots. Older ones are not taken, and what came with them is judged by those that are believed: a
// control plane beside another one may hear of new roots later.
func (f *Feed) takeRoots(u *cellv1.Update) (late, err error) {
	if len(u.GetRoots()) == 0 {
		return nil, nil
	}
	err = f.cfg.Trust.RenewThrough(u.GetEarlierRoots(), u.GetRoots())
	if err != nil {
		err = fmt.Errorf("roots: %w", err)
	}
	if errors.Is(err, seal.ErrRollback) {
		return err, nil
	}
	return nil, err
}

// errUnnamed marks a head that was sent beside a manifest which does not name it: it is genuine and of another cell, or of
// another time. The log would refuse the whole entry for it.
var errUnnamed = errors.New("the cell's manifest does not name this head")

// named leaves of an update what its manifest allows: the head named, or an older one of a tenant whose newest does not
// build yet. The rest is answered and holds up nobody.
func (f *Feed) named(m *snapshotv1.Manifest, offers map[snapshot.TenantID]*offer) error {
	refs := make(map[snapshot.TenantID]*snapshotv1.HeadRef, len(m.GetHeads()))
	for _, ref := range m.GetHeads() {
		refs[snapshot.TenantID(ref.GetTenantId())] = ref
	}
	var bad error
	for id, o := range offers {
		ref := refs[id]
		if ref != nil && o.head == nil {
			continue
		}
		var own snapshot.Version
		if ref != nil {
			own = snapshot.Version{Epoch: snapshot.Epoch(ref.GetEpoch()), Generation: snapshot.Generation(ref.GetGeneration())}
			v := snapshot.VersionOf(o.head.head)
			if own.Newer(v) || own == v && string(ref.GetHeadSha256()) == string(o.head.digest[:]) {
				continue
			}
		}
		delete(offers, id)
		bad = errors.Join(bad, fmt.Errorf("tenant %s: %w", id, errUnnamed))
		f.reject(o.end(), errUnnamed)
	}
	return bad
}
