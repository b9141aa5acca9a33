package cell

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/kit/svid"
)

// identity writes an SVID of the authority and opens it.
func identity(t *testing.T, ca *svid.CA, name string) (*svid.Source, svid.ID) {
	t.Helper()
	id, err := svid.ParseID("spiffe://" + ca.TrustDomain() + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.IssueNode(id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := svid.WriteIdentity(dir, cert, key, ca.Bundle()); err != nil {
		t.Fatal(err)
	}
	src, err := svid.Open(context.Background(), svid.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = src.Close() })
	return src, id
}

func TestE15AnUpstreamMustBeWhoItsAddressSays(t *testing.T) {
	t.Parallel()
	ca, err := svid.CreateCA(filepath.Join(t.TempDir(), "ca"), "mcpvault.test")
	if err != nil {
		t.Fatal(err)
	}
	theirs, pay := identity(t, ca, "pay")
	own, me := identity(t, ca, "cell/eu/node/n1")
	var calls atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{}`)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Listener = tls.NewListener(srv.Listener, svid.ServerTLS(theirs, svid.Exactly(me), "http/1.1"))
	srv.Start()
	t.Cleanup(srv.Close)

	n := &Node{identity: own, log: slog.New(slog.DiscardHandler)}
	secured, err := n.upstreamTLS()
	if err != nil {
		t.Fatal(err)
	}
	var d net.Dialer
	client := upstream.New(upstream.Config{Dial: d.DialContext, TLS: secured})
	t.Cleanup(client.Close)
	u := &transports{http: client}
	address := "https://" + srv.Listener.Addr().String() + "/mcp"
	ask := func(id string) error {
		whole, err := svid.JoinAddress(address, id)
		if err != nil {
			t.Fatal(err)
		}
		req := &upstream.Request{URL: whole, Method: http.MethodPost, Body: []byte(`{}`)}
		resp, err := u.Do(t.Context(), req)
		if err == nil {
			resp.Close()
		}
		if req.URL != whole || req.Identity != "" {
			t.Error("the caller's request was changed")
		}
		return err
	}
	if err := ask(pay.String()); err != nil || calls.Load() != 1 {
		t.Errorf("the right one: %v, %d calls", err, calls.Load())
	}
	for what, id := range map[string]string{
		"another server":                         "spiffe://mcpvault.test/refunds",
		"nobody, and the host's name is not its": "",
		"somebody of an unknown trust domain":    "spiffe://elsewhere.test/pay",
	} {
		if err := ask(id); !errors.Is(err, upstream.ErrIdentity) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if calls.Load() != 1 {
		t.Errorf("%d calls were sent to a server that was not who it had to be", calls.Load()-1)
	}
}
