package authn

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts verdicts; its labels are the reasons, and two words for tokens that were accepted.
type metrics struct {
	total            *prometheus.CounterVec
	cached, verified prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	total := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mcpvault_authn_tokens_total",
		Help: "Bearer tokens by result: cached, verified, or why they were refused.",
	}, []string{"result"})
	if reg != nil {
		if err := reg.Register(total); err != nil {
			return nil, fmt.Errorf("register the metrics of authn: %w", err)
		}
	}
	return &metrics{total: total, cached: total.WithLabelValues("cached"), verified: total.WithLabelValues("verified")}, nil
}

func (m *metrics) one(cached bool, err error) {
	var e *Error
	switch {
	case err == nil && cached:
		m.cached.Inc()
	case err == nil:
		m.verified.Inc()
	case errors.As(err, &e):
		m.total.WithLabelValues(e.Reason).Inc()
	}
}
