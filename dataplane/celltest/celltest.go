// Package celltest runs a whole cell in one process: several nodes with disks of their own, real Raft over real mTLS on
// loopback, and a network between them that a test can cut in one direction at a time. It needs no privileges.
//
// Nodes die as a process would (no farewell, no leadership handed over) and come back on the same disk.
package celltest

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/consensus"
	"github.com/mcpvault/mcpvault/dataplane/store"
	"github.com/mcpvault/mcpvault/kit/svid"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

// The cell of every test.
const (
	TrustDomain = "mcpvault.test"
	CellName    = "eu"
)

// Patience is how long Eventually and the like wait: far longer than anything here takes on a busy machine.
const Patience = 30 * time.Second

// Cell is a running cell. Its methods are for the test's own goroutine, but for Propose.
type Cell struct {
	// Authority signs what the cell believes.
	Authority *snapshottest.Authority
	// CA issued the nodes' identities.
	CA *svid.CA
	// Names are the members, n1 first.
	Names []string

	t       testing.TB
	adjust  func(*consensus.Config)
	net     *network
	beside  *network     // what nodes say beside the log
	mu      sync.RWMutex // guards nodes and serving
	serving map[string]string
	nodes   map[string]*Node
}

// Node is one member. Store and Log are those of its present life.
type Node struct {
	Name  string
	Dir   string
	Store *store.Store
	Log   *consensus.Node

	mu      sync.Mutex // guards applied
	applied []consensus.Applied

	disk   *disk // the log's
	store  *disk // the store's
	join   bool
	cancel context.CancelCauseFunc
	done   chan error
}

// Applied is what the log has told this node in this life, in order.
func (n *Node) Applied() []consensus.Applied {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]consensus.Applied(nil), n.applied...)
}

// disk can hang or fail.
type disk struct {
	mu   sync.Mutex
	gate chan struct{} // nil while it works
	fail atomic.Pointer[error]
}

func (d *disk) beforeWrite() error {
	d.mu.Lock()
	gate := d.gate
	d.mu.Unlock()
	if gate != nil {
		<-gate
	}
	if err := d.fail.Load(); err != nil {
		return *err
	}
	return nil
}

func (d *disk) hang() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gate == nil {
		d.gate = make(chan struct{})
	}
}

func (d *disk) thaw() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gate != nil {
		close(d.gate)
		d.gate = nil
	}
}

// New starts a cell of n nodes; it ends with the test. Options adjust each node's configuration before it starts.
func New(t testing.TB, n int, options ...func(*consensus.Config)) *Cell {
	t.Helper()
	dir := t.TempDir()
	ca, err := svid.CreateCA(filepath.Join(dir, "ca"), TrustDomain)
	if err != nil {
		t.Fatal(err)
	}
	c := &Cell{
		Authority: snapshottest.NewAuthority(t), CA: ca, t: t, nodes: map[string]*Node{}, serving: map[string]string{},
		adjust: func(cfg *consensus.Config) {
			for _, o := range options {
				o(cfg)
			}
		},
	}
	for i := range n {
		c.Names = append(c.Names, fmt.Sprintf("n%d", i+1))
	}
	c.net = newNetwork(t, c.Names, c.address)
	c.beside = newNetwork(t, c.Names, c.servingAt)
	for _, name := range c.Names {
		node := &Node{Name: name, Dir: filepath.Join(dir, name), disk: &disk{}, store: &disk{}}
		c.identify(node)
		c.nodes[name] = node
	}
	t.Cleanup(func() {
		for _, name := range c.Names {
			c.ThawDisk(name)
		}
		for _, name := range c.Names {
			c.StopNode(name)
		}
		c.net.close()
		c.beside.close()
	})
	for _, name := range c.Names {
		c.start(c.nodes[name])
	}
	return c
}

