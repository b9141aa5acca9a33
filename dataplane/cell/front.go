package cell

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/authn"
	"github.com/mcpvault/mcpvault/dataplane/edge"
	"github.com/mcpvault/mcpvault/dataplane/inject"
	"github.com/mcpvault/mcpvault/dataplane/jwks"
	"github.com/mcpvault/mcpvault/dataplane/peers"
	"github.com/mcpvault/mcpvault/dataplane/pep"
	"github.com/mcpvault/mcpvault/dataplane/remote"
	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/dataplane/upstream/sse"
	"github.com/mcpvault/mcpvault/dataplane/upstream/stdio"
	"github.com/mcpvault/mcpvault/kit/egress"
	"github.com/mcpvault/mcpvault/kit/run"
	"github.com/mcpvault/mcpvault/kit/shrink"
	"github.com/mcpvault/mcpvault/kit/svid"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// openFront makes what callers meet.
func (n *Node) openFront(context.Context) error {
	guard, err := egress.NewGuard(n.cfg.EgressAllow)
	if err != nil {
		return err
	}
	proxies, err := remote.ParseProxies(n.cfg.TrustedProxies)
	if err != nil {
		return err
	}
	secured, err := n.upstreamTLS()
	if err != nil {
		return err
	}
	client, version := upstream.New(upstream.Config{Dial: guard.DialContext, TLS: secured, Registerer: n.reg}), run.Version().Version
	n.upstream = client
	up := &transports{client, sse.New(client, version), stdio.New(n.cfg.Stdio, version, n.log)}
	n.onClose(up.close)
	n.sweep = up.sweep
	transport := guard.Transport()
	n.onClose(func() error { transport.CloseIdleConnections(); return nil })
	newer, err := jwks.New(jwks.Config{Transport: transport, Now: n.clock.Now, Logger: n.log, Registerer: n.reg})
	if err != nil {
		return err
	}
	if n.authn, err = authn.New(authn.Config{Now: n.clock.Now, Newer: newer, Registerer: n.reg}); err != nil {
		return err
	}
	n.onClose(func() error { n.authn.Close(); return nil })
	if err := n.openSessions(); err != nil {
		return err
	}
	if err := n.openWorkloads(); err != nil {
		return err
	}
	var injector pep.Injector
	if len(n.cfg.Inject) > 0 {
		if injector, err = inject.New(n.cfg.Inject, n.clock.Now); err != nil {
			return err
		}
	}
	n.limits = n.newLimiter()
	cfg := pep.Config{
		Cell: n.cfg.Cell, Node: n.cfg.Node, PublicURLs: n.cfg.PublicURLs, Loopback: n.cfg.Dev,
		Region: n.cfg.Region, Proxies: proxies,
		Version: version, Now: n.clock.Now, PinEvery: pinEvery,
	}
	if cfg.Limits = ownLimits(); n.cfg.Dev {
		cfg.MaxStreams, cfg.Limits = 4096, nil
	}
	parts := pep.Parts{
		Log: n.log, Policy: n.pdp, Authn: n.authn, Audit: n.audit, Upstream: up, Sessions: n.sessions, Leases: n.leases,
		Limits: n.limits, Traces: n.traces, Injector: injector, Registerer: n.reg,
	}
	if n.workloads != nil {
		parts.Workloads = n.workloads
	}
	n.pep = pep.New(cfg, parts)
	return n.registerMetrics()
}

// pinEvery is how often what servers advertise is compared with what was approved: a change is refused within a minute.
const pinEvery = 45 * time.Second

// takeSessionKeys gives the sessions the keys that the cell has agreed on, the newest first.
func (n *Node) takeSessionKeys() {
	if n.sessions == nil {
		return
	}
	keys := n.store.SessionKeys()
	slices.SortFunc(keys, func(a, b *cellv1.SessionKey) int { return int(b.GetId()) - int(a.GetId()) })
	ring := make([]session.Key, 0, len(keys))
	for _, k := range keys {
		sk := session.Key{ID: byte(k.GetId())}
		copy(sk.Secret[:], k.GetKey())
		ring = append(ring, sk)
	}
	if err := n.sessions.Rotate(ring); err != nil {
		n.log.Error("session keys", "err", err)
	}
}

// mcpURL is where clients reach this node.
func (n *Node) mcpURL() string {
	switch {
	case len(n.cfg.PublicURLs) > 0:
		return n.cfg.PublicURLs[0]
	case n.cfg.Listen.HTTP != "":
		return "http://" + n.cfg.Listen.HTTP + "/mcp"
	}
	return "https://" + n.cfg.Listen.TLS + "/mcp"
}

