package audit

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the log's writing side.
type metrics struct {
	kept, committed, refused prometheus.Counter
	dropped                  prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, a *Audit) (*metrics, error) {
	events := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mcpvault_audit_events_total",
		Help: "Audit records by outcome: appended, committed (durable before the call went on), refused (the disk took none).",
	}, []string{"outcome"})
	m := &metrics{
		kept: events.WithLabelValues("appended"), committed: events.WithLabelValues("committed"),
		refused: events.WithLabelValues("refused"),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mcpvault_audit_dropped_total",
			Help: "Audit records that were not kept; their calls were refused. Must stay 0.",
		}),
	}
	return m, register(reg, events, m.dropped,
		gauge("mcpvault_audit_queue_depth", "Audit records that are not durable yet.",
			func() float64 { return float64(a.log.Stats().Waiting) }),
		gauge("mcpvault_audit_checkpoint_timestamp_seconds", "When the newest checkpoint was signed.",
			func() float64 { return float64(a.log.Stats().CheckpointAt.UnixMilli()) / 1000 }),
		gauge("mcpvault_audit_spool_bytes", "Bytes of audit records on this node's disk.",
			func() float64 { return float64(a.log.Stats().Bytes) }),
		gauge("mcpvault_audit_spool_quota_bytes", "Bytes that audit records may take on this node's disk.",
			func() float64 { return float64(a.cfg.Quota) }),
		gauge("mcpvault_audit_spool_alarm", "1 when the spool has reached 80 % of its quota.",
			func() float64 { return bit(a.log.Stats().Bytes > a.cfg.Quota*alarmShare/100) }),
		gauge("mcpvault_audit_disk_failed", "1 while the disk takes no audit records.",
			func() float64 { return bit(a.log.Stats().Failed != nil) }),
		gauge("mcpvault_audit_reserve_used", "1 while the audit log lives on its reserve, because the disk is full.",
			func() float64 { return bit(a.log.Stats().ReserveUsed) }),
	)
}

func gauge(name, help string, value func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func register(reg prometheus.Registerer, cs ...prometheus.Collector) error {
	if reg == nil {
		return nil
	}
	var errs []error
	for _, c := range cs {
		errs = append(errs, reg.Register(c))
	}
	return errors.Join(errs...)
}
