package upstream_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/kit/egress"
)

func TestConnectionsAreUsedAgain(t *testing.T) {
	t.Parallel()
	s := newRaw(t, func(c net.Conn, _ *http.Request, body string) bool {
		return say(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"+body)
	})
	c := client(upstream.Config{})
	defer c.Close()
	for _, size := range []int{1, 100, 30 << 10, 40 << 10, 3 << 20} {
		body := strings.Repeat("x", size)
		resp, err := c.Do(t.Context(), post(s.url, body))
		if err != nil || string(resp.Body) != body {
			t.Fatalf("%d bytes: %v", size, err)
		}
		resp.Close()
	}
	if n := s.conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for n := range 50 {
				body := strconv.Itoa(i) + "/" + strconv.Itoa(n)
				if resp, err := c.Do(t.Context(), post(s.url, body)); err != nil || string(resp.Body) != body {
					t.Errorf("%s: %v", body, err)
				}
			}
		})
	}
	wg.Wait()
	if n := s.conns.Load(); n > 17 {
		t.Errorf("%d connections for 16 callers", n)
	}
}

func TestAConnectionThatClosedWhileIdleCostsNothing(t *testing.T) {
	t.Parallel()
	closing := make(chan struct{}, 1)
	s := newRaw(t, func(c net.Conn, _ *http.Request, _ string) bool {
		say(c, okAnswer)
		_ = c.Close()
		closing <- struct{}{}
		return false
	})
	c := client(upstream.Config{})
	defer c.Close()
	for range 20 {
		resp, err := c.Do(t.Context(), post(s.url, "{}"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Close()
		<-closing
	}
	if s.requests.Load() != 20 {
		t.Errorf("%d requests arrived", s.requests.Load())
	}
}

// The server's second answer must never be taken for that to another caller's call.
func TestAnAnswerNobodyAskedForIsNeverUsed(t *testing.T) {
	t.Parallel()
	sent := make(chan struct{}, 1)
	behave := func(c net.Conn, _ *http.Request, body string) bool {
		say(c, "HTTP/1.1 200 OK\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"+body)
		// In a record of its own, and late.
		say(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen")
		sent <- struct{}{}
		return true
	}
	cert, roots := certificate(t)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*raw{"http": newRaw(t, behave), "https": serveRaw(t, ln, "https", behave)} {
		c := client(upstream.Config{TLS: trusting(roots)})
		defer c.Close()
		for i := range 10 {
			want := strconv.Itoa(i)
			resp, err := c.Do(t.Context(), post(s.url, want))
			<-sent
			switch {
			case errors.Is(err, upstream.ErrProtocol): // both came at once
			case err != nil || string(resp.Body) != want:
				t.Fatalf("%s: %v", name, err)
			}
		}
		if n := s.conns.Load(); n != 10 {
			t.Errorf("%s: %d connections for 10 calls", name, n)
		}
	}
}

func TestWhatWasSentIsNeverSentAgain(t *testing.T) {
	t.Parallel()
	var n atomic.Int32
	s := newRaw(t, func(c net.Conn, _ *http.Request, _ string) bool {
		return n.Add(1) == 1 && say(c, okAnswer)
	})
	c := client(upstream.Config{})
	defer c.Close()
	if _, err := c.Do(t.Context(), post(s.url, "{}")); err != nil {
		t.Fatal(err)
	}
	// On the connection that is known to be good, the server reads the request and goes away.
	if _, err := c.Do(t.Context(), post(s.url, "{}")); !errors.Is(err, upstream.ErrBroken) {
		t.Fatal(err)
	}
	if s.requests.Load() != 2 || s.conns.Load() != 1 {
		t.Errorf("%d requests on %d connections", s.requests.Load(), s.conns.Load())
	}
}

func TestAnEarlyRefusalOfALargeBodyIsHeard(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		say(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		_, _ = io.CopyN(io.Discard, c, 1<<20)
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	}()
	c := client(upstream.Config{})
	defer c.Close()
	resp, err := c.Do(t.Context(), post("http://"+ln.Addr().String(), strings.Repeat("x", 8<<20)))
	if err != nil || resp.Status != http.StatusRequestEntityTooLarge {
		t.Fatalf("%+v %v", resp, err)
	}
}

func TestACanceledCallTakesItsConnectionAlong(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{}, 1)
	var n atomic.Int32
	s := newRaw(t, func(c net.Conn, _ *http.Request, _ string) bool {
		if n.Add(1) == 2 {
			arrived <- struct{}{}
			_, _ = io.Copy(io.Discard, c)
			return false
		}
		return say(c, okAnswer)
	})
	c := client(upstream.Config{})
	defer c.Close()
	for i := range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		if i == 1 {
			go func() { <-arrived; cancel() }()
		}
		_, err := c.Do(ctx, post(s.url, "{}"))
		if (i == 1) != errors.Is(err, context.Canceled) || (i != 1 && err != nil) {
			t.Fatalf("call %d: %v", i, err)
		}
		cancel()
	}
	if s.conns.Load() != 2 {
		t.Errorf("%d connections", s.conns.Load())
	}
}

func TestHeadersThatWouldSplitARequestAreNotSent(t *testing.T) {
	t.Parallel()
	s := newRaw(t, func(c net.Conn, _ *http.Request, _ string) bool { return say(c, okAnswer) })
	c := client(upstream.Config{})
	defer c.Close()
	for _, set := range []http.Header{
		{"X-Api-Key": {"a\r\nX-Evil: b"}},
		{"X-Api-Key": {"a\nb"}},
		{"X-Api-Key": {"a\x00"}},
		{"X Api": {"a"}},
		{"X-A:b": {"a"}},
		{"": {"a"}},
		{"Content-Length": {"1"}},
		{"Transfer-Encoding": {"chunked"}},
		{"Host": {"other"}},
		{"Connection": {"close"}},
		{"content-length": {"1"}},
	} {
		req := post(s.url, "{}")
		req.Set = set
		if _, err := c.Do(t.Context(), req); !errors.Is(err, upstream.ErrUnavailable) || strings.Contains(err.Error(), "evil") {
			t.Errorf("%q: %v", set, err)
		}
	}
	for _, method := range []string{"GET /x HTTP/1.1\r\nA: b\r\n\r\nPOST", "", "HEAD", "CONNECT"} {
		req := post(s.url, "{}")
		req.Method = method
		if _, err := c.Do(t.Context(), req); !errors.Is(err, upstream.ErrUnavailable) {
			t.Errorf("%q: %v", method, err)
		}
	}
	for _, url := range []string{"http://a:b@127.0.0.1/", "http://127.0.0.1:0/", "http://127.0.0.1:/", "http://127.0.0.1:99999/", "http:///x"} {
		if _, err := c.Do(t.Context(), post(url, "{}")); err == nil {
			t.Errorf("%q was called", url)
		}
	}
	if n := s.requests.Load(); n > 0 {
		t.Errorf("%d requests arrived", n)
	}
}

func TestAStreamThatWasReadToItsEndGivesItsConnectionBack(t *testing.T) {
	t.Parallel()
	s := newRaw(t, func(c net.Conn, r *http.Request, _ string) bool {
		if r.Method == http.MethodGet && r.Header.Get("Accept") != "text/event-stream" {
			t.Errorf("Accept %q", r.Header.Get("Accept"))
		}
		return say(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: {}\n\r\n") &&
			say(c, "1\r\n\n\r\n0\r\n\r\n")
	})
	c := client(upstream.Config{})
	defer c.Close()
	for range 3 {
		resp, err := c.Do(t.Context(), post(s.url, "{}"))
		if err != nil || resp.Events == nil {
			t.Fatal(err)
		}
		ev, err := resp.Events.Next()
		if err != nil || string(ev.Data) != "{}" {
			t.Fatal(ev, err)
		}
		if _, err := resp.Events.Next(); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		resp.Close()
	}
	if s.conns.Load() != 1 {
		t.Errorf("%d connections", s.conns.Load())
	}
	resp, err := c.Do(t.Context(), &upstream.Request{URL: s.url, Method: http.MethodGet, Long: true})
	if err != nil || resp.Events == nil {
		t.Fatal(err)
	}
	resp.Close() // unread: the connection goes
	if resp, err = c.Do(t.Context(), post(s.url, "{}")); err != nil {
		t.Fatal(err)
	}
	resp.Close()
	if s.conns.Load() != 2 {
		t.Errorf("%d connections", s.conns.Load())
	}
}

func TestAStreamOnWhichNothingComesEnds(t *testing.T) {
	t.Parallel()
	s := newRaw(t, func(c net.Conn, _ *http.Request, _ string) bool {
		say(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: hello\n\n")
		_, _ = io.Copy(io.Discard, c)
		return false
	})
	c := client(upstream.Config{StreamIdle: 50 * time.Millisecond})
	defer c.Close()
	resp, err := c.Do(t.Context(), &upstream.Request{URL: s.url, Method: http.MethodGet, Long: true})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Close()
	if _, err = resp.Events.Next(); err != nil {
		t.Fatal(err)
	}
	if _, err = resp.Events.Next(); err == nil || errors.Is(err, io.EOF) {
		t.Fatalf("it ended with %v", err)
	}
}

func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return s.TLS.Certificates[0], roots
}

func trusting(roots *x509.CertPool) func(string, string) (*tls.Config, error) {
	return func(string, string) (*tls.Config, error) { return &tls.Config{RootCAs: roots}, nil }
}

func TestNothingIsSentToAServerThatDoesNotProveItself(t *testing.T) {
	t.Parallel()
	cert, roots := certificate(t)
	answer := func(c net.Conn, _ *http.Request, _ string) bool { return say(c, okAnswer) }
	listen := func(cfg *tls.Config) *raw {
		ln, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
		if err != nil {
			t.Fatal(err)
		}
		return serveRaw(t, ln, "https", answer)
	}
	other := func(url, host string) string { // the certificate is good for 127.0.0.1 and example.com
		_, port, _ := strings.Cut(strings.TrimPrefix(url, "https://"), ":")
		return "https://" + host + ":" + port
	}
	good := listen(&tls.Config{Certificates: []tls.Certificate{cert}})
	old := listen(&tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: tls.VersionTLS12})
	mutual := listen(&tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert})
	var unsafe atomic.Bool
	plain := &raw{url: serve(t, func(http.ResponseWriter, *http.Request) { unsafe.Store(true) })}
	loopback := func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}
	trusted := trusting(roots)
	for name, tc := range map[string]struct {
		url, identity string
		tls           func(string, string) (*tls.Config, error)
		to            *raw
		ok            bool
	}{
		"good":              {url: good.url, tls: trusted, to: good, ok: true},
		"good by name":      {url: other(good.url, "example.com"), tls: trusted, to: good, ok: true},
		"another name":      {url: other(good.url, "evil.example"), tls: trusted, to: good},
		"unknown authority": {url: good.url, to: good},
		"TLS 1.2":           {url: old.url, tls: trusted, to: old},
		"plain HTTP":        {url: strings.Replace(plain.url, "http:", "https:", 1), tls: trusted, to: plain},
		"no client cert":    {url: mutual.url, tls: trusted, to: mutual},
		"unasked identity":  {url: good.url, identity: "spiffe://example.org/server", to: good},
		"refused by us": {url: good.url, to: good, tls: func(_, identity string) (*tls.Config, error) {
			return nil, errors.New("no identity " + identity)
		}},
	} {
		c := client(upstream.Config{TLS: tc.tls, Resolve: loopback})
		defer c.Close()
		before := tc.to.requests.Load()
		req := post(tc.url, "{}")
		req.Identity = tc.identity
		req.Set = http.Header{"Authorization": {"Bearer secret"}}
		_, err := c.Do(t.Context(), req)
		switch {
		case tc.ok && err != nil, !tc.ok && !errors.Is(err, upstream.ErrIdentity):
			t.Errorf("E15 %s: %v", name, err)
		case !tc.ok && (tc.to.requests.Load() != before || unsafe.Load()):
			t.Errorf("E15 %s: the request was sent", name)
		}
	}
}

