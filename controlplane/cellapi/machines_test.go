package cellapi_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/kit/jointoken"
	"github.com/mcpvault/mcpvault/kit/svid"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1/cellv1connect"
)

// joinToken makes a token for a node.
func (b *bundle) joinToken(t *testing.T, cell, node string) jointoken.Token {
	t.Helper()
	ctx := controlplane.WithCaller(t.Context(), controlplane.Caller{
		Principal: "root", TenantID: b.acme.ID, Tenant: "acme", Home: "acme", Roles: []string{controlplane.RoleOwner},
	})
	res, err := b.machines.CreateJoinToken(ctx, &adminv1.CreateJoinTokenRequest{Cell: cell, Node: node, ControlPlane: b.url})
	if err != nil {
		t.Fatal(err)
	}
	tok, err := jointoken.Parse(res.GetSecret())
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// stranger is a client that has a token and no SVID.
func (b *bundle) stranger(t *testing.T, tok jointoken.Token) (cellv1connect.CellServiceClient, *http.Client) {
	t.Helper()
	cfg, err := svid.PinnedTLS(tok.TrustDomain, tok.Authorities, svid.ControlPlanes(tok.TrustDomain), "h2")
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	hc := &http.Client{Transport: tr}
	return cellv1connect.NewCellServiceClient(connect.NewClient(connecthttp.NewTransport(hc, b.url))), hc
}

func requestFor(t *testing.T, cell, node string) (csr, key []byte, id svid.ID) {
	t.Helper()
	id, err := svid.NodeID(domain, cell, node)
	if err != nil {
		t.Fatal(err)
	}
	if key, err = svid.NewKey(); err != nil {
		t.Fatal(err)
	}
	if csr, err = svid.NewRequest(key, id); err != nil {
		t.Fatal(err)
	}
	return csr, key, id
}

func TestAMachineWithATokenBecomesANode(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.published(t, b.acme, b.write(t, b.acme, "alice"))
	tok := b.joinToken(t, "eu", "n7")
	c, _ := b.stranger(t, tok)
	csr, key, id := requestFor(t, "eu", "n7")
	res, err := c.Enroll(t.Context(), &cellv1.EnrollRequest{Secret: tok.Secret.Reveal(), Cell: "eu", Node: "n7", Csr: csr})
	if err != nil {
		t.Fatal(err)
	}
	// With what it got it is a node like any other, and can renew.
	dir := t.TempDir()
	if err := svid.WriteIdentity(dir, res.GetIdentity().GetSvid(), key, res.GetIdentity().GetBundle()); err != nil {
		t.Fatal(err)
	}
	src, err := svid.Open(t.Context(), svid.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: svid.ClientTLS(src, svid.ControlPlanes(domain), "h2"), ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	node := cellv1connect.NewCellServiceClient(connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: tr}, b.url)))
	events, _ := b.watch(t, node, &cellv1.WatchRequest{})
	next(t, events, "the update", isUpdate)
	status, err := node.ReportStatus(t.Context(), &cellv1.ReportStatusRequest{Status: &cellv1.NodeStatus{}})
	if err != nil || len(status.GetAuthority()) == 0 {
		t.Errorf("the node is not told who signs: %v %v", status, err)
	}
	csr2, key2, _ := requestFor(t, "eu", "n7")
	again, err := node.RenewIdentity(t.Context(), &cellv1.RenewIdentityRequest{Csr: csr2})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := svid.Issued(again.GetIdentity().GetSvid(), key2, again.GetIdentity().GetBundle(), id, time.Now()); err != nil {
		t.Error(err)
	}
	other, _, _ := requestFor(t, "eu", "n1")
	if _, err := node.RenewIdentity(t.Context(), &cellv1.RenewIdentityRequest{Csr: other}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("a node renews another's name: %v", err)
	}
}

