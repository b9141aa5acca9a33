package cell

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mcpvault/mcpvault/dataplane/upstream"
)

// registerMetrics shows what the rooms know of themselves; every figure is read when it is asked for.
func (n *Node) registerMetrics() error {
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	for _, c := range []prometheus.Collector{
		gauge("mcpvault_controlplane_connected", "1 while the watch stream to the control plane is open.",
			func() float64 { return flag(n.feed.Connected()) }),
		gauge("mcpvault_raft_state", "0 follower, 1 candidate, 2 leader, 3 out of service.", n.raftState),
		gauge("mcpvault_raft_applied_index", "Index of the last entry applied.",
			func() float64 { return float64(n.consensus.AppliedIndex()) }),
		gauge("mcpvault_raft_commit_index", "Index of the last entry that is known to be on most nodes.",
			func() float64 { return float64(n.consensus.CommitIndex()) }),
		gauge("mcpvault_raft_leader_last_contact_seconds", "How long ago the leader was heard of; 0 on the leader, +Inf when never.", n.leaderContact),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "mcpvault_raft_elections_total", Help: "Elections that this node has called."},
			func() float64 { return float64(n.consensus.Elections()) }),
		gauge("mcpvault_ratelimit_buckets", "Buckets of rate limits that are kept.", func() float64 { return float64(n.limits.Buckets()) }),
		gauge("mcpvault_raft_term", "Raft's term.", func() float64 { return float64(n.consensus.Term()) }),
		gauge("mcpvault_snapshot_age_seconds", "Age of the newest heartbeat that confirmed the oldest confirmed tenant, in trusted time.", n.oldestConfirmation),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "mcpvault_equivocations_total", Help: "Comparisons in which a peer held something else under the same number. Any is an alarm.",
		}, func() float64 { return float64(n.contradictions.Load()) }),
		gauge("mcpvault_roots_version", "Version of the roots that are believed.", func() float64 { return float64(n.trust.Current().Version()) }),
		gauge("mcpvault_sessions", "Sessions of legacy clients in the cell, as this node knows them.",
			func() float64 { return float64(n.store.Leases().Len()) }),
		gauge("mcpvault_streams_active", "Open streams of clients.", func() float64 { return float64(n.pep.Streams()) }),
		gauge("mcpvault_svid_not_after_timestamp_seconds", "When this node's SVID ends.", func() float64 {
			until, err := n.identity.NotAfter()
			if err != nil {
				return 0
			}
			return float64(until.Unix())
		}),
		&versions{n}, &upstreams{n}, &bounds{n},
	} {
		if err := n.reg.Register(c); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) raftState() float64 {
	switch n.consensus.State() {
	case "follower":
		return 0
	case "candidate":
		return 1
	case "leader":
		return 2
	}
	return 3
}

func (n *Node) leaderContact() float64 {
	since, ok := n.consensus.LeaderContact()
	if !ok {
		return math.Inf(1)
	}
	return since.Seconds()
}

func (n *Node) oldestConfirmation() float64 {
	oldest := n.clock.Now().UnixMilli()
	now := oldest
	for _, t := range n.pdp.Current().Tenants() {
		oldest = min(oldest, t.ConfirmedMS())
	}
	return float64(now-oldest) / 1000
}

// versions is the generation of each tenant. A cell's tenants are a known, small set.
type versions struct{ n *Node }

var versionDesc = prometheus.NewDesc("mcpvault_snapshot_version", "Generation that is served.", []string{"tenant"}, nil)

// Describe implements prometheus.Collector.
func (v *versions) Describe(out chan<- *prometheus.Desc) { out <- versionDesc }

// Collect implements prometheus.Collector.
func (v *versions) Collect(out chan<- prometheus.Metric) {
	for _, t := range v.n.pdp.Current().Tenants() {
		out <- prometheus.MustNewConstMetric(versionDesc, prometheus.GaugeValue, float64(t.Version.Generation), t.Name)
	}
}

// upstreams are the breakers of the approved servers, which are a known, small set.
type upstreams struct{ n *Node }

var (
	upDesc      = prometheus.NewDesc("mcpvault_upstream_up", "0 while calls of the server are refused because it failed repeatedly.", []string{"tenant", "server"}, nil)
	breakerDesc = prometheus.NewDesc("mcpvault_circuit_breaker_state", "0 closed, 1 half open, 2 open.", []string{"tenant", "server"}, nil)
)

// Describe implements prometheus.Collector.
func (u *upstreams) Describe(out chan<- *prometheus.Desc) { out <- upDesc; out <- breakerDesc }

// Collect implements prometheus.Collector.
func (u *upstreams) Collect(out chan<- prometheus.Metric) {
	for _, t := range u.n.pdp.Current().Tenants() {
		for _, s := range t.Servers {
			state := u.n.upstream.State(s.URL)
			up := 1.0
			if state != upstream.Closed {
				up = 0
			}
			out <- prometheus.MustNewConstMetric(upDesc, prometheus.GaugeValue, up, t.Name, s.Name)
			out <- prometheus.MustNewConstMetric(breakerDesc, prometheus.GaugeValue, float64(state), t.Name, s.Name)
		}
	}
}