func TestAServerThatSpeaksHTTP2OnlyIsServed(t *testing.T) {
	t.Parallel()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 || r.Header.Get("Cookie") != "" || r.Header.Get("X-Api-Key") != "k" {
			t.Errorf("%s %v", r.Proto, r.Header)
		}
		switch r.URL.Path {
		case "/events":
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "data: {}\n\n")
		case "/large":
			_, _ = io.WriteString(w, strings.Repeat("a", 1<<20))
		case "/away":
			http.Redirect(w, r, "/", http.StatusFound)
		default:
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.Copy(w, r.Body)
		}
	}))
	s.EnableHTTP2 = true
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP2(true)
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	c := client(upstream.Config{TLS: trusting(roots), MaxAnswer: 1 << 16})
	defer c.Close()
	do := func(path string) (*upstream.Response, error) {
		req := post(s.URL+path, `{"a":1}`)
		req.Header.Set("Cookie", "a=b")
		req.Set = http.Header{"X-Api-Key": {"k"}}
		return c.Do(t.Context(), req)
	}
	for range 3 {
		resp, err := do("/")
		if err != nil || string(resp.Body) != `{"a":1}` || !resp.JSON {
			t.Fatalf("%+v %v", resp, err)
		}
	}
	resp, err := do("/events")
	if err != nil {
		t.Fatal(err)
	}
	if ev, err := resp.Events.Next(); err != nil || string(ev.Data) != "{}" {
		t.Error(ev, err)
	}
	resp.Close()
	if _, err := do("/large"); !errors.Is(err, upstream.ErrTooLarge) {
		t.Error(err)
	}
	if _, err := do("/away"); !errors.Is(err, upstream.ErrRedirect) {
		t.Error(err)
	}
}

