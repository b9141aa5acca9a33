package consensus_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/celltest"
	"github.com/mcpvault/mcpvault/dataplane/consensus"
	"github.com/mcpvault/mcpvault/dataplane/session"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// sessionCell is a real cell whose nodes keep sessions.
type sessionCell struct {
	*celltest.Cell
	t testing.TB
	// ahead is how far the clocks of all nodes are ahead.
	ahead  atomic.Int64
	leases map[string]*atomic.Pointer[session.Leases]
	logs   map[string]*atomic.Pointer[consensus.Node]
}

func (c *sessionCell) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// sessionLog reaches the leader as a node does, but in this process.
type sessionLog struct {
	*consensus.Node
	c *sessionCell
}

func (l sessionLog) HasLeader() bool {
	_, ok := l.Leader()
	return ok
}

func (l sessionLog) ProposeSessions(ctx context.Context, b *cellv1.SessionBatch) ([]cellv1.SessionVerdict, error) {
	leader, ok := l.Leader()
	if !ok {
		return nil, errors.New("nobody leads")
	}
	return l.c.logs[leader].Load().ProposeSessions(ctx, b)
}

func newSessionCell(t testing.TB, options ...func(*consensus.Config)) *sessionCell {
	t.Helper()
	c := &sessionCell{t: t, leases: map[string]*atomic.Pointer[session.Leases]{}, logs: map[string]*atomic.Pointer[consensus.Node]{}}
	for i := range 3 {
		name := fmt.Sprint("n", i+1)
		c.leases[name], c.logs[name] = &atomic.Pointer[session.Leases]{}, &atomic.Pointer[consensus.Node]{}
	}
	c.Cell = celltest.New(t, 3, append(options, func(cfg *consensus.Config) {
		tell, leases := cfg.OnApply, c.leases[cfg.Node]
		cfg.OnApply = func(a consensus.Applied) {
			tell(a)
			if l := leases.Load(); l != nil && (a.Entry.GetSessions() != nil || a.Entry.GetSessionState() != nil) {
				l.Applied(a.Entry.GetSessions())
			}
		}
	})...)
	for _, name := range c.Names {
		c.logs[name].Store(c.Node(name).Log)
	}
	for _, name := range c.Names {
		c.attend(name)
	}
	return c
}

// attend gives a node its sessions, again after each restart.
func (c *sessionCell) attend(name string) {
	c.t.Helper()
	c.logs[name].Store(c.Node(name).Log)
	l := session.NewLeases(session.LeasesConfig{Log: sessionLog{c.Node(name).Log, c}, Disk: c.Node(name).Store.Leases(), Now: c.now, SweepEvery: time.Hour})
	c.leases[name].Store(l)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.Run(ctx)
	}()
	c.t.Cleanup(func() {
		cancel()
		<-done
	})
}

func (c *sessionCell) of(name string) *session.Leases { return c.leases[name].Load() }

func (c *sessionCell) open(name string, n int) session.LeaseID {
	c.t.Helper()
	id := session.LeaseIDOf(fmt.Sprint("s", n), c.now())
	owner := session.OwnerOf("iss", "alice")
	c.Eventually("a session at "+name, func() bool {
		return c.of(name).Open(context.Background(), &cellv1.SessionLease{
			Id: id[:], TenantId: "acme", Owner: owner[:], Principal: "alice", Node: name, UsedMs: c.now().UnixMilli(),
		}, nil) == nil
	})
	return id
}

func (c *sessionCell) lives(name string, id session.LeaseID) bool {
	return c.of(name).Use(id, nil) == nil
}

