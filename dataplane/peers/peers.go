// Package peers is what the nodes of one cell say to each other beside Raft: handing a proposal to the leader, reading a
// shard, comparing what they serve, sharing budgets of requests. Every connection is SPIFFE mTLS between members of the same cell.
package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/mcpvault/mcpvault/dataplane/limit"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1/cellv1connect"
	"github.com/mcpvault/mcpvault/snapshot"
)

// MaxShard bounds one shard that is read from a peer or from the control plane.
const MaxShard = 512 << 20

const (
	chunkBytes = 256 << 10
	// maxStatus bounds what one peer may answer: all heads of the cell and the deltas behind them.
	maxStatus = 64 << 20
	// maxRequest bounds what a peer may send: entries of the log, kills, or a message about budgets.
	maxRequest = 2 << 20
	// compressFrom is where compressing begins to pay between machines that stand side by side: a compressor takes 800 KB, and a
	// peer asks how this node is every second.
	compressFrom = 64 << 10
)

// Set is this node's view of the others. It is safe for concurrent use.
type Set struct {
	transport func(node string) http.RoundTripper

	mu    sync.RWMutex // guards what follows, which is replaced and never changed
	peers map[string]peer
	order []string
}

type peer struct {
	addr   string
	client cellv1connect.PeerServiceClient
	http   http.RoundTripper
}

// NewSet makes clients for the peers, by node name; transport gives the authorised transport to one of them.
func NewSet(addrs map[string]string, transport func(node string) http.RoundTripper) *Set {
	s := &Set{transport: transport}
	s.Update(addrs)
	return s
}

// Update replaces the peers. The connections of those that stay where they are stay open.
func (s *Set) Update(addrs map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := make(map[string]peer, len(addrs))
	for node, addr := range addrs {
		if have, ok := s.peers[node]; ok && have.addr == addr {
			next[node] = have
			continue
		}
		t := s.transport(node)
		next[node] = peer{addr, cellv1connect.NewPeerServiceClient(connect.NewClient(
			connecthttp.NewTransport(&http.Client{Transport: t}, "https://"+addr, connecthttp.WithReadMaxBytes(maxStatus)))), t}
	}
	for node, have := range s.peers {
		if next[node].addr != have.addr {
			(&http.Client{Transport: have.http}).CloseIdleConnections()
		}
	}
	s.peers, s.order = next, slices.Sorted(maps.Keys(next))
}

func (s *Set) all() (map[string]peer, []string) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.peers, s.order
}

func (s *Set) client(node string) (cellv1connect.PeerServiceClient, error) {
	all, _ := s.all()
	p, ok := all[node]
	if !ok {
		return nil, fmt.Errorf("%q is not a peer of this node", node)
	}
	return p.client, nil
}

// Propose hands an entry to the node that leads.
func (s *Set) Propose(ctx context.Context, leader string, entry *cellv1.RaftEntry) error {
	c, err := s.client(leader)
	if err != nil {
		return err
	}
	_, err = c.Propose(ctx, &cellv1.ProposeRequest{Entry: entry})
	return err
}

// ProposeSessions hands a change of leases to the node that leads, and returns what became of each opening in it.
func (s *Set) ProposeSessions(ctx context.Context, leader string, b *cellv1.SessionBatch) ([]cellv1.SessionVerdict, error) {
	c, err := s.client(leader)
	if err != nil {
		return nil, err
	}
	r, err := c.ProposeSessions(ctx, &cellv1.ProposeSessionsRequest{Batch: b})
	return r.GetVerdicts(), err
}

// Fetch reads a shard from whichever peer has it.
func (s *Set) Fetch(ctx context.Context, d snapshot.Digest, size int64) ([]byte, error) {
	var errs error
	all, order := s.all()
	for _, node := range order {
		b, err := s.read(ctx, all[node].client, d, size)
		if err == nil {
			return b, nil
		}
		errs = errors.Join(errs, fmt.Errorf("peer %s: %w", node, err))
	}
	if errs == nil {
		errs = errors.New("no peers")
	}
	return nil, errs
}

func (s *Set) read(ctx context.Context, c cellv1connect.PeerServiceClient, d snapshot.Digest, size int64) ([]byte, error) {
	stream, err := c.ReadBlob(ctx, &cellv1.ReadBlobRequest{Sha256: d[:]})
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	return Collect(size, func() ([]byte, error) {
		r, err := stream.Receive()
		return r.GetChunk(), err
	})
}

// Collect puts the chunks of one shard together and holds them to the size that the signed head states.
func Collect(size int64, next func() ([]byte, error)) ([]byte, error) {
	if size < 0 || size > MaxShard {
		return nil, fmt.Errorf("a shard of %d bytes is over the bound of %d", size, int64(MaxShard))
	}
	out := make([]byte, 0, min(size, 4<<20))
	for {
		chunk, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if int64(len(out)+len(chunk)) > size {
			return nil, fmt.Errorf("shard is longer than the %d bytes that its head states", size)
		}
		out = append(out, chunk...)
	}
	if int64(len(out)) != size {
		return nil, fmt.Errorf("shard ended after %d of %d bytes", len(out), size)
	}
	return out, nil
}

