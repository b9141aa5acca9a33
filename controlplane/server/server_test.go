package server

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/mcpvault/mcpvault/controlplane/keyring"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	"github.com/mcpvault/mcpvault/kit/pgdev"
	"github.com/mcpvault/mcpvault/kit/svid"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1/adminv1connect"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1/cellv1connect"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

const (
	domain = "mcpvault.test"
	limit  = 30 * time.Second
)

type bundle struct {
	cfg Config
	ca  *svid.CA
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func setup(t *testing.T, databaseURL string) *bundle {
	t.Helper()
	dir := t.TempDir()
	ca, err := svid.CreateCA(filepath.Join(dir, "ca"), domain)
	if err != nil {
		t.Fatal(err)
	}
	b := &bundle{ca: ca, cfg: Config{
		Listen: freePort(t), CellListen: freePort(t), DatabaseURL: databaseURL, TrustDomain: domain,
		KeysDir: filepath.Join(dir, "keys"), IdentityDir: filepath.Join(dir, "identity"), Cells: map[string][]string{"local": {"*"}},
		BootstrapTokenFile: filepath.Join(dir, "owner.token"), BootstrapTenant: "acme", BootstrapHosts: []string{"acme.localhost"},
	}}
	id, err := svid.ControlPlaneID(domain, "cp1")
	if err != nil {
		t.Fatal(err)
	}
	b.identity(t, id, b.cfg.IdentityDir)
	return b
}

func (b *bundle) identity(t *testing.T, id svid.ID, dir string) {
	t.Helper()
	cert, key, err := b.ca.IssueNode(id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := svid.WriteIdentity(dir, cert, key, b.ca.Bundle()); err != nil {
		t.Fatal(err)
	}
}

// run starts the control plane; the function ends it and checks that it ended well.
func (b *bundle) run(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := Run(ctx, b.cfg, slog.New(slog.DiscardHandler)); err != nil {
			t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

// await polls a page of a process that runs beside the test.
func (b *bundle) await(t *testing.T, page string, status int) {
	t.Helper()
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		res, err := http.Get("http://" + b.cfg.Listen + page)
		if err != nil {
			continue
		}
		_ = res.Body.Close()
		if res.StatusCode == status {
			return
		}
	}
	t.Fatalf("%s did not answer %d", page, status)
}

func TestAnOwnerWhoWasDisabledKeepsNobodyWaiting(t *testing.T) {
	t.Parallel()
	b := setup(t, storetest.URL(t))
	stop := b.run(t)
	b.await(t, "/readyz", http.StatusOK)
	stop()
	st := storetest.OpenAt(t, b.cfg.DatabaseURL, nil)
	tenant, err := st.TenantByName(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	_, err = st.Write(t.Context(), tenant.ID, "test", func(tx *store.Tx) error {
		if err := tx.SetUserDisabled(t.Context(), "admin", true); err != nil {
			return err
		}
		return tx.Change(t.Context(), "user.disable", "user:admin", nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	b.run(t)
	b.await(t, "/readyz", http.StatusOK)
}

func (b *bundle) admin(t *testing.T) *connect.Client {
	t.Helper()
	token, err := os.ReadFile(b.cfg.BootstrapTokenFile)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(b.cfg.BootstrapTokenFile); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the token's file has mode %v, %v", st.Mode(), err)
	}
	return connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: bearer(strings.TrimSpace(string(token)))}, "http://"+b.cfg.Listen))
}

type bearer string

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+string(b))
	return http.DefaultTransport.RoundTrip(r)
}

func (b *bundle) node(t *testing.T, cell, node string) cellv1connect.CellServiceClient {
	t.Helper()
	id, err := svid.NodeID(domain, cell, node)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	b.identity(t, id, dir)
	src, err := svid.Open(t.Context(), svid.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = src.Close() })
	tr := &http.Transport{TLSClientConfig: svid.ClientTLS(src, svid.ControlPlanes(domain), "h2"), ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return cellv1connect.NewCellServiceClient(connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: tr}, "https://"+b.cfg.CellListen)))
}

