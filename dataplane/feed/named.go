package feed

import (
	"errors"
	"fmt"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

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
