package cell

import (
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/kit/svid"
)

// identified opens an identity that the authority has just issued.
func identified(t *testing.T, ca *svid.CA, id svid.ID) *svid.Source {
	t.Helper()
	cert, key, err := ca.IssueNode(id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := svid.WriteIdentity(dir, cert, key, ca.Bundle()); err != nil {
		t.Fatal(err)
	}
	src, err := svid.Open(t.Context(), svid.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = src.Close() })
	return src
}

// TestOneConnectionCarriesEverythingBetweenTwoMachines: streams and calls at the same time, and a new one, authorised anew, when
// that breaks.
func TestOneConnectionCarriesEverythingBetweenTwoMachines(t *testing.T) {
	t.Parallel()
	const domain = "mcpvault.test"
	ca, err := svid.CreateCA(filepath.Join(t.TempDir(), "ca"), domain)
	if err != nil {
		t.Fatal(err)
	}
	nodeID, err := svid.NodeID(domain, "eu", "n1")
	if err != nil {
		t.Fatal(err)
	}
	cpID, err := svid.ControlPlaneID(domain, "cp")
	if err != nil {
		t.Fatal(err)
	}
	var connections, resumed atomic.Int64
	atOnce := make(chan struct{}, 64)
	release := make(chan struct{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var open sync.Map
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS.DidResume {
			resumed.Add(1)
		}
		if r.URL.Path == "/wait" {
			atOnce <- struct{}{}
			<-release
		}
		w.WriteHeader(http.StatusNoContent)
	})}
	srv.TLSConfig = svid.ServerTLS(identified(t, ca, cpID), svid.AnyCellNode(domain), "h2")
	srv.ConnState = func(c net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
			open.Store(c, true)
		}
	}
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(ln, "", "") }()
	defer func() { _ = srv.Close(); <-served }()
	url := "https://" + ln.Addr().String()
	own := identified(t, ca, nodeID)
	n := &Node{cfg: Config{Cell: "eu", Node: "n1"}, identity: own, guard: svid.NewGuard(own, slog.New(slog.DiscardHandler), nil)}
	client := &http.Client{Transport: n.http2(svid.ControlPlanes(domain))}
	defer client.CloseIdleConnections()
	get := func(path string) {
		resp, err := client.Get(url + path)
		if err != nil {
			t.Error(err)
			return
		}
		_ = resp.Body.Close()
	}
	if get("/"); t.Failed() { // the first one makes the connection
		return
	}
	var wg sync.WaitGroup
	for range cap(atOnce) {
		wg.Go(func() { get("/wait") })
	}
	for range cap(atOnce) {
		<-atOnce
	}
	close(release)
	wg.Wait()
	if got := connections.Load(); got != 1 {
		t.Errorf("%d calls at once took %d connections", cap(atOnce), got)
	}
	open.Range(func(c, _ any) bool { _ = c.(net.Conn).Close(); return true })
	for range 3 {
		if resp, err := client.Get(url); err == nil {
			_ = resp.Body.Close()
			break
		}
	}
	get("/")
	if got := connections.Load(); got != 2 || resumed.Load() != 0 {
		t.Errorf("%d connections, %d requests on resumed ones", got, resumed.Load())
	}
}
