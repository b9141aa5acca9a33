package audit_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/dataplane/audit"
	"github.com/mcpvault/mcpvault/kit/tlog"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// witness is a control plane in memory: it keeps the tree and takes nothing that does not lead to the signed root.
type witness struct {
	mu     sync.Mutex
	leaves [][]byte
	root   tlog.Hash
	calls  int
	// fail, when set, is asked at every call: before it is looked at, and when the answer is on its way.
	fail func(call int, answered bool) error
	// took is closed and replaced at every growth.
	took chan struct{}
}

func newWitness() *witness { return &witness{took: make(chan struct{}), root: (&tlog.Tree{}).Root()} }

func (w *witness) DeliverAudit(_ context.Context, req *cellv1.DeliverAuditRequest) (*cellv1.DeliverAuditResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls++
	call := w.calls
	if w.fail != nil {
		if err := w.fail(call, false); err != nil {
			return nil, err
		}
	}
	if err := w.take(req); err != nil {
		return nil, err
	}
	if w.fail != nil {
		if err := w.fail(call, true); err != nil {
			return nil, err
		}
	}
	return &cellv1.DeliverAuditResponse{NextIndex: uint64(len(w.leaves)), WitnessedSize: uint64(len(w.leaves))}, nil
}

func (w *witness) take(req *cellv1.DeliverAuditRequest) error {
	conflict := func(what string) error { return connect.Errorf(connect.CodeAlreadyExists, "%s", what) }
	cp, err := tlog.OpenCheckpoint(req.GetCheckpoint(), req.GetVerifierKey())
	if err != nil || cp.Origin != req.GetLogId() {
		return connect.Errorf(connect.CodeInvalidArgument, "checkpoint: %v", err)
	}
	if from := int64(req.GetConsistencyFrom()); from > 0 && from == int64(len(w.leaves)) {
		proof, err := tlog.HashesFromBytes(req.GetConsistency())
		if err == nil {
			err = tlog.CheckTree(proof, cp.Size, cp.Root, from, w.root)
		}
		if err != nil {
			return conflict("fork: " + err.Error())
		}
	}
	first := int(req.GetFirstIndex())
	if first > len(w.leaves) || first+len(req.GetRecords()) <= len(w.leaves) {
		return nil
	}
	leaves := append(append([][]byte(nil), w.leaves[:first]...), req.GetRecords()...)
	var tree tlog.Tree
	for i, leaf := range leaves {
		if i < len(w.leaves) && string(w.leaves[i]) != string(leaf) {
			return conflict("changed")
		}
		tree.Push(tlog.LeafHash(leaf))
	}
	if tree.Root() != cp.Root {
		return conflict("not the root")
	}
	w.leaves, w.root = leaves, cp.Root
	close(w.took)
	w.took = make(chan struct{})
	return nil
}

func (w *witness) size() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return int64(len(w.leaves))
}

// deliver runs a deliverer until the test ends or stop is called.
func (b *bundle) deliver(w *witness) (d *audit.Deliverer, stop func()) {
	b.t.Helper()
	b.reg = prometheus.NewRegistry()
	d, err := audit.NewDeliverer(audit.DelivererConfig{Log: b.log, Sink: w, Audit: b.audit, Registerer: b.reg, Keep: 64 << 10})
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := d.Run(ctx); err != nil {
			b.t.Errorf("run: %v", err)
		}
	})
	stop = func() {
		cancel()
		wg.Wait()
	}
	b.t.Cleanup(stop)
	return d, stop
}

func TestRecordsReachTheWitnessInOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWitness()
	for range 3000 {
		b.append()
	}
	d, stop := b.deliver(w)
	waitFor(t, "the backlog", func() bool { return d.Delivered() == 3000 })
	for range 100 {
		b.outcome(b.intent())
	}
	stop()
	if w.size() != 3200 || d.Witnessed() != 3200 || !d.UnwitnessedSince().IsZero() {
		t.Fatalf("%d arrived, %d witnessed, unwitnessed since %s", w.size(), d.Witnessed(), d.UnwitnessedSince())
	}
	if n := b.metric("mcpvault_audit_undelivered", ""); n != 0 {
		t.Errorf("%v undelivered", n)
	}
}

func TestARecordArrivesPromptly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, arrivesPromptly)
}

