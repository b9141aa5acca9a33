package pep_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"github.com/mcpvault/mcpvault/dataplane/edge"
	"github.com/mcpvault/mcpvault/dataplane/pep"
	"github.com/mcpvault/mcpvault/snapshot"
)

// fronts are the listeners of a node before a gateway: TLS on TCP and QUIC on UDP.
type fronts struct {
	tcp, quic string
	roots     *x509.CertPool
	stop      context.CancelFunc
}

// before puts both listeners before g's pipeline; they end with the test.
func before(t *testing.T, g *gateway, cfg edge.Config) *fronts {
	t.Helper()
	donor := httptest.NewUnstartedServer(nil)
	donor.StartTLS()
	defer donor.Close()
	if cfg.TLS == nil {
		cfg.TLS = &tls.Config{}
	}
	cfg.TLS.Certificates = donor.TLS.Certificates
	cfg.Grace, cfg.OnDrain, cfg.Cut = 300*time.Millisecond, g.pep.Drain, pep.ErrStopping
	log := slog.New(slog.DiscardHandler)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	q, err := edge.NewQUIC(cfg, socket, g.pep, log)
	if err != nil {
		t.Fatal(err)
	}
	s, err := edge.New(cfg, ln, edge.Announce(socket.LocalAddr().(*net.UDPAddr).Port, g.pep), log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- s.Run(ctx) }()
	go func() { done <- q.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	pool := donor.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	return &fronts{tcp: "https://" + s.Addr().String(), quic: "https://" + q.Addr().String(), roots: pool, stop: cancel}
}

// as is the gateway as a client sees it that speaks one version of HTTP, with a certificate or without.
func (f *fronts) as(t *testing.T, g *gateway, version int, certs ...tls.Certificate) *gateway {
	t.Helper()
	cfg := &tls.Config{RootCAs: f.roots, Certificates: certs}
	c := *g
	c.t = t
	if version == 3 {
		tr := &http3.Transport{TLSClientConfig: cfg}
		t.Cleanup(func() { _ = tr.Close() })
		c.url, c.client = f.quic, &http.Client{Transport: tr}
		return &c
	}
	var protocols http.Protocols
	protocols.SetHTTP1(version == 1)
	protocols.SetHTTP2(version == 2)
	tr := &http.Transport{TLSClientConfig: cfg, Protocols: &protocols}
	t.Cleanup(tr.CloseIdleConnections)
	c.url, c.client = f.tcp, &http.Client{Transport: tr}
	return &c
}

// inEach runs a test over HTTP/1.1, HTTP/2 and HTTP/3.
func inEach(t *testing.T, f func(t *testing.T, version int)) {
	t.Helper()
	for _, version := range []int{1, 2, 3} {
		t.Run(fmt.Sprintf("HTTP %d", version), func(t *testing.T) {
			t.Parallel()
			f(t, version)
		})
	}
}

func TestTheDialogueIsTheSameInEachVersionOfHTTP(t *testing.T) {
	t.Parallel()
	inEach(t, func(t *testing.T, version int) {
		g, up := payments(t)
		c := before(t, g, edge.Config{}).as(t, g, version)
		id := c.legacy("/mcp/pay", "alice")
		list := c.post("/mcp/pay", "alice", `{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{}}`, "Mcp-Session-Id", id)
		if !strings.Contains(list.body, `"balance"`) || strings.Contains(list.body, `"secret"`) {
			t.Errorf("list: %s", list.body)
		}
		if a := c.post("/mcp/pay", "alice", legacyCall, "Mcp-Session-Id", id); string(a.Result) != oddResult {
			t.Errorf("call: %d %s", a.status, a.body)
		}
		if a := c.call("/mcp/pay", "alice", "refund", `{"amount":5}`); string(a.Result) != oddResult {
			t.Errorf("modern call: %d %s", a.status, a.body)
		}
		calls := up.calls()
		if a := c.call("/mcp/pay", "alice", "secret", `{}`); a.code() != -32602 || up.calls() != calls {
			t.Errorf("hidden: %d %s", a.status, a.body)
		}
		a := c.call("/mcp/pay", "", "balance", `{}`)
		if a.status != http.StatusUnauthorized || !strings.Contains(a.header.Get("Www-Authenticate"), "resource_metadata=\"https://") {
			t.Errorf("nobody: %d %v", a.status, a.header)
		}
		if alt := a.header.Get("Alt-Svc"); (alt == "") != (version == 3) {
			t.Errorf("Alt-Svc is %q", alt)
		}
		large := c.post("/mcp/pay", "alice", `{"jsonrpc":"2.0","id":1,"method":"x","params":{"x":"`+strings.Repeat("a", 4<<20)+`"}}`)
		if large.status != http.StatusRequestEntityTooLarge {
			t.Errorf("A01: %d %s", large.status, large.body)
		}
		if many := c.post("/mcp/pay", "alice", legacyCall, fields(101)...); many.status != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("A11: %d %s", many.status, many.body)
		}
		if other := c.post("/mcp/pay", "alice", legacyCall, "Host", "attacker.example"); other.status != http.StatusMisdirectedRequest {
			t.Errorf("A12: %d %s", other.status, other.body)
		}
	})
}