func TestAHostWithADeadAddressIsServedByItsOthers(t *testing.T) {
	t.Parallel()
	var now atomic.Int64
	var dead, good atomic.Int32
	s := newRaw(t, func(c net.Conn, _ *http.Request, _ string) bool {
		say(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		return false
	})
	_, port, _ := net.SplitHostPort(strings.TrimSuffix(strings.TrimPrefix(s.url, "http://"), "/mcp"))
	reg := prometheus.NewRegistry()
	c := client(upstream.Config{
		Registerer: reg, Now: func() time.Time { return time.Unix(1000, now.Load()) },
		Resolve: func(_ context.Context, host string) ([]netip.Addr, error) {
			if host != "two.example" {
				t.Errorf("asked for %q", host)
			}
			return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}, nil
		},
		Dial: func(ctx context.Context, _, addr string) (net.Conn, error) {
			if addr == "192.0.2.1:"+port {
				dead.Add(1)
				return nil, errors.New("unreachable")
			}
			good.Add(1)
			return (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:"+port)
		},
	})
	defer c.Close()
	call := func(times int) {
		t.Helper()
		for range times {
			if _, err := c.Do(t.Context(), post("http://Two.example:"+port+"/mcp", "{}")); err != nil {
				t.Fatal(err)
			}
		}
	}
	call(10)
	if dead.Load() != 3 || good.Load() != 10 {
		t.Errorf("the dead address was tried %d times", dead.Load())
	}
	if n := gather(t, reg)["mcpvault_upstream_ejected_addresses"]; n != 1 {
		t.Errorf("%v addresses are out", n)
	}
	now.Add(int64(11 * time.Second))
	call(10)
	if dead.Load() != 4 {
		t.Errorf("after the pause it was tried %d times", dead.Load()-3)
	}
	now.Add(int64(11 * time.Second)) // the second pause is twice as long
	call(3)
	if dead.Load() != 4 {
		t.Errorf("during the second pause it was tried %d times", dead.Load()-4)
	}
}

func TestRetriesAreATenthOfTheCalls(t *testing.T) {
	t.Parallel()
	var dials atomic.Int32
	c := client(upstream.Config{
		Resolve: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}, nil
		},
		Dial: func(context.Context, string, string) (net.Conn, error) {
			dials.Add(1)
			return nil, errors.New("unreachable")
		},
		// A clock that jumps keeps the breaker closed.
		Now: func() func() time.Time {
			var n atomic.Int64
			return func() time.Time { return time.Unix(n.Add(60), 0) }
		}(),
	})
	const calls = 200
	for range calls {
		if _, err := c.Do(t.Context(), post("http://dead.example/", "{}")); !errors.Is(err, upstream.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if retries := dials.Load() - calls; retries < 10 || retries > 10+calls/10 {
		t.Errorf("%d retries for %d calls", retries, calls)
	}
}

func TestIdleConnectionsAreClosedInTime(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{}, 8)
	s := newRaw(t, func(c net.Conn, _ *http.Request, _ string) bool {
		say(c, okAnswer)
		_, _ = io.Copy(io.Discard, c)
		gone <- struct{}{}
		return false
	})
	c := client(upstream.Config{IdleTimeout: 20 * time.Millisecond})
	if _, err := c.Do(t.Context(), post(s.url, "{}")); err != nil {
		t.Fatal(err)
	}
	<-gone
	c.Close()
	if _, err := c.Do(t.Context(), post(s.url, "{}")); err != nil {
		t.Fatal(err)
	}
	<-gone // a closed client keeps none
}

