package cellapi_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/cellapi"
	"github.com/mcpvault/mcpvault/controlplane/keyring/keyringtest"
	"github.com/mcpvault/mcpvault/controlplane/machines"
	"github.com/mcpvault/mcpvault/controlplane/publish"
	"github.com/mcpvault/mcpvault/controlplane/snapshots"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1/cellv1connect"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/shard"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"

	"google.golang.org/protobuf/types/known/durationpb"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

const (
	domain = "mcpvault.test"
	limit  = 20 * time.Second
)

// witness keeps who delivered.
type witness struct {
	mu   sync.Mutex
	from []string // guarded by mu
	// panics is what a bug would do; guarded by mu.
	panics bool
}

func (w *witness) Deliver(_ context.Context, cell, node string, _ *cellv1.DeliverAuditRequest) (*cellv1.DeliverAuditResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.panics {
		panic("a bug")
	}
	w.from = append(w.from, cell+"/"+node)
	if len(w.from) > 1 {
		return nil, problem.New(problem.Conflict, "the log tells two stories", "")
	}
	return &cellv1.DeliverAuditResponse{NextIndex: 7}, nil
}

type bundle struct {
	st           *store.Store
	auth         *snapshottest.Authority
	acme, globex controlplane.Tenant
	pub          *publish.Publisher
	fleet        *cellapi.Fleet
	witness      *witness
	snaps        *snapshots.Service
	ca           *svid.CA
	machines     *machines.Service
	// later is the clock by which the guard of live connections goes.
	later later
	url   string
}

// later is a clock that is ahead.
type later struct{ ahead atomic.Int64 }

func (l *later) now() time.Time { return time.Now().Add(time.Duration(l.ahead.Load())) }

// setup has two cells: eu with acme, us with globex.
func setup(t *testing.T) *bundle {
	t.Helper()
	b := &bundle{st: storetest.Open(t), auth: snapshottest.NewAuthority(t), fleet: cellapi.NewFleet(), witness: &witness{}}
	b.acme, b.globex = storetest.Tenant(t, b.st, "acme"), storetest.Tenant(t, b.st, "globex")
	log := slog.New(slog.DiscardHandler)
	b.pub = publish.New(publish.Config{
		Store: b.st, Keys: keyringtest.Of(t, b.auth),
		Cells: map[string][]string{"eu": {"acme"}, "us": {"globex"}}, Logger: log,
	})
	b.snaps = snapshots.New(snapshots.Config{Store: b.st, Publisher: b.pub, Fleet: b.fleet, Keys: keyringtest.Of(t, b.auth)})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { _ = b.pub.Run(ctx) })

	caDir := filepath.Join(t.TempDir(), "ca")
	ca, err := svid.CreateCA(caDir, domain)
	if err != nil {
		t.Fatal(err)
	}
	b.ca = ca
	authority, err := svid.OpenAuthority(caDir, domain, log)
	if err != nil {
		t.Fatal(err)
	}
	b.machines = machines.New(machines.Config{
		Store: b.st, Cells: b.pub, Roots: keyringtest.Of(t, b.auth), Authority: authority, WorkloadDir: t.TempDir(), TrustDomain: domain, Logger: log,
	})
	id, err := svid.ControlPlaneID(domain, "cp")
	if err != nil {
		t.Fatal(err)
	}
	api := cellapi.New(cellapi.Config{Store: b.st, Published: b.pub, Witness: b.witness, Fleet: b.fleet, Machines: b.machines, Logger: log})
	srv := cellapi.NewServer(api.Handler(), log)
	own := b.source(t, id)
	guard := svid.NewGuard(own, log, b.later.now)
	wg.Go(func() { _ = guard.Run(ctx) })
	srv.TLSConfig = api.TLS(own, guard, domain)
	srv.BaseContext = func(net.Listener) context.Context { return ctx }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { _ = srv.ServeTLS(guard.Listen(l), "", "") })
	b.url = "https://" + l.Addr().String()
	t.Cleanup(func() { cancel(); _ = srv.Close(); wg.Wait() })
	return b
}

func (b *bundle) source(t *testing.T, id svid.ID) *svid.Source {
	t.Helper()
	cert, key, err := b.ca.IssueNode(id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := svid.WriteIdentity(dir, cert, key, b.ca.Bundle()); err != nil {
		t.Fatal(err)
	}
	src, err := svid.Open(t.Context(), svid.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = src.Close() })
	return src
}

