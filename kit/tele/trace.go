package tele

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Traces makes tracers and carries trace ids over the wire. It is handed to who needs it; nothing global is set.
type Traces struct {
	trace.TracerProvider
	// Propagator reads and writes W3C trace context. Baggage is left out: what a stranger sends is not passed on.
	Propagator propagation.TextMapPropagator
	shutdown   func(context.Context) error
}

// TraceConfig says who is traced.
type TraceConfig struct {
	// Service is the name unless OTEL_SERVICE_NAME gives another.
	Service, Version string
	// Getenv reads the OTEL_* variables that decide whether there is tracing; the exporter reads its own from the process.
	Getenv func(string) string
}

// NewTraces follows the standard variables: spans go by OTLP over HTTP to OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or
// OTEL_EXPORTER_OTLP_ENDPOINT. Without either, with OTEL_SDK_DISABLED=true or OTEL_TRACES_EXPORTER=none, nothing is
// recorded and nothing is sent. A collector that cannot be reached is not an error; spans are dropped.
func NewTraces(ctx context.Context, c TraceConfig) (*Traces, error) {
	t := &Traces{
		TracerProvider: noop.NewTracerProvider(),
		Propagator:     propagation.TraceContext{},
		shutdown:       func(context.Context) error { return nil },
	}
	if !wanted(c.Getenv) {
		return t, nil
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("make the trace exporter: %w", err)
	}
	attrs := []attribute.KeyValue{attribute.String("service.name", c.Service), attribute.String("service.version", c.Version)}
	// What the environment says comes last and wins.
	res, err := resource.New(ctx, resource.WithAttributes(attrs...), resource.WithFromEnv(), resource.WithTelemetrySDK())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, errors.Join(fmt.Errorf("describe this process for traces: %w", err), exporter.Shutdown(ctx))
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(res))
	t.TracerProvider, t.shutdown = provider, provider.Shutdown
	return t, nil
}

func wanted(getenv func(string) string) bool {
	if getenv == nil || getenv("OTEL_SDK_DISABLED") == "true" || getenv("OTEL_TRACES_EXPORTER") == "none" {
		return false
	}
	return getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "" || getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != ""
}

// Shutdown sends what is still held and ends the exporter; it gives up when ctx ends.
func (t *Traces) Shutdown(ctx context.Context) error {
	if err := t.shutdown(ctx); err != nil {
		return fmt.Errorf("end tracing: %w", err)
	}
	return nil
}