func TestAWriteOfTheFirstOwnerReachesANodeAndIsWaitedFor(t *testing.T) {
	t.Parallel()
	b := setup(t, storetest.URL(t))
	b.run(t)
	b.await(t, "/readyz", http.StatusOK)
	client := b.admin(t)
	system := adminv1connect.NewSystemServiceClient(client)
	who, err := system.Whoami(t.Context(), &adminv1.WhoamiRequest{})
	if err != nil || who.GetPrincipal() != "admin" || who.GetTenant() != "acme" {
		t.Fatalf("got %v %v", who, err)
	}
	node := b.node(t, "local", "n1")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := node.Watch(ctx, &cellv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var acked sync.WaitGroup
	acked.Go(func() { serve(ctx, t, node, stream) })
	res, err := adminv1connect.NewDirectoryServiceClient(client).CreateUser(t.Context(), &adminv1.CreateUserRequest{Name: "alice", Kind: adminv1.UserKind_USER_KIND_PERSON})
	if err != nil {
		t.Fatal(err)
	}
	wait, err := adminv1connect.NewSnapshotServiceClient(client).WaitRevision(t.Context(), &adminv1.WaitRevisionRequest{Revision: res.GetRevision()})
	if err != nil || !wait.GetComplete() || len(wait.GetAcks()) != 1 || wait.GetElapsedMs() <= 0 {
		t.Errorf("got %v %v", wait, err)
	}
	health, err := system.CheckHealth(t.Context(), &adminv1.CheckHealthRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range health.GetChecks() {
		if !c.GetOk() {
			t.Errorf("%s: %s", c.GetName(), c.GetDetail())
		}
	}
	cells, err := adminv1connect.NewCellAdminServiceClient(client).ListCells(t.Context(), &adminv1.ListCellsRequest{})
	if err != nil || len(cells.GetCells()) != 1 || !cells.GetCells()[0].GetNodes()[0].GetConnected() {
		t.Errorf("got %v %v", cells, err)
	}
	cancel()
	acked.Wait()
}

// serve acknowledges whatever comes, as a node that applies everything.
func serve(ctx context.Context, t *testing.T, node cellv1connect.CellServiceClient, stream cellv1connect.CellServiceWatchClientStream) {
	var trust *seal.Trust
	for {
		msg, err := stream.Receive()
		if err != nil {
			return
		}
		u, deltas := msg.GetUpdate(), msg.GetUpdate().GetDeltas()
		if d := msg.GetDelta(); d != nil {
			deltas = append(deltas, d)
		}
		if trust == nil && u != nil {
			pin, err := seal.RootsDigest(u.GetRoots())
			if err != nil {
				t.Error(err)
				return
			}
			if trust, err = seal.OpenRoots(u.GetRoots(), pin); err != nil {
				t.Error(err)
				return
			}
		}
		var acks []*cellv1.AcknowledgeRequest
		for _, env := range u.GetHeads() {
			h, err := trust.OpenHead(env)
			if err != nil {
				t.Error(err)
				return
			}
			acks = append(acks, &cellv1.AcknowledgeRequest{TenantId: h.GetTenantId(), Epoch: h.GetEpoch(), Generation: h.GetGeneration(), Revision: h.GetRevision()})
		}
		for _, signed := range deltas {
			d, err := trust.OpenDelta(signed)
			if err != nil {
				t.Error(err)
				return
			}
			acks = append(acks, &cellv1.AcknowledgeRequest{
				TenantId: string(seal.DeltaTenant(d)), Epoch: d.GetEpoch(), Generation: d.GetGeneration(), Revision: d.GetRevision(),
			})
		}
		for _, ack := range acks {
			ack.Status = cellv1.AckStatus_ACK_STATUS_APPLIED
			if _, err := node.Acknowledge(ctx, ack); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	}
}

func TestARestartKeepsTheKeysAndMintsANewToken(t *testing.T) {
	t.Parallel()
	b := setup(t, storetest.URL(t))
	stop := b.run(t)
	b.await(t, "/readyz", http.StatusOK)
	roots, err := os.ReadFile(filepath.Join(b.cfg.KeysDir, keyring.RootsFile))
	if err != nil {
		t.Fatal(err)
	}
	token, _ := os.ReadFile(b.cfg.BootstrapTokenFile)
	stop()
	b.run(t)
	b.await(t, "/readyz", http.StatusOK)
	again, _ := os.ReadFile(filepath.Join(b.cfg.KeysDir, keyring.RootsFile))
	other, _ := os.ReadFile(b.cfg.BootstrapTokenFile)
	if string(again) != string(roots) || string(other) == string(token) {
		t.Error("roots must stay and the token must not")
	}
}

func TestWithoutPostgreSQLItIsAliveAndNotReady(t *testing.T) {
	t.Parallel()
	b := setup(t, "postgres:///nobody?host="+t.TempDir())
	stop := b.run(t)
	b.await(t, "/livez", http.StatusOK)
	b.await(t, "/readyz", http.StatusServiceUnavailable)
	began := time.Now()
	stop()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s to stop", took)
	}
}

func TestItComesBackWithPostgreSQL(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pg, err := pgdev.Start(t.Context(), pgdev.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	b := setup(t, pg.URL())
	if err := pg.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.run(t)
	b.await(t, "/livez", http.StatusOK)
	b.await(t, "/readyz", http.StatusServiceUnavailable)
	start := func() {
		t.Helper()
		if pg, err = pgdev.Start(t.Context(), pgdev.Config{Dir: dir}); err != nil {
			t.Fatal(err)
		}
	}
	start()
	defer func() { _ = pg.Stop(context.WithoutCancel(t.Context())) }()
	b.await(t, "/readyz", http.StatusOK)
	client := b.admin(t)
	pg.Kill()
	<-pg.Done()
	b.await(t, "/readyz", http.StatusServiceUnavailable)
	health, err := adminv1connect.NewSystemServiceClient(client).CheckHealth(t.Context(), &adminv1.CheckHealthRequest{})
	if err == nil && health.GetChecks()[0].GetOk() {
		t.Errorf("it is well without PostgreSQL: %v", health)
	}
	start()
	b.await(t, "/readyz", http.StatusOK)
	user := &adminv1.CreateUserRequest{Name: "alice", Kind: adminv1.UserKind_USER_KIND_PERSON}
	res, err := adminv1connect.NewDirectoryServiceClient(client).CreateUser(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	wait := &adminv1.WaitRevisionRequest{Revision: res.GetRevision()}
	if w, err := adminv1connect.NewSnapshotServiceClient(client).WaitRevision(t.Context(), wait); err != nil || !w.GetComplete() || w.GetGeneration() == 0 {
		t.Errorf("got %v %v", w, err)
	}
}

func TestConfigTellsEverythingThatIsWrong(t *testing.T) {
	t.Parallel()
	c := Config{
		Listen: "0.0.0.0:80", CellListen: "x", TLSKey: "k", PublicURL: "nowhere", EgressAllow: []string{"10.0.0.0"},
		Cells: map[string][]string{"Bad Cell": {"no tenant"}}, BootstrapTokenFile: "f", BootstrapTenant: "?",
		KeepGenerationsDays: -1,
	}
	got := strings.Join(c.Problems(), "\n")
	for _, want := range []string{"database_url:", "keys_dir:", "trust_domain:", "identity_dir:", "cell_listen:", "tls_cert:", "listen: \"0.0.0.0:80\" is not on loopback", "public_url:", "egress_allow:", "cells: \"Bad Cell\"", "cells: \"no tenant\"", "bootstrap_tenant:", "keep_generations_days:"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is missing in:\n%s", want, got)
		}
	}
	good := setup(t, "postgres://x").cfg
	if p := good.Problems(); len(p) != 0 {
		t.Errorf("got %v", p)
	}
}
