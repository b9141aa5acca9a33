// Package sessiontest is a cell as far as sessions go: nodes with disks of their own and a log that agrees at once, or not at
// all. Only the log is a fake.
package sessiontest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/dataplane/store"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"google.golang.org/protobuf/proto"
)

// Cell is the log that some nodes share; the first of them leads. Every entry is kept, for nodes that come back.
type Cell struct {
	t testing.TB

	mu     sync.Mutex // guards what follows
	log    []*cellv1.SessionBatch
	nodes  []*Node
	agrees bool
}

// Node is one node. Leases run until the test ends.
type Node struct {
	*session.Leases
	Disk *store.Leases
	// Ended hears of each lease that ended; it may be set before anything ends.
	Ended func(store.EndedLease)

	cell *Cell
	cut  bool // guarded by cell.mu
}

// New makes a cell of n nodes that agrees.
func New(t testing.TB, n int, cfg session.LeasesConfig) *Cell {
	t.Helper()
	c := &Cell{t: t, agrees: true}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for i := range n {
		st, err := store.Open(store.Config{Dir: t.TempDir(), Key: store.Key{byte(i + 1)}})
		if err != nil {
			t.Fatal(err)
		}
		node := &Node{Disk: st.Leases(), cell: c}
		cfg.Log, cfg.Disk = node, node.Disk
		node.Leases = session.NewLeases(cfg)
		c.nodes = append(c.nodes, node)
		t.Cleanup(func() {
			if err := st.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	for _, node := range c.nodes {
		running.Go(func() { _ = node.Run(ctx) })
	}
	t.Cleanup(func() { // before the first disk is closed
		cancel()
		running.Wait()
	})
	return c
}

// Node is the i-th node.
func (c *Cell) Node(i int) *Node { return c.nodes[i] }

// Agree says whether there is a quorum.
func (c *Cell) Agree(yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.agrees = yes
}

// Batches are the entries of the log.
func (c *Cell) Batches() []*cellv1.SessionBatch {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*cellv1.SessionBatch(nil), c.log...)
}

// Cut takes a node out of the cell, or back in: it then hears what it has missed.
func (n *Node) Cut(cut bool) {
	n.cell.mu.Lock()
	defer n.cell.mu.Unlock()
	n.cut = cut
	if !cut {
		for i, b := range n.cell.log {
			n.apply(uint64(i+1), b)
		}
	}
}

// ProposeSessions implements session.Log.
func (n *Node) ProposeSessions(_ context.Context, b *cellv1.SessionBatch) (verdicts []cellv1.SessionVerdict, err error) {
	c := n.cell
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.agrees || n.cut {
		return nil, errors.New("nobody leads")
	}
	if size := proto.Size(b); size > 60<<10 {
		return nil, fmt.Errorf("an entry of %d bytes", size)
	}
	b = proto.CloneOf(b)
	c.log = append(c.log, b)
	for i, node := range c.nodes {
		if node.cut {
			continue
		}
		change := node.apply(uint64(len(c.log)), b)
		if i == 0 || verdicts == nil {
			verdicts = change.Verdicts
		}
	}
	return verdicts, nil
}

func (n *Node) apply(index uint64, b *cellv1.SessionBatch) store.LeaseChange {
	change, err := n.Disk.Apply(index, b)
	if err != nil {
		n.cell.t.Error(err)
	}
	if change.Seen {
		return change
	}
	n.Applied(b)
	for _, e := range change.Ended {
		if n.Ended != nil {
			n.Ended(e)
		}
	}
	return change
}

// Leads implements session.Log.
func (n *Node) Leads() bool { return n == n.cell.nodes[0] && n.HasLeader() }

// HasLeader implements session.Log.
func (n *Node) HasLeader() bool {
	n.cell.mu.Lock()
	defer n.cell.mu.Unlock()
	return n.cell.agrees && !n.cut
}

// Current implements session.Log.
func (n *Node) Current() bool { return n.HasLeader() }