func TestSessionsOutliveTheLeader(t *testing.T) {
	t.Parallel()
	c := newSessionCell(t)
	leader := c.WaitLeader()
	rest := others(c.Names, leader)
	early, ended := c.open(leader, 1), c.open(rest[0], 2)
	c.KillNode(leader)
	c.ahead.Store(int64(2 * session.Grace)) // the leases must be there: nothing is taken at its word any more
	for _, name := range rest {
		c.Eventually("the session of the dead leader is known at "+name, func() bool { return c.lives(name, early) })
	}
	late := c.open(rest[1], 3)
	began := time.Now()
	c.of(rest[0]).End(context.Background(), ended, true)
	c.Eventually("the end is known at the other node", func() bool { return !c.lives(rest[1], ended) })
	if took := time.Since(began); took > time.Second {
		t.Logf("an end took %s to be known", took) // a busy machine; the number is a drill's to hold
	}
	if c.lives(rest[0], ended) {
		t.Error("the session lives on where it was ended")
	}
	c.RestartNode(leader)
	c.attend(leader)
	if !c.lives(leader, early) {
		t.Error("a restarted node does not know what is on its disk")
	}
	c.Eventually("the old leader has caught up", func() bool { return !c.lives(leader, ended) })
	c.ahead.Add(int64(2 * session.Grace))
	if !c.lives(leader, late) {
		t.Error("the old leader has not learned of a session that was opened without it")
	}
}

func TestANodeThatWasAwayTakesTheSessionsOfASnapshot(t *testing.T) {
	t.Parallel()
	c := newSessionCell(t, func(cfg *consensus.Config) { cfg.SnapshotEvery = 8 })
	leader := c.WaitLeader()
	rest := others(c.Names, leader)
	ended := c.open(leader, 1)
	c.Eventually("it is everywhere", func() bool { return c.Node(rest[1]).Store.Leases().Len() == 1 })
	c.KillNode(rest[1])
	c.of(leader).End(context.Background(), ended, true)
	var kept session.LeaseID
	for i := range 40 {
		kept = c.open(leader, i+2)
	}
	must(t, c.Node(leader).Log.Compact(context.Background()))
	for i := range 20 {
		c.open(leader, i+100)
	}
	must(t, c.Node(leader).Log.Compact(context.Background()))
	c.RestartNode(rest[1])
	c.attend(rest[1])
	c.Eventually("the node has all sessions", func() bool { return c.Node(rest[1]).Store.Leases().Len() == 60 })
	c.ahead.Store(int64(2 * session.Grace))
	if c.lives(rest[1], ended) || !c.lives(rest[1], kept) {
		t.Error("the node goes on with the sessions that it left with")
	}
	if got, want := c.Node(rest[1]).Store.Leases().Index(), c.Node(leader).Store.Leases().Index(); got != want {
		t.Errorf("at %d of %d", got, want)
	}
}

func TestACommandThatIsAPartOfASnapshotIsRefused(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 1)
	must(t, c.Propose(c.Kill("k"))) // there is a leader
	err := c.Propose(&cellv1.RaftEntry{Command: &cellv1.RaftEntry_SessionState{SessionState: &cellv1.SessionState{Index: 1 << 40, First: true, Last: true}}})
	if err == nil || c.Node("n1").Store.Leases().Index() != 0 {
		t.Fatal("an entry of the log replaced all sessions")
	}
	_, err = c.Node("n1").Log.ProposeSessions(t.Context(), &cellv1.SessionBatch{AtMs: 1, Ended: make([]byte, 23)})
	if err == nil {
		t.Fatal("half an id was taken")
	}
}

// BenchmarkOpenASession is what an initialize waits for the cell: three nodes on one machine, real mTLS and disks.
func BenchmarkOpenASession(b *testing.B) {
	for _, atOnce := range []int{1, 64} {
		b.Run(fmt.Sprintf("at-once=%d", atOnce), func(b *testing.B) {
			c := newSessionCell(b)
			leader := c.WaitLeader()
			follower := others(c.Names, leader)[0]
			owner := session.OwnerOf("iss", "alice")
			var n atomic.Int64
			b.SetParallelism(max(atOnce/2, 1))
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					i := n.Add(1)
					id := session.LeaseIDOf(fmt.Sprint(i), c.now())
					o := owner
					o[0] = byte(i % 251)
					o[1] = byte(i % 241)
					err := c.of(follower).Open(context.Background(), &cellv1.SessionLease{
						Id: id[:], TenantId: fmt.Sprint("t", i%64), Owner: o[:], Principal: "alice", Node: follower, UsedMs: c.now().UnixMilli(),
					}, nil)
					if err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
