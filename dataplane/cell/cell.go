// Package cell starts and stops one node of a cell, in order, and owns its health. Long and flat: this package is the whole
// truth about how a node's rooms stand on each other.
//
// It promises that a node serves what its own disk proves before it has heard from anybody, and that it stops in order:
// not ready, no new connections, requests finished, leadership handed over, audit on disk, store closed.
package cell

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/mcpvault/mcpvault/dataplane/audit"
	"github.com/mcpvault/mcpvault/dataplane/authn"
	"github.com/mcpvault/mcpvault/dataplane/consensus"
	"github.com/mcpvault/mcpvault/dataplane/feed"
	"github.com/mcpvault/mcpvault/dataplane/limit"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/peers"
	"github.com/mcpvault/mcpvault/dataplane/pep"
	"github.com/mcpvault/mcpvault/dataplane/renewal"
	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/dataplane/store"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/run"
	"github.com/mcpvault/mcpvault/kit/svid"
	"github.com/mcpvault/mcpvault/kit/tele"
	"github.com/mcpvault/mcpvault/kit/tlog"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1/cellv1connect"
)

// Node is one member of a cell.
type Node struct {
	cfg     Config
	machine Machine
	log     *slog.Logger
	started time.Time
	reg     *tele.Registry
	traces  *tele.Traces
	clock   *clock
	// clockSuspect mirrors what pdp was told, so that a change is logged once.
	clockSuspect atomic.Bool
	// staleLevels are what the log was last told of each bound; of keepTime's own.
	staleLevels map[string]int
	// askClocks wakes whoever asks the peers for their time.
	askClocks chan struct{}
	// damaged is set until the control plane has sent everything again that this node's disk had lost.
	damaged atomic.Bool
	logged  loggedKills
	// contradiction is what the last comparison with the peers has found, "" for nothing; contradictions counts them.
	contradiction  atomic.Pointer[string]
	contradictions atomic.Int64

	cells     whereabouts
	macKey    [sha256.Size]byte
	identity  *svid.Source
	guard     *svid.Guard
	renewal   *renewal.Keeper // nil where the Workload API renews
	store     *store.Store
	trust     *feed.Trust
	pdp       *pdp.PDP
	tlog      *tlog.Log
	audit     *audit.Audit
	deliverer *audit.Deliverer
	consensus *consensus.Node
	peers     *peers.Set
	feed      *feed.Feed
	authn     *authn.Authenticator
	workloads *authn.Workloads
	sessions  *session.Sessions
	limits    *limit.Limiter
	upstream  *upstream.Client
	leases    *session.Leases
	asked     chan *cellv1.SessionQuery
	orders    chan *cellv1.NodeOrder
	drain     draining
	drainer   chan time.Duration // what a drain may take; one of them is enough
	exit      func(code int)     // ends the process
	pep       *pep.PEP
	sweep     func() // ends idle dialogues with upstreams
	control   cellv1connect.CellServiceClient
	closers   []func() error
}

// Run is the life of one node: it returns when ctx has ended and everything it started has stopped.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	return RunOn(ctx, Machine{}, cfg, log)
}

// RunOn is Run on a machine that may have faults.
func RunOn(ctx context.Context, m Machine, cfg Config, log *slog.Logger) error {
	n := &Node{cfg: cfg, machine: m, log: log.With(tele.KeyCell, cfg.Cell, tele.KeyNode, cfg.Node), started: time.Now(), asked: make(chan *cellv1.SessionQuery, maxAsked), askClocks: make(chan struct{}, 1), orders: make(chan *cellv1.NodeOrder, maxAsked), drainer: make(chan time.Duration, 1), exit: os.Exit, staleLevels: map[string]int{}}
	ctx, n.drain.stop = context.WithCancelCause(ctx)
	defer n.drain.stop(nil)
	defer n.close()
	if err := n.build(ctx); err != nil {
		return err
	}
	n.feed.Boot(ctx)
	n.catchUp(ctx)
	n.judgeClock()
	if err := n.audit.Recover(ctx); err != nil {
		return fmt.Errorf("recover audit: %w", err)
	}
	g, err := n.parts()
	if err != nil {
		return err
	}
	n.log.InfoContext(ctx, "node starts", "version", run.Version().String(), "tenants", len(n.pdp.Current().Tenants()))
	return g.Run(ctx)
}

