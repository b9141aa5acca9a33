package upstream_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/upstream"
)

func client(cfg upstream.Config) *upstream.Client {
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	if cfg.ConnectTimeout == 0 { // a busy machine is no dead server
		cfg.ConnectTimeout, cfg.HandshakeTimeout = 30*time.Second, 30*time.Second
	}
	return upstream.New(cfg)
}

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func post(url string, body string) *upstream.Request {
	return &upstream.Request{URL: url, Method: http.MethodPost, Body: []byte(body), Header: http.Header{}}
}

func TestOnlyAllowedHeadersCross(t *testing.T) {
	t.Parallel()
	var got http.Header
	var body []byte
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		body, _ = io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("Mcp-Session-Id", "up")
		_, _ = io.WriteString(w, `{}`)
	})
	req := post(url, `{"a": 1}`)
	for _, h := range []string{
		"Authorization", "Cookie", "X-Forwarded-For", "Forwarded", "X-Real-Ip", "X-Mcpvault-User", "Origin", "Proxy-Authorization",
		"Mcp-Session-Id", "Connection", "X-User", "Accept-Encoding", "Idempotency-Key",
	} {
		req.Header.Set(h, "secret")
	}
	req.Header.Set("Mcp-Param-Region", "eu")
	req.Header.Set("Mcp-Method", "tools/call")
	req.Set = http.Header{"Mcp-Session-Id": {"mine"}, "Mcp-Method": nil}
	resp, err := client(upstream.Config{}).Do(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Close()
	for k, v := range got {
		if strings.Contains(strings.Join(v, ","), "secret") {
			t.Errorf("A30/D19: %s crossed", k)
		}
	}
	if got.Get("Mcp-Param-Region") != "eu" || got.Get("Mcp-Session-Id") != "mine" || got.Get("Mcp-Method") != "" {
		t.Errorf("headers %v", got)
	}
	if string(body) != `{"a": 1}` || resp.Session != "up" || string(resp.Body) != "{}" || !resp.JSON {
		t.Errorf("body %s, answer %+v", body, resp)
	}
}

func TestAnswersAreBounded(t *testing.T) {
	t.Parallel()
	url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		for range 100 {
			if _, err := io.WriteString(w, strings.Repeat("a", 1<<10)); err != nil {
				return
			}
		}
	})
	if _, err := client(upstream.Config{MaxAnswer: 1 << 14}).Do(t.Context(), post(url, "{}")); !errors.Is(err, upstream.ErrTooLarge) {
		t.Fatalf("E04: %v", err)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	var second atomic.Bool
	target := serve(t, func(http.ResponseWriter, *http.Request) { second.Store(true) })
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, target, http.StatusTemporaryRedirect)
	})
	if _, err := client(upstream.Config{}).Do(t.Context(), post(url, "{}")); !errors.Is(err, upstream.ErrRedirect) || second.Load() {
		t.Fatalf("E08: %v", err)
	}
}

func TestADeadUpstreamIsToldApartFromABrokenCall(t *testing.T) {
	t.Parallel()
	dead := client(upstream.Config{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("refused") }})
	if _, err := dead.Do(t.Context(), post("http://upstream.example/mcp", "{}")); !errors.Is(err, upstream.ErrUnavailable) {
		t.Fatalf("E01: %v", err)
	}
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body)
		conn, _, _ := http.NewResponseController(w).Hijack()
		_ = conn.Close()
	})
	if _, err := client(upstream.Config{}).Do(t.Context(), post(url, "{}")); !errors.Is(err, upstream.ErrBroken) {
		t.Fatalf("a call that was sent must be reported as such: %v", err)
	}
	for _, bad := range []string{"", "ftp://x", "/mcp"} {
		if _, err := dead.Do(t.Context(), post(bad, "{}")); !errors.Is(err, upstream.ErrUnavailable) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestTheDeadlineIsTotal(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	url := serve(t, func(http.ResponseWriter, *http.Request) { <-release })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := client(upstream.Config{}).Do(ctx, post(url, "{}")); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("E02: %v", err)
	}
}

func TestTheBreakerOpensAndTriesAgain(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	var calls atomic.Int32
	alive := false
	c := client(upstream.Config{
		Now: func() time.Time { return now },
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			calls.Add(1)
			if !alive {
				return nil, errors.New("refused")
			}
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		},
	})
	url := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) })
	for range 5 {
		if _, err := c.Do(t.Context(), post(url, "{}")); !errors.Is(err, upstream.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if _, err := c.Do(t.Context(), post(url, "{}")); !errors.Is(err, upstream.ErrRefused) || calls.Load() != 5 {
		t.Fatalf("still calling after five failures: %v", err)
	}
	if c.State(url) != upstream.Open {
		t.Errorf("the breaker is said to be in state %d", c.State(url))
	}
	now, alive = now.Add(3*time.Second), true
	if c.State(url) != upstream.HalfOpen {
		t.Errorf("after its rest the breaker is said to be in state %d", c.State(url))
	}
	for range 3 {
		if _, err := c.Do(t.Context(), post(url, "{}")); err != nil {
			t.Fatalf("did not close again: %v", err)
		}
	}
	if c.State(url) != upstream.Closed {
		t.Errorf("the breaker is said to be in state %d", c.State(url))
	}
}

func TestOneUpstreamCannotTakeAllPlaces(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	slow := serve(t, func(http.ResponseWriter, *http.Request) { entered <- struct{}{}; <-release })
	quick := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) })
	c := client(upstream.Config{MaxCalls: 1})
	done := make(chan error, 1)
	go func() {
		_, err := c.Do(t.Context(), post(slow, "{}"))
		done <- err
	}()
	<-entered
	if _, err := c.Do(t.Context(), post(slow, "{}")); !errors.Is(err, upstream.ErrBusy) {
		t.Fatal(err)
	}
	if _, err := c.Do(t.Context(), post(quick, "{}")); err != nil {
		t.Fatal(err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
