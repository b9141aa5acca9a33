package http1_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/edge/http1"
)

// start serves h on a socket and returns its address.
func start(t testing.TB, cfg http1.Config, h http.HandlerFunc) (addr string, s *http1.Server) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Handler = h
	s = http1.New(cfg)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		_ = s.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error("Serve returned", err)
		}
	})
	return ln.Addr().String(), s
}

// client is one connection on which requests are written by hand.
type client struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
}

func dial(t testing.TB, addr string) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return &client{t, c, bufio.NewReader(c)}
}

func (c *client) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Fatal(err)
	}
}

// answer reads one answer to a request of the method.
func (c *client) answer(method string) (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		c.t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp, string(b)
}

// over reports whether the server has closed its side.
func (c *client) over() bool {
	_, err := c.r.ReadByte()
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

func echo(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_, _ = fmt.Fprintf(w, "%s %s %q", r.Method, r.RequestURI, b)
}

func TestRequestsFollowEachOtherOnOneConnection(t *testing.T) {
	t.Parallel()
	addr, _ := start(t, http1.Config{}, echo)
	c := dial(t, addr)
	for i := range 5 {
		body := strings.Repeat("x", i)
		c.send(fmt.Sprintf("POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", i, i, body))
		resp, got := c.answer("POST")
		if want := fmt.Sprintf("POST /%d %q", i, body); got != want || resp.ContentLength != int64(len(want)) || resp.Header.Get("Date") == "" {
			t.Fatalf("%v %q", resp, got)
		}
	}
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	t.Parallel()
	addr, _ := start(t, http1.Config{}, echo)
	c := dial(t, addr)
	c.send("POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: a\r\n\r\n" +
		"POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\nz\r\n0\r\nT: v\r\n\r\nGET /4 HTTP/1.1\r\nHost: a\r\n\r\n")
	for _, want := range []string{`POST /1 "abc"`, `GET /2 ""`, `POST /3 "z"`, `GET /4 ""`} {
		if _, got := c.answer("GET"); got != want {
			t.Fatalf("%q instead of %q", got, want)
		}
	}
}

func TestARequestMayComeByteByByte(t *testing.T) {
	t.Parallel()
	addr, _ := start(t, http1.Config{}, echo)
	c := dial(t, addr)
	for _, b := range "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n" {
		c.send(string(b))
	}
	if _, got := c.answer("POST"); got != `POST / "ab"` {
		t.Fatalf("%q", got)
	}
}

func TestNothingOfARequestShowsInTheNext(t *testing.T) {
	t.Parallel()
	type seen struct {
		header http.Header
		auth   string
	}
	var got []seen
	addr, _ := start(t, http1.Config{}, func(w http.ResponseWriter, r *http.Request) {
		got = append(got, seen{r.Header.Clone(), r.Header.Get("Authorization")})
		w.Header().Set("X-Only-"+strings.Trim(r.URL.Path, "/"), "1")
	})
	c := dial(t, addr)
	c.send("GET /a HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer one\r\nX-Unknown: v\r\n\r\n")
	first, _ := c.answer("GET")
	c.send("GET /b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer two\r\nX-Unknowm: w\r\n\r\n")
	second, _ := c.answer("GET")
	if first.Header.Get("X-Only-A") == "" || second.Header.Get("X-Only-A") != "" || second.Header.Get("X-Only-B") == "" {
		t.Error(first.Header, second.Header)
	}
	if len(got) != 2 || got[0].auth != "Bearer one" || got[1].auth != "Bearer two" || len(got[1].header) != 2 || got[1].header.Get("X-Unknowm") != "w" {
		t.Errorf("%+v", got)
	}
}

func TestAnswersAreFramedAsTheirKindDemands(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("0123456789", 20_000)
	addr, _ := start(t, http1.Config{}, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/none":
			w.WriteHeader(http.StatusNoContent)
		case "/notmodified":
			w.WriteHeader(http.StatusNotModified)
			if _, err := w.Write([]byte("x")); !errors.Is(err, http.ErrBodyNotAllowed) {
				t.Error("a body was taken:", err)
			}
		case "/big":
			for i := range 20 {
				_, _ = io.WriteString(w, big[i*10_000:(i+1)*10_000])
			}
		case "/huge":
			_, _ = io.WriteString(w, big)
		case "/stated":
			w.Header().Set("Content-Length", "200000")
			_, _ = io.WriteString(w, big)
		case "/flushed":
			_, _ = io.WriteString(w, "a")
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, "b")
		case "/lines":
			w.Header()["X-Bad"] = []string{"a\r\nSet-Cookie: b"}
			w.Header()["no name"] = []string{"x"}
			w.Header().Set("Transfer-Encoding", "identity")
		default:
			_, _ = io.WriteString(w, "plain")
		}
	})
	for _, tc := range []struct {
		method, path string
		status       int
		length       int64
		body         string
	}{
		{"GET", "/", 200, 5, "plain"},
		{"HEAD", "/", 200, 5, ""},
		{"GET", "/none", 204, 0, ""},
		{"GET", "/notmodified", 304, 0, ""},
		{"GET", "/big", 200, -1, big},
		{"GET", "/huge", 200, -1, big},
		{"GET", "/stated", 200, 200_000, big},
		{"HEAD", "/stated", 200, 200_000, ""},
		{"GET", "/flushed", 200, -1, "ab"},
		{"HEAD", "/flushed", 200, -1, ""},
		{"GET", "/lines", 200, 0, ""},
	} {
		c := dial(t, addr)
		for range 2 { // the second shows that the first ended where it should
			c.send(tc.method + " " + tc.path + " HTTP/1.1\r\nHost: a\r\n\r\n")
			resp, body := c.answer(tc.method)
			if resp.StatusCode != tc.status || resp.ContentLength != tc.length || body != tc.body || resp.Header.Get("Set-Cookie") != "" {
				t.Errorf("%s %s: %d, length %d, %d bytes, %v", tc.method, tc.path, resp.StatusCode, resp.ContentLength, len(body), resp.Header)
			}
		}
	}
}

