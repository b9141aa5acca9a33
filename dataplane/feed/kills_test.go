package feed_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/feed"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/store"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1/cellv1connect"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// followersLog is the log as a follower has it, while the cell elects a leader: the first proposals fail.
type followersLog struct {
	failures, tried atomic.Int64
	taken           chan string
}

func (*followersLog) Leads() bool { return false }

func (l *followersLog) Propose(_ context.Context, e *cellv1.RaftEntry) error {
	if l.tried.Add(1) <= l.failures.Load() {
		return errors.New("no leader")
	}
	l.taken <- string(e.GetKill())
	return nil
}

// gone is a control plane that does not answer.
type gone struct{}

func (gone) Watch(context.Context, *cellv1.WatchRequest) (cellv1connect.CellServiceWatchClientStream, error) {
	return cellv1connect.CellServiceWatchClientStream{}, errors.New("away")
}

func (gone) Acknowledge(context.Context, *cellv1.AcknowledgeRequest) (*cellv1.AcknowledgeResponse, error) {
	return nil, errors.New("away")
}

// The leader may be the one node that does not hear the control plane.
func TestAKillThatAFollowerHearsReachesTheLog(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	st, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	log := &followersLog{taken: make(chan string, 8)}
	log.failures.Store(2)
	f := feed.New(feed.Config{
		Cell: cellName, ControlPlane: gone{}, Log: log, Store: st, PDP: pdp.New("acme"),
		Trust: feed.NewTrust(a.roots, openRoots(t, a.roots), st.PutRoots), Logger: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = f.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; _ = st.Close() })
	for _, id := range []string{"01J00000000000000000000001", "01J00000000000000000000002"} {
		env, err := seal.SignKill(&snapshotv1.Kill{Id: id, Kind: snapshotv1.KillKind_KILL_KIND_USER, TenantId: acme, Subject: id, IssuedMs: 1}, a.kill)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // what is known is not handed in again
			if err := f.TakeKill(env); err != nil {
				t.Fatal(err)
			}
		}
	}
	if first, second := <-log.taken, <-log.taken; first == second {
		t.Fatal("one kill was handed in twice, the other never")
	}
	if n := log.tried.Load(); n != 4 {
		t.Fatalf("%d proposals, want two that fail and one for each kill", n)
	}
}

func TestAKillIsInForceWhileTheDiskHangsAndAcknowledgedWhenItIsKept(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	thaw := make(chan struct{})
	hang := make(chan struct{}) // closed: the disk hangs from here on
	var once sync.Once
	release := func() { once.Do(func() { close(thaw) }) }
	t.Cleanup(release)
	n := startNodeOn(t, a, store.Config{Dir: t.TempDir(), BeforeWrite: func() error {
		select {
		case <-hang:
			<-thaw
		default:
		}
		return nil
	}}, time.Now, a)
	_, u := a.generation(t, 1, a.head, nil)
	a.push(u)
	eventually(t, "generation 1 is live", func() bool { return n.generation() == 1 })

	close(hang)
	a.events <- &cellv1.WatchResponse{Event: &cellv1.WatchResponse_Heartbeat{Heartbeat: a.heartbeat(t, u, time.Now())}}
	const id = "01J00000000000000000000003"
	env, err := seal.SignKill(&snapshotv1.Kill{Id: id, Kind: snapshotv1.KillKind_KILL_KIND_USER, TenantId: acme, Subject: "alice", IssuedMs: 1}, a.kill)
	if err != nil {
		t.Fatal(err)
	}
	a.events <- &cellv1.WatchResponse{Event: &cellv1.WatchResponse_Kill{Kill: env}}
	eventually(t, "the kill is in force", func() bool { return n.pdp.Current().Killed(snapshotv1.KillKind_KILL_KIND_USER, acme, "alice") })
	kept := func(r *cellv1.AcknowledgeRequest) bool { return r.GetKillId() == id }
	if a.acked(kept) {
		t.Fatal("a kill was acknowledged that a restart would forget")
	}
	release()
	eventually(t, "the kill is acknowledged", func() bool { return a.acked(kept) })
}
