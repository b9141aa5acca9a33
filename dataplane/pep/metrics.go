package pep

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mcpvault/mcpvault/dataplane/limit"
	"github.com/mcpvault/mcpvault/dataplane/mcp"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// metrics are what the pipeline counts. Their labels have a known, small set of values: never a user, a tool or a word
// that a caller chose.
type metrics struct {
	decisions *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	upstream  *prometheus.HistogramVec
	deciding  prometheus.Histogram
	limited   *prometheus.CounterVec
}

// operationBuckets are those that the conventions for MCP advise, with finer ones below.
func operationBuckets() []float64 {
	return []float64{0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300}
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mcpvault_authz_decisions_total", Help: "Requests by decision and its reason.",
		}, []string{"decision", "reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mcp_server_operation_duration_seconds", Help: "Time from a request's start to its answer.",
			Buckets: operationBuckets(),
		}, []string{"mcp_method_name", "outcome"}),
		upstream: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mcp_client_operation_duration_seconds", Help: "Time from handing a request to an upstream to the upstream's answer.",
			Buckets: operationBuckets(),
		}, []string{"mcp_method_name", "outcome"}),
		deciding: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mcpvault_authz_decision_duration_seconds", Help: "Time that deciding took, arguments included.",
			Buckets: []float64{1e-7, 2e-7, 5e-7, 1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2},
		}),
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mcpvault_ratelimited_total", Help: "Requests that were refused by a limit, by what it is for.",
		}, []string{"limit"}),
	}
	// What has not happened yet is 0, not absent.
	m.decisions.WithLabelValues("allow", "allowed")
	m.duration.WithLabelValues(mcp.MethodToolsCall, "ok")
	m.upstream.WithLabelValues(mcp.MethodToolsCall, "ok")
	for _, word := range append(limit.Scopes(), "calls", "streams") {
		m.limited.WithLabelValues(word)
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.decisions, m.duration, m.upstream, m.deciding, m.limited} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) observe(rec *auditv1.Record, took time.Duration) {
	decision := "deny"
	if rec.GetDecision() == auditv1.Decision_DECISION_ALLOW {
		decision = "allow"
	}
	m.decisions.WithLabelValues(decision, rec.GetReason()).Inc()
	m.duration.WithLabelValues(methodLabel(rec.GetMethod()), rec.GetOutcome()).Observe(took.Seconds())
}

// methodLabel keeps the methods that are known by name apart and puts all others together.
func methodLabel(method string) string {
	switch method {
	case mcp.MethodInitialize, mcp.MethodDiscover, mcp.MethodPing, mcp.MethodToolsList, mcp.MethodToolsCall,
		mcp.MethodPromptsList, mcp.MethodPromptsGet, mcp.MethodResourcesList, mcp.MethodResourcesRead, mcp.MethodListen,
		mcp.MethodInitialized, mcp.MethodCancelled, mcp.MethodProgress:
		return method
	}
	if strings.HasPrefix(method, "http/") {
		return strings.ToLower(method)
	}
	return "other"
}
