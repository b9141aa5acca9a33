package feed

import "github.com/prometheus/client_golang/prometheus"

// metrics are what the supply of policy counts.
type metrics struct {
	apply    prometheus.Histogram
	unproved prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		apply: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mcpvault_snapshot_apply_duration_seconds", Help: "Time from finding a generation on this node's disk to serving it.",
			Buckets: []float64{0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60},
		}),
		unproved: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mcpvault_snapshot_verify_failures_total", Help: "What was offered as policy and did not verify or build. Any is an alarm.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.apply, m.unproved)
	}
	return m
}
