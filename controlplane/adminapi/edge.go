package adminapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"runtime/debug"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mcpvault/mcpvault/kit/tele"
)

// call is what is known of one request. Its own goroutine fills it in on the way inwards.
type call struct {
	id                string
	principal, tenant string
}

type callKey struct{}

func callFrom(ctx context.Context) *call {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return &call{}
	}
	return c
}

const requestIDHeader = "X-Request-Id"

// foreignID is what we repeat of a caller's own request id: nothing that could forge a log line.
var foreignID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// identify gives each request an id, the caller's own if it has a decent one, and sends it back with every answer.
func identify(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get(requestIDHeader)
		if !foreignID.MatchString(id) {
			id = ulid.Make().String()
		}
		w.Header().Set(requestIDHeader, id)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callKey{}, &call{id: id})))
	})
}

// edge is the outermost step: it bounds the call in time, survives panics, turns errors into what the wire may show, and
// writes the one log line of the call.
type edge struct {
	log     *slog.Logger
	metrics *metrics
	rules   map[string]rule
}

func (e *edge) intercept(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
		limit := usual
		r, known := e.rules[spec.Procedure]
		if known {
			limit = r.limit
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		began := time.Now()
		err := guard(ctx, spec, stream, next)
		c := callFrom(ctx)
		shown := expose(ctx, err, c.id)
		e.note(ctx, c, spec, known, shown, err, time.Since(began))
		if shown == nil {
			return nil
		}
		return shown
	}
}

// guard makes an error of a panic: one request's bug must not be everybody's outage.
func guard(ctx context.Context, spec connect.Spec, stream connect.ServerStream, next connect.ServerFunc) (err error) {
	defer func() {
		if p := recover(); p != nil {
			if cause, ok := p.(error); ok && errors.Is(cause, http.ErrAbortHandler) {
				panic(p)
			}
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return next(ctx, spec, stream)
}

func (e *edge) note(ctx context.Context, c *call, spec connect.Spec, known bool, shown *connect.Error, err error, took time.Duration) {
	code, level := "ok", slog.LevelInfo
	if shown != nil {
		code = shown.Code().String()
		if shown.Code() == connect.CodeInternal || shown.Code() == connect.CodeUnavailable {
			level = slog.LevelError
		}
	} else if spec.IdempotencyLevel == connect.IdempotencyNoSideEffects {
		level = slog.LevelDebug
	}
	name := spec.Procedure
	if !known {
		// What a stranger typed is no label.
		name = "unknown"
	}
	e.metrics.observe(name, code, took)
	attrs := []slog.Attr{
		slog.String("procedure", spec.Procedure), slog.String("code", code), slog.String(tele.KeyRequestID, c.id),
		slog.String(tele.KeyPrincipal, c.principal), slog.String(tele.KeyTenant, c.tenant), slog.Duration(tele.KeyDuration, took),
	}
	if err != nil {
		attrs = append(attrs, slog.Any(tele.KeyError, err))
	}
	e.log.LogAttrs(ctx, level, "admin call", attrs...)
}

// metrics counts calls. Its labels are the table's procedures and Connect's codes.
type metrics struct {
	calls *prometheus.CounterVec
	took  *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mcpvault_admin_calls_total", Help: "Calls of the admin API, by procedure and result.",
		}, []string{"procedure", "code"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mcpvault_admin_call_duration_seconds", Help: "How long calls of the admin API took.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60},
		}, []string{"procedure"}),
	}
	if reg == nil {
		return m, nil
	}
	return m, errors.Join(reg.Register(m.calls), reg.Register(m.took))
}

func (m *metrics) observe(procedure, code string, took time.Duration) {
	m.calls.WithLabelValues(procedure, code).Inc()
	m.took.WithLabelValues(procedure).Observe(took.Seconds())
}