func TestAWholeAnswerIsOneWrite(t *testing.T) {
	t.Parallel()
	a, b := net.Pipe()
	defer a.Close()
	s := http1.New(http1.Config{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "one ")
		_, _ = io.WriteString(w, "write")
	})})
	defer s.Close()
	s.Take(b)
	_, _ = io.WriteString(a, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	buf := make([]byte, 4096)
	n, err := a.Read(buf) // a pipe gives each write to a read of its own
	if err != nil || !strings.HasSuffix(string(buf[:n]), "\r\n\r\none write") {
		t.Fatalf("%q %v", buf[:n], err)
	}
}

func TestOldClientsAreServedOnce(t *testing.T) {
	t.Parallel()
	addr, _ := start(t, http1.Config{}, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
		if r.URL.Path == "/flush" {
			_ = http.NewResponseController(w).Flush()
		}
	})
	for _, path := range []string{"/", "/flush"} {
		c := dial(t, addr)
		c.send("GET " + path + " HTTP/1.0\r\nHost: a\r\n\r\n")
		if resp, body := c.answer("GET"); body != "HTTP/1.0" || len(resp.TransferEncoding) > 0 || !c.over() {
			t.Errorf("%s: %v %q", path, resp, body)
		}
	}
}

func TestTheClientIsToldToSendItsBodyOnlyWhenItIsWanted(t *testing.T) {
	t.Parallel()
	addr, _ := start(t, http1.Config{}, func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > 10 {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		echo(w, r)
	})
	const head = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
	c := dial(t, addr)
	c.send(head + "Content-Length: 2\r\n\r\n")
	if line, _ := c.r.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q", line)
	}
	_, _ = c.r.ReadString('\n')
	c.send("ab")
	if _, body := c.answer("POST"); body != `POST / "ab"` {
		t.Fatalf("%q", body)
	}
	c.send(head + "Content-Length: 20\r\n\r\n")
	if resp, _ := c.answer("POST"); resp.StatusCode != http.StatusRequestEntityTooLarge || !resp.Close || !c.over() {
		t.Fatalf("A27: %v", resp)
	}
}