// fields are n header pairs.
func fields(n int) (pairs []string) {
	for i := range n {
		pairs = append(pairs, fmt.Sprintf("X-%d", i), "x")
	}
	return pairs
}

func TestStreamsWorkInEachVersionOfHTTP(t *testing.T) {
	t.Parallel()
	inEach(t, func(t *testing.T, version int) {
		up := newScripted(t)
		g := newGateway(t, pep.Config{KeepAlive: 10 * time.Millisecond}, []snapshot.Grant{{ID: "a", Subject: "user:alice", Server: "pay"}},
			catalogueServer("pay", up.url, allEras(), plainTool("balance", read)))
		f := before(t, g, edge.Config{})
		c := f.as(t, g, version)
		id := c.legacy("/mcp/pay", "alice")
		gone := make(chan struct{}, 2)
		up.script(func(w http.ResponseWriter, r *http.Request, _ string) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "id: 1\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/resources/list_changed\"}\n\n")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			gone <- struct{}{}
		})
		open := func(ctx context.Context) *bufio.Reader {
			t.Helper()
			resp, err := c.client.Do(c.request(ctx, http.MethodGet, "/mcp/pay", "alice", "", "Mcp-Session-Id", id, "Accept", "text/event-stream"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = resp.Body.Close() })
			r := bufio.NewReader(resp.Body)
			if line, err := r.ReadString('\n'); line != "id: 1\n" {
				t.Fatalf("%d %q %v", resp.StatusCode, line, err)
			}
			return r
		}
		// A client that leaves ends the request upstream.
		ctx, leave := context.WithCancel(t.Context())
		open(ctx)
		leave()
		<-gone
		until(t, "the stream's place", func() bool { return g.pep.Streams() == 0 })
		// A node that stops ends the stream in order.
		r := open(t.Context())
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if line == ": keep-alive\n" {
				break
			}
		}
		f.stop()
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
		until(t, "the stream's place", func() bool { return g.pep.Streams() == 0 })
	})
}

func TestACallThatTheStopCutsOffIsToldSoInEachVersionOfHTTP(t *testing.T) {
	t.Parallel()
	inEach(t, func(t *testing.T, version int) {
		g, up := payments(t)
		f := before(t, g, edge.Config{})
		up.script(func(_ http.ResponseWriter, r *http.Request, _ string) {
			f.stop()
			<-r.Context().Done()
		})
		if a := f.as(t, g, version).call("/mcp/pay", "alice", "refund", `{"amount":5}`); !strings.Contains(a.body, `"reason":"node_stopping"`) {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
}

func TestA21ARequestThatNamesTwoHostsIsRefused(t *testing.T) {
	t.Parallel()
	g, _ := payments(t)
	r := g.request(t.Context(), http.MethodPost, "/mcp/pay", "alice", legacyCall)
	r.Header["Host"] = []string{"other.example"} // as net/http hands it on beside HTTP/2's :authority
	w := httptest.NewRecorder()
	g.pep.ServeHTTP(w, r)
	rec := g.book.all()
	if w.Code != http.StatusBadRequest || len(rec) != 1 || rec[0].GetReason() != "host_mismatch" {
		t.Fatalf("%d %s %v", w.Code, w.Body, w.Header())
	}
}
