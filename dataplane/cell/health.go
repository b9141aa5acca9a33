package cell

import (
	"context"
	"fmt"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/kit/run"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// check is one line of /readyz?verbose. One that is not needed may fail and leave the node ready: it is shown so that
// somebody asks.
type check struct {
	name   string
	needed bool
	err    error
}

// checks says how the node is. Serving needs a verified policy within its staleness bound and an audit log that takes
// records; it does not need the control plane, a leader or a peer.
func (n *Node) checks() []check {
	var all []check
	all = append(all, check{"killed", true, n.killedProblem()}, check{"policy", true, n.policyProblem()})
	all = append(all, check{"audit", true, n.audit.Problem()}, check{"audit_witness", false, n.deliverer.Problem()})
	all = append(all, check{"identity_renewal", false, n.renewalProblem()})
	all = append(all, check{"identity", true, n.identityProblem()}, check{"clock", true, n.clockProblem()}, check{"store", true, n.storeProblem()})
	all = append(all, check{"session_keys", true, n.sessionProblem()})
	var raft, leader, control error
	if raft = n.consensus.Problem(); raft == nil {
		if _, ok := n.consensus.Leader(); !ok {
			leader = fmt.Errorf("no leader: sessions and policy do not replicate, decisions go on")
		}
	}
	if control = n.feed.Problem(); !n.feed.Connected() {
		control = fmt.Errorf("away: what is verified is served until its lease ends")
	}
	all = append(all, check{"equivocation", false, n.contradictionProblem()})
	return append(all, check{"raft", false, raft}, check{"leader", false, leader}, check{"controlplane", false, control})
}

func (n *Node) policyProblem() error {
	state := n.pdp.Current()
	tenants := state.Tenants()
	if len(tenants) == 0 {
		return fmt.Errorf("no verified policy yet")
	}
	now := n.clock.Now().UnixMilli()
	for _, t := range tenants {
		if state.Fresh(t, t.Bound(snapshotv1.Effect_EFFECT_READ), now) {
			return nil
		}
	}
	return fmt.Errorf("every tenant's policy is older than its bound: nobody has confirmed it since the last heartbeat")
}

func (n *Node) identityProblem() error {
	until, err := n.identity.NotAfter()
	if err != nil {
		return err
	}
	if time.Now().After(until) {
		return fmt.Errorf("SVID expired at %s", until.UTC().Format(time.RFC3339))
	}
	return nil
}

func (n *Node) clockProblem() error {
	const closed = "what is leased is closed; set the clock"
	if behind := n.clock.behind(); behind > behindLimit {
		return fmt.Errorf("%s behind what is proved, by heartbeats and the time that has passed: %s", behind.Round(time.Second), closed)
	}
	switch off := n.clock.astray().Round(time.Second); {
	case off > 0:
		return fmt.Errorf("%s behind the peers: %s", off, closed)
	case off < 0:
		return fmt.Errorf("%s ahead of the peers: %s", -off, closed)
	}
	return nil
}

func (n *Node) storeProblem() error {
	if n.damaged.Load() && !n.feed.Complete() {
		return fmt.Errorf("records are damaged, and the control plane is not there to send them again")
	}
	return nil
}

func (n *Node) sessionProblem() error {
	if len(n.store.SessionKeys()) == 0 {
		return fmt.Errorf("the cell has made no session key yet")
	}
	return nil
}

// healthMux serves what probes and scrapers ask.
func (n *Node) healthMux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", n.readyz)
	mux.HandleFunc("GET /readyz/{check}", n.readyz)
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, run.Version()) })
	mux.Handle("GET /metrics", n.reg.Handler(n.log))
	if n.cfg.Dev {
		// Profiles show what is in memory: they are not for a page that others can reach.
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	}
	return mux
}

