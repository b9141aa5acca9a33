package cell

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"github.com/mcpvault/mcpvault/dataplane/edge"
	"github.com/mcpvault/mcpvault/kit/run"
	"github.com/mcpvault/mcpvault/kit/svid"
)

func TestHTTP3IsServedAtThePortOfTheTLSListenerUnlessItIsOff(t *testing.T) {
	t.Parallel()
	ca, err := svid.CreateCA(filepath.Join(t.TempDir(), "ca"), "mcpvault.test")
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM, err := ca.IssueServer(nil, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.Bundle())
	for _, tc := range []struct {
		setting string
		public  []string
		served  bool
		port    string // "" for the listener's own
	}{
		{"", nil, true, ""},
		{"on", []string{"http://127.0.0.1:1/mcp", "https://mcp.example.com/mcp"}, true, "443"},
		{"on", []string{"https://mcp.example.com:8443/mcp"}, true, "8443"},
		{"off", nil, false, ""},
	} {
		t.Run(tc.setting+strings.Join(tc.public, " "), func(t *testing.T) {
			t.Parallel()
			n := &Node{cfg: Config{PublicURLs: tc.public, Listen: Listen{HTTP3: tc.setting}}, log: slog.New(slog.DiscardHandler)}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			g := run.New(n.log)
			served := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
			cfg := edge.Config{TLS: &tls.Config{Certificates: []tls.Certificate{cert}}, Grace: 10 * time.Millisecond}
			h, err := n.addQUIC(g, cfg, ln.Addr(), served)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- g.Run(ctx) }()
			defer func() { cancel(); <-done }()

			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
			if tc.port == "" {
				_, tc.port, _ = net.SplitHostPort(ln.Addr().String())
			}
			if got := w.Header().Get("Alt-Svc"); strings.HasPrefix(got, `h3=":`+tc.port+`"`) != tc.served {
				t.Errorf("Alt-Svc %q", got)
			}
			tr := &http3.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
			defer tr.Close()
			ask, stop := context.WithTimeout(t.Context(), 10*time.Second)
			defer stop()
			if !tc.served {
				socket, err := net.ListenPacket("udp", ln.Addr().String())
				if err != nil {
					t.Fatal("UDP is listened on:", err)
				}
				_ = socket.Close()
				return
			}
			r, err := http.NewRequestWithContext(ask, http.MethodGet, "https://"+ln.Addr().String(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if resp, err := tr.RoundTrip(r); err != nil || resp.StatusCode != http.StatusNoContent {
				t.Fatal(resp, err)
			}
		})
	}
	bad := Config{Listen: Listen{HTTP3: "yes"}}
	if !slices.ContainsFunc(bad.Problems(), func(p string) bool { return strings.HasPrefix(p, "listen.http3") }) {
		t.Error(bad.Problems())
	}
}