// build makes the rooms, leaves first.
func (n *Node) build(ctx context.Context) error {
	if n.machine.Now == nil {
		n.machine.Now = time.Now
	}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"identity", n.openIdentity},
		{"store", n.openStore},
		{"roots", n.openTrust},
		{"audit", n.openAudit},
		{"policy", n.openPolicy},
		{"front", n.openFront},
	} {
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("open %s: %w", step.name, err)
		}
	}
	return nil
}

func (n *Node) openIdentity(ctx context.Context) error {
	b := run.Version()
	n.reg = tele.NewRegistry(tele.Build{Version: b.Version, Commit: b.Commit, Go: b.Go})
	if err := n.openTelemetry(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	src, err := svid.Open(ctx, svid.Config{Dir: n.cfg.IdentityDir, Logger: n.log})
	if err != nil {
		return err
	}
	n.identity = src
	n.onClose(src.Close)
	n.guard = svid.NewGuard(src, n.log, nil)
	return nil
}

func (n *Node) openStore(context.Context) error {
	if err := os.MkdirAll(n.cfg.DataDir, 0o700); err != nil {
		return err
	}
	key, err := store.KeyFile(n.sealKeyPath())
	if err != nil {
		return err
	}
	// One key on this node for hashing arguments, that opens nothing else.
	n.macKey = sha256.Sum256(append([]byte("mcpvault audit arguments\x00"), key[:]...))
	st, err := store.Open(store.Config{
		Dir: n.cfg.DataDir, Key: key, Logger: n.log, BeforeWrite: n.machine.before(DiskStore),
		NewerKill: func(held, offered []byte) bool { return n.trust.Current().NewerKill(held, offered) },
	})
	if errors.Is(err, store.ErrCorrupt) {
		return problem.New(problem.Internal, "the node's store is damaged",
			"move "+filepath.Join(n.cfg.DataDir, "state.db")+" away and start the node: its peers or the control plane bring it up to date").Because(err)
	}
	if err != nil {
		return err
	}
	n.store = st
	n.onClose(st.Close)
	n.cells.look = n.look
	if err := n.cells.open(n.cfg.DataDir, key); err != nil {
		return err
	}
	_, heartbeat := st.Heartbeat()
	n.clock = newClock(n.machine.Now, st.HighWater(), heartbeat)
	if lost := st.Corrupt(); len(lost) > 0 {
		n.damaged.Store(true)
		n.log.Error("records on this disk are damaged: callers wait until most peers or the control plane have sent them again", "records", len(lost), "first", lost[0])
	}
	n.consensus, err = consensus.New(consensus.Config{
		Cell: n.cfg.Cell, Node: n.cfg.Node, TrustDomain: n.cfg.TrustDomain,
		Dir: filepath.Join(n.cfg.DataDir, "raft"), Bind: n.cfg.Listen.Raft, Peers: n.startingPeers(), Join: n.cfg.Join, Transport: n.cfg.RaftTransport,
		Identity: n.identity, Key: key, Store: st, Trust: verifier{n},
		OnApply: n.applied, Admit: n.admit, Logger: n.log, BeforeWrite: n.machine.before(DiskRaft),
		Heartbeat: time.Duration(n.cfg.Heartbeat) * time.Millisecond, DeadAfter: n.cfg.RemoveDeadAfter,
	})
	return err
}

func (n *Node) sealKeyPath() string {
	if n.cfg.SealKey != "" {
		return n.cfg.SealKey
	}
	return filepath.Join(n.cfg.DataDir, "seal.key")
}

func (n *Node) openAudit(context.Context) error {
	dir := filepath.Join(n.cfg.DataDir, "audit")
	l, recovery, err := tlog.Open(tlog.Config{
		Dir: dir, Prefix: "mcpvault/audit/" + n.cfg.Cell + "/" + n.cfg.Node, Logger: n.log, Reserve: 4 << 20, FS: n.machine.AuditFS,
	})
	if errors.Is(err, tlog.ErrCorrupt) {
		return problem.New(problem.Internal, "the node's audit log is not what was written",
			"move "+dir+" away, keep it as evidence (`mcpvault audit verify --dir` says what is wrong), and start the node: it begins a new log").Because(err)
	}
	if err != nil {
		return err
	}
	n.onClose(l.Close)
	n.log.Info("audit log is open", "origin", l.Origin(), "records", l.Size(), "recovery", recovery)
	n.tlog = l
	n.audit, err = audit.New(audit.Config{Cell: n.cfg.Cell, Node: n.cfg.Node, Log: l, MACKey: n.macKey[:], Now: n.clock.Now, Logger: n.log, Registerer: n.reg})
	return err
}

func (n *Node) openPolicy(context.Context) error {
	n.pdp = pdp.New(n.cfg.DefaultTenant)
	n.control = cellv1connect.NewCellServiceClient(connect.NewClient(connecthttp.NewTransport(
		&http.Client{Transport: n.http2(svid.ControlPlanes(n.cfg.TrustDomain))}, n.cfg.ControlPlane,
		connecthttp.WithReadMaxBytes(8<<20))))
	if err := n.openRenewal(); err != nil {
		return err
	}
	n.peers = peers.NewSet(n.peerAddrs(), func(node string) http.RoundTripper {
		return toAlive{n, node, n.http2(n.living(svid.CellMembers(n.cfg.TrustDomain, n.cfg.Cell, node)))}
	})
	n.feed = feed.New(feed.Config{
		Cell: n.cfg.Cell, ControlPlane: n.control, Log: proposer{n}, Store: n.store,
		Sources: []feed.Source{shards{n.control}, n.peers}, PDP: n.pdp, Trust: n.trust, Logger: n.log, Now: n.clock.Now,
		OnConnect: func() { n.deliverer.Wake() }, OnSessionQuery: n.askedForSessions, OnOrder: n.ordered, OnCells: n.toldOfCells, Registerer: n.reg,
	})
	var err error
	n.deliverer, err = audit.NewDeliverer(audit.DelivererConfig{
		Log: n.tlog, Sink: n.control, Audit: n.audit, Logger: n.log, Registerer: n.reg,
	})
	return err
}

// http2 is a client transport to holders of certain SVIDs. Nothing is resumed: each connection is authorised anew, and ends when
// it could not be made any more.
func (n *Node) http2(allow svid.Authorizer) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	// A partition that heals must not wait for the system's own patience with a connection that is not answered.
	return &http.Transport{
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			return n.guard.Dial(ctx, network, address, allow, "h2")
		},
		Protocols: protocols, IdleConnTimeout: 5 * time.Minute,
		HTTP2: &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 5 * time.Second},
	}
}

func (n *Node) onClose(f func() error) { n.closers = append(n.closers, f) }

func (n *Node) close() {
	for i := len(n.closers) - 1; i >= 0; i-- {
		if err := n.closers[i](); err != nil && !errors.Is(err, http.ErrServerClosed) {
			n.log.Error("closing", "err", err)
		}
	}
}

// frontTLS is what MCP clients see; a renewed certificate is read without a restart.
func (n *Node) frontTLS() (*tls.Config, error) {
	pair := &keyPair{cert: n.cfg.TLSCert, key: n.cfg.TLSKey}
	if _, err := pair.get(nil); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: pair.get}, nil
}