func (c *Cell) identify(n *Node) {
	c.t.Helper()
	id, err := svid.NodeID(TrustDomain, CellName, n.Name)
	if err != nil {
		c.t.Fatal(err)
	}
	certPEM, keyPEM, err := c.CA.IssueNode(id, 24*time.Hour)
	if err == nil {
		err = svid.WriteIdentity(filepath.Join(n.Dir, "identity"), certPEM, keyPEM, c.CA.Bundle())
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// address is where a node listens now; empty while it does not.
func (c *Cell) address(name string) string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if n := c.nodes[name]; n != nil && n.Log != nil {
		return n.Log.Addr()
	}
	return ""
}

// Node returns a member.
func (c *Cell) Node(name string) *Node {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.nodes[name]
}

func (c *Cell) start(n *Node) {
	c.t.Helper()
	key, err := store.KeyFile(filepath.Join(n.Dir, "seal.key"))
	if err != nil {
		c.t.Fatal(err)
	}
	logger := testLogger(c.t, n.Name)
	st, err := store.Open(store.Config{Dir: n.Dir, Key: key, Logger: logger, BeforeWrite: n.store.beforeWrite})
	if err != nil {
		c.t.Fatal(err)
	}
	src, err := svid.Open(c.t.Context(), svid.Config{Dir: filepath.Join(n.Dir, "identity"), Logger: logger})
	if err != nil {
		c.t.Fatal(err)
	}
	cfg := consensus.Config{
		Cell: CellName, Node: n.Name, TrustDomain: TrustDomain,
		Dir: filepath.Join(n.Dir, "raft"), Bind: "127.0.0.1:0", Peers: c.net.peersOf(n.Name), Join: n.join,
		Identity: src, Key: key, Store: st, Trust: &trust{cur: c.Authority.Trust}, Logger: logger,
		BeforeWrite: n.disk.beforeWrite,
		OnApply: func(a consensus.Applied) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.applied = append(n.applied, a)
		},
	}
	c.adjust(&cfg)
	log, err := consensus.New(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	n.mu.Lock()
	n.applied = nil // before the log runs: a snapshot is restored, and told of, at its start
	n.mu.Unlock()
	go func() { done <- log.Run(ctx) }()
	c.mu.Lock()
	defer c.mu.Unlock()
	n.Store, n.Log, n.cancel, n.done = st, log, cancel, done
}

// KillNode ends a node as SIGKILL would, and returns when its files are closed.
func (c *Cell) KillNode(name string) {
	c.t.Helper()
	c.end(name, consensus.ErrAbort)
}

// StopNode ends a node in order: it hands over leadership first.
func (c *Cell) StopNode(name string) {
	c.t.Helper()
	c.end(name, context.Canceled)
}

func (c *Cell) end(name string, cause error) {
	c.t.Helper()
	n := c.Node(name)
	if n.cancel == nil {
		return
	}
	n.cancel(cause)
	n.cancel = nil
	select {
	case err := <-n.done:
		if err != nil {
			c.t.Logf("node %s ended: %v", name, err)
		}
	case <-time.After(Patience):
		c.t.Errorf("node %s did not end", name)
	}
	if err := n.Store.Close(); err != nil {
		c.t.Error(err)
	}
}

// RestartNode starts a node that was killed or stopped, on its disk.
func (c *Cell) RestartNode(name string) {
	c.t.Helper()
	c.start(c.Node(name))
}

// HangDisk makes the next write of a node's log wait until ThawDisk.
func (c *Cell) HangDisk(name string) { c.Node(name).disk.hang() }

// ThawDisk lets a hanging disk go on.
func (c *Cell) ThawDisk(name string) { c.Node(name).disk.thaw() }

// HangStore makes the next write of what a node's log applies wait until ThawStore.
func (c *Cell) HangStore(name string) { c.Node(name).store.hang() }

// ThawStore lets a hanging store go on.
func (c *Cell) ThawStore(name string) { c.Node(name).store.thaw() }

// FailDisk makes each write of a node's log fail with err, or work again when err is nil.
func (c *Cell) FailDisk(name string, err error) {
	d := c.Node(name).disk
	if err == nil {
		d.fail.Store(nil)
		return
	}
	d.fail.Store(&err)
}

// Cut stops what a node sends from reaching another. The other direction stays open: cut both for a partition.
func (c *Cell) Cut(from, to string) { c.set(from, to, false) }

// Heal lets it through again, with what was sent meanwhile.
func (c *Cell) Heal(from, to string) { c.set(from, to, true) }

func (c *Cell) set(from, to string, open bool) {
	c.net.link(from, to).set(open)
	c.beside.link(from, to).set(open)
}

// Isolate cuts a node off in both directions; Rejoin heals it.
func (c *Cell) Isolate(name string) { c.each(name, c.Cut) }

// Rejoin heals all links of a node.
func (c *Cell) Rejoin(name string) { c.each(name, c.Heal) }

func (c *Cell) each(name string, do func(from, to string)) {
	for _, other := range c.Names {
		if other != name {
			do(name, other)
			do(other, name)
		}
	}
}

// Eventually waits until ok holds.
func (c *Cell) Eventually(what string, ok func() bool) {
	c.t.Helper()
	deadline := time.Now().Add(Patience)
	for !ok() {
		if time.Now().After(deadline) {
			c.t.Fatalf("not in %s: %s", Patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// WaitLeader waits until one of the nodes given, or of all, leads with a quorum behind it, and returns its name.
func (c *Cell) WaitLeader(among ...string) string {
	c.t.Helper()
	if len(among) == 0 {
		among = c.Names
	}
	leader := ""
	c.Eventually(fmt.Sprintf("a leader among %v", among), func() bool {
		for _, name := range among {
			n := c.Node(name)
			if n.cancel == nil || !n.Log.Leads() {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			err := n.Log.Barrier(ctx)
			cancel()
			if err == nil {
				leader = name
				return true
			}
		}
		return false
	})
	return leader
}

// Propose hands an entry to whoever leads among the nodes given, or all, and tries again until it is committed or
// refused by a verdict.
func (c *Cell) Propose(entry *cellv1.RaftEntry, among ...string) error {
	c.t.Helper()
	return c.attempt(among, func(log *consensus.Node) error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := log.Propose(ctx, entry)
		return err
	})
}

// attempt has whoever leads do something, until it is done or refused by a verdict.
func (c *Cell) attempt(among []string, do func(*consensus.Node) error) error {
	if len(among) == 0 {
		among = c.Names
	}
	var last error
	deadline := time.Now().Add(Patience)
	for time.Now().Before(deadline) {
		for _, name := range among {
			n := c.Node(name)
			if n.cancel == nil || !n.Log.Leads() {
				continue
			}
			err := do(n.Log)
			if err == nil || !retriable(err) {
				return err
			}
			last = err
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("not done in %s: %w", Patience, last)
}

// testLogger writes to the test's log when MCPVAULT_TEST_LOG is set: a passing test has nothing to say.
func testLogger(t testing.TB, node string) *slog.Logger {
	if os.Getenv("MCPVAULT_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("on", node)
}
