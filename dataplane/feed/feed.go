// Package feed brings policy to one node. It watches the control plane, verifies what it hears, stages the shards,
// proposes heads and deltas to the cell's log, and reports what was applied or why it was refused.
//
// It promises that nothing reaches the live index that did not verify and build: whatever fails leaves the last good
// generation in place and sends the reason back. The control plane being away is not an error here, only a delay.
package feed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/kit/tele"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1/cellv1connect"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// ControlPlane is what the feed asks of the control plane; the generated client is one.
type ControlPlane interface {
	Watch(ctx context.Context, req *cellv1.WatchRequest) (cellv1connect.CellServiceWatchClientStream, error)
	Acknowledge(ctx context.Context, req *cellv1.AcknowledgeRequest) (*cellv1.AcknowledgeResponse, error)
}

// Log is the cell's replicated log.
type Log interface {
	// Propose returns when the entry is committed, or an error: wherever the leader is.
	Propose(ctx context.Context, entry *cellv1.RaftEntry) error
	// Leads reports whether this node is the leader.
	Leads() bool
}

// Config is what a feed needs.
type Config struct {
	Cell         string
	ControlPlane ControlPlane
	Log          Log
	Store        Store
	// Sources of shards, asked in this order.
	Sources []Source
	PDP     *pdp.PDP
	Trust   *Trust
	Logger  *slog.Logger
	// OnConnect hears each time that the control plane has answered; it must not block. It may be nil.
	OnConnect func()
	// OnSessionQuery hears what the control plane asks about sessions; it must not block. It may be nil.
	OnSessionQuery func(*cellv1.SessionQuery)
	// OnOrder hears what the control plane wants done; it must not block. It may be nil.
	OnOrder func(*cellv1.NodeOrder)
	// OnCells hears where the cells are; it must not block. It may be nil.
	OnCells func(*cellv1.CellDirectory)
	// Now is the time that the node believes; the wall clock when nil.
	Now func() time.Time
	// Registerer takes the metrics; it may be nil.
	Registerer prometheus.Registerer
}

// Feed is the policy supply of one node.
type Feed struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	// mu guards what the stream has brought and the log has not taken yet.
	mu       sync.Mutex
	manifest []byte
	pending  map[snapshot.TenantID]*pending
	wake     chan struct{}

	activate chan struct{}
	answers  *answers
	// kills wait for the cell's log, unkept ones for the disk; beaten says that there is a heartbeat to keep.
	kills, unkept chan []byte
	beaten        chan struct{}

	// connMu guards the state of the connection.
	connMu    sync.Mutex
	connected bool
	complete  bool
	// confirmed is what the newest heartbeat has confirmed; what keep writes down is never changed.
	confirmed map[snapshot.TenantID]int64
	heartbeat *snapshotv1.Heartbeat
	// beat is the heartbeat's envelope.
	beat []byte
	// refused are the heads and deltas that were answered with a reason: true for good, false until the time is right.
	refused map[snapshot.Digest]bool
	// trouble is what the control plane offers that cannot be taken; nil when it can.
	trouble *trouble
	// refusals are the events that were refused and not yet followed by a good one, by kind.
	refusals map[string]error
}

// New makes a feed.
func New(cfg Config) *Feed {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.OnConnect == nil {
		cfg.OnConnect = func() {}
	}
	return &Feed{
		cfg: cfg, log: cfg.Logger, metrics: newMetrics(cfg.Registerer),
		pending:  make(map[snapshot.TenantID]*pending),
		wake:     make(chan struct{}, 1),
		activate: make(chan struct{}, 1),
		answers:  newAnswers(),
		kills:    make(chan []byte, 1024),
		unkept:   make(chan []byte, 1024),
		beaten:   make(chan struct{}, 1),
		refused:  make(map[snapshot.Digest]bool),
	}
}

// Run watches, proposes, activates and acknowledges until ctx ends.
func (f *Feed) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, part := range []func(context.Context){f.watch, f.propose, f.activateLoop, f.acknowledge, f.spreadKills, f.keep} {
		wg.Go(func() { part(ctx) })
	}
	wg.Wait()
	return nil
}

// Connected reports whether the watch stream is open.
func (f *Feed) Connected() bool {
	f.connMu.Lock()
	defer f.connMu.Unlock()
	return f.connected
}

// Complete reports whether the watch stream is open and has brought all that the control plane knows: a heartbeat comes
// behind every kill and head that was there before it.
func (f *Feed) Complete() bool {
	f.connMu.Lock()
	defer f.connMu.Unlock()
	return f.complete
}

// Heartbeat is the newest heartbeat that was verified; nil when there was none.
func (f *Feed) Heartbeat() *snapshotv1.Heartbeat {
	f.connMu.Lock()
	defer f.connMu.Unlock()
	return f.heartbeat
}

// Applied wakes the activation, and the proposer of what had to come behind: the log has taken something.
func (f *Feed) Applied() {
	poke(f.activate)
	poke(f.wake)
}

const (
	retryMin = 50 * time.Millisecond
	retryMax = 2 * time.Second
)

