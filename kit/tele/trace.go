package tele

import (
	"context"
	"errors"
	"fmt"
	"strings"

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
	// Propagator reads and writes W3C trace context. Baggage is left out: nothing here reads what a stranger
	// puts into it.
	Propagator propagation.TextMapPropagator
	shutdown   func(context.Context) error
	on         bool
}

// TraceConfig says who is traced.
type TraceConfig struct {
	// Service is the name unless OTEL_SERVICE_NAME gives another.
	Service, Version string
	// Getenv reads the OTEL_* variables that decide whether there is tracing; the exporter reads its own from the process.
	Getenv func(string) string
	// Endpoint is where spans and metrics go when no variable says so, http://collector:4318; "" is nowhere.
	Endpoint string
}

// NewTraces follows the standard variables: spans go by OTLP over HTTP to OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or
// OTEL_EXPORTER_OTLP_ENDPOINT, else to the configured endpoint. Without any, with OTEL_SDK_DISABLED=true or OTEL_TRACES_EXPORTER=none, nothing is
// recorded and nothing is sent. A collector that cannot be reached is not an error; spans are dropped.
func NewTraces(ctx context.Context, c TraceConfig) (*Traces, error) {
	t := &Traces{
		TracerProvider: noop.NewTracerProvider(),
		Propagator:     propagation.TraceContext{},
		shutdown:       func(context.Context) error { return nil },
	}
	at, ok := c.destination("TRACES")
	if !ok {
		return t, nil
	}
	var options []otlptracehttp.Option
	if at != "" {
		options = append(options, otlptracehttp.WithEndpointURL(at+"/v1/traces"))
	}
	exporter, err := otlptracehttp.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("make the trace exporter: %w", err)
	}
	res, err := c.resource(ctx)
	if err != nil {
		return nil, errors.Join(err, exporter.Shutdown(ctx))
	}
	t.use(sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(res)))
	return t, nil
}

// NewTracesTo records every span at once in an exporter of the caller's own, for tests.
func NewTracesTo(exporter sdktrace.SpanExporter) *Traces {
	t := &Traces{Propagator: propagation.TraceContext{}}
	t.use(sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter)))
	return t
}

func (t *Traces) use(p *sdktrace.TracerProvider) {
	t.TracerProvider, t.shutdown, t.on = p, p.Shutdown, true
}

// On reports whether anything is recorded.
func (t *Traces) On() bool { return t != nil && t.on }

// resource describes the process. What the environment says comes last and wins.
func (c TraceConfig) resource(ctx context.Context) (*resource.Resource, error) {
	attrs := []attribute.KeyValue{attribute.String("service.name", c.Service), attribute.String("service.version", c.Version)}
	res, err := resource.New(ctx, resource.WithAttributes(attrs...), resource.WithFromEnv(), resource.WithTelemetrySDK())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, fmt.Errorf("describe this process for telemetry: %w", err)
	}
	return res, nil
}

// destination says whether a signal (TRACES, METRICS) is sent, and where: at is "" when the environment says where, which
// the exporter reads by itself.
func (c TraceConfig) destination(signal string) (at string, ok bool) {
	getenv := c.Getenv
	if getenv == nil {
		getenv = func(string) string { return "" }
	}
	if getenv("OTEL_SDK_DISABLED") == "true" || getenv("OTEL_"+signal+"_EXPORTER") == "none" {
		return "", false
	}
	if getenv("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") != "" || getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" {
		return "", true
	}
	return strings.TrimSuffix(c.Endpoint, "/"), c.Endpoint != ""
}

// Shutdown sends what is still held and ends the exporter; it gives up when ctx ends.
func (t *Traces) Shutdown(ctx context.Context) error {
	if err := t.shutdown(ctx); err != nil {
		return fmt.Errorf("end tracing: %w", err)
	}
	return nil
}
