package celltest

import (
	"path/filepath"

	"github.com/mcpvault/mcpvault/dataplane/consensus"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// Join starts a further node with an empty disk, which waits to be taken in. It returns what the cell is to be told: the other
// nodes have never heard of it.
func (c *Cell) Join(name string) *cellv1.Member {
	c.t.Helper()
	node := &Node{Name: name, Dir: filepath.Join(c.t.TempDir(), name), disk: &disk{}, store: &disk{}, join: true}
	c.identify(node)
	addr := c.net.extend(c.t, c.Names, name)
	c.mu.Lock()
	c.nodes[name] = node
	c.mu.Unlock()
	c.Names = append(c.Names, name)
	c.start(node)
	return &cellv1.Member{Node: name, Raft: addr}
}

// Lead does something on whoever leads among the nodes given, or all, until it is done or refused by a verdict.
func (c *Cell) Lead(do func(*consensus.Node) error, among ...string) error {
	c.t.Helper()
	return c.attempt(among, do)
}