// parts lists what runs, in the order of starting; stopping goes the other way.
func (n *Node) parts() (*run.Group, error) {
	g := run.New(n.log)
	g.Add("connections", n.guard, time.Second)
	if n.renewal != nil {
		g.Add("identity", n.renewal, time.Second)
	}
	g.Add("audit delivery", n.deliverer, 2*time.Second)
	g.Add("consensus", n.consensus, 3*time.Second)
	peerServer, err := n.peerServer()
	if err != nil {
		return nil, err
	}
	g.Add("peers", peerServer, time.Second)
	g.Add("feed", n.feed, 2*time.Second)
	g.Add("status", run.Func(n.report), time.Second)
	g.Add("comparison", run.Func(n.compare), time.Second)
	g.Add("budgets", run.Func(n.shareBudgets), time.Second)
	g.Add("time", run.Func(n.keepTime), time.Second)
	g.Add("clocks", run.Func(n.compareClocks), time.Second)
	g.Add("housekeeping", run.Func(n.keepHouse), time.Second)
	g.Add("whereabouts", run.Func(n.keepCells), time.Second)
	g.Add("memory", run.Func(shrink.Run), time.Second)
	g.Add("pep", n.pep, time.Second)
	g.Add("sessions", n.leases, time.Second)
	g.Add("session answers", run.Func(n.answerSessions), time.Second)
	if n.cfg.Listen.Metrics != "" {
		ln, err := net.Listen("tcp", n.cfg.Listen.Metrics)
		if err != nil {
			return nil, fmt.Errorf("metrics listener: %w", err)
		}
		g.Add("metrics", &plainServer{ln, &http.Server{Handler: n.healthMux(), ReadHeaderTimeout: 5 * time.Second}}, time.Second)
	}
	if err := n.addFronts(g); err != nil {
		return nil, err
	}
	return g, nil
}

const productionGrace = 10 * time.Second

func (n *Node) addFronts(g *run.Group) error {
	cfg := edge.Config{
		Front: edge.Front(n.cfg.Listen.Front), Grace: productionGrace, Refused: n.pep.Malformed, Dropped: n.pep.TurnedAway, OnDrain: n.pep.Drain, Cut: pep.ErrStopping,
	}
	if n.cfg.Dev {
		cfg.Grace, cfg.MaxConns = 300*time.Millisecond, 1<<14
	}
	for _, f := range []struct {
		name, addr string
		tls        bool
	}{{"http", n.cfg.Listen.HTTP, false}, {"tls", n.cfg.Listen.TLS, true}} {
		if f.addr == "" {
			continue
		}
		cfg.Name, cfg.TLS = f.name, nil
		if f.tls {
			t, err := n.frontTLS()
			if err != nil {
				return fmt.Errorf("certificate for clients: %w", err)
			}
			cfg.TLS, cfg.VerifyClient = t, n.verifyClient()
		}
		ln, err := net.Listen("tcp", f.addr)
		if err != nil {
			return fmt.Errorf("%s listener: %w", f.name, err)
		}
		h := n.whenAlive(n.withCells(n.whenWhole(n.pep)))
		if f.tls {
			if h, err = n.addQUIC(g, cfg, ln.Addr(), h); err != nil {
				return err
			}
		}
		s, err := edge.New(cfg, ln, h, n.log)
		if err != nil {
			return err
		}
		g.Add("front "+f.name, s, cfg.Grace+2*time.Second)
	}
	return nil
}

// whenWhole keeps callers out while this node's disk is known to have lost records: one of them may have been a kill.
func (n *Node) whenWhole(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.damaged.Load() {
			if !n.feed.Complete() {
				w.Header().Set("Retry-After", "2")
				http.Error(w, "this node's disk was damaged: it serves again when the control plane has sent what it lost", http.StatusServiceUnavailable)
				return
			}
			n.damaged.Store(false)
		}
		h.ServeHTTP(w, r)
	})
}

// peerServer serves the other members of this cell.
func (n *Node) peerServer() (run.Runner, error) {
	ln, err := net.Listen("tcp", n.cfg.Listen.Peer)
	if err != nil {
		return nil, fmt.Errorf("peer listener: %w", err)
	}
	names := make([]string, 0, len(n.cfg.Members))
	for _, m := range n.cfg.Members {
		names = append(names, m.Node)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	member := n.living(svid.CellMembers(n.cfg.TrustDomain, n.cfg.Cell, names...))
	srv := &http.Server{
		Handler: n.fromAlive(peers.NewHandler(n)), Protocols: protocols, ReadHeaderTimeout: 5 * time.Second,
		TLSConfig: n.guard.ServerTLS(member, member, "h2"),
	}
	return &plainServer{n.guard.Listen(ln), srv}, nil
}

// plainServer runs an http.Server on a listener that is bound already.
type plainServer struct {
	ln  net.Listener
	srv *http.Server
}

// Run serves until ctx ends.
func (s *plainServer) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.srv.Close() })
	defer stop()
	var err error
	if s.srv.TLSConfig != nil {
		err = s.srv.ServeTLS(s.ln, "", "")
	} else {
		err = s.srv.Serve(s.ln)
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}