func TestABodyThatNobodyReadsEndsTheConnection(t *testing.T) {
	t.Parallel()
	addr, _ := start(t, http1.Config{}, func(http.ResponseWriter, *http.Request) {})
	c := dial(t, addr)
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\n")
	for range 2 { // one that has arrived costs nothing to skip
		if resp, _ := c.answer("GET"); resp.Close {
			t.Fatal("closed over a body that had arrived")
		}
	}
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4194305\r\n\r\nabc")
	if resp, _ := c.answer("POST"); !resp.Close || !c.over() {
		t.Fatal("went on in the middle of a body")
	}
}

func TestTheContextEndsWhenTheClientLeaves(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere it shows at the next write")
	}
	for _, how := range []string{"waiting", "streaming", "derived"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			entered, left := make(chan struct{}), make(chan error, 1)
			addr, _ := start(t, http1.Config{}, func(w http.ResponseWriter, r *http.Request) {
				ctx := r.Context()
				switch how {
				case "streaming":
					_ = http.NewResponseController(w).Flush()
				case "derived":
					c, cancel := context.WithCancelCause(context.WithValue(ctx, new(int), 1))
					defer cancel(nil)
					ctx = c
				}
				close(entered)
				<-ctx.Done()
				left <- ctx.Err()
			})
			c := dial(t, addr)
			c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
			<-entered
			_ = c.Close()
			if err := <-left; !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		})
	}
}

func TestTheContextEndsWithTheRequest(t *testing.T) {
	t.Parallel()
	ctxs := make(chan context.Context, 1)
	addr, _ := start(t, http1.Config{}, func(_ http.ResponseWriter, r *http.Request) {
		if r.Context().Err() != nil {
			t.Error("ended before its time")
		}
		ctxs <- r.Context()
	})
	c := dial(t, addr)
	for range 2 {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		c.answer("GET")
		ctx := <-ctxs
		<-ctx.Done()
		if !errors.Is(context.Cause(ctx), context.Canceled) {
			t.Error(context.Cause(ctx))
		}
	}
}

func TestTheContextEndsWithItsBaseForTheSameCause(t *testing.T) {
	t.Parallel()
	why := errors.New("why")
	base, cut := context.WithCancelCause(t.Context())
	entered, got := make(chan struct{}), make(chan error, 1)
	addr, _ := start(t, http1.Config{Base: base}, func(_ http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		close(entered)
		<-ctx.Done()
		got <- context.Cause(ctx)
	})
	dial(t, addr).send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	<-entered
	cut(why)
	if err := <-got; !errors.Is(err, why) {
		t.Fatal(err)
	}
}

func TestDeadlinesOfTheHandlerHold(t *testing.T) {
	t.Parallel()
	read, wrote := make(chan error, 1), make(chan error, 1)
	addr, _ := start(t, http1.Config{}, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if r.URL.Path == "/read" {
			_ = rc.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
			_, err := io.ReadAll(r.Body)
			read <- err
			w.WriteHeader(http.StatusRequestTimeout)
			return
		}
		_ = rc.SetWriteDeadline(time.Now().Add(30 * time.Millisecond))
		var err error
		for block := make([]byte, 1<<20); err == nil; {
			_, err = w.Write(block)
		}
		wrote <- err
	})
	c := dial(t, addr)
	c.send("POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx")
	if resp, _ := c.answer("POST"); resp.StatusCode != http.StatusRequestTimeout || !resp.Close || !c.over() {
		t.Error("A17:", resp)
	}
	if err := <-read; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("A17:", err)
	}
	dial(t, addr).send("GET /write HTTP/1.1\r\nHost: a\r\n\r\n")
	if err := <-wrote; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("A18:", err)
	}
}