// watch keeps one stream to the control plane open.
func (f *Feed) watch(ctx context.Context) {
	wait := retryMin
	for ctx.Err() == nil {
		started := time.Now()
		err := f.watchOnce(ctx)
		f.setConnected(false)
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > retryMax {
			wait = retryMin
		}
		f.log.InfoContext(ctx, "control plane is away, what is verified is served", "err", err, "retry_in", wait)
		// Jitter keeps the nodes of a cell from knocking in step.
		pause(ctx, wait/2+rand.N(wait/2+1)) //nolint:gosec // a jitter needs no secrecy
		wait = min(2*wait, retryMax)
	}
}

func (f *Feed) watchOnce(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silence := time.AfterFunc(silenceLimit, cancel)
	defer silence.Stop()
	stream, err := f.cfg.ControlPlane.Watch(ctx, &cellv1.WatchRequest{Applied: f.appliedHeads()})
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	first := true
	for {
		ev, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return errors.New("the control plane closed the stream")
		}
		if err != nil {
			return err
		}
		silence.Reset(silenceLimit)
		if first {
			first = false
			f.setConnected(true)
			f.log.InfoContext(ctx, "watching the control plane")
			f.acknowledgeAll()
			f.cfg.OnConnect()
		}
		f.handle(ctx, ev)
	}
}

// silenceLimit ends a stream that brings no heartbeat: several times the interval at which they are sent.
const silenceLimit = 15 * time.Second

func (f *Feed) handle(ctx context.Context, ev *cellv1.WatchResponse) {
	var err error
	switch e := ev.GetEvent().(type) {
	case *cellv1.WatchResponse_Update:
		if err = f.takeUpdate(e.Update); err == nil && len(e.Update.GetHeads()) > 0 {
			f.note(ctx, kindDelta, nil) // a head takes the place of a delta that was refused
		}
	case *cellv1.WatchResponse_Heartbeat:
		if err = f.TakeHeartbeat(e.Heartbeat); err == nil {
			f.setComplete()
			f.stillBehind(ctx)
		}
	case *cellv1.WatchResponse_Kill:
		err = f.hearKill(e.Kill)
	case *cellv1.WatchResponse_Delta:
		err = f.takeDelta(e.Delta)
	case *cellv1.WatchResponse_Sessions:
		if f.cfg.OnSessionQuery != nil {
			f.cfg.OnSessionQuery(e.Sessions)
		}
		return
	case *cellv1.WatchResponse_Order:
		if f.cfg.OnOrder != nil {
			f.cfg.OnOrder(e.Order)
		}
		return
	case *cellv1.WatchResponse_Cells:
		if f.cfg.OnCells != nil {
			f.cfg.OnCells(e.Cells)
		}
		return
	}
	f.note(ctx, kindOf(ev), err)
}

// takeUpdate verifies an update and leaves it for the proposer. A head or delta that does not verify is answered with the
// reason and holds up no other tenant.
func (f *Feed) takeUpdate(u *cellv1.Update) error {
	late, err := f.takeRoots(u)
	if err != nil {
		return err
	}
	trust := f.cfg.Trust.Current()
	m, err := trust.OpenManifest(u.GetManifest(), f.cfg.Cell)
	if err != nil {
		return errors.Join(late, fmt.Errorf("manifest: %w", err))
	}
	offers, bad := f.open(trust, u)
	bad = errors.Join(late, bad, f.named(m, offers))
	err = f.behind(trust, u.GetManifest(), m, offers)
	if f.setTrouble(err, offers) {
		f.nackOlder(offers)
	}
	if err != nil {
		return bad // one that is merely late is followed by the present one; otherwise see stillBehind
	}
	f.mend(offers)
	f.mu.Lock()
	f.manifest = u.GetManifest()
	var answers []func()
	for _, o := range offers {
		if o.head != nil {
			f.addHead(o.head)
		}
		for _, d := range o.deltas {
			if err := f.addDelta(d); err != nil {
				bad = errors.Join(bad, err)
				answers = append(answers, func() { f.nack(d.generation(), err) })
				break
			}
		}
	}
	f.mu.Unlock()
	for _, answer := range answers {
		answer()
	}
	poke(f.wake)
	return bad
}

// takeDelta verifies a delta and leaves it for the proposer. One that does not verify or follow is answered with the reason:
// the control plane makes a head of what is newest then.
func (f *Feed) takeDelta(signed *snapshotv1.SignedDelta) error {
	d, err := openDelta(f.cfg.Trust.Current(), signed)
	if err != nil {
		f.rejectDelta(signed, err)
		return fmt.Errorf("delta: %w", err)
	}
	f.mu.Lock()
	err = f.addDelta(d)
	f.mu.Unlock()
	if err != nil {
		f.nack(d.generation(), err)
		return err
	}
	poke(f.wake)
	return nil
}

