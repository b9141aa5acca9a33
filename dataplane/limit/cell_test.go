package limit_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/celltest"
	"github.com/mcpvault/mcpvault/dataplane/limit"
	"github.com/mcpvault/mcpvault/dataplane/peers"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// member is what of a node the others meet.
type member struct {
	*limit.Limiter
}

func (m member) ShareBudgets(peer string, in []limit.Entry) []limit.Entry { return m.Meet(peer, in) }

func (member) Propose(context.Context, *cellv1.RaftEntry) (uint64, error) { panic("not asked here") }

func (member) ProposeSessions(context.Context, *cellv1.SessionBatch) ([]cellv1.SessionVerdict, error) {
	panic("not asked here")
}

func (member) HearKills(context.Context, string, [][]byte) { panic("not asked here") }

func (member) CarryOut(context.Context, *cellv1.NodeOrder) *cellv1.AnswerOrderRequest {
	panic("not asked here")
}
func (member) Blob(snapshot.Digest) ([]byte, error) { panic("not asked here") }

func (member) Status(bool) *cellv1.GetStatusResponse { panic("not asked here") }

// TestThreeNodesStayWithinOneLimitWhileTheLoadMoves runs three nodes with mTLS between them through links that can be cut.
// The time of the limit is the test's own, so that the counts do not depend on the machine; what crosses the network, and
// whether it does, is real.
func TestThreeNodesStayWithinOneLimitWhileTheLoadMoves(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3)
	var mu sync.Mutex
	now := time.Unix(1_800_000_000, 0)
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	nodes, sets := map[string]*limit.Limiter{}, map[string]*peers.Set{}
	for _, name := range c.Names {
		var others []string
		for _, o := range c.Names {
			if o != name {
				others = append(others, o)
			}
		}
		nodes[name] = limit.New(limit.Config{Peers: others, Now: clock})
		sets[name] = c.Peers(name)
		c.Serve(name, peers.NewHandler(member{nodes[name]}))
	}
	rate := &limit.Rate{Requests: 300, Per: time.Second, Burst: 60}
	key := limit.Key{Tenant: "acme", Scope: limit.Principal, Name: "alice"}
	began, passed, patience := now, int64(0), 5*time.Second
	run := func(seconds int, busy ...string) (inLast int64) {
		t.Helper()
		for tick := range seconds * 50 {
			mu.Lock()
			now = now.Add(20 * time.Millisecond)
			at := now
			mu.Unlock()
			for _, name := range busy {
				for range 20 {
					if nodes[name].Take(key, rate).OK {
						passed++
						if tick >= (seconds-2)*50 {
							inLast++
						}
					}
				}
			}
			if most := 300*at.Sub(began).Seconds() + 60 + 3; float64(passed) > most {
				t.Fatalf("%d requests let through in %s: the bound is %.0f", passed, at.Sub(began), most)
			}
			if tick%50 == 0 {
				for _, name := range c.Names {
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					nodes[name].Exchange(ctx, sets[name].ShareBudgets)
					cancel()
				}
			}
		}
		return inLast
	}
	enough := func(when string, got int64) {
		t.Helper()
		if got < 600*85/100 {
			t.Errorf("%s: %d requests in the last 2 s, want nearly 600", when, got)
		}
	}
	enough("load on n1", run(8, "n1"))
	enough("load on n2", run(8, "n2"))
	enough("load on n3", run(8, "n3"))
	enough("load on all", run(8, c.Names...))
	enough("load on n1 again", run(8, "n1"))

	// Cut off: nobody is shut out, and nobody takes the part of whom it does not reach.
	c.Isolate("n3")
	patience = 100 * time.Millisecond
	if got := run(6, "n3"); got < 10 || got > 100 {
		t.Errorf("n3 alone, with the eighth of an equal part that it kept: %d in 2 s, want about 25", got)
	}
	if got := run(6, "n1", "n3"); got < 450 {
		t.Errorf("the two others: %d in the last 2 s", got)
	}
	c.Rejoin("n3")
	patience = 5 * time.Second
	enough("n3 after it is back", run(12, "n3"))
}
