package feed_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/dataplane/feed"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/store"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1/cellv1connect"
)

// link is a control plane whose stream and answers a test holds in its hands.
type link struct {
	// stream returns the next connection; nil refuses it.
	stream func() *stream
	acks   func(*cellv1.AcknowledgeRequest) error

	mu       sync.Mutex
	attempts []time.Time
}

func (l *link) Watch(ctx context.Context, r *cellv1.WatchRequest) (cellv1connect.CellServiceWatchClientStream, error) {
	l.mu.Lock()
	l.attempts = append(l.attempts, time.Now())
	l.mu.Unlock()
	return cellv1connect.NewCellServiceClient(connect.NewClient(l)).Watch(ctx, r)
}

// NewClientStream makes the link a transport of its own.
func (l *link) NewClientStream(ctx context.Context, _ connect.Spec) (connect.ClientStream, error) {
	if s := l.stream(); s != nil {
		s.ctx = ctx
		return s, nil
	}
	return nil, errors.New("refused")
}

func (l *link) Acknowledge(_ context.Context, r *cellv1.AcknowledgeRequest) (*cellv1.AcknowledgeResponse, error) {
	return &cellv1.AcknowledgeResponse{}, l.acks(r)
}

func (l *link) tried() []time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]time.Time{}, l.attempts...)
}

type stream struct {
	connect.ClientStream
	ctx    context.Context
	events chan *cellv1.WatchResponse
}

func (s *stream) Send(any) error     { return nil }
func (s *stream) SendHeaders() error { return nil }
func (s *stream) CloseSend() error   { return nil }
func (s *stream) Close() error       { return nil }

func (s *stream) Receive(msg any) error {
	select {
	case ev := <-s.events:
		proto.Merge(msg.(proto.Message), ev)
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// linked runs a feed on the link until the returned function is called.
func linked(t *testing.T, a *authority, l *link) (*feed.Feed, func()) {
	t.Helper()
	st, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	log := &directLog{store: st}
	f := feed.New(feed.Config{
		Cell: cellName, ControlPlane: l, Log: log, Store: st, PDP: pdp.New("acme"),
		Trust: feed.NewTrust(a.roots, openRoots(t, a.roots), st.PutRoots), Logger: slog.New(slog.DiscardHandler),
	})
	log.feed = f
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = f.Run(ctx) }()
	return f, func() { cancel(); <-done; _ = st.Close() }
}

func TestNodesThatLostTheControlPlaneKnockLaterAndLaterAndNotInStep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		const nodes = 5
		var links [nodes]*link
		for i := range links {
			links[i] = &link{stream: func() *stream { return nil }}
			_, stop := linked(t, a, links[i])
			defer stop()
		}
		time.Sleep(time.Minute)
		last := map[time.Time]bool{}
		for i, l := range links {
			at := l.tried()
			// Every 1 to 2 s once it has backed off, from every 25 to 50 ms in the beginning.
			if len(at) < 30 || len(at) > 70 {
				t.Errorf("node %d knocked %d times in a minute", i, len(at))
			}
			if first := at[1].Sub(at[0]); first > 50*time.Millisecond {
				t.Errorf("node %d came back only after %s", i, first)
			}
			for j := 10; j < len(at); j++ {
				if pause := at[j].Sub(at[j-1]); pause < time.Second || pause > 2*time.Second {
					t.Errorf("node %d paused for %s", i, pause)
				}
			}
			last[at[len(at)-1]] = true
		}
		if len(last) < nodes {
			t.Error("nodes knock in step")
		}
	})
}

func TestAStreamThatBringsNothingIsGivenUpAndTakenUpAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		l := &link{stream: func() *stream { return &stream{events: make(chan *cellv1.WatchResponse)} }}
		f, stop := linked(t, a, l)
		defer stop()
		time.Sleep(time.Second)
		if f.Connected() {
			t.Error("a stream that has brought nothing counts as a connection")
		}
		time.Sleep(time.Minute)
		if n := len(l.tried()); n < 3 || n > 6 {
			t.Errorf("%d streams in a minute, want one every 15 s", n)
		}
	})
}

// TestAControlPlaneThatListensSlowlyHoldsUpNoKill has a hundred kills come over a link whose other end takes a second for
// each acknowledgement: all are in force at once, and all are acknowledged in the end.
func TestAControlPlaneThatListensSlowlyHoldsUpNoKill(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		const kills = 100
		events := make(chan *cellv1.WatchResponse)
		var mu sync.Mutex
		acked := map[string]bool{}
		failed := 0
		l := &link{
			stream: func() *stream { return &stream{events: events} },
			acks: func(r *cellv1.AcknowledgeRequest) error {
				time.Sleep(time.Second)
				mu.Lock()
				defer mu.Unlock()
				if failed++; failed%10 == 0 {
					return errors.New("no answer")
				}
				acked[r.GetKillId()] = true
				return nil
			},
		}
		f, stop := linked(t, a, l)
		defer stop()
		begin := time.Now()
		for i := range kills {
			events <- &cellv1.WatchResponse{Event: &cellv1.WatchResponse_Kill{Kill: a.killOf(t, fmt.Sprintf("k%d", i), fmt.Sprintf("u%d", i), a.kill)}}
			if i == 0 {
				synctest.Wait()
				if !f.Connected() {
					t.Fatal("there is no connection")
				}
			}
		}
		// The stream needs something now and then, or it is given up.
		if took := time.Since(begin); took > time.Second {
			t.Errorf("the last kill was taken after %s", took)
		}
		beat := a.killOf(t, "k0", "u0", a.kill)
		for range kills + kills/5 {
			time.Sleep(time.Second)
			events <- &cellv1.WatchResponse{Event: &cellv1.WatchResponse_Kill{Kill: beat}}
		}
		mu.Lock()
		defer mu.Unlock()
		if len(acked) != kills {
			t.Errorf("%d of %d kills are acknowledged", len(acked), kills)
		}
	})
}

func TestFarFewerAnswersThanGenerationsReachAControlPlaneThatIsSlow(t *testing.T) {
	t.Parallel()
	got := feed.Coalesced([]*cellv1.AcknowledgeRequest{
		{TenantId: "a", Generation: 1, Status: cellv1.AckStatus_ACK_STATUS_APPLIED},
		{TenantId: "b", Generation: 7, Status: cellv1.AckStatus_ACK_STATUS_APPLIED},
		{TenantId: "a", Generation: 2, Status: cellv1.AckStatus_ACK_STATUS_REJECTED},
		{TenantId: "a", Generation: 3, Status: cellv1.AckStatus_ACK_STATUS_APPLIED},
		{TenantId: "a", KillId: "k", Status: cellv1.AckStatus_ACK_STATUS_APPLIED},
	})
	var said []string
	for _, r := range got {
		said = append(said, fmt.Sprint(r.GetTenantId(), r.GetGeneration(), r.GetKillId()))
	}
	if want := "[a3 b7 a2 a0k]"; fmt.Sprint(said) != want {
		t.Errorf("%v, want %s", said, want)
	}
}