func TestADeadlineEndsTheReadThatIsUnderWay(t *testing.T) {
	t.Parallel()
	addr, _ := start(t, http1.Config{}, func(w http.ResponseWriter, r *http.Request) {
		var wg sync.WaitGroup
		wg.Go(func() {
			for r.Context().Err() == nil {
				_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
			}
		})
		_, err := io.ReadAll(r.Body)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		w.Header().Set("Content-Length", "0")
		_ = http.NewResponseController(w).Flush()
	})
	c := dial(t, addr)
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx")
	c.answer("POST")
}

func TestAClientThatReadsNothingIsGivenUp(t *testing.T) {
	t.Parallel()
	wrote := make(chan error, 1)
	addr, _ := start(t, http1.Config{WriteTimeout: 100 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
		_, err := w.Write(make([]byte, 64<<20))
		<-r.Context().Done()
		wrote <- err
	})
	dial(t, addr).send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if err := <-wrote; err == nil {
		t.Error("A18: the client has all of it")
	}
}

func TestIdleAndSlowConnectionsAreClosed(t *testing.T) {
	t.Parallel()
	addr, _ := start(t, http1.Config{HeaderTimeout: 100 * time.Millisecond, IdleTimeout: 100 * time.Millisecond}, echo)
	slow := dial(t, addr)
	slow.send("GET / HT")
	if resp, _ := slow.answer("GET"); resp.StatusCode != http.StatusRequestTimeout || !slow.over() {
		t.Error("A16:", resp)
	}
	if silent := dial(t, addr); !silent.over() {
		t.Error("a silent connection lives on")
	}
	idle := dial(t, addr)
	idle.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	idle.answer("GET")
	if !idle.over() {
		t.Error("an idle connection lives on")
	}
}

func TestAParkedConnectionServesAgain(t *testing.T) {
	t.Parallel()
	addr, s := start(t, http1.Config{}, echo)
	c := dial(t, addr)
	for range 3 {
		c.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab")
		if _, got := c.answer("POST"); got != `POST /x "ab"` {
			t.Fatalf("%q", got)
		}
		for http1.Parked(s) != 1 {
			time.Sleep(time.Millisecond)
		}
	}
}

func TestAPanicEndsTheConnectionAndNothingElse(t *testing.T) {
	t.Parallel()
	addr, _ := start(t, http1.Config{}, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "half")
		switch r.URL.Path {
		case "/abort":
			panic(http.ErrAbortHandler)
		case "/panic":
			panic("x")
		case "/flushed":
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	})
	for _, path := range []string{"/abort", "/panic"} {
		c := dial(t, addr)
		c.send("GET " + path + " HTTP/1.1\r\nHost: a\r\n\r\n")
		if !c.over() {
			t.Error(path, "was answered")
		}
	}
	resp, err := http.Get("http://" + addr + "/flushed")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("a cut answer looks whole: %q", b)
	}
	_ = resp.Body.Close()
	if resp, err := http.Get("http://" + addr + "/"); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(err)
	}
}

func TestWhatAHandlerLeavesBehindReachesNothing(t *testing.T) {
	t.Parallel()
	type leftover struct {
		w http.ResponseWriter
		r *http.Request
	}
	left := make(chan leftover, 3)
	addr, _ := start(t, http1.Config{}, func(w http.ResponseWriter, r *http.Request) {
		b := make([]byte, 1)
		_, _ = r.Body.Read(b)
		left <- leftover{w, r}
	})
	c := dial(t, addr)
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
	c.answer("POST")
	l := <-left
	// The answer may come before the request has ended; once another one was answered, it has.
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	c.answer("GET")
	if n, err := l.r.Body.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Error("a byte of the next request was read")
	}
	if _, err := l.w.Write([]byte("x")); err == nil {
		t.Error("an answer to the next request was written")
	}
	if http.NewResponseController(l.w).SetReadDeadline(time.Unix(1, 0)) == nil || http.NewResponseController(l.w).Flush() == nil {
		t.Error("the next request was touched")
	}
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	c.answer("GET")
}

