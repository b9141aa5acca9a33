package cell

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/consensus"
	"github.com/mcpvault/mcpvault/dataplane/peers"
	"github.com/mcpvault/mcpvault/kit/problem"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1/cellv1connect"
	"github.com/mcpvault/mcpvault/snapshot"
)

// proposer brings an entry to the leader, wherever it is.
type proposer struct{ n *Node }

const proposeLimit = 5 * time.Second

func (p proposer) Leads() bool { return p.n.consensus.Leads() }

// Propose gives up on a kill sooner than on the rest, and tells the peers of it beside the log then.
func (p proposer) Propose(ctx context.Context, entry *cellv1.RaftEntry) error {
	if entry.GetKill() == nil {
		return p.propose(ctx, proposeLimit, entry)
	}
	err := p.propose(ctx, killCommit, entry)
	if err != nil {
		p.n.tellKills(ctx)
	}
	return err
}

func (p proposer) propose(ctx context.Context, limit time.Duration, entry *cellv1.RaftEntry) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if p.n.inLog(entry) {
		return nil
	}
	if p.Leads() {
		_, err := p.n.consensus.Propose(ctx, entry)
		if problem.CodeOf(err) == problem.Conflict {
			return nil // the cell has it, or something newer, already
		}
		return err
	}
	leader, ok := p.n.consensus.Leader()
	if !ok {
		return problem.New(problem.Unavailable, "the cell has no leader", "it elects one by itself as soon as most of its nodes reach each other")
	}
	return p.n.peers.Propose(ctx, leader, entry)
}

// shards reads from the control plane.
type shards struct {
	control cellv1connect.CellServiceClient
}

func (s shards) Fetch(ctx context.Context, d snapshot.Digest, size int64) ([]byte, error) {
	stream, err := s.control.FetchBlob(ctx, &cellv1.FetchBlobRequest{Sha256: d[:]})
	if err != nil {
		return nil, fmt.Errorf("control plane: %w", err)
	}
	defer func() { _ = stream.Close() }()
	b, err := peers.Collect(size, func() ([]byte, error) {
		r, err := stream.Receive()
		return r.GetChunk(), err
	})
	if err != nil {
		return nil, fmt.Errorf("control plane: %w", err)
	}
	return b, nil
}

// Propose makes the node, with Blob and Status, a peer of the others.
func (n *Node) Propose(ctx context.Context, e *cellv1.RaftEntry) (uint64, error) {
	switch e.GetCommand().(type) {
	case *cellv1.RaftEntry_Members, *cellv1.RaftEntry_SessionKey, *cellv1.RaftEntry_Sessions:
		return 0, problem.New(problem.Denied, "this entry is the leader's own to propose", "")
	}
	if n.consensus.Leads() && n.inLog(e) {
		return n.consensus.AppliedIndex(), nil
	}
	i, err := n.consensus.Propose(ctx, e)
	if problem.CodeOf(err) == problem.Conflict {
		return n.consensus.AppliedIndex(), nil
	}
	return i, err
}

// Blob reads a shard from this node's disk.
func (n *Node) Blob(d snapshot.Digest) ([]byte, error) { return n.store.GetBlob(d, peers.MaxShard) }

// Status says how this node is and, unless that alone is asked for, what it would serve after a restart.
func (n *Node) Status(brief bool) *cellv1.GetStatusResponse {
	if brief {
		return &cellv1.GetStatusResponse{Status: n.nodeStatus(), WallMs: n.clock.wall().UnixMilli()}
	}
	hb, _ := n.store.Heartbeat()
	return &cellv1.GetStatusResponse{Status: n.nodeStatus(), Update: n.store.LastUpdate(), Heartbeat: hb, Kills: newestKills(n.store.Kills()), Cells: n.cells.directory()}
}

// applied hears what the log has put on this node's disk.
func (n *Node) applied(a consensus.Applied) {
	switch c := a.Entry.GetCommand().(type) {
	case *cellv1.RaftEntry_Kill:
		if k, err := n.trust.Current().OpenKill(c.Kill); err == nil {
			n.pdp.Kill(k)
			n.sessionKilled(k)
			n.logged.add(c.Kill)
		}
	case *cellv1.RaftEntry_SessionKey:
		n.takeSessionKeys()
	case *cellv1.RaftEntry_Members:
		n.membersChanged()
	case *cellv1.RaftEntry_Sessions, *cellv1.RaftEntry_SessionState:
		n.sessionsApplied(a)
	default:
		n.feed.Applied()
	}
}

// catchUpLimit is how long a booting node waits to hear what its peers serve.
const catchUpLimit = 500 * time.Millisecond

// catchUp asks the peers for what this node missed, so that it does not serve an old generation while others serve a newer
// one. Whoever answers with less, or not at all, changes nothing.
func (n *Node) catchUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, catchUpLimit)
	defer cancel()
	whole := 0
	for _, r := range n.peers.Statuses(ctx, false) {
		peer := r.GetStatus().GetNode()
		u := r.GetUpdate()
		n.toldOfCells(r.GetCells())
		if len(u.GetManifest()) > 0 {
			// The roots first: what comes then may be signed by keys that only they name.
			if err := (verifier{n}).VerifyUpdate(u); err != nil {
				n.log.WarnContext(ctx, "a peer's policy does not verify", "peer", peer, "err", err)
				u = nil
			}
		}
		if n.takeKills(ctx, peer, r.GetKills()) && len(u.GetManifest()) > 0 {
			whole++
		}
		if len(u.GetManifest()) == 0 {
			continue
		}
		if err := n.store.PutUpdate(u); err != nil {
			n.log.InfoContext(ctx, "a peer has nothing newer", "peer", peer, "err", err)
			continue
		}
		if hb := r.GetHeartbeat(); hb != nil {
			if err := n.feed.TakeHeartbeat(hb); err != nil {
				n.log.WarnContext(ctx, "a peer's heartbeat does not verify", "err", err)
			}
		}
	}
	n.feed.Activate(ctx)
	// What was committed is on a majority; the damaged disk itself does not count.
	if whole > len(n.consensus.Members())/2 && n.damaged.Swap(false) {
		n.log.WarnContext(ctx, "the peers have brought what this disk had lost", "peers", whole)
	}
}

// keyPair reads a certificate again when its file has changed.
type keyPair struct {
	cert, key string

	mu     sync.Mutex
	loaded *tls.Certificate
	at     time.Time
}

func (p *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	info, err := os.Stat(p.cert)
	if p.loaded != nil && (err != nil || !info.ModTime().After(p.at)) {
		return p.loaded, nil
	}
	if err != nil {
		return nil, err
	}
	c, err := tls.LoadX509KeyPair(p.cert, p.key)
	if err != nil {
		if p.loaded != nil {
			return p.loaded, nil
		}
		return nil, err
	}
	p.loaded, p.at = &c, info.ModTime()
	return p.loaded, nil
}