func (n *Node) readyz(w http.ResponseWriter, r *http.Request) {
	only := r.PathValue("check")
	_, verbose := r.URL.Query()["verbose"]
	excluded := map[string]bool{}
	for _, e := range r.URL.Query()["exclude"] {
		excluded[e] = true
	}
	ready, found := true, only == ""
	var lines strings.Builder
	for _, c := range n.checks() {
		if only != "" && c.name != only || excluded[c.name] {
			continue
		}
		found = true
		switch {
		case c.err == nil:
			fmt.Fprintf(&lines, "[+]%s ok\n", c.name)
		case c.needed || only != "":
			ready = false
			fmt.Fprintf(&lines, "[-]%s failed: %v\n", c.name, c.err)
		default:
			fmt.Fprintf(&lines, "[-]%s degraded: %v (still serving)\n", c.name, c.err)
		}
	}
	switch {
	case !found:
		http.Error(w, "no such check", http.StatusNotFound)
		return
	case only == "leader" && !n.consensus.Leads():
		// A load balancer that wants the leader asks for it by name.
		http.Error(w, "this node does not lead", http.StatusServiceUnavailable)
		return
	case !ready:
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	if verbose || !ready {
		_, _ = fmt.Fprint(w, lines.String())
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}

// nodeStatus is what this node tells peers and the control plane.
func (n *Node) nodeStatus() *cellv1.NodeStatus {
	leader, _ := n.consensus.Leader()
	s := &cellv1.NodeStatus{
		Cell: n.cfg.Cell, Node: n.cfg.Node, RaftState: n.consensus.State(), Leader: leader,
		RaftTerm: n.consensus.Term(), RaftApplied: n.consensus.AppliedIndex(),
		Version: run.Version().Version, StartedMs: n.started.UnixMilli(),
		AuditSize: uint64(n.tlog.Size()), AuditDelivered: uint64(n.deliverer.Delivered()),
		Sessions: uint64(n.store.Leases().Len()), McpUrl: n.mcpURL(),
	}
	s.RaftAddr, s.PeerAddr = n.ownAddress()
	s.Reach = n.reach()
	s.RootsVersion = n.trust.Current().Version()
	if m, err := n.trust.Current().OpenManifest(n.store.Manifest(), n.cfg.Cell); err == nil {
		s.ManifestSequence, s.ManifestRoot = m.GetSequence(), m.GetRoot()
	}
	for _, t := range n.pdp.Current().Tenants() {
		s.Applied = append(s.Applied, t.AppliedHead())
	}
	if hb := n.feed.Heartbeat(); hb != nil {
		s.HeartbeatMs = hb.GetTimeMs()
	}
	if until, err := n.identity.NotAfter(); err == nil {
		s.SvidNotAfterMs = until.UnixMilli()
	}
	for _, c := range n.checks() {
		if c.err != nil {
			s.Problems = append(s.Problems, c.name+": "+c.err.Error())
		}
	}
	return s
}

const (
	statusEvery = 2 * time.Second
	// statusLook is how soon a change, such as a new leader, is told.
	statusLook = 100 * time.Millisecond
)

// report tells the control plane how this node is, when there is one: at once when something changed, and now and then.
func (n *Node) report(ctx context.Context) error {
	tick := time.NewTicker(statusLook)
	defer tick.Stop()
	var told string
	var at time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !n.feed.Connected() {
			told = ""
			continue
		}
		leader, _ := n.consensus.Leader()
		now := fmt.Sprint(n.consensus.State(), leader, len(n.pdp.Current().Tenants()))
		if now == told && time.Since(at) < statusEvery {
			continue
		}
		rctx, cancel := context.WithTimeout(ctx, statusEvery)
		res, err := n.control.ReportStatus(rctx, &cellv1.ReportStatusRequest{Status: n.nodeStatus()})
		cancel()
		if err != nil {
			n.log.DebugContext(ctx, "status was not delivered", "err", err)
			continue
		}
		if n.renewal != nil {
			n.renewal.Told(res.GetAuthority())
		}
		told, at = now, time.Now()
	}
}
