package edge_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/edge"
)

// onBoth runs a test with each front.
func onBoth(t *testing.T, test func(t *testing.T, front edge.Front)) {
	t.Helper()
	for _, front := range []edge.Front{edge.FrontFast, edge.FrontNetHTTP} {
		t.Run(string(front), func(t *testing.T) {
			t.Parallel()
			test(t, front)
		})
	}
}

// start serves h and returns the address and a function that begins the drain and returns what Run returned.
func start(t testing.TB, cfg edge.Config, h http.Handler) (addr string, stop func() error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := edge.New(cfg, ln, h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() error {
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() {
		if !stopped {
			_ = stop()
		}
	})
	return s.Addr().String(), stop
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	_, _ = io.WriteString(w, "hello")
})

// raw sends bytes on a fresh connection and returns the status of the first answer, 0 when there was none.
func raw(t *testing.T, addr, request string) (status int, closed bool) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(c, request)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return 0, true
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_, err = r.ReadByte()
	return resp.StatusCode, err != nil && !errors.Is(err, context.DeadlineExceeded)
}

func TestMalformedRequestsAreRefusedAndClosed(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, front edge.Front) {
		addr, _ := start(t, edge.Config{Front: front}, hello)
		const head = "POST /mcp HTTP/1.1\r\nHost: a\r\n"
		for row, request := range map[string]string{
			"A04": head + "Content-Length: 1\r\nContent-Length: 2\r\n\r\na",
			"A05": head + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
			"A07": "GET /mcp\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
			"A08": head + "Mcp-Name : x\r\n\r\n",
			"A09": head + "X: a\x00b\r\n\r\n",
			"A10": head + "X: " + strings.Repeat("a", 33<<10) + "\r\n\r\n",
			"A12": "GET /mcp HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
			"no":  "GET /mcp HTTP/1.1\r\n\r\n",
		} {
			t.Run(row, func(t *testing.T) {
				t.Parallel()
				if status, closed := raw(t, addr, request); status < 400 || !closed {
					t.Errorf("status %d, closed %v", status, closed)
				}
			})
		}
		if resp, err := http.Get("http://" + addr); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal("the next client was not served", err)
		}
	})
}

func TestSlowHeadersAreCutOff(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, front edge.Front) {
		addr, _ := start(t, edge.Config{Front: front, HeaderTimeout: 100 * time.Millisecond}, hello)
		began := time.Now()
		if status, closed := raw(t, addr, "POST /mcp HTTP/1.1\r\nHo"); status == http.StatusOK || !closed || time.Since(began) > 5*time.Second {
			t.Fatalf("A16: status %d after %s", status, time.Since(began))
		}
	})
}

func TestPlainHTTPStaysOnLoopback(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if _, err := edge.New(edge.Config{}, ln, hello, slog.New(slog.DiscardHandler)); !errors.Is(err, edge.ErrNotLoopback) {
		t.Fatal(err)
	}
}

func TestTLSIsOneThreeOnlyAndSpeaksHTTP2(t *testing.T) {
	t.Parallel()
	donor := httptest.NewUnstartedServer(nil)
	donor.StartTLS()
	defer donor.Close()
	addr, _ := start(t, edge.Config{TLS: &tls.Config{Certificates: donor.TLS.Certificates}}, hello)
	if _, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil {
		t.Fatal("A24: TLS 1.2 was taken")
	}
	pool := donor.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "example.com"}, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("https://" + addr)
	if err != nil || resp.ProtoMajor != 2 {
		t.Fatal(resp, err)
	}
	_ = resp.Body.Close()
}

func TestRequestsFinishWithinTheGrace(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, front edge.Front) {
		entered, release := make(chan struct{}), make(chan struct{})
		addr, stop := start(t, edge.Config{Front: front, Grace: 10 * time.Second}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(entered)
			<-release
			_, _ = io.WriteString(w, "finished")
		}))
		got := make(chan string, 1)
		go func() {
			resp, err := http.Get("http://" + addr)
			if err != nil {
				got <- err.Error()
				return
			}
			b, _ := io.ReadAll(resp.Body)
			got <- string(b)
		}()
		<-entered
		stopped := make(chan error, 1)
		go func() { stopped <- stop() }()
		for {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				break
			}
			_ = c.Close()
		}
		close(release)
		if body := <-got; body != "finished" {
			t.Fatal(body)
		}
		if err := <-stopped; err != nil {
			t.Fatal(err)
		}
	})
}

