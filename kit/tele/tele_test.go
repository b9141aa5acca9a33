package tele_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/tele"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLinesCarryTheProcessAttributesInBothFormats(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log, err := tele.Logger(&out, tele.LogConfig{Format: "json"}, tele.KeyNode, "n1")
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("hidden")
	log.Info("applied", tele.KeyGeneration, 42)
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	if line["node"] != "n1" || line["generation"] != 42.0 || line["msg"] != "applied" {
		t.Fatalf("got %v", line)
	}
	out.Reset()
	log, err = tele.Logger(&out, tele.LogConfig{Level: "debug"}, tele.KeyNode, "n1")
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("seen")
	if !strings.Contains(out.String(), "msg=seen node=n1") {
		t.Fatal(out.String())
	}
}

func TestUnknownLevelsAndFormatsAreRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []tele.LogConfig{{Level: "loud"}, {Format: "xml"}, {Level: "INFO+2"}} {
		if _, err := tele.Logger(io.Discard, c); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("%+v: %v", c, err)
		}
		if len(c.Problems()) != 1 {
			t.Errorf("%+v: %v", c, c.Problems())
		}
	}
	if p := (tele.LogConfig{Level: "warn", Format: "json"}).Problems(); len(p) != 0 {
		t.Error(p)
	}
}

func TestMetricsTellTheBuildAndTheRoomsOwn(t *testing.T) {
	t.Parallel()
	reg := tele.NewRegistry(tele.Build{Version: "v1", Commit: "abc", Go: "go1"})
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "mcpvault_test_total", Help: "A test."})
	reg.MustRegister(c)
	c.Inc()
	rec := httptest.NewRecorder()
	reg.Handler(slog.New(slog.DiscardHandler)).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{`mcpvault_build_info{commit="abc",go="go1",version="v1"} 1`, "mcpvault_test_total 1", "go_goroutines"} {
		if !strings.Contains(rec.Body.String(), want) {
			t.Errorf("missing %s", want)
		}
	}
}

func TestWithoutSettingsNothingIsTraced(t *testing.T) {
	t.Parallel()
	for name, env := range map[string]map[string]string{
		"nothing set": {},
		"disabled":    {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
		"no exporter": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
	} {
		tr, err := tele.NewTraces(t.Context(), tele.TraceConfig{Getenv: func(k string) string { return env[k] }})
		if err != nil {
			t.Fatal(err)
		}
		_, span := tr.Tracer("test").Start(t.Context(), "op")
		if span.IsRecording() {
			t.Errorf("%s: it records", name)
		}
		span.End()
		if err := tr.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestMetricsReachTheCollectorUnderTheirConventionalNames(t *testing.T) {
	t.Parallel()
	got := make(chan *colmetrics.ExportMetricsServiceRequest, 8)
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		m := &colmetrics.ExportMetricsServiceRequest{}
		if err != nil || r.URL.Path != "/v1/metrics" || proto.Unmarshal(b, m) != nil {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		got <- m
	}))
	defer collector.Close()
	reg := prometheus.NewRegistry()
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "mcp_server_operation_duration_seconds", Buckets: []float64{1}}, []string{"mcp_method_name", "outcome"})
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "mcpvault_test_total"})
	reg.MustRegister(h, c)
	h.WithLabelValues("tools/call", "ok").Observe(0.5)
	c.Inc()
	stop, err := tele.Push(t.Context(), tele.TraceConfig{Service: "mcpvault-test", Endpoint: collector.URL + "/"}, reg)
	if err != nil {
		t.Fatal(err)
	}
	if err := stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{}
	for _, rm := range (<-got).GetResourceMetrics() {
		if s := rm.GetResource().String(); !strings.Contains(s, "mcpvault-test") {
			t.Errorf("resource %s", s)
		}
		for _, sm := range rm.GetScopeMetrics() {
			for _, m := range sm.GetMetrics() {
				names[m.GetName()] = m.GetUnit()
				if m.GetName() == "mcp.server.operation.duration" && !strings.Contains(m.String(), "mcp.method.name") {
					t.Errorf("its attributes: %s", m)
				}
			}
		}
	}
	if unit, there := names["mcp.server.operation.duration"]; !there || unit != "s" {
		t.Errorf("received %v", names)
	}
	if _, there := names["mcpvault_test_total"]; !there {
		t.Errorf("received %v", names)
	}
	off, err := tele.Push(t.Context(), tele.TraceConfig{}, reg)
	if err != nil || off(t.Context()) != nil || len(got) != 0 {
		t.Error("without an endpoint something was sent", err)
	}
}

// Not parallel: the exporter reads the process's environment.
func TestSpansReachTheCollectorBeforeShutdownReturns(t *testing.T) {
	got := make(chan string, 8)
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if err != nil {
			t.Error(err)
		}
		got <- r.URL.Path + " " + string(b)
	}))
	defer collector.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "region=eu")
	env := map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": collector.URL}
	tr, err := tele.NewTraces(t.Context(), tele.TraceConfig{
		Service: "mcpvault-test", Getenv: func(k string) string { return env[k] },
	})
	if err != nil {
		t.Fatal(err)
	}
	_, span := tr.Tracer("test").Start(context.Background(), "operation-canary")
	span.End()
	if err := tr.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	body := <-got
	for _, want := range []string{"/v1/traces", "operation-canary", "mcpvault-test", "region"} {
		if !strings.Contains(body, want) {
			t.Errorf("missing %q in %q", want, body)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}
