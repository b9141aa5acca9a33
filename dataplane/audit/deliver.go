package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/tlog"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// Sink takes records: the control plane. Its answer says from where to go on. Delivering the same twice must store it once.
type Sink interface {
	DeliverAudit(ctx context.Context, req *cellv1.DeliverAuditRequest) (*cellv1.DeliverAuditResponse, error)
}

const (
	batchRecords = 4096
	batchBytes   = 2 << 20
	// gather is how long records gather before they are sent, unless a batch is full, and gatherMore how much longer when
	// many come: each delivery costs a sync of the disk.
	gather     = 20 * time.Millisecond
	gatherMore = 80 * time.Millisecond
	many       = 32
	// callTime bounds one delivery, and lastTime those after the end.
	callTime, lastTime = 15 * time.Second, time.Second
	// The wait after a failure grows from the first to the second; after an alarm it is the third.
	firstWait, mostWait, alarmWait = 100 * time.Millisecond, 10 * time.Second, time.Minute
	defaultKeep                    = 1 << 30
)

// ErrChain says that the log and its witness do not agree, so that nothing more is delivered.
var ErrChain = errors.New("audit: the log and its witness do not agree")

// DelivererConfig of a Deliverer.
type DelivererConfig struct {
	Log  *tlog.Log
	Sink Sink
	// Audit is told when records were deleted; may be nil.
	Audit *Audit
	// Keep is how many bytes of delivered records stay on this node; 1 GiB when 0.
	Keep       int64
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Deliverer hands the log's records to a sink, in order, exactly once in effect. It only reads the log, and never holds up
// who writes it.
type Deliverer struct {
	cfg       DelivererConfig
	log       *tlog.Log
	delivered atomic.Int64
	witnessed atomic.Int64
	chain     atomic.Pointer[string]
	wake      chan struct{}
	known     bool // delivered is what the sink said
}

// NewDeliverer makes a deliverer; Run does the work.
func NewDeliverer(cfg DelivererConfig) (*Deliverer, error) {
	if cfg.Log == nil || cfg.Sink == nil {
		return nil, errors.New("audit: a deliverer needs a log and a sink")
	}
	if cfg.Keep == 0 {
		cfg.Keep = defaultKeep
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Deliverer{cfg: cfg, log: cfg.Log, wake: make(chan struct{}, 1)}
	return d, register(cfg.Registerer,
		gauge("mcpvault_audit_undelivered", "Audit records that the control plane does not have.",
			func() float64 { return float64(max(0, d.log.Size()-d.delivered.Load())) }),
		gauge("mcpvault_audit_unwitnessed_since_timestamp_seconds",
			"Time of the oldest audit record that nobody has witnessed, 0 when there is none.",
			func() float64 {
				if since := d.UnwitnessedSince(); !since.IsZero() {
					return float64(since.UnixMilli()) / 1000
				}
				return 0
			}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mcpvault_audit_export_lag_seconds", Help: "How old the oldest audit record is that a sink does not have.",
			ConstLabels: prometheus.Labels{"sink": "controlplane"},
		}, func() float64 {
			if since := d.UnwitnessedSince(); !since.IsZero() {
				return max(0, time.Since(since).Seconds())
			}
			return 0
		}),
		gauge("mcpvault_audit_chain_broken", "1 when the log and its witness do not agree.",
			func() float64 { return bit(d.Problem() != nil) }),
	)
}

// Delivered is the number of records that the sink has.
func (d *Deliverer) Delivered() int64 { return d.delivered.Load() }

// Problem is not nil when the log and its witness do not agree. Somebody must look at it.
func (d *Deliverer) Problem() error {
	if why := d.chain.Load(); why != nil {
		return fmt.Errorf("%w: %s", ErrChain, *why)
	}
	return nil
}

// Witnessed is the size of the newest checkpoint that the sink keeps.
func (d *Deliverer) Witnessed() int64 { return d.witnessed.Load() }

// UnwitnessedSince is the time of the oldest record that is not witnessed: tamper evidence covers what is before it. It is
// zero when everything is.
func (d *Deliverer) UnwitnessedSince() time.Time {
	at := d.witnessed.Load()
	if at >= d.log.Size() {
		return time.Time{}
	}
	recs, err := d.log.Read(at, 1, 1)
	if err != nil {
		return time.Now() // not durable yet
	}
	var rec auditv1.Record
	if err := proto.Unmarshal(recs[0], &rec); err != nil {
		return time.Now()
	}
	return time.UnixMilli(rec.GetTimeMs())
}

// Run delivers until ctx ends, and then once more what is left, if that is quick. Failures are waited out; it returns nil.
func (d *Deliverer) Run(ctx context.Context) error {
	defer d.rest(ctx)
	wait := firstWait
	for ctx.Err() == nil {
		err := d.step(ctx)
		switch {
		case err == nil:
			wait = firstWait
			continue
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrChain):
			d.known = false
			d.sleep(ctx, alarmWait)
		default:
			d.known = false
			d.cfg.Logger.Debug("audit records wait for the control plane", slog.String("error", err.Error()),
				slog.Int64("records", d.log.Size()-d.delivered.Load()))
			wait = min(2*wait, mostWait)
			if d.rewait(ctx, wait/4+rand.N(wait/4)) { //nolint:gosec // spreads the nodes, hides nothing
				wait = firstWait
			}
		}
	}
	return nil
}

// rest delivers what came last, so that a node that is stopped in an orderly way leaves nothing behind.
func (d *Deliverer) rest(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTime)
	defer cancel()
	for d.known && d.delivered.Load() < d.log.Size() && ctx.Err() == nil {
		if d.step(ctx) != nil {
			return
		}
	}
}