func TestShutdownLetsRequestsFinish(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	addr, s := start(t, http1.Config{}, func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		_, _ = io.WriteString(w, "done")
	})
	idle := dial(t, addr)
	c := dial(t, addr)
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	<-entered
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(t.Context()) }()
	close(release)
	if resp, body := c.answer("GET"); body != "done" || !resp.Close {
		t.Fatal(resp, body)
	}
	if err := <-done; err != nil || !idle.over() {
		t.Fatal(err)
	}
}

func TestEveryClientGetsItsOwnAnswer(t *testing.T) {
	t.Parallel()
	addr, _ := start(t, http1.Config{}, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header()["X-Id"] = r.Header["X-Id"]
		for part := range slices.Chunk(b, 1+len(b)/3) {
			_, _ = w.Write(part)
			if len(b)%2 == 0 {
				_ = http.NewResponseController(w).Flush()
			}
		}
	})
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(worker), 1))
			tr := &http.Transport{DisableKeepAlives: worker == 0}
			defer tr.CloseIdleConnections()
			for i := range 100 {
				id := fmt.Sprintf("%d-%d", worker, i)
				body := strings.Repeat(id+".", rnd.IntN(1<<(1+rnd.IntN(14))))
				var r io.Reader = strings.NewReader(body)
				if i%3 == 0 {
					r = io.MultiReader(r) // of unknown length: in chunks
				}
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr, r)
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("X-Id", id)
				resp, err := tr.RoundTrip(req)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || string(got) != body || resp.Header.Get("X-Id") != id {
					t.Errorf("%s: %q, %d bytes instead of %d, %v", id, resp.Header.Get("X-Id"), len(got), len(body), err)
				}
			}
		})
	}
	wg.Wait()
}

// endable is what the contexts of requests are besides.
type endable interface {
	End(cause error)
	EndAfter(d time.Duration, cause error)
	Cause() error
}

func TestTheHandlerEndsItsContextForItsOwnCause(t *testing.T) {
	t.Parallel()
	enough, late := errors.New("enough"), errors.New("late")
	end := map[string]func(endable){
		"at once":   func(e endable) { e.End(enough) },
		"in a time": func(e endable) { e.EndAfter(time.Millisecond, enough) },
		"in a time that replaces another": func(e endable) {
			e.EndAfter(time.Hour, late)
			e.EndAfter(time.Millisecond, enough)
		},
		"once": func(e endable) {
			e.End(enough)
			e.End(late)
		},
	}
	for name, how := range end {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, told := make(chan error, 2), make(chan struct{}, 1)
			addr, _ := start(t, http1.Config{}, func(_ http.ResponseWriter, r *http.Request) {
				ctx := r.Context()
				e := ctx.(endable)
				context.AfterFunc(ctx, func() { told <- struct{}{} })
				got <- e.Cause()
				how(e)
				<-ctx.Done()
				<-told
				got <- e.Cause()
			})
			c := dial(t, addr)
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			c.answer("GET")
			if err := <-got; err != nil {
				t.Error("a cause before the end:", err)
			}
			if err := <-got; !errors.Is(err, enough) {
				t.Error(err)
			}
		})
	}
}

func TestATimeThatWasTakenBackDoesNotCome(t *testing.T) {
	t.Parallel()
	addr, _ := start(t, http1.Config{}, func(w http.ResponseWriter, r *http.Request) {
		e := r.Context().(endable)
		e.EndAfter(time.Millisecond, errors.New("late"))
		e.EndAfter(0, nil)
		stopped := false
		stop := context.AfterFunc(r.Context(), func() { stopped = true })
		time.Sleep(300 * time.Millisecond) // three ticks of the server's clock
		if !stop() || stopped || e.Cause() != nil {
			w.WriteHeader(http.StatusTeapot)
		}
	})
	c := dial(t, addr)
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp, _ := c.answer("GET"); resp.StatusCode != http.StatusOK {
		t.Error(resp.Status)
	}
}
