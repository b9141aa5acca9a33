// Package consensus makes the nodes of one cell agree on manifests, deltas, kills and session keys: hashicorp/raft over SPIFFE
// mTLS, on a log of its own.
//
// It promises that an entry for which Propose returned no error is on the disk of a majority and will reach every node;
// that an entry changes a node only after its signatures were verified on that node; that a leader whose disk hangs is
// replaced within two seconds; and that trouble in the log never ends the process, because decisions do not need it: the
// log goes out of service, says so, and comes back when the disk does.
//
// What a node serves is in dataplane/store. A node that is alone has no leader here and serves all the same.
//
// It is the only package that imports hashicorp/raft.
package consensus

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/mcpvault/mcpvault/dataplane/store"
	"github.com/mcpvault/mcpvault/kit/svid"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// Trust judges signatures. Its answer may depend on the roots that were applied before and on nothing else: not on the
// time, not on the node. An error refuses the entry and changes nothing.
type Trust interface {
	// VerifyUpdate judges the roots, if there are any, and the manifest, heads and deltas by them.
	VerifyUpdate(u *cellv1.Update) error
	// VerifyDelta judges the signature of a delta.
	VerifyDelta(d *snapshotv1.SignedDelta) error
	// VerifyKill judges a kill and returns its id.
	VerifyKill(env []byte) (id string, err error)
}

// Applied is one entry that was taken and is on this node's disk.
type Applied struct {
	Index uint64
	Entry *cellv1.RaftEntry
	// Ended are the leases that a change of sessions has ended.
	Ended []store.EndedLease
}

// Peer is a member of the cell as this node reaches it.
type Peer struct {
	Node string
	// Addr is host:port of its log, Beside of what nodes say beside it. They may differ from node to node: members are known to
	// the log by name.
	Addr, Beside string
}

// Transport is TCP, a TLS connection for each that Raft asks for, or QUIC, one connection to each member.
type Transport string

// The transports.
const (
	TCP  Transport = "tcp"
	QUIC Transport = "quic"
)

// Valid reports whether t is one; empty means TCP.
func (t Transport) Valid() bool { return t == "" || t == TCP || t == QUIC }

// Config is what a node's log needs. Peers, Identity, Store and Trust are required.
type Config struct {
	Cell, Node  string
	TrustDomain string
	// Dir holds the log and its snapshots.
	Dir string
	// Bind is the host:port to listen on: TCP or UDP, as Transport says.
	Bind string
	// Transport carries the log between the members; they must agree. TCP when empty.
	Transport Transport
	// Peers are the members that the cell starts with, this node included; once the cell has agreed on a list of its own they
	// are no more than addresses.
	Peers []Peer
	// Join has a node with an empty log wait until the cell has taken it in, instead of starting the cell with the others.
	Join     bool
	Identity svid.Identity
	Key      store.Key
	Store    *store.Store
	Trust    Trust
	// OnApply hears of each entry that was taken, in order, before the next one is looked at. It must not block.
	OnApply func(Applied)
	// Admit may refuse a member, by name: it is asked at each connection, and about every open one once a second. Nil
	// admits all.
	Admit  func(node string) error
	Logger *slog.Logger

	// Heartbeat is how long a leader may be silent; 500 ms when 0.
	Heartbeat time.Duration
	// WriteLimit is how long a write to the log may take; 500 ms when 0.
	WriteLimit time.Duration
	// RetryAfter is the pause before a log that failed is opened again, doubled each time up to 20 times as long; 250 ms
	// when 0.
	RetryAfter time.Duration
	// SnapshotEvery is how many entries are applied between two snapshots; 1024 when 0.
	SnapshotEvery uint64
	// PromoteAfter is how long a new node must have been up to date before it gets a vote; 10 s when 0.
	PromoteAfter time.Duration
	// DeadAfter is how long a node may be silent before it is removed, where the others keep a quorum; never when 0.
	DeadAfter time.Duration
	// BeforeWrite runs before each write to the log; drills make it slow or let it fail. Nil in production.
	BeforeWrite func() error
}

// MaxEntry is the longest entry that the log takes, in bytes.
const MaxEntry = 60 << 10

// ErrAbort is the cause of Run's context that makes the node leave as a crash would: without handing over leadership.
var ErrAbort = errors.New("leave without handing over")

// Node is one member's part in the log.
type Node struct {
	cfg       Config
	log       *slog.Logger
	refused   atomic.Uint64
	elections atomic.Uint64
	tendNow   chan struct{} // wakes the leader's look at the members
	writing   atomic.Pointer[writer]

	mu      sync.RWMutex    // guards what follows
	raft    *raft.Raft      // nil while the log is not in service
	heard   *answers        // what followers answer in this life
	addr    string          // where it listens
	failure error           // why it is not
	callers *sync.WaitGroup // who waits for an answer of raft; added to only while raft is not nil
}