// Wake ends the wait after a failure: somebody has heard from the control plane.
func (d *Deliverer) Wake() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// rewait waits before the next attempt, less long when it is woken, and reports whether it was.
func (d *Deliverer) rewait(ctx context.Context, how time.Duration) (woken bool) {
	t := time.NewTimer(how)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-d.wake:
		return true
	}
	return false
}

func (d *Deliverer) sleep(ctx context.Context, how time.Duration) {
	t := time.NewTimer(how)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// step asks where to go on, or waits for records and delivers a batch.
func (d *Deliverer) step(ctx context.Context) error {
	if !d.known {
		return d.resume(ctx)
	}
	next := d.delivered.Load()
	select {
	case <-d.log.Grown(next):
	case <-ctx.Done():
		return nil
	}
	if d.log.Size()-next < batchRecords {
		d.sleep(ctx, gather)
	}
	if n := d.log.Size() - next; n >= many && n < batchRecords {
		d.sleep(ctx, gatherMore)
	}
	if err := d.log.Sync(ctx); err != nil && d.log.Durable() <= next {
		return fmt.Errorf("make audit records durable: %w", err)
	}
	req, end, err := d.batch(next)
	if err != nil {
		return err
	}
	res, err := d.send(ctx, req)
	if err != nil {
		return err
	}
	if got := int64(res.GetNextIndex()); got <= next {
		d.delivered.Store(got)
		if got == next {
			return errors.New("the control plane took none of the records")
		}
		return nil // it was put back to an earlier state
	}
	d.delivered.Store(min(int64(res.GetNextIndex()), end))
	if err := d.log.Prune(d.witnessed.Load(), d.cfg.Keep); err != nil {
		d.cfg.Logger.Warn("delivered audit records could not be deleted", slog.String("error", err.Error()))
	}
	if d.cfg.Audit != nil {
		d.cfg.Audit.weigh()
	}
	return nil
}

// resume asks the sink how far it is, and shows it the newest checkpoint, which it compares with what it has.
func (d *Deliverer) resume(ctx context.Context) error {
	req, err := d.request(d.log.Durable())
	if err != nil {
		return err
	}
	res, err := d.send(ctx, req)
	if err != nil {
		return err
	}
	next := int64(res.GetNextIndex())
	if size := d.log.Size(); next > size {
		return d.alarm(fmt.Sprintf("the control plane has %d records of this log, the disk only %d", next, size))
	}
	if first := d.log.First(); next < first {
		return d.alarm(fmt.Sprintf("the control plane asks for record %d, and those below %d were delivered and deleted", next, first))
	}
	d.delivered.Store(next)
	d.known = true
	d.chain.Store(nil)
	return nil
}

// request is a delivery without records, with the checkpoint of a size and its proof from the witnessed one.
func (d *Deliverer) request(size int64) (*cellv1.DeliverAuditRequest, error) {
	signed, _, err := d.log.CheckpointAt(size)
	if err != nil {
		return nil, d.own(err)
	}
	req := &cellv1.DeliverAuditRequest{
		LogId: d.log.Origin(), VerifierKey: d.log.VerifierKey(), Checkpoint: signed, FirstIndex: uint64(size),
	}
	if from := d.witnessed.Load(); from > 0 && from < size {
		proof, err := d.log.ProveTree(size, from)
		if err != nil {
			return nil, d.own(err)
		}
		req.Consistency, req.ConsistencyFrom = tlog.HashesToBytes(proof), uint64(from)
	}
	return req, nil
}

// batch is the next delivery, and the index behind its last record.
func (d *Deliverer) batch(next int64) (*cellv1.DeliverAuditRequest, int64, error) {
	recs, err := d.log.Read(next, batchRecords, batchBytes)
	if err != nil {
		return nil, 0, d.own(err)
	}
	end := next + int64(len(recs))
	req, err := d.request(end)
	if err != nil {
		return nil, 0, err
	}
	req.FirstIndex, req.Records = uint64(next), recs
	return req, end, nil
}

// own makes an alarm of a log that is not what it was.
func (d *Deliverer) own(err error) error {
	if errors.Is(err, tlog.ErrCorrupt) {
		return d.alarm(err.Error())
	}
	return fmt.Errorf("read audit log: %w", err)
}

func (d *Deliverer) send(ctx context.Context, req *cellv1.DeliverAuditRequest) (*cellv1.DeliverAuditResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	res, err := d.cfg.Sink.DeliverAudit(ctx, req)
	if err != nil {
		if conflict(err) {
			return nil, d.alarm(err.Error())
		}
		return nil, fmt.Errorf("deliver audit records: %w", err)
	}
	if res.GetNextIndex() > 1<<60 || res.GetWitnessedSize() > res.GetNextIndex() {
		return nil, errors.New("deliver audit records: the answer is impossible")
	}
	d.witnessed.Store(int64(res.GetWitnessedSize()))
	return res, nil
}

// conflict reports whether the sink refused because the log contradicts what it has.
func conflict(err error) bool {
	if problem.CodeOf(err) == problem.Conflict {
		return true
	}
	var remote *connect.Error
	return errors.As(err, &remote) && problem.FromRPC(remote.Code().String()) == problem.Conflict
}

func (d *Deliverer) alarm(why string) error {
	if old := d.chain.Swap(&why); old == nil || *old != why {
		d.cfg.Logger.Error("the audit log and its witness do not agree", slog.String("log", d.log.Origin()),
			slog.String("why", why))
	}
	return fmt.Errorf("%w: %s", ErrChain, why)
}
