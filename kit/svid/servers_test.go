package svid_test

import (
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/kit/svid"
)

func TestAnAddressAndWhoMustAnswerThereAreOneText(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ address, id, whole string }{
		{"https://pay.internal/mcp", "", "https://pay.internal/mcp"},
		{"https://pay.internal/mcp", "spiffe://corp.example/pay", "https://pay.internal/mcp#spiffe://corp.example/pay"},
		{"sse+https://pay.internal/sse", "spiffe://corp.example/pay", "sse+https://pay.internal/sse#spiffe://corp.example/pay"},
	} {
		whole, err := svid.JoinAddress(c.address, c.id)
		if err != nil || whole != c.whole {
			t.Errorf("%s for %s: %q %v", c.address, c.id, whole, err)
		}
		if address, id := svid.SplitAddress(whole); address != c.address || id != c.id {
			t.Errorf("%s: %q %q", whole, address, id)
		}
	}
	for _, c := range []struct{ address, id string }{
		{"http://pay.internal/mcp", "spiffe://corp.example/pay"},
		{"stdio:files", "spiffe://corp.example/pay"},
		{"https://pay.internal/mcp", "spiffe://corp.example"},
		{"https://pay.internal/mcp", "spiffe://Corp.example/pay"},
		{"https://pay.internal/mcp", "https://corp.example/pay"},
		{"https://pay.internal/mcp#spiffe://corp.example/a", "spiffe://corp.example/pay"},
	} {
		if whole, err := svid.JoinAddress(c.address, c.id); err == nil {
			t.Errorf("%s for %s is %q", c.address, c.id, whole)
		}
	}
}

func TestAServerProvesTheIdentityThatItsAddressNames(t *testing.T) {
	t.Parallel()
	const foreign = "corp.example"
	corp, err := svid.CreateCA(t.TempDir(), foreign)
	must(t, err)
	pay, err := svid.ParseID("spiffe://" + foreign + "/pay")
	must(t, err)
	own, me := newCA(t), nodeID(t, "eu", "n1")
	// The server takes our nodes and nobody else.
	theirs, err := svid.OpenServers(source(t, corp, pay), map[string]string{domain: bundleFile(t, own)}, slog.New(slog.DiscardHandler))
	must(t, err)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, err := svid.PeerID(*r.TLS)
		must(t, err)
		_, _ = w.Write([]byte(peer))
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Listener = tls.NewListener(srv.Listener, svid.ServerTLS(theirs, svid.Exactly(me), "http/1.1"))
	srv.Start()
	t.Cleanup(srv.Close)
	address := "https" + strings.TrimPrefix(srv.URL, "http")

	servers, err := svid.OpenServers(source(t, own, me), map[string]string{foreign: bundleFile(t, corp)}, slog.New(slog.DiscardHandler))
	must(t, err)
	get := func(id string) (string, error) {
		cfg, err := servers.TLS(id)
		must(t, err)
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}, Timeout: 10 * time.Second}
		defer c.CloseIdleConnections()
		resp, err := c.Get(address)
		if err != nil {
			return "", err
		}
		defer func() { _ = resp.Body.Close() }()
		b := make([]byte, 256)
		n, _ := resp.Body.Read(b)
		return string(b[:n]), nil
	}
	if saw, err := get(pay.String()); err != nil || saw != me.String() {
		t.Errorf("the right one: it saw %q, %v", saw, err)
	}
	if _, err := get("spiffe://" + foreign + "/refunds"); !errors.Is(err, svid.ErrRefused) {
		t.Errorf("another server of the same trust domain: %v", err)
	}
	if _, err := get(me.String()); err == nil {
		t.Error("a server of another trust domain was taken for one of ours")
	}
	if _, err := servers.TLS("spiffe://nowhere.example/pay"); err == nil {
		t.Error("a trust domain without a bundle")
	}
}