func arrivesPromptly(t *testing.T) {
	b := setup(t)
	w := newWitness()
	b.append()
	d, _ := b.deliver(w)
	waitFor(t, "the first record", func() bool { return d.Delivered() == 1 })
	for range 10 {
		w.mu.Lock()
		took := w.took
		w.mu.Unlock()
		began := time.Now()
		b.append()
		<-took
		if took := time.Since(began); took > 50*time.Millisecond {
			t.Errorf("a record took %s", took)
		}
	}
}

func TestLostAnswersAndFailuresLoseAndDoubleNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWitness()
	w.fail = func(call int, answered bool) error {
		if (call%5 == 1 && answered) || call%7 == 3 {
			return connect.Errorf(connect.CodeUnavailable, "the line is cut")
		}
		return nil
	}
	d, _ := b.deliver(w)
	for range 40 {
		for range 20 {
			b.append()
		}
		size := b.log.Size()
		waitFor(t, "some of it", func() bool { return w.size() > size-200 })
	}
	waitFor(t, "all of it", func() bool { return d.Delivered() == 800 })
	seen := map[string]bool{}
	for _, leaf := range w.leaves {
		var rec auditv1.Record
		if err := proto.Unmarshal(leaf, &rec); err != nil || seen[rec.Id] {
			t.Fatalf("%s twice: %v", rec.Id, err)
		}
		seen[rec.Id] = true
	}
}

func TestDeliveryGoesOnWhereTheWitnessIs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWitness()
	for range 500 {
		b.append()
	}
	d, stop := b.deliver(w)
	waitFor(t, "the first part", func() bool { return d.Delivered() == 500 })
	stop()
	for range 100 {
		b.append()
	}
	b.restart()
	// The witness comes back in an earlier state: what it lost is delivered again.
	w.mu.Lock()
	w.leaves = w.leaves[:300]
	var tree tlog.Tree
	for _, leaf := range w.leaves {
		tree.Push(tlog.LeafHash(leaf))
	}
	w.root = tree.Root()
	w.mu.Unlock()
	d, _ = b.deliver(w)
	waitFor(t, "the rest", func() bool { return d.Delivered() == b.log.Size() && b.log.Size() == 601 })
}

func TestAContradictionStopsDeliveryAndIsSeen(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWitness()
	for range 10 {
		b.append()
	}
	d, stop := b.deliver(w)
	waitFor(t, "the first part", func() bool { return d.Delivered() == 10 })
	stop()
	// The witness has more than the disk: the disk was put back to an older state.
	w.mu.Lock()
	w.leaves = append(w.leaves, []byte("one that the disk does not have"))
	w.mu.Unlock()
	d, _ = b.deliver(w)
	waitFor(t, "the alarm", func() bool { return errors.Is(d.Problem(), audit.ErrChain) })
	if err := b.audit.Intent(t.Context(), b.call(auditv1.RecordKind_RECORD_KIND_INTENT)); err != nil {
		t.Fatalf("the node goes on by itself: %v", err)
	}
}

func TestAForkIsToldByTheWitness(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWitness()
	w.fail = func(_ int, answered bool) error {
		if answered {
			return connect.Errorf(connect.CodeAlreadyExists, "audit log is under alarm: fork")
		}
		return nil
	}
	b.append()
	d, _ := b.deliver(w)
	waitFor(t, "the alarm", func() bool { return errors.Is(d.Problem(), audit.ErrChain) })
	if b.metric("mcpvault_audit_chain_broken", "") != 1 {
		t.Error("no metric for it")
	}
}

func TestWhatIsWitnessedIsDeletedBeyondWhatIsKept(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWitness()
	d, _ := b.deliver(w)
	for range 30 {
		for range 100 {
			b.append()
		}
		waitFor(t, "the records", func() bool { return d.Delivered() == b.log.Size() })
	}
	waitFor(t, "the disk to be tidied", func() bool { return b.log.First() > 0 })
	if n := b.log.Stats().Bytes; n < 64<<10 {
		t.Errorf("only %d bytes stayed", n)
	}
	b.restart()
	if got := b.unknown(); len(got) != 0 {
		t.Fatalf("unknown: %v", got)
	}
}

func TestTheLogDoesNotWaitForTheWitness(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWitness()
	hold := make(chan struct{})
	w.fail = func(int, bool) error { <-hold; return nil }
	d, _ := b.deliver(w)
	for range 200 {
		b.append()
		b.outcome(b.intent())
	}
	if since := d.UnwitnessedSince(); since.IsZero() || time.Since(since) > time.Hour {
		t.Errorf("unwitnessed since %s", since)
	}
	close(hold)
	waitFor(t, "the records", func() bool { return d.Delivered() == 600 })
}