func TestWithoutAnSVIDThereIsNothingButEnrolling(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.published(t, b.acme, b.write(t, b.acme, "alice"))
	tok := b.joinToken(t, "eu", "n7")
	c, hc := b.stranger(t, tok)
	if _, err := c.ReportStatus(t.Context(), &cellv1.ReportStatusRequest{Status: &cellv1.NodeStatus{}}); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("status: %v", err)
	}
	csr, _, _ := requestFor(t, "eu", "n7")
	if _, err := c.RenewIdentity(t.Context(), &cellv1.RenewIdentityRequest{Csr: csr}); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("renewal: %v", err)
	}
	stream, err := c.Watch(t.Context(), &cellv1.WatchRequest{})
	if err == nil {
		_, err = stream.Receive()
	}
	if connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("watch: %v", err)
	}
	// Paths that a careless router would take for Enroll.
	for _, path := range []string{
		cellv1connect.CellServiceEnrollProcedure + "/", cellv1connect.CellServiceEnrollProcedure + "/../Watch", "/", "/x" + cellv1connect.CellServiceEnrollProcedure,
	} {
		u, err := url.Parse(b.url)
		if err != nil {
			t.Fatal(err)
		}
		u.Path = path
		res, err := hc.Post(u.String(), "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %s", path, res.Status)
		}
	}
	res, err := hc.Post(b.url+cellv1connect.CellServiceEnrollProcedure, "application/json", strings.NewReader(`{"cell":"`+strings.Repeat("a", 64<<10)+`"}`))
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode == http.StatusOK {
		t.Error("64 KiB are read from a stranger")
	}
	// Who does not ask by the name for it gets in with an SVID or not at all.
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	if r, err := (&http.Client{Transport: tr}).Post(b.url+cellv1connect.CellServiceEnrollProcedure, "application/json", strings.NewReader("{}")); err == nil {
		_ = r.Body.Close()
		t.Errorf("without the name: %s", r.Status)
	}
}

func TestAManInTheMiddleLearnsNoSecret(t *testing.T) {
	t.Parallel()
	b, evil := setup(t), setup(t)
	tok := b.joinToken(t, "eu", "n7")
	// The machine is led to another control plane, with authorities of its own.
	b.url = evil.url
	c, _ := b.stranger(t, tok)
	csr, _, _ := requestFor(t, "eu", "n7")
	_, err := c.Enroll(t.Context(), &cellv1.EnrollRequest{Secret: tok.Secret.Reveal(), Cell: "eu", Node: "n7", Csr: csr})
	if !errors.Is(err, svid.ErrPin) {
		t.Fatalf("got %v", err)
	}
}

func TestAStrangerIsCutOff(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tok := b.joinToken(t, "eu", "n7")
	cfg, err := svid.PinnedTLS(tok.TrustDomain, tok.Authorities, svid.ControlPlanes(tok.TrustDomain), "h2")
	if err != nil {
		t.Fatal(err)
	}
	addr := strings.TrimPrefix(b.url, "https://")
	for i := range 80 {
		conn, err := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			if i < 64 {
				t.Fatalf("stranger %d: %v", i, err)
			}
			continue
		}
		defer func() { _ = conn.Close() }()
		if i >= 64 {
			t.Fatalf("%d strangers are connected", i+1)
		}
		if i > 0 {
			continue
		}
		defer func() {
			_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.Copy(io.Discard, conn); err != nil && strings.Contains(err.Error(), "timeout") {
				t.Errorf("a stranger stays for %v", err)
			}
		}()
	}
	// Nodes are not in their way.
	if _, err := b.node(t, "eu", "n1").ReportStatus(t.Context(), &cellv1.ReportStatusRequest{Status: &cellv1.NodeStatus{}}); err != nil {
		t.Error(err)
	}
}

// Both the connection and what runs on it: a stream that was opened with an SVID ends with it.
func TestAWatchEndsWithTheNodesIdentity(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*bundle){
		"killed":  func(b *bundle) { b.killNode(t, "kn9", "eu/n1") },
		"expired": func(b *bundle) { b.later.ahead.Store(int64(2 * time.Hour)) },
	} {
		b := setup(t)
		b.published(t, b.acme, b.write(t, b.acme, "alice"))
		id, err := svid.NodeID(domain, "eu", "n1")
		if err != nil {
			t.Fatal(err)
		}
		var d tls.Dialer
		d.Config = svid.ClientTLS(b.source(t, id), svid.ControlPlanes(domain), "h2")
		idle, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(b.url, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = idle.Close() })
		events, stop := b.watch(t, b.node(t, "eu", "n1"), &cellv1.WatchRequest{})
		next(t, events, "the update", isUpdate)
		began := time.Now()
		end(b)
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		for open := true; open; {
			select {
			case _, open = <-events:
			case <-ctx.Done():
				t.Fatalf("%s: the stream goes on", name)
			}
		}
		_ = idle.SetReadDeadline(time.Now().Add(limit))
		if _, err := io.Copy(io.Discard, idle); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Fatalf("%s: an idle connection stays open", name)
		}
		t.Logf("%s: ended after %s", name, time.Since(began).Round(10*time.Millisecond))
		cancel()
		stop()
	}
}