// New makes a node; Run starts it.
func New(cfg Config) (*Node, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.OnApply == nil {
		cfg.OnApply = func(Applied) {}
	}
	setDefault(&cfg.Heartbeat, 500*time.Millisecond)
	setDefault(&cfg.WriteLimit, 500*time.Millisecond)
	setDefault(&cfg.RetryAfter, 250*time.Millisecond)
	setDefault(&cfg.SnapshotEvery, 1024)
	setDefault(&cfg.PromoteAfter, 10*time.Second)
	cfg.Peers = slices.Clone(cfg.Peers)
	slices.SortFunc(cfg.Peers, func(a, b Peer) int {
		switch {
		case a.Node < b.Node:
			return -1
		case a.Node > b.Node:
			return 1
		}
		return 0
	})
	if cfg.Identity == nil || cfg.Store == nil || cfg.Trust == nil {
		return nil, errors.New("consensus needs an identity, a store and trust")
	}
	member := false
	for i, p := range cfg.Peers {
		if _, err := svid.NodeID(cfg.TrustDomain, cfg.Cell, p.Node); err != nil {
			return nil, fmt.Errorf("member %q: %w", p.Node, err)
		}
		if i > 0 && cfg.Peers[i-1].Node == p.Node {
			return nil, fmt.Errorf("member %q is named twice", p.Node)
		}
		member = member || p.Node == cfg.Node
	}
	if !member {
		return nil, fmt.Errorf("node %q is not among the members", cfg.Node)
	}
	return &Node{cfg: cfg, log: cfg.Logger.With("cell", cfg.Cell, "node", cfg.Node), tendNow: make(chan struct{}, 1)}, nil
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (n *Node) current() *raft.Raft {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.raft
}

// enter is current for those who will wait for an answer; leave is to be called when they have it.
func (n *Node) enter() (r *raft.Raft, leave func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.raft == nil {
		return nil, func() {}
	}
	n.callers.Add(1)
	// Each life has its own group: one that was abandoned must not be waited for twice.
	return n.raft, n.callers.Done
}

// begin puts a new life of the log into service.
func (n *Node) begin(r *raft.Raft, addr string, heard *answers) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.raft, n.addr, n.failure, n.callers, n.heard = r, addr, nil, &sync.WaitGroup{}, heard
}

func (n *Node) answers() *answers {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.heard
}

// end takes the log out of service and returns the group of those who still wait.
func (n *Node) end(failure error) *sync.WaitGroup {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.raft, n.addr, n.failure = nil, "", failure
	return n.callers
}

// Addr is the host:port on which this node listens; empty while the log is not in service.
func (n *Node) Addr() string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.addr
}

// Problem is why the log is out of service on this node; nil while it is in service.
func (n *Node) Problem() error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.failure
}

// Hung is for how long the log's disk has not come back from a write; 0 while it is well.
func (n *Node) Hung() time.Duration {
	if w := n.writing.Load(); w != nil {
		return w.hung()
	}
	return 0
}

// Leader is the name of the node that leads; ok is false while nobody does, as far as this node knows.
func (n *Node) Leader() (node string, ok bool) {
	r := n.current()
	if r == nil {
		return "", false
	}
	_, id := r.LeaderWithID()
	return string(id), id != ""
}

// Leads reports whether this node is the leader.
func (n *Node) Leads() bool {
	r := n.current()
	return r != nil && r.State() == raft.Leader
}

// State is leader, follower, candidate or shutdown.
func (n *Node) State() string {
	r := n.current()
	if r == nil {
		return "shutdown"
	}
	switch r.State() {
	case raft.Leader:
		return "leader"
	case raft.Follower:
		return "follower"
	case raft.Candidate:
		return "candidate"
	default:
		return "shutdown"
	}
}

// Term is Raft's term.
func (n *Node) Term() uint64 {
	if r := n.current(); r != nil {
		return r.CurrentTerm()
	}
	return 0
}

// AppliedIndex is the index of the last entry that this node has looked at.
func (n *Node) AppliedIndex() uint64 {
	if r := n.current(); r != nil {
		return r.AppliedIndex()
	}
	return 0
}

// CommitIndex is the index of the last entry that is known to be on most nodes.
func (n *Node) CommitIndex() uint64 {
	if r := n.current(); r != nil {
		return r.CommitIndex()
	}
	return 0
}

// LeaderContact is how long ago the leader was heard of; 0 on the leader itself, and false when it never was.
func (n *Node) LeaderContact() (time.Duration, bool) {
	r := n.current()
	switch {
	case r == nil:
		return 0, false
	case r.State() == raft.Leader:
		return 0, true
	}
	last := r.LastContact()
	return time.Since(last), !last.IsZero()
}

// Elections counts those that this node has called.
func (n *Node) Elections() uint64 { return n.elections.Load() }

// watchElections counts a new life's elections.
func (n *Node) watchElections(r *raft.Raft) {
	r.RegisterObserver(raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		if s, ok := o.Data.(raft.RaftState); ok && s == raft.Candidate {
			n.elections.Add(1)
		}
		return false
	}))
}

// Current reports whether this node has applied all that it knows to be committed and has heard of the leader a moment ago, or
// leads: what it does not know then is at most as old as a message on its way.
func (n *Node) Current() bool {
	r := n.current()
	if r == nil || r.AppliedIndex() < r.CommitIndex() {
		return false
	}
	return r.State() == raft.Leader || r.State() == raft.Follower && time.Since(r.LastContact()) < 2*n.cfg.Heartbeat
}

// Refused counts committed entries that this node did not take: they did not verify, or were older than what it has.
func (n *Node) Refused() uint64 { return n.refused.Load() }