// mend gives the disk back what it has lost of generations that were accepted here: the log will not bring them again.
func (f *Feed) mend(offers map[snapshot.TenantID]*offer) {
	chains := f.cfg.Store.Chains()
	for id, o := range offers {
		end := o.end()
		floor, digest := f.cfg.Store.FloorDigest(id)
		if chains[id].Head != nil || o.head == nil || end.version != floor || end.digest != digest {
			continue
		}
		deltas := make([]*snapshotv1.SignedDelta, 0, len(o.deltas))
		for _, d := range o.deltas {
			deltas = append(deltas, d.signed)
		}
		if err := f.cfg.Store.Mend(o.head.envelope, deltas); err != nil {
			f.log.Error("what the disk has lost could not be put back", "tenant_id", id, "err", err)
			continue
		}
		f.log.Warn("what the disk had lost was put back", "tenant_id", id, tele.KeyGeneration, end.version.String())
		f.Applied()
	}
}

// TakeHeartbeat verifies a heartbeat and renews the leases of what it confirms.
func (f *Feed) TakeHeartbeat(env []byte) error {
	hb, err := f.cfg.Trust.Current().OpenHeartbeat(env, f.cfg.Cell)
	if err != nil {
		return fmt.Errorf("heartbeat: %w", err)
	}
	f.connMu.Lock()
	if f.heartbeat != nil && hb.GetTimeMs() < f.heartbeat.GetTimeMs() {
		f.connMu.Unlock()
		return nil
	}
	f.heartbeat, f.beat = hb, env
	f.connMu.Unlock()
	f.renewLeases()
	poke(f.beaten)
	return nil
}

func (f *Feed) openKill(env []byte) (*snapshotv1.Kill, error) {
	kill, err := f.cfg.Trust.Current().OpenKill(env)
	if err != nil {
		return nil, fmt.Errorf("kill: %w", err)
	}
	return kill, nil
}

// TakeKill verifies a kill, from whoever brought it, lets it take effect, keeps it and acknowledges. The log only makes
// the set the same on every node. After an error it may be in force all the same, until the next start: a full disk must not
// let a caller go on.
func (f *Feed) TakeKill(env []byte) error {
	kill, err := f.openKill(env)
	if err != nil {
		return err
	}
	f.cfg.PDP.Kill(kill)
	fresh, err := f.cfg.Store.AddKill(kill.GetId(), env)
	if err != nil {
		return fmt.Errorf("keep kill %s: %w", kill.GetId(), err)
	}
	f.ack(&cellv1.AcknowledgeRequest{
		TenantId: kill.GetTenantId(), KillId: kill.GetId(), Status: cellv1.AckStatus_ACK_STATUS_APPLIED,
	})
	if fresh {
		f.spread(env)
	}
	return nil
}

// renewLeases confirms every tenant whose served generation is the one that the newest heartbeat vouches for.
func (f *Feed) renewLeases() {
	f.connMu.Lock()
	hb := f.heartbeat
	f.connMu.Unlock()
	manifest := f.cfg.Store.Manifest()
	if hb == nil || manifest == nil {
		return
	}
	if _, err := f.cfg.Trust.Current().OpenManifest(manifest, f.cfg.Cell); err != nil {
		return
	}
	refs := f.cfg.Store.Refs()
	root, err := seal.ManifestRoot(refs)
	if err != nil || string(root[:]) != string(hb.GetRoot()) {
		return
	}
	state := f.cfg.PDP.Current()
	confirmed := map[snapshot.TenantID]int64{}
	for _, ref := range refs {
		t := state.Tenant(snapshot.TenantID(ref.GetTenantId()))
		if t != nil && string(t.Digest[:]) == string(ref.GetHeadSha256()) {
			f.cfg.PDP.RenewLease(t.ID, hb.GetTimeMs())
			confirmed[t.ID] = hb.GetTimeMs()
		}
	}
	f.connMu.Lock()
	f.confirmed = confirmed
	f.connMu.Unlock()
	poke(f.beaten)
}

// confirmedEvery is how far behind the disk may be about confirmations: small beside any bound, and rare enough to cost nothing.
const confirmedEvery = 10 * time.Second

// keepConfirmed writes confirmations down now and then, and the first of a tenant at once: a node that is started while the
// control plane is away serves by them when generations have come since the last heartbeat.
func (f *Feed) keepConfirmed(confirmed map[snapshot.TenantID]int64) {
	kept := f.cfg.Store.Confirmed()
	for id, ms := range confirmed {
		if last, ok := kept[id]; !ok || ms-last >= confirmedEvery.Milliseconds() {
			if err := f.cfg.Store.PutConfirmed(confirmed); err != nil {
				f.log.Warn("confirmations are not kept on this disk", "err", err)
			}
			return
		}
	}
}

func (f *Feed) setConnected(v bool) {
	f.connMu.Lock()
	defer f.connMu.Unlock()
	f.connected = v
	f.complete = false
}

func (f *Feed) setComplete() {
	f.connMu.Lock()
	defer f.connMu.Unlock()
	f.complete = true
}

func (f *Feed) appliedHeads() []*cellv1.AppliedHead {
	var all []*cellv1.AppliedHead
	for _, t := range f.cfg.PDP.Current().Tenants() {
		all = append(all, t.AppliedHead())
	}
	return all
}

func (g generation) attrs() []any {
	return []any{tele.KeyTenant, g.name, tele.KeyGeneration, g.version.String()}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pause waits, or returns early when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