// Status asks one peer how it is and what it would serve.
func (s *Set) Status(ctx context.Context, node string) (*cellv1.GetStatusResponse, error) {
	c, err := s.client(node)
	if err != nil {
		return nil, err
	}
	return c.GetStatus(ctx, &cellv1.GetStatusRequest{})
}

// Statuses asks all peers at once how they are and, unless brief, what they would serve; those that do not answer before
// ctx ends are left out. The name in an answer is that of the peer which was asked, whatever it says.
func (s *Set) Statuses(ctx context.Context, brief bool) []*cellv1.GetStatusResponse {
	var mu sync.Mutex
	var all []*cellv1.GetStatusResponse
	var wg sync.WaitGroup
	peers, _ := s.all()
	for node, p := range peers {
		wg.Go(func() {
			r, err := p.client.GetStatus(ctx, &cellv1.GetStatusRequest{Brief: brief})
			if err != nil || r.GetStatus() == nil {
				return
			}
			r.Status.Node = node
			mu.Lock()
			defer mu.Unlock()
			all = append(all, r)
		})
	}
	wg.Wait()
	return all
}

// Clocks asks all peers for their time, and returns how far each wall clock is ahead of now; negative for behind. Peers that do not
// answer before ctx ends are left out. What a peer says is taken for the time in the middle between question and answer.
func (s *Set) Clocks(ctx context.Context, now func() time.Time) []time.Duration {
	var mu sync.Mutex
	var all []time.Duration
	var wg sync.WaitGroup
	peers, _ := s.all()
	for _, p := range peers {
		wg.Go(func() {
			asked, begin := now(), time.Now()
			r, err := p.client.GetStatus(ctx, &cellv1.GetStatusRequest{Brief: true})
			if err != nil || r.GetWallMs() <= 0 {
				return
			}
			ahead := time.UnixMilli(r.GetWallMs()).Sub(asked.Add(time.Since(begin) / 2))
			mu.Lock()
			defer mu.Unlock()
			all = append(all, ahead)
		})
	}
	wg.Wait()
	return all
}

// Node is what the service needs of the node it runs in.
type Node interface {
	Propose(ctx context.Context, entry *cellv1.RaftEntry) (uint64, error)
	ProposeSessions(ctx context.Context, b *cellv1.SessionBatch) ([]cellv1.SessionVerdict, error)
	Blob(d snapshot.Digest) ([]byte, error)
	Status(brief bool) *cellv1.GetStatusResponse
	HearKills(ctx context.Context, peer string, kills [][]byte)
	CarryOut(ctx context.Context, o *cellv1.NodeOrder) *cellv1.AnswerOrderRequest
	ShareBudgets(peer string, in []limit.Entry) []limit.Entry
}

// NewHandler serves PeerService. The listener has authorised the caller already.
func NewHandler(n Node, interceptors ...connect.ServerInterceptor) http.Handler {
	server := connect.NewServer(interceptors...)
	cellv1connect.RegisterPeerServiceHandler(server, &service{n})
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server, connecthttp.WithReadMaxBytes(maxRequest), connecthttp.WithCompressMinBytes(compressFrom))
	return named(mux)
}

type service struct{ node Node }

const proposeLimit = 5 * time.Second

// Propose implements cellv1connect.PeerServiceHandler.
func (s *service) Propose(ctx context.Context, r *cellv1.ProposeRequest) (*cellv1.ProposeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeLimit)
	defer cancel()
	i, err := s.node.Propose(ctx, r.GetEntry())
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err.Error())
	}
	return &cellv1.ProposeResponse{Index: i}, nil
}

// ProposeSessions implements cellv1connect.PeerServiceHandler.
func (s *service) ProposeSessions(ctx context.Context, r *cellv1.ProposeSessionsRequest) (*cellv1.ProposeSessionsResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeLimit)
	defer cancel()
	verdicts, err := s.node.ProposeSessions(ctx, r.GetBatch())
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err.Error())
	}
	return &cellv1.ProposeSessionsResponse{Verdicts: verdicts}, nil
}

// ReadBlob implements cellv1connect.PeerServiceHandler.
func (s *service) ReadBlob(_ context.Context, r *cellv1.ReadBlobRequest, out cellv1connect.PeerServiceReadBlobServerStream) error {
	d, ok := snapshot.DigestFrom(r.GetSha256())
	if !ok {
		return connect.NewError(connect.CodeInvalidArgument, "sha256 must be 32 bytes")
	}
	b, err := s.node.Blob(d)
	if err != nil {
		return connect.NewError(connect.CodeNotFound, "this node does not have that shard")
	}
	for len(b) > 0 {
		n := min(len(b), chunkBytes)
		if err := out.Send(&cellv1.ReadBlobResponse{Chunk: b[:n]}); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// GetStatus implements cellv1connect.PeerServiceHandler.
func (s *service) GetStatus(_ context.Context, r *cellv1.GetStatusRequest) (*cellv1.GetStatusResponse, error) {
	return s.node.Status(r.GetBrief()), nil
}
