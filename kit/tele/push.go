package tele

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	bridge "go.opentelemetry.io/contrib/bridges/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// Push sends what a registry holds by OTLP over HTTP, once a minute or as OTEL_METRIC_EXPORT_INTERVAL says. Where to follows
// the rules of NewTraces, with METRICS for TRACES. The metrics of the Model Context Protocol have the names of its semantic
// conventions there (mcp.server.operation.duration), all others those of the registry. The function that is returned sends
// what there is and ends it.
func Push(ctx context.Context, c TraceConfig, from prometheus.Gatherer) (shutdown func(context.Context) error, err error) {
	at, ok := c.destination("METRICS")
	if !ok {
		return func(context.Context) error { return nil }, nil
	}
	var options []otlpmetrichttp.Option
	if at != "" {
		options = append(options, otlpmetrichttp.WithEndpointURL(at+"/v1/metrics"))
	}
	exporter, err := otlpmetrichttp.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("make the metric exporter: %w", err)
	}
	res, err := c.resource(ctx)
	if err != nil {
		return nil, errors.Join(err, exporter.Shutdown(ctx))
	}
	producer := conventional{bridge.NewMetricProducer(bridge.WithGatherer(from))}
	p := metric.NewMeterProvider(metric.WithResource(res), metric.WithReader(metric.NewPeriodicReader(exporter, metric.WithProducer(producer))))
	return p.Shutdown, nil
}

// conventional gives metrics of the protocol their conventional names.
type conventional struct{ metric.Producer }

// Produce implements metric.Producer.
func (c conventional) Produce(ctx context.Context) ([]metricdata.ScopeMetrics, error) {
	all, err := c.Producer.Produce(ctx)
	for _, scope := range all {
		for i := range scope.Metrics {
			rename(&scope.Metrics[i])
		}
	}
	return all, err
}

// rename turns mcp_server_operation_duration_seconds{mcp_method_name} into mcp.server.operation.duration{mcp.method.name},
// in seconds.
func rename(m *metricdata.Metrics) {
	h, ok := m.Data.(metricdata.Histogram[float64])
	name, seconds := strings.CutSuffix(m.Name, "_seconds")
	if !ok || !seconds || !strings.HasPrefix(name, "mcp_") {
		return
	}
	m.Name, m.Unit = strings.ReplaceAll(name, "_", "."), "s"
	for i := range h.DataPoints {
		p := &h.DataPoints[i]
		attrs := p.Attributes.ToSlice()
		for j := range attrs {
			attrs[j].Key = attribute.Key(conventionalKey(string(attrs[j].Key)))
		}
		p.Attributes = attribute.NewSet(attrs...)
	}
}

func conventionalKey(label string) string {
	switch label {
	case "mcp_method_name":
		return KeyMCPMethod
	case "error_type":
		return KeyErrorType
	}
	return label
}