func (b *bundle) node(t *testing.T, cell, node string) cellv1connect.CellServiceClient {
	t.Helper()
	id, err := svid.NodeID(domain, cell, node)
	if err != nil {
		t.Fatal(err)
	}
	return b.as(t, id)
}

func (b *bundle) as(t *testing.T, id svid.ID) cellv1connect.CellServiceClient {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: svid.ClientTLS(b.source(t, id), svid.ControlPlanes(domain), "h2"), ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return cellv1connect.NewCellServiceClient(connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: tr}, b.url)))
}

func (b *bundle) write(t *testing.T, tenant controlplane.Tenant, user string) uint64 {
	t.Helper()
	rev, err := b.st.Write(t.Context(), tenant.ID, "test", func(tx *store.Tx) error {
		if _, err := tx.InsertUser(t.Context(), controlplane.User{Name: user, Kind: controlplane.Person}); err != nil {
			return err
		}
		return tx.Change(t.Context(), "user.create", user, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func (b *bundle) kill(t *testing.T, tenant controlplane.Tenant, id string) {
	t.Helper()
	env, err := seal.SignKill(&snapshotv1.Kill{Id: id, Kind: snapshotv1.KillKind_KILL_KIND_USER, TenantId: string(tenant.ID), Subject: "x", IssuedMs: 1}, b.auth.Kill)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.st.Write(t.Context(), tenant.ID, "test", func(tx *store.Tx) error {
		tx.SetKind(store.OutboxKill)
		if _, err := tx.InsertKill(t.Context(), store.Kill{ID: id, Kind: "user", Subject: "x", IssuedAt: tx.Now(), Envelope: env}); err != nil {
			return err
		}
		return tx.Change(t.Context(), "kill.user", "x", nil)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// published waits until the tenant's head holds the revision.
func (b *bundle) published(t *testing.T, tenant controlplane.Tenant, revision uint64) *publish.Head {
	t.Helper()
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if h := b.pub.Head(tenant.ID); h != nil && h.Revision >= revision {
			for _, cell := range b.pub.Homes(tenant.Name) {
				v, _, _ := b.pub.View(cell)
				if slices.Contains(v.Heads, h) {
					return h
				}
			}
		}
	}
	t.Fatalf("revision %d was not published: %+v", revision, b.pub.Status())
	return nil
}

// watch opens a stream and reads it beside the test.
func (b *bundle) watch(t *testing.T, c cellv1connect.CellServiceClient, req *cellv1.WatchRequest) (events <-chan *cellv1.WatchResponse, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	stream, err := c.Watch(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	out := make(chan *cellv1.WatchResponse, 1000)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(out)
		for {
			msg, err := stream.Receive()
			if err != nil {
				return
			}
			out <- msg
		}
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return out, stop
}

func next(t *testing.T, events <-chan *cellv1.WatchResponse, what string, ok func(*cellv1.WatchResponse) bool) *cellv1.WatchResponse {
	t.Helper()
	deadline := time.After(limit)
	for {
		select {
		case e, open := <-events:
			if !open {
				t.Fatalf("%s: the stream ended", what)
			}
			if ok(e) {
				return e
			}
		case <-deadline:
			t.Fatalf("%s: not within %s", what, limit)
		}
	}
}

func isUpdate(e *cellv1.WatchResponse) bool    { return e.GetUpdate() != nil }
func isKill(e *cellv1.WatchResponse) bool      { return e.GetKill() != nil }
func isHeartbeat(e *cellv1.WatchResponse) bool { return e.GetHeartbeat() != nil }

func TestWatchBringsTheCellsHeadsAndThenEveryChange(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.published(t, b.acme, b.write(t, b.acme, "alice"))
	b.published(t, b.globex, b.write(t, b.globex, "mallory"))
	b.kill(t, b.acme, "k1")
	events, _ := b.watch(t, b.node(t, "eu", "n1"), &cellv1.WatchRequest{})

	u := next(t, events, "the first update", isUpdate).GetUpdate()
	m, err := b.auth.Trust.OpenManifest(u.GetManifest(), "eu")
	if err != nil || len(m.GetHeads()) != 1 || m.GetHeads()[0].GetTenantId() != string(b.acme.ID) || len(u.GetHeads()) != 1 {
		t.Fatalf("got %v %v", m, err)
	}
	if k, err := b.auth.Trust.OpenKill(next(t, events, "the kill", isKill).GetKill()); err != nil || k.GetId() != "k1" {
		t.Errorf("got %v %v", k, err)
	}
	if _, err := b.auth.Trust.OpenHeartbeat(next(t, events, "a heartbeat", isHeartbeat).GetHeartbeat(), "eu"); err != nil {
		t.Error(err)
	}
	rev := b.write(t, b.acme, "bob")
	next(t, events, "the change", b.carries(t, rev))
	b.kill(t, b.acme, "k2")
	if k, err := b.auth.Trust.OpenKill(next(t, events, "the live kill", isKill).GetKill()); err != nil || k.GetId() != "k2" {
		t.Errorf("got %v %v", k, err)
	}
}

func TestWatchDoesNotSendAgainWhatTheNodeServes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := b.published(t, b.acme, b.write(t, b.acme, "alice"))
	events, _ := b.watch(t, b.node(t, "eu", "n1"), &cellv1.WatchRequest{Applied: []*cellv1.AppliedHead{{
		TenantId: string(b.acme.ID), Epoch: uint64(h.Version.Epoch), Generation: uint64(h.Version.Generation),
	}}})
	if u := next(t, events, "the update", isUpdate).GetUpdate(); len(u.GetHeads()) != 0 || len(u.GetManifest()) == 0 {
		t.Errorf("%d heads", len(u.GetHeads()))
	}
}

func TestANodeFetchesShardsOfItsOwnCellOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := b.published(t, b.acme, b.write(t, b.acme, "alice"))
	eu, us := b.node(t, "eu", "n1"), b.node(t, "us", "n1")
	head, err := b.auth.Trust.OpenHead(h.Envelope)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := shard.OpenTenant(head, func(_ []byte, d snapshot.Digest, _ uint64) ([]byte, error) { return fetch(t, eu, d[:]) }); err != nil {
		t.Errorf("the shards do not open: %v", err)
	}
	for _, digest := range [][]byte{h.Shards[0][:], bytes.Repeat([]byte{1}, 32)} {
		if _, err := fetch(t, us, digest); connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("another cell's shard: %v", err)
		}
	}
	if _, err := fetch(t, eu, []byte{1}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("a digest of one byte: %v", err)
	}
}

func fetch(t *testing.T, c cellv1connect.CellServiceClient, digest []byte) ([]byte, error) {
	stream, err := c.FetchBlob(t.Context(), &cellv1.FetchBlobRequest{Sha256: digest})
	if err != nil {
		return nil, err
	}
	var out []byte
	for {
		msg, err := stream.Receive()
		if err != nil {
			if connect.CodeOf(err) == connect.CodeUnknown {
				return out, nil
			}
			return nil, err
		}
		if len(msg.GetChunk()) > 256<<10 {
			return nil, fmt.Errorf("chunk of %d bytes", len(msg.GetChunk()))
		}
		out = append(out, msg.GetChunk()...)
	}
}

func TestOnlyANodeOfTheTrustDomainComesIn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id, err := svid.ControlPlaneID(domain, "other")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.as(t, id).ReportStatus(t.Context(), &cellv1.ReportStatusRequest{Status: &cellv1.NodeStatus{}}); err == nil {
		t.Error("a control plane was taken for a node")
	}
	srv := cellapi.New(cellapi.Config{Published: b.pub, Fleet: b.fleet, Logger: slog.New(slog.DiscardHandler)}).Handler()
	rec := &recorder{header: http.Header{}}
	req, _ := http.NewRequest(http.MethodPost, "/mcpvault.cell.v1.CellService/ReportStatus", bytes.NewReader(nil))
	srv.ServeHTTP(rec, req)
	if rec.status != http.StatusForbidden {
		t.Errorf("without TLS: %d", rec.status)
	}
	if _, err := b.node(t, "moon", "n1").Acknowledge(t.Context(), &cellv1.AcknowledgeRequest{Status: cellv1.AckStatus_ACK_STATUS_APPLIED}); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("a cell that is not configured: %v", err)
	}
}

type recorder struct {
	header http.Header
	status int
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }
func (r *recorder) WriteHeader(status int)      { r.status = status }

func TestWhoANodeIsComesFromItsCertificate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.published(t, b.acme, b.write(t, b.acme, "alice"))
	n := b.node(t, "eu", "n1")
	_, err := n.ReportStatus(t.Context(), &cellv1.ReportStatusRequest{Status: &cellv1.NodeStatus{Cell: "us", Node: "n9", Version: "v1"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := controlplane.WithCaller(t.Context(), controlplane.Caller{Roles: []string{controlplane.RoleOwner}})
	cells, err := b.snaps.ListCells(ctx, &adminv1.ListCellsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cells.GetCells() {
		if c.GetName() == "us" && len(c.GetNodes()) != 0 {
			t.Error("a node spoke for another one")
		}
		if c.GetName() == "eu" && (len(c.GetNodes()) != 1 || c.GetNodes()[0].GetStatus().GetNode() != "n1" || !slices.Equal(c.GetTenants(), []string{"acme"})) {
			t.Errorf("got %v", c)
		}
	}
	if res, err := n.DeliverAudit(t.Context(), &cellv1.DeliverAuditRequest{LogId: "x"}); err != nil || res.GetNextIndex() != 7 || b.witness.from[0] != "eu/n1" {
		t.Errorf("got %v %v", res, err)
	}
	if _, err := n.DeliverAudit(t.Context(), &cellv1.DeliverAuditRequest{LogId: "x"}); connect.CodeOf(err) != connect.CodeAlreadyExists {
		t.Errorf("a problem of the witness: %v", err)
	}
}

func TestAnAcknowledgementIsOfWhatWasSent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := b.published(t, b.acme, b.write(t, b.acme, "alice"))
	g := b.published(t, b.globex, b.write(t, b.globex, "mallory"))
	n := b.node(t, "eu", "n1")
	b.kill(t, b.acme, "k1")
	ack := func(tenant controlplane.Tenant, v snapshot.Version, kill string) error {
		_, err := n.Acknowledge(t.Context(), &cellv1.AcknowledgeRequest{
			TenantId: string(tenant.ID), Epoch: uint64(v.Epoch), Generation: uint64(v.Generation), Status: cellv1.AckStatus_ACK_STATUS_APPLIED, KillId: kill,
		})
		return err
	}
	if err := ack(b.acme, h.Version, ""); err != nil {
		t.Error(err)
	}
	events, _ := b.watch(t, n, &cellv1.WatchRequest{})
	next(t, events, "the kill", isKill)
	if err := ack(b.acme, snapshot.Version{}, "k1"); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"a generation to come":     ack(b.acme, snapshot.Version{Epoch: 1, Generation: h.Version.Generation + 1}, ""),
		"another cell's tenant":    ack(b.globex, g.Version, ""),
		"a kill that was not sent": ack(b.acme, snapshot.Version{}, "k9"),
	} {
		if connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestWaitRevisionNamesTheNodesAndTheTime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.published(t, b.acme, b.write(t, b.acme, "alice"))
	n1, n2 := b.node(t, "eu", "n1"), b.node(t, "eu", "n2")
	b.watch(t, n1, &cellv1.WatchRequest{})
	_, leave := b.watch(t, n2, &cellv1.WatchRequest{})
	for deadline := time.Now().Add(limit); len(b.fleet.Connected()) < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the nodes did not connect")
		}
	}
	rev := b.write(t, b.acme, "bob")
	h := b.rebased(t, b.published(t, b.acme, rev))
	ctx := controlplane.WithCaller(t.Context(), controlplane.Caller{TenantID: b.acme.ID, Tenant: "acme"})
	ack := func(c cellv1connect.CellServiceClient, status cellv1.AckStatus) {
		t.Helper()
		_, err := c.Acknowledge(t.Context(), &cellv1.AcknowledgeRequest{
			TenantId: string(b.acme.ID), Epoch: uint64(h.Version.Epoch), Generation: uint64(h.Version.Generation), Revision: h.Revision, Status: status, Reason: "because",
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	ack(n1, cellv1.AckStatus_ACK_STATUS_APPLIED)
	res, err := b.snaps.WaitRevision(ctx, &adminv1.WaitRevisionRequest{Revision: rev, Timeout: durationpb.New(50 * time.Millisecond)})
	if err != nil || res.GetComplete() || len(res.GetAcks()) != 1 || res.GetGeneration() != uint64(h.Version.Generation) {
		t.Errorf("one of two: got %v %v", res, err)
	}
	ack(n2, cellv1.AckStatus_ACK_STATUS_REJECTED)
	if res, err = b.snaps.WaitRevision(ctx, &adminv1.WaitRevisionRequest{Revision: rev}); err != nil || res.GetComplete() || len(res.GetAcks()) != 2 || res.GetAcks()[1].GetReason() != "because" {
		t.Errorf("a rejection: got %v %v", res, err)
	}
	ack(n2, cellv1.AckStatus_ACK_STATUS_APPLIED)
	if res, err = b.snaps.WaitRevision(ctx, &adminv1.WaitRevisionRequest{Revision: rev}); err != nil || !res.GetComplete() || res.GetElapsedMs() <= 0 {
		t.Errorf("both: got %v %v", res, err)
	}
	list, err := b.snaps.ListGenerations(ctx, &adminv1.ListGenerationsRequest{})
	if i := slices.IndexFunc(list.GetGenerations(), func(g *adminv1.Generation) bool { return g.GetGeneration() == uint64(h.Version.Generation) }); err != nil ||
		i < 0 || len(list.GetGenerations()[i].GetAcks()) != 2 {
		t.Errorf("got %v %v", list, err)
	}
	got, err := b.snaps.GetGeneration(ctx, &adminv1.GetGenerationRequest{IncludeShards: true, Generation: uint64(h.Version.Generation)})
	if err != nil || len(got.GetShards()) != 2 || len(got.GetDeltas()) != len(h.Deltas) || !bytes.Equal(got.GetEnvelope(), h.Envelope) || len(got.GetRoots()) == 0 {
		t.Errorf("got %v", err)
	}
	leave()
	rev = b.write(t, b.acme, "carol")
	h = b.published(t, b.acme, rev)
	ack(n1, cellv1.AckStatus_ACK_STATUS_APPLIED)
	if res, err = b.snaps.WaitRevision(ctx, &adminv1.WaitRevisionRequest{Revision: rev}); err != nil || !res.GetComplete() || len(res.GetAcks()) != 1 {
		t.Errorf("a node that left is not waited for: got %v %v", res, err)
	}
	if _, err = b.snaps.WaitRevision(ctx, &adminv1.WaitRevisionRequest{Revision: rev + 100}); problem.CodeOf(err) != problem.Invalid {
		t.Errorf("a revision to come: %v", err)
	}
	b.kill(t, b.acme, "k1")
	if res, err = b.snaps.WaitRevision(ctx, &adminv1.WaitRevisionRequest{Revision: rev + 1}); err != nil || !res.GetComplete() {
		t.Errorf("a revision that needs no generation: got %v %v", res, err)
	}
}

func TestANodeHasOneStream(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.published(t, b.acme, b.write(t, b.acme, "alice"))
	n := b.node(t, "eu", "n1")
	old, _ := b.watch(t, n, &cellv1.WatchRequest{})
	next(t, old, "the first stream", isUpdate)
	fresh, _ := b.watch(t, n, &cellv1.WatchRequest{})
	next(t, fresh, "the second stream", isUpdate)
	deadline := time.After(limit)
	for open := true; open; {
		select {
		case _, open = <-old:
		case <-deadline:
			t.Fatal("the first stream was left open")
		}
	}
	if c := b.fleet.Connected(); len(c) != 1 {
		t.Errorf("got %v", c)
	}
}

// A node that does not read must not hold up anybody, and is sent the present when it reads again.
func TestASlowNodeDelaysNobodyAndSkipsWhatWasReplaced(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.published(t, b.acme, b.write(t, b.acme, "alice"))
	slow, err := b.node(t, "eu", "slow").Watch(t.Context(), &cellv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	events, _ := b.watch(t, b.node(t, "eu", "quick"), &cellv1.WatchRequest{})
	var last uint64
	for i := range 30 {
		last = b.write(t, b.acme, fmt.Sprint("u", i))
	}
	holds := b.carries(t, last)
	next(t, events, "the newest head", holds)
	for deadline := time.Now().Add(limit); ; {
		msg, err := slow.Receive()
		if err != nil || time.Now().After(deadline) {
			t.Fatal("the slow node never got the newest head", err)
		}
		if holds(msg) {
			return
		}
	}
}