func TestOneServersMetrics(t *testing.T) {
	t.Parallel()
	s := newRaw(t, func(c net.Conn, r *http.Request, _ string) bool {
		if r.URL.Path == "/away" {
			return say(c, "HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n")
		}
		return say(c, okAnswer)
	})
	reg := prometheus.NewRegistry()
	c := client(upstream.Config{Registerer: reg})
	defer c.Close()
	for _, url := range []string{s.url, s.url, strings.Replace(s.url, "/mcp", "/away", 1)} {
		_, _ = c.Do(t.Context(), post(url, "{}"))
	}
	got := gather(t, reg)
	for key, n := range map[string]float64{
		"mcpvault_upstream_calls_total/ok": 2, "mcpvault_upstream_calls_total/redirect": 1, "mcpvault_upstream_connects_total/ok": 1,
		"mcpvault_upstream_calls_in_flight/call": 0, "mcpvault_upstream_idle_connections": 0,
	} {
		if v, ok := got[key]; !ok || v != n {
			t.Errorf("%s is %v, not %v", key, v, n)
		}
	}
}

// gather returns the samples of one server by name and further label.
func gather(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			key := f.GetName()
			for _, l := range m.GetLabel() {
				if l.GetName() != "upstream" {
					key += "/" + l.GetValue()
				}
			}
			got[key] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return got
}

