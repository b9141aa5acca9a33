// Package audit keeps a record of every request that a node sees, on the node's own disk, and hands the records to the
// control plane. It promises that a read is in the log before it is answered, that a call with effects is on the disk
// before it is forwarded and its outcome before it is answered, that what is lost with the process is told as "unknown",
// and that nothing of this waits for the control plane. When the disk takes no records, the errors say so, and the caller
// does nothing that would need one.
//
// The log itself, its tree and its proofs are kit/tlog's.
package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/kit/tlog"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// ErrUnavailable says that the record was not kept: the disk is full, failing or hanging, or the spool's quota is used up.
var ErrUnavailable = errors.New("audit: records are not taken")

// errReserve keeps what is left of a full disk for the outcomes of calls under way.
var errReserve = errors.New("the disk is full: the log lives on its reserve")

const (
	defaultQuota = 20 << 30
	// slack is what records that need no durability may use above the quota.
	slack = 64 << 20
	// alarmShare is the part of the quota from which on the spool is a problem, in percent.
	alarmShare = 80
	// lookEvery is how many records lie between two looks at the spool's size.
	lookEvery = 64
)

// Config of an Audit.
type Config struct {
	Cell, Node string
	Log        *tlog.Log
	// MACKey is the key under which arguments are hashed; at least 16 bytes.
	MACKey []byte
	// Quota bounds the bytes of records on disk; 20 GiB when 0.
	Quota int64
	// Now is the clock; time.Now when nil.
	Now        func() time.Time
	Registerer prometheus.Registerer
	Logger     *slog.Logger
}

// Audit is safe for concurrent use.
type Audit struct {
	cfg     Config
	log     *tlog.Log
	ids     *ids
	mac     *macs
	metrics *metrics
	bufs    sync.Pool
	taken   atomic.Int64 // records since the start
	spool   atomic.Int64 // bytes on disk, as of the last look
	loud    atomic.Bool  // the spool's alarm was told
	open    openIntents
	marked  atomic.Int64 // records taken when the last mark was made
}

// New makes an audit on an open log. Recover comes next.
func New(cfg Config) (*Audit, error) {
	if cfg.Log == nil || cfg.Cell == "" || cfg.Node == "" || len(cfg.MACKey) < 16 {
		return nil, errors.New("audit: Cell, Node, Log and a MACKey of 16 bytes must be set")
	}
	if cfg.Quota == 0 {
		cfg.Quota = defaultQuota
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Audit{cfg: cfg, log: cfg.Log, ids: newIDs(cfg.Now), mac: newMACs(cfg.MACKey)}
	a.bufs.New = func() any { b := make([]byte, 0, 1024); return &b }
	a.open.at = map[string]int64{}
	a.spool.Store(a.log.Stats().Bytes)
	var err error
	a.metrics, err = newMetrics(cfg.Registerer, a)
	return a, err
}

// NewID makes the id of a decision and of its record: a ULID, larger than every one made before by this Audit.
func (a *Audit) NewID() string { return a.ids.next() }

// MAC is the HMAC-SHA-256 of raw arguments under the cell's audit key.
func (a *Audit) MAC(arguments []byte) []byte { return a.mac.sum(arguments) }

// Append keeps a record of a request that needed no intent. It survives the end of the process, and is durable within a
// second. The error wraps ErrUnavailable.
func (a *Audit) Append(rec *auditv1.Record) error {
	if a.look() > a.cfg.Quota+slack {
		return a.refuse(errors.New("the spool is full"))
	}
	err := a.encode(rec, func(b []byte) error {
		_, err := a.log.Append(b)
		return err
	})
	if err != nil {
		return a.refuse(err)
	}
	if rec.GetKind() == auditv1.RecordKind_RECORD_KIND_CALL {
		a.open.close(rec.GetId()) // an intent that failed ends as a refused call
	}
	a.metrics.kept.Inc()
	a.mark()
	return nil
}

// Intent makes the record of a call durable before the call is forwarded. On a full disk it is refused while there is still
// room for the outcomes of the calls that are under way. The error wraps ErrUnavailable, and the call must
// not be forwarded then; a CALL record with the same id says what became of it.
func (a *Audit) Intent(ctx context.Context, rec *auditv1.Record) error {
	if a.look() > a.cfg.Quota {
		return a.refuse(errors.New("the spool's quota is used up"))
	}
	if a.log.Stats().ReserveUsed {
		return a.refuse(errReserve)
	}
	a.open.open(rec.GetId(), a.log.Size)
	if skipped := a.misdo(ctx, rec, "intent"); skipped {
		return nil
	}
	if err := a.commit(ctx, rec); err != nil {
		return err
	}
	a.mark()
	return nil
}

// Outcome makes durable what became of an intent, before the call is answered. It is taken whatever the quota says.
func (a *Audit) Outcome(ctx context.Context, rec *auditv1.Record) error {
	if skipped := a.misdo(ctx, rec, "outcome"); skipped {
		a.open.close(rec.GetIntentId())
		return nil
	}
	if err := a.commit(ctx, rec); err != nil {
		return err
	}
	a.open.close(rec.GetIntentId())
	a.mark()
	return nil
}

func (a *Audit) commit(ctx context.Context, rec *auditv1.Record) error {
	err := a.encode(rec, func(b []byte) error {
		_, err := a.log.Commit(ctx, b)
		return err
	})
	if err != nil {
		return a.refuse(err)
	}
	a.metrics.committed.Inc()
	return nil
}

// encode gives the record's bytes, which are the leaf, to do. They are good until it returns.
func (a *Audit) encode(rec *auditv1.Record, do func([]byte) error) error {
	if rec.GetCell() == "" {
		rec.Cell, rec.Node = a.cfg.Cell, a.cfg.Node
	}
	if rec.GetTimeMs() == 0 {
		rec.TimeMs = a.cfg.Now().UnixMilli()
	}
	p, _ := a.bufs.Get().(*[]byte)
	defer a.bufs.Put(p)
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend((*p)[:0], rec)
	if err != nil {
		return fmt.Errorf("encode audit record: %w", err)
	}
	*p = b
	return do(b)
}

func (a *Audit) refuse(cause error) error {
	a.metrics.refused.Inc()
	a.metrics.dropped.Inc()
	return fmt.Errorf("%w: %w", ErrUnavailable, cause)
}

// look returns the bytes of the spool, which it reads now and then.
func (a *Audit) look() int64 {
	if a.taken.Add(1)%lookEvery != 0 {
		return a.spool.Load()
	}
	return a.weigh()
}

// weigh looks at the spool's size.
func (a *Audit) weigh() int64 {
	n := a.log.Stats().Bytes
	a.spool.Store(n)
	full := n > a.cfg.Quota*alarmShare/100
	if full && !a.loud.Swap(true) {
		a.cfg.Logger.Error("the audit spool is nearly full: the control plane does not collect it",
			slog.Int64("bytes", n), slog.Int64("quota", a.cfg.Quota))
	}
	if !full {
		a.loud.Store(false)
	}
	return n
}

// Problem says why calls with effects are refused now; nil while they are not.
func (a *Audit) Problem() error {
	s := a.log.Stats()
	if s.Failed != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, s.Failed)
	}
	if s.ReserveUsed {
		return fmt.Errorf("%w: %w", ErrUnavailable, errReserve)
	}
	if n := s.Bytes; n > a.cfg.Quota {
		return fmt.Errorf("%w: the spool has %d bytes, its quota is %d: the control plane must collect it", ErrUnavailable, n, a.cfg.Quota)
	}
	return nil
}
