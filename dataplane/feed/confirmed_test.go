package feed_test

import (
	"testing"
	"time"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// TestANodeServesAfterARestartWhatCameAfterTheLastHeartbeat: the control plane published, and was lost before the heartbeat that
// would have confirmed it. The lease counts from the heartbeat before, as it did before the restart.
func TestANodeServesAfterARestartWhatCameAfterTheLastHeartbeat(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	dir := t.TempDir()
	at := time.Now().Add(-300 * time.Millisecond)
	fresh := func(n *node, later time.Duration) bool {
		s := n.pdp.Current()
		tenant := s.Tenant(acme)
		return tenant != nil && s.Fresh(tenant, tenant.Bound(snapshotv1.Effect_EFFECT_READ), at.Add(later).UnixMilli())
	}
	t.Run("first life", func(t *testing.T) {
		n := startNode(t, a, dir, a)
		_, first := a.generation(t, 1, a.head, nil)
		a.push(first)
		eventually(t, "generation 1 is served", func() bool { return n.generation() == 1 })
		if fresh(n, 0) {
			t.Fatal("nobody has confirmed it")
		}
		a.events <- &cellv1.WatchResponse{Event: &cellv1.WatchResponse_Heartbeat{Heartbeat: a.heartbeat(t, first, at)}}
		eventually(t, "generation 1 is confirmed, on the disk too", func() bool { return fresh(n, 0) && n.store.Confirmed()[acme] != 0 })
		_, second := a.generation(t, 2, a.head, nil)
		a.push(second)
		eventually(t, "generation 2 is served", func() bool { return n.generation() == 2 })
		if !fresh(n, time.Second) || fresh(n, 1001*time.Millisecond) {
			t.Fatal("the lease of the next generation counts from the last heartbeat")
		}
	})
	n := startNode(t, a, dir)
	if n.generation() != 2 {
		t.Fatal(n.generation())
	}
	if !fresh(n, time.Second) {
		t.Error("after a restart nothing is served until the control plane is back")
	}
	if fresh(n, 1001*time.Millisecond) {
		t.Error("a restart has prolonged the lease")
	}
}