func TestWhatOutlivesTheGraceIsCutOff(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, front edge.Front) {
		entered := make(chan struct{})
		addr, stop := start(t, edge.Config{Front: front, Grace: 50 * time.Millisecond}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			close(entered)
			<-r.Context().Done()
		}))
		go func() { _, _ = http.Get("http://" + addr) }()
		<-entered
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWhatIsCutOffLearnsWhyAndMayAnswer(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, front edge.Front) {
		why := errors.New("the end")
		entered := make(chan struct{})
		addr, stop := start(t, edge.Config{Front: front, Grace: 20 * time.Millisecond, Cut: why}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(entered)
			<-r.Context().Done()
			if errors.Is(context.Cause(r.Context()), why) {
				w.WriteHeader(http.StatusTeapot)
			}
		}))
		status := make(chan int, 1)
		go func() {
			resp, err := http.Get("http://" + addr)
			if err != nil {
				status <- 0
				return
			}
			_ = resp.Body.Close()
			status <- resp.StatusCode
		}()
		<-entered
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if got := <-status; got != http.StatusTeapot {
			t.Fatalf("status %d", got)
		}
	})
}

func TestOneAddressCannotTakeAllConnections(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, front edge.Front) {
		addr, _ := start(t, edge.Config{Front: front, MaxConns: 2}, hello)
		var held []net.Conn
		for range 2 {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
				t.Fatal(err)
			}
			held = append(held, c)
		}
		if status, closed := raw(t, addr, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); status != 0 || !closed {
			t.Fatalf("A34: status %d", status)
		}
		_ = held[0].Close()
		deadline := time.Now().Add(5 * time.Second)
		for {
			if status, _ := raw(t, addr, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); status == http.StatusOK {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("a place was not given back")
			}
		}
	})
}

// overTLS serves h behind TLS and returns the address and what a client needs.
func overTLS(t *testing.T, cfg edge.Config, h http.Handler) (addr string, client *tls.Config, stop func() error) {
	t.Helper()
	donor := httptest.NewUnstartedServer(nil)
	donor.StartTLS()
	t.Cleanup(donor.Close)
	cfg.TLS = &tls.Config{Certificates: donor.TLS.Certificates}
	addr, stop = start(t, cfg, h)
	return addr, &tls.Config{RootCAs: donor.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com"}, stop
}

func TestBothProtocolsAreServedOnOneTLSListener(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, front edge.Front) {
		addr, client, stop := overTLS(t, edge.Config{Front: front}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			if r.TLS == nil || r.TLS.Version != tls.VersionTLS13 {
				t.Error("the handler does not see the connection:", r.TLS)
			}
			_, _ = io.WriteString(w, r.Proto+string(b))
		}))
		for _, protocol := range []string{"HTTP/2.0", "HTTP/1.1"} {
			tr := &http.Transport{TLSClientConfig: client.Clone(), ForceAttemptHTTP2: protocol == "HTTP/2.0"}
			for range 3 {
				resp, err := (&http.Client{Transport: tr}).Post("https://"+addr, "text/plain", strings.NewReader(" body"))
				if err != nil {
					t.Fatal(err)
				}
				if b, _ := io.ReadAll(resp.Body); string(b) != protocol+" body" {
					t.Errorf("%q", b)
				}
				_ = resp.Body.Close()
			}
			tr.CloseIdleConnections()
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestMalformedRequestsAreRefusedBehindTLS(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, front edge.Front) {
		refused := make(chan string, 8)
		cfg := edge.Config{Front: front, Refused: func(_ net.Addr, _ int, reason string) { refused <- reason }}
		addr, client, _ := overTLS(t, cfg, hello)
		client.NextProtos = []string{"http/1.1"}
		c, err := tls.Dial("tcp", addr, client)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != http.StatusBadRequest || !resp.Close {
			t.Fatalf("A03: %v %v", resp, err)
		}
		if reason := <-refused; reason != "length_and_encoding" {
			t.Error(reason)
		}
	})
}

func TestAHandshakeHasItsTimeToo(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, front edge.Front) {
		addr, _, _ := overTLS(t, edge.Config{Front: front, HeaderTimeout: 100 * time.Millisecond}, hello)
		if status, closed := raw(t, addr, "\x16\x03\x01"); status != 0 || !closed {
			t.Error("A16: a handshake without an end")
		}
	})
}

func TestAClientThatReadsNothingIsGivenUp(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, front edge.Front) {
		for _, secure := range []bool{false, true} {
			gone := make(chan error, 1)
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var err error
				for block := make([]byte, 1<<20); err == nil; {
					_, err = w.Write(block)
				}
				<-r.Context().Done()
				gone <- err
			})
			cfg := edge.Config{Front: front, WriteTimeout: 100 * time.Millisecond}
			var c net.Conn
			var err error
			if secure {
				addr, client, _ := overTLS(t, cfg, h)
				c, err = tls.Dial("tcp", addr, client)
			} else {
				addr, _ := start(t, cfg, h)
				c, err = net.Dial("tcp", addr)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			if err := <-gone; err == nil {
				t.Error("A18: it was written to for ever")
			}
		}
	})
}

func TestTheLeavingOfAClientShowsBehindTLS(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, front edge.Front) {
		entered, left := make(chan struct{}), make(chan struct{})
		addr, client, _ := overTLS(t, edge.Config{Front: front}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			close(entered)
			<-r.Context().Done()
			close(left)
		}))
		c, err := tls.Dial("tcp", addr, client)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		<-entered
		_ = c.Close()
		<-left
	})
}
