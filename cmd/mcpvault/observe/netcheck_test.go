package observe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/contexts"
	"github.com/mcpvault/mcpvault/kit/nearest"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// fakeCell serves the document of cells, over TLS, and nothing over UDP.
type fakeCell struct {
	*httptest.Server
	page nearest.Page
}

func newFakeCell(t *testing.T) *fakeCell {
	t.Helper()
	c := &fakeCell{}
	c.Server = httptest.NewUnstartedServer(&c.page)
	c.TLS = &tls.Config{MinVersion: tls.VersionTLS13}
	c.StartTLS()
	t.Cleanup(c.Close)
	return c
}

func (c *fakeCell) say(t *testing.T, dir *cellv1.CellDirectory, serving bool) {
	t.Helper()
	if err := c.page.Set(nearest.Of(dir, nearest.FromNode, &nearest.Here{Cell: "eu", Node: "n1", Serving: serving})); err != nil {
		t.Fatal(err)
	}
}

func (c *fakeCell) trusting() *http.Transport {
	pool := x509.NewCertPool()
	pool.AddCert(c.Certificate())
	return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}
}

func look(t *testing.T, c *fakeCell, base *http.Transport, limit time.Duration) *netReport {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return checkNet(ctx, &contexts.Context{MCPURLs: []string{c.URL + "/mcp"}}, base)
}

func TestNetcheckSaysWhatIsBetweenHereAndEachNode(t *testing.T) {
	t.Parallel()
	c := newFakeCell(t)
	dir := &cellv1.CellDirectory{AsOfMs: 1, Cells: []*cellv1.CellEntry{
		{Name: "eu", Region: "europe", Nodes: []*cellv1.NodeEntry{{Name: "n1", Urls: []string{c.URL + "/mcp"}, Http3: true}}},
		{Name: "us", Nodes: []*cellv1.NodeEntry{{Name: "n1", Urls: []string{"https://127.0.0.1:1/mcp"}}}},
	}}
	c.say(t, dir, true)
	r := look(t, c, c.trusting(), 2*time.Second)
	if r.Nearest != "eu" || r.UDP != "blocked" || len(r.Ways) != 2 || r.Source != c.URL {
		t.Fatalf("%+v", r)
	}
	eu, us := r.Ways[0], r.Ways[1]
	if eu.Health != wayServing || eu.TCP <= 0 || eu.TLS <= 0 || eu.HTTP <= 0 || !eu.UDPBlocked || eu.QUIC != 0 || eu.Region != "europe" || !eu.Nearest || eu.CertUntil == "" {
		t.Errorf("%+v", eu)
	}
	if us.Health != wayUnreachable || !strings.Contains(us.Problem, "refused") || us.Nearest {
		t.Errorf("%+v", us)
	}
}

func TestNetcheckNamesACertificateThatIsNotTrusted(t *testing.T) {
	t.Parallel()
	c := newFakeCell(t)
	c.say(t, &cellv1.CellDirectory{}, true)
	stranger := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS13}}
	r := look(t, c, stranger, 2*time.Second)
	if r.Nearest != "" || len(r.Ways) != 1 || !strings.Contains(r.Ways[0].Certificate, "authority") || r.Ways[0].TCP <= 0 {
		t.Errorf("%+v", r)
	}
}

func TestNetcheckFindsNoCellWhereNoneServes(t *testing.T) {
	t.Parallel()
	c := newFakeCell(t)
	c.say(t, &cellv1.CellDirectory{}, false)
	r := look(t, c, c.trusting(), 2*time.Second)
	if r.Nearest != "" || r.Ways[0].Health != wayAway || r.Ways[0].Node != "n1" {
		t.Errorf("%+v", r)
	}
}
