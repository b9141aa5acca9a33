// Package audit writes one node's records: what was asked, who asked, what was decided and what became of it. Records are
// leaves of the node's own Merkle log (kit/tlog) and are handed over to the control plane by a Deliverer.
//
// It promises that an intent and an outcome are on disk when the call returns, that a record is encoded once and never
// again, and that a disk which does not take records is an error at once: whoever needs the record refuses the call.
package audit

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/kit/tlog"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// ErrUnavailable says that the record was not kept: the disk is full, failing or hanging, or the spool is at its quota.
var ErrUnavailable = errors.New("audit records cannot be written")

// Log is the part of the Merkle log that writing needs; *tlog.Log is one.
type Log interface {
	Append(rec []byte) (int64, error)
	Commit(ctx context.Context, rec []byte) (int64, error)
	Stats() tlog.Stats
}

// Config of an Audit.
type Config struct {
	Cell, Node string
	Log        Log
	// MACKey hashes arguments, so that equal ones can be recognised and none can be read.
	MACKey []byte
	// Now is the wall clock when nil.
	Now        func() time.Time
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Audit is safe for concurrent use.
type Audit struct {
	cfg  Config
	macs sync.Pool
	full atomic.Bool

	mu      sync.Mutex // guards entropy
	entropy *ulid.MonotonicEntropy

	metrics metrics
}

// New makes an Audit.
func New(cfg Config) (*Audit, error) {
	if len(cfg.MACKey) < 16 {
		return nil, errors.New("audit: the key for arguments is too short")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Audit{cfg: cfg, entropy: ulid.Monotonic(rand.Reader, 0)}
	a.macs.New = func() any { return hmac.New(sha256.New, cfg.MACKey) }
	return a, a.metrics.register(cfg.Registerer, cfg.Log)
}

// NewID makes the id of a record: a ULID, rising within this process.
func (a *Audit) NewID() string {
	now := ulid.Timestamp(a.cfg.Now())
	a.mu.Lock()
	defer a.mu.Unlock()
	id, err := ulid.New(now, a.entropy)
	if err != nil {
		// More ids within one millisecond than it has room for: the order is lost, the uniqueness is not.
		id = ulid.MustNew(now, rand.Reader)
	}
	return id.String()
}

// MAC hashes arguments under the node's key.
func (a *Audit) MAC(arguments []byte) []byte {
	h, _ := a.macs.Get().(hash.Hash)
	defer a.macs.Put(h)
	h.Reset()
	_, _ = h.Write(arguments)
	return h.Sum(nil)
}

// Append gives a record its place in the log; it is durable a little later. The error wraps ErrUnavailable.
func (a *Audit) Append(rec *auditv1.Record) error {
	b, err := a.encode(rec)
	if err == nil {
		_, err = a.cfg.Log.Append(b)
	}
	return a.done(rec, err)
}

// Intent returns when the record is durable: nothing of the call may have left this node before. The error wraps
// ErrUnavailable.
func (a *Audit) Intent(ctx context.Context, rec *auditv1.Record) error { return a.commit(ctx, rec) }

// Outcome returns when the record is durable: the end of the answer may not have left before. The error wraps
// ErrUnavailable; recovery then marks the intent as unknown.
func (a *Audit) Outcome(ctx context.Context, rec *auditv1.Record) error { return a.commit(ctx, rec) }

// Problem says why calls with effects are refused; nil when they are not.
func (a *Audit) Problem() error {
	if a.full.Load() {
		return fmt.Errorf("%w: the spool is at its quota and the control plane takes nothing", ErrUnavailable)
	}
	if err := a.cfg.Log.Stats().Failed; err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

func (a *Audit) commit(ctx context.Context, rec *auditv1.Record) error {
	b, err := a.encode(rec)
	if err == nil {
		_, err = a.cfg.Log.Commit(ctx, b)
	}
	return a.done(rec, err)
}

func (a *Audit) encode(rec *auditv1.Record) ([]byte, error) {
	if a.full.Load() {
		return nil, errors.New("the spool is at its quota")
	}
	rec.Cell, rec.Node = a.cfg.Cell, a.cfg.Node
	if rec.GetTimeMs() == 0 {
		rec.TimeMs = a.cfg.Now().UnixMilli()
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(rec)
}

func (a *Audit) done(rec *auditv1.Record, err error) error {
	if err != nil {
		a.metrics.events.WithLabelValues("refused").Inc()
		return fmt.Errorf("%w: record %s: %w", ErrUnavailable, rec.GetId(), err)
	}
	a.metrics.events.WithLabelValues("kept").Inc()
	return nil
}

type metrics struct {
	events *prometheus.CounterVec
}

func (m *metrics) register(reg prometheus.Registerer, log Log) error {
	m.events = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mcpvault_audit_events_total", Help: "Audit records by outcome: kept, or refused because the log did not take them.",
	}, []string{"outcome"})
	if reg == nil {
		return nil
	}
	depth := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mcpvault_audit_queue_depth", Help: "Records that are not durable yet.",
	}, func() float64 { return float64(log.Stats().Waiting) })
	checkpoint := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mcpvault_audit_checkpoint_timestamp_seconds", Help: "When the newest checkpoint was signed.",
	}, func() float64 { return float64(log.Stats().CheckpointAt.Unix()) })
	for _, c := range []prometheus.Collector{m.events, depth, checkpoint} {
		if err := reg.Register(c); err != nil {
			return err
		}
	}
	return nil
}
