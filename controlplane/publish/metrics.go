package publish

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts what was published. None of it is by tenant: there may be many.
type metrics struct {
	generations prometheus.Counter
	deltas      prometheus.Counter
	failures    *prometheus.CounterVec
	took        prometheus.Histogram
}

// The kinds of failures.
const (
	failedRows  = "rows"
	failedStore = "postgres"
)

// newMetrics registers nothing when there is no registerer. What reads p is asked when somebody looks.
func newMetrics(reg prometheus.Registerer, p *Publisher) *metrics {
	m := &metrics{
		generations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mcpvault_publish_generations_total", Help: "Generations that this control plane sealed and announced.",
		}),
		deltas: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mcpvault_publish_deltas_total", Help: "Those of the generations that were deltas, without a shard of their own.",
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mcpvault_publish_failures_total",
			Help: "Rounds that published nothing: because of a tenant's rows, which do not compile, or of PostgreSQL.",
		}, []string{"cause"}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mcpvault_publish_duration_seconds", Help: "Time from a write to its sealed generation.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60},
		}),
	}
	for _, cause := range []string{failedRows, failedStore} {
		m.failures.WithLabelValues(cause)
	}
	if reg == nil {
		return m
	}
	gauge := func(name, help string, read func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read)
	}
	reg.MustRegister(m.generations, m.deltas, m.failures, m.took,
		gauge("mcpvault_publish_outbox_lag_seconds", "Age of the oldest committed write that no generation holds; 0 for none.", p.lag),
		gauge("mcpvault_publish_tenants_failing", "Tenants whose newest writes are not in force.",
			func() float64 { return float64(len(p.Status().Failures)) }))
	return m
}

// published counts a generation. One that only renews an old head says nothing about how long a write takes.
func (m *metrics) published(took time.Duration, renewal, delta bool) {
	m.generations.Inc()
	if delta {
		m.deltas.Inc()
	}
	if !renewal {
		m.took.Observe(took.Seconds())
	}
}

func (m *metrics) failed(rows bool) {
	cause := failedStore
	if rows {
		cause = failedRows
	}
	m.failures.WithLabelValues(cause).Inc()
}

// lag is how long the oldest write has been waiting, in seconds, as the last look at the outbox found it.
func (p *Publisher) lag() float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting.IsZero() {
		return 0
	}
	return max(0, p.now().Sub(p.waiting).Seconds())
}
