package consensus_test

import (
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/celltest"
	"google.golang.org/protobuf/proto"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// holds reports whether a node's disk has the update and nothing else.
func same(c *celltest.Cell, name string, entry proto.Message) bool {
	return proto.Equal(c.Node(name).Store.LastUpdate(), entry)
}

func TestACommittedEntryReachesEveryNode(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 3, 5} {
		c := celltest.New(t, size)
		u := c.Update(1, c.Head(1, 1), c.Head(2, 4))
		must(t, c.Propose(u))
		must(t, c.Propose(c.Kill("k1")))
		for _, name := range c.Names {
			c.Eventually(name+" has it all", func() bool {
				s := c.Node(name).Store
				return same(c, name, u.GetUpdate()) && len(s.Kills()) == 1 && len(s.SessionKeys()) == 1
			})
		}
	}
}