func TestAStreamWithoutEndIsSlowedDown(t *testing.T) {
	t.Parallel()
	var sent atomic.Int64
	s := newRaw(t, func(c net.Conn, _ *http.Request, _ string) bool {
		say(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
		block := []byte(strings.Repeat("data: {}\n\n", 1000))
		for {
			n, err := c.Write(block)
			sent.Add(int64(n))
			if err != nil {
				return false
			}
		}
	})
	c := client(upstream.Config{MaxEvent: 64 << 10, StreamRate: 64 << 10})
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	resp, err := c.Do(ctx, post(s.url, "{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Close()
	events := 0
	began := time.Now()
	for ; err == nil; events++ {
		_, err = resp.Events.Next()
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	most := 64<<10 + int(time.Since(began).Seconds()*(64<<10)) + 16<<10
	if got := events * len("data: {}\n\n"); got > most || got < 64<<10 {
		t.Errorf("%d bytes of events, at most %d were to be taken", got, most)
	}
}

// A name that leads somewhere else the second time gains nothing: each connection's address is judged.
func TestANameThatChangesItsMindIsRefused(t *testing.T) {
	t.Parallel()
	s := newRaw(t, func(c net.Conn, _ *http.Request, _ string) bool {
		say(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		return false
	})
	_, port, _ := net.SplitHostPort(strings.TrimSuffix(strings.TrimPrefix(s.url, "http://"), "/mcp"))
	guard, err := egress.NewGuard([]string{"127.0.0.1:" + port})
	if err != nil {
		t.Fatal(err)
	}
	var answer atomic.Value
	c := client(upstream.Config{Dial: guard.DialContext, Resolve: func(context.Context, string) ([]netip.Addr, error) {
		return answer.Load().([]netip.Addr), nil
	}})
	defer c.Close()
	url := "http://flip.example:" + port + "/"
	for _, to := range []string{
		"127.0.0.1", "127.0.0.2", "169.254.169.254", "::1", "::ffff:127.0.0.2", "64:ff9b::7f00:1", "2002:7f00:1::", "0.0.0.0", "10.0.0.1",
		"fe80::a9fe:a9fe",
	} {
		answer.Store([]netip.Addr{netip.MustParseAddr(to)})
		_, err := c.Do(t.Context(), post(url, "{}"))
		if to == "127.0.0.1" {
			if err != nil {
				t.Fatal(err)
			}
			continue
		}
		if !errors.Is(err, egress.ErrBlocked) || !errors.Is(err, upstream.ErrUnavailable) {
			t.Errorf("E16 %s: %v", to, err)
		}
	}
	if s.conns.Load() != 1 {
		t.Errorf("E16: %d connections", s.conns.Load())
	}
	// Of several addresses, those that are not allowed are passed over.
	good := client(upstream.Config{Dial: guard.DialContext, Resolve: func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("127.0.0.1")}, nil
	}})
	defer good.Close()
	if _, err := good.Do(t.Context(), post(url, "{}")); err != nil {
		t.Error(err)
	}
}
