package audit

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mcpvault/mcpvault/kit/tlog"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// Sink takes records; the control plane's client is one.
type Sink interface {
	DeliverAudit(ctx context.Context, req *cellv1.DeliverAuditRequest) (*cellv1.DeliverAuditResponse, error)
}

// Source is the log that is handed over; *tlog.Log is one.
type Source interface {
	Origin() string
	VerifierKey() string
	Size() int64
	Durable() int64
	Grown(size int64) <-chan struct{}
	Sync(ctx context.Context) error
	Read(from int64, n, limit int) ([][]byte, error)
	CheckpointAt(size int64) ([]byte, tlog.Checkpoint, error)
	ProveTree(to, from int64) ([]tlog.Hash, error)
	Prune(below int64) error
	Stats() tlog.Stats
}

// DelivererConfig configures a Deliverer; zero values take the defaults named.
type DelivererConfig struct {
	Source Source
	Sink   Sink
	Audit  *Audit
	// Quota bounds the bytes of the log on this disk: 20 GiB. What the control plane has witnessed is dropped first; when
	// nothing more can be dropped the log takes no more records.
	Quota      int64
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Deliverer hands the log over to the control plane. It never holds up the log: when the control plane is away, records
// stay where they are.
type Deliverer struct {
	cfg       DelivererConfig
	log       *slog.Logger
	delivered atomic.Int64
	witnessed atomic.Int64
}

const (
	batchRecords = 2000
	batchBytes   = 1 << 20
	deliverLimit = 10 * time.Second
	// gather is how long a delivery waits for company, so that a busy log goes over in batches.
	gather     = 20 * time.Millisecond
	backoffMin = 100 * time.Millisecond
	backoffMax = 5 * time.Second
)

// NewDeliverer makes a Deliverer.
func NewDeliverer(cfg DelivererConfig) (*Deliverer, error) {
	if cfg.Quota <= 0 {
		cfg.Quota = 20 << 30
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Deliverer{cfg: cfg, log: cfg.Logger}
	if cfg.Registerer == nil {
		return d, nil
	}
	return d, cfg.Registerer.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mcpvault_audit_undelivered_records", Help: "Records that the control plane does not have yet.",
	}, func() float64 { return float64(cfg.Source.Size() - d.delivered.Load()) }))
}

// Delivered is how many records the control plane has.
func (d *Deliverer) Delivered() int64 { return d.delivered.Load() }

// Witnessed is the size of the newest checkpoint that the control plane has countersigned by keeping it.
func (d *Deliverer) Witnessed() int64 { return d.witnessed.Load() }

// Run hands over until ctx ends, and then once more what is left, as far as it goes quickly.
func (d *Deliverer) Run(ctx context.Context) error {
	wait := backoffMin
	for ctx.Err() == nil {
		err := d.session(ctx)
		d.keepQuota()
		if ctx.Err() != nil {
			break
		}
		d.log.DebugContext(ctx, "audit records wait for the control plane", "err", err, "undelivered", d.cfg.Source.Size()-d.delivered.Load())
		sleep(ctx, wait/2+rand.N(wait/2+1)) //nolint:gosec // a jitter needs no secrecy
		wait = min(2*wait, backoffMax)
		if err == nil {
			wait = backoffMin
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if d.delivered.Load() > 0 && d.cfg.Source.Sync(last) == nil {
		_, _ = d.catchUp(last, d.delivered.Load())
	}
	return nil
}

// session asks where the control plane is and goes on from there until something fails.
func (d *Deliverer) session(ctx context.Context) error {
	res, err := d.send(ctx, &cellv1.DeliverAuditRequest{})
	if err != nil {
		return err
	}
	next := int64(res.GetNextIndex())
	if next > d.cfg.Source.Size() {
		d.log.ErrorContext(ctx, "the control plane has more records of this log than the log itself: it was cut or restored from a copy",
			"control_plane", next, "here", d.cfg.Source.Size())
		sleep(ctx, backoffMax)
		return errors.New("the log is shorter than what was delivered")
	}
	d.note(res)
	quota := time.NewTicker(time.Second)
	defer quota.Stop()
	for {
		if next, err = d.catchUp(ctx, next); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-quota.C:
			d.keepQuota()
		case <-d.cfg.Source.Grown(next):
			sleep(ctx, gather)
			if err := d.cfg.Source.Sync(ctx); err != nil {
				return err
			}
		}
	}
}

// catchUp delivers everything durable from next on.
func (d *Deliverer) catchUp(ctx context.Context, next int64) (int64, error) {
	for next < d.cfg.Source.Durable() {
		req, err := d.batch(next)
		if err != nil {
			return next, err
		}
		res, err := d.send(ctx, req)
		if err != nil {
			return next, err
		}
		if got := int64(res.GetNextIndex()); got == next {
			return next, errors.New("the control plane took nothing")
		}
		next = int64(res.GetNextIndex())
		d.note(res)
	}
	return next, nil
}

func (d *Deliverer) batch(from int64) (*cellv1.DeliverAuditRequest, error) {
	src := d.cfg.Source
	recs, err := src.Read(from, batchRecords, batchBytes)
	if err != nil {
		return nil, err
	}
	size := from + int64(len(recs))
	signed, _, err := src.CheckpointAt(size)
	if err != nil {
		return nil, err
	}
	req := &cellv1.DeliverAuditRequest{FirstIndex: uint64(from), Records: recs, Checkpoint: signed}
	if w := d.witnessed.Load(); w > 0 && w <= size {
		proof, err := src.ProveTree(size, w)
		if err != nil {
			return nil, err
		}
		req.Consistency, req.ConsistencyFrom = tlog.HashesToBytes(proof), uint64(w)
	}
	return req, nil
}

func (d *Deliverer) send(ctx context.Context, req *cellv1.DeliverAuditRequest) (*cellv1.DeliverAuditResponse, error) {
	req.LogId, req.VerifierKey = d.cfg.Source.Origin(), d.cfg.Source.VerifierKey()
	ctx, cancel := context.WithTimeout(ctx, deliverLimit)
	defer cancel()
	return d.cfg.Sink.DeliverAudit(ctx, req)
}

func (d *Deliverer) note(res *cellv1.DeliverAuditResponse) {
	d.delivered.Store(int64(res.GetNextIndex()))
	d.witnessed.Store(int64(res.GetWitnessedSize()))
}

// keepQuota drops what is witnessed when the disk's share is used up, and closes the log when that is not enough.
func (d *Deliverer) keepQuota() {
	used := d.cfg.Source.Stats().Bytes
	if used > d.cfg.Quota/5*4 {
		if err := d.cfg.Source.Prune(d.witnessed.Load()); err != nil {
			d.log.Error("drop delivered audit records", "err", err)
		}
		used = d.cfg.Source.Stats().Bytes
	}
	if used > d.cfg.Quota/5*4 {
		d.log.Error("the audit spool is filling up: the control plane does not take records", "bytes", used, "quota", d.cfg.Quota)
	}
	if d.cfg.Audit != nil {
		d.cfg.Audit.full.Store(used > d.cfg.Quota)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
