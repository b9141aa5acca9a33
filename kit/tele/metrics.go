package tele

import (
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Build is what the build_info metric tells.
type Build struct {
	Version, Commit, Go string
}

// Registry collects the metrics of one process. Each room registers its own; the process's and the Go runtime's are here.
type Registry struct {
	*prometheus.Registry
}

// NewRegistry returns a registry with the process's own metrics and mcpvault_build_info, a gauge that is always 1.
func NewRegistry(b Build) *Registry {
	reg := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "mcpvault_build_info",
		Help:        "Which build runs; always 1.",
		ConstLabels: prometheus.Labels{"version": b.Version, "commit": b.Commit, "go": b.Go},
	})
	info.Set(1)
	reg.MustRegister(
		info,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return &Registry{reg}
}

// Handler serves the metrics. A collector that fails costs its own metrics only and is logged.
func (r *Registry) Handler(log *slog.Logger) http.Handler {
	return promhttp.InstrumentMetricHandler(r, promhttp.HandlerFor(r, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelError),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 4,
		Registry:            r,
	}))
}
