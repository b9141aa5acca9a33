package edge_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/mcpvault/mcpvault/dataplane/edge"
)

// donor has a certificate for example.com.
var donor = sync.OnceValues(func() ([]tls.Certificate, *x509.CertPool) {
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	defer s.Close()
	return s.TLS.Certificates, s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
})

func clientTLS() *tls.Config {
	_, pool := donor()
	return &tls.Config{RootCAs: pool, ServerName: "example.com", NextProtos: []string{"h3"}}
}

// startQUIC serves h as HTTP/3 and returns the address and a function that begins the drain and returns what Run returned.
func startQUIC(t *testing.T, cfg edge.Config, h http.Handler) (addr string, stop func() error) {
	t.Helper()
	if cfg.TLS == nil {
		certs, _ := donor()
		cfg.TLS = &tls.Config{Certificates: certs}
	}
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	s, err := edge.NewQUIC(cfg, socket, h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = stop() })
	return s.Addr().String(), stop
}

func client(t *testing.T, cfg *quic.Config) *http.Client {
	t.Helper()
	tr := &http3.Transport{TLSClientConfig: clientTLS(), QUICConfig: cfg}
	t.Cleanup(func() { _ = tr.Close() })
	return &http.Client{Transport: tr}
}

// dial makes one connection that speaks HTTP/3.
func dial(t *testing.T, addr string) (*quic.Conn, *http3.ClientConn) {
	t.Helper()
	conn, err := quic.DialAddr(t.Context(), addr, clientTLS(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.CloseWithError(0, "") })
	return conn, (&http3.Transport{}).NewClientConn(conn)
}

func get(ctx context.Context, t *testing.T, addr string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+addr+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// within gives what must happen a bound.
func within[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("did not happen: " + what)
		panic("unreachable")
	}
}

func TestHTTP3IsServedAndAnnounced(t *testing.T) {
	t.Parallel()
	addr, _ := startQUIC(t, edge.Config{}, hello)
	resp, err := client(t, nil).Get("https://" + addr)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != "hello" || resp.ProtoMajor != 3 || resp.TLS.Version != tls.VersionTLS13 {
		t.Fatal(resp.Proto, string(body), err)
	}
	w := httptest.NewRecorder()
	edge.Announce(8443, hello).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if got := w.Header().Get("Alt-Svc"); got != `h3=":8443"; ma=3600` || w.Body.String() != "hello" {
		t.Fatal(got)
	}
}

func TestEventsArriveOverHTTP3OneByOne(t *testing.T) {
	t.Parallel()
	next := make(chan string)
	addr, _ := startQUIC(t, edge.Config{}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		rc := http.NewResponseController(w)
		for line := range next {
			_ = rc.SetWriteDeadline(time.Now().Add(10 * time.Second))
			_, _ = io.WriteString(w, line+"\n")
			if err := rc.Flush(); err != nil {
				t.Error(err)
			}
		}
	}))
	go func() { next <- "one" }()
	resp, err := client(t, nil).Get("https://" + addr)
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(resp.Body)
	if line, err := r.ReadString('\n'); line != "one\n" || err != nil {
		t.Fatal(line, err)
	}
	next <- "two"
	if line, err := r.ReadString('\n'); line != "two\n" || err != nil {
		t.Fatal(line, err)
	}
	close(next)
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

func TestAReaderThatDoesNotReadMeetsTheWriteDeadline(t *testing.T) {
	t.Parallel()
	failed := make(chan error, 1)
	addr, _ := startQUIC(t, edge.Config{}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		rc := http.NewResponseController(w)
		if err := rc.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Error(err)
		}
		for {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				failed <- err
				return
			}
		}
	}))
	resp, err := client(t, &quic.Config{MaxStreamReceiveWindow: 64 << 10, InitialStreamReceiveWindow: 64 << 10}).Get("https://" + addr)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	within(t, "A18: the write ends", failed)
}

func TestACallerThatLeavesCancelsItsRequest(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(conn *quic.Conn, cancel func()){
		"reset": func(_ *quic.Conn, cancel func()) { cancel() },
		"close": func(conn *quic.Conn, _ func()) { _ = conn.CloseWithError(0x100, "") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			entered, left := make(chan struct{}), make(chan struct{})
			addr, _ := startQUIC(t, edge.Config{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_ = http.NewResponseController(w).Flush()
				close(entered)
				<-r.Context().Done()
				close(left)
			}))
			conn, cc := dial(t, addr)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if _, err := cc.RoundTrip(get(ctx, t, addr)); err != nil {
				t.Fatal(err)
			}
			within(t, "the request", entered)
			leave(conn, cancel)
			within(t, "the end of the request", left)
		})
	}
}

func TestA10OversizeHeaderOverHTTP3(t *testing.T) {
	t.Parallel()
	addr, _ := startQUIC(t, edge.Config{}, hello)
	// A client that goes by the server's settings refuses by itself: this one writes before it has read them.
	conn, _ := dial(t, addr)
	str, err := conn.OpenStreamSync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const headersFrame, length = 0x1, 33 << 10
	if _, err := str.Write([]byte{headersFrame, 0x80, 0, length >> 8, length & 0xff}); err != nil {
		t.Fatal(err)
	}
	// The answer is a HEADERS frame whose field section has the static entry "431".
	_ = str.SetReadDeadline(time.Now().Add(10 * time.Second))
	answer, err := io.ReadAll(str)
	if err != nil || len(answer) == 0 || answer[0] != headersFrame || !bytes.Contains(answer, []byte("431")) && len(answer) > 64 {
		t.Fatalf("%q %v", answer, err)
	}
	if resp, err := client(t, nil).Get("https://" + addr); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal("the next caller was not served", err)
	}
}

// earlyServer is another server with the same name that gives tickets for 0-RTT.
func earlyServer(t *testing.T) string {
	t.Helper()
	certs, _ := donor()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http3.Server{Handler: hello, TLSConfig: &tls.Config{Certificates: certs}, QUICConfig: &quic.Config{Allow0RTT: true}}
	go func() { _ = s.Serve(socket) }()
	t.Cleanup(func() { _ = s.Close(); _ = socket.Close() })
	return socket.LocalAddr().String()
}

// tickets counts what is put into a session cache.
type tickets struct {
	tls.ClientSessionCache
	got chan struct{}
}

func (c tickets) Put(key string, s *tls.ClientSessionState) {
	c.ClientSessionCache.Put(key, s)
	if s != nil {
		select {
		case c.got <- struct{}{}:
		default:
		}
	}
}

func TestA22EarlyDataIsNotTaken(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	addr, _ := startQUIC(t, edge.Config{}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		if !r.TLS.HandshakeComplete || r.TLS.DidResume {
			t.Error("a request came on a session that was resumed, or before the handshake")
		}
	}))
	cache := tickets{tls.NewLRUClientSessionCache(4), make(chan struct{}, 1)}
	early := func(addr string) (*quic.Conn, error) {
		t := clientTLS()
		t.ClientSessionCache = cache
		return quic.DialAddrEarly(context.Background(), addr, t, nil)
	}
	// The server itself gives no ticket.
	conn, err := early(addr)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := (&http3.Transport{}).NewClientConn(conn).RoundTrip(get(t.Context(), t, addr)); err != nil {
		t.Fatal(resp, err)
	}
	_ = conn.CloseWithError(0x100, "")
	select {
	case <-cache.got:
		t.Fatal("a session ticket was issued")
	default:
	}
	// A ticket from elsewhere lets the client send early data, which the server must not read.
	elsewhere, err := early(earlyServer(t))
	if err != nil {
		t.Fatal(err)
	}
	within(t, "a ticket from elsewhere", cache.got)
	_ = elsewhere.CloseWithError(0x100, "")
	conn, err = early(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.CloseWithError(0x100, "") }()
	select {
	case <-conn.HandshakeComplete():
		t.Log("the handshake ended before the early data was sent")
	default:
	}
	resp, err := (&http3.Transport{}).NewClientConn(conn).RoundTrip(get(t.Context(), t, addr))
	if conn.ConnectionState().Used0RTT {
		t.Fatal("early data was taken")
	}
	if n := calls.Load(); n > 2 || err == nil && (resp.StatusCode != http.StatusOK || n != 2) {
		t.Fatalf("%d calls: %v", n, err)
	}
}

// deaf is a socket that hears nothing, and counts the Retry packets that it would have heard.
type deaf struct {
	net.PacketConn
	retries atomic.Int64
	others  atomic.Int64
}

func (d *deaf) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, _, err := d.PacketConn.ReadFrom(b)
		if err != nil {
			return 0, nil, err
		}
		if d.count(b[:n]); err != nil {
			return 0, nil, err
		}
	}
}

func (d *deaf) count(b []byte) {
	// RFC 9000, 17.2: a long header of type 3.
	if len(b) > 0 && b[0]&0xf0 == 0xf0 {
		d.retries.Add(1)
	} else {
		d.others.Add(1)
	}
}

// hearing counts as deaf does, and hears.
type hearing struct{ deaf }

func (h *hearing) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := h.PacketConn.ReadFrom(b)
	if err == nil {
		h.count(b[:n])
	}
	return n, from, err
}

func loopbackSocket(t *testing.T) net.PacketConn {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestA23AddressesMustBeProvenOnceManyHandshakesAreOpen(t *testing.T) {
	t.Parallel()
	addr, _ := startQUIC(t, edge.Config{HeaderTimeout: 20 * time.Second}, hello)
	to, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	calm := &hearing{deaf{PacketConn: loopbackSocket(t)}}
	visit := func(h *hearing) {
		t.Helper()
		tr := &quic.Transport{Conn: h}
		defer tr.Close()
		conn, err := tr.Dial(t.Context(), to, clientTLS(), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.CloseWithError(0x100, "")
	}
	visit(calm)
	if n := calm.retries.Load(); n != 0 {
		t.Fatalf("%d Retry packets to the first caller", n)
	}
	// Many begin and do not go on, as those whose address is forged.
	flood := &deaf{PacketConn: loopbackSocket(t)}
	tr := &quic.Transport{Conn: flood}
	defer tr.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var floods sync.WaitGroup
	defer floods.Wait()
	defer cancel()
	const beyond = 100
	for range 512 + beyond {
		floods.Go(func() { _, _ = tr.Dial(ctx, to, clientTLS(), &quic.Config{HandshakeIdleTimeout: 20 * time.Second}) })
	}
	deadline := time.Now().Add(20 * time.Second)
	for flood.retries.Load() < beyond {
		if time.Now().After(deadline) {
			t.Fatalf("%d Retry packets, %d others", flood.retries.Load(), flood.others.Load())
		}
		time.Sleep(10 * time.Millisecond)
	}
	busy := &hearing{deaf{PacketConn: loopbackSocket(t)}}
	visit(busy)
	if busy.retries.Load() == 0 {
		t.Fatal("an unproven address was taken while more than 512 handshakes were open")
	}
}

func TestOneAddressCannotTakeAllQUICConnections(t *testing.T) {
	t.Parallel()
	addr, _ := startQUIC(t, edge.Config{MaxConns: 2}, hello)
	var held []*quic.Conn
	for range 2 {
		conn, cc := dial(t, addr)
		if _, err := cc.RoundTrip(get(t.Context(), t, addr)); err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
	third, cc := dial(t, addr)
	if _, err := cc.RoundTrip(get(t.Context(), t, addr)); err == nil {
		t.Fatal("A34: a third connection was served")
	}
	within(t, "the third is closed", third.Context().Done())
	_ = held[0].CloseWithError(0x100, "")
	deadline := time.Now().Add(10 * time.Second)
	for {
		_, cc := dial(t, addr)
		if _, err := cc.RoundTrip(get(t.Context(), t, addr)); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("a place was not given back")
		}
	}
}

func TestAConnectionThatAsksNothingIsClosed(t *testing.T) {
	t.Parallel()
	addr, _ := startQUIC(t, edge.Config{IdleTimeout: 300 * time.Millisecond}, hello)
	conn, err := quic.DialAddr(t.Context(), addr, clientTLS(), &quic.Config{KeepAlivePeriod: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	within(t, "the server hangs up", conn.Context().Done())
	var closed *quic.ApplicationError
	if err := context.Cause(conn.Context()); !errors.As(err, &closed) || !closed.Remote || closed.ErrorMessage != "idle" {
		t.Fatal(err)
	}
}

func TestA19RapidResetOverHTTP3ClosesTheConnection(t *testing.T) {
	t.Parallel()
	var most, now atomic.Int64
	addr, _ := startQUIC(t, edge.Config{MaxStreams: 16}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for {
			if m := most.Load(); n <= m || most.CompareAndSwap(m, n) {
				break
			}
		}
		if r.URL.Path == "/" {
			<-r.Context().Done()
		}
	}))
	conn, cc := dial(t, addr)
	for range 1000 {
		str, err := cc.OpenRequestStream(t.Context())
		if err != nil {
			break
		}
		if err := str.SendRequestHeader(get(t.Context(), t, addr)); err != nil {
			break
		}
		// The request is whole, so that it gets as far as the handler, and its answer is not wanted.
		_ = str.Close()
		str.CancelRead(quic.StreamErrorCode(http3.ErrCodeRequestCanceled))
	}
	within(t, "the connection is closed", conn.Context().Done())
	var closed *quic.ApplicationError
	if err := context.Cause(conn.Context()); !errors.As(err, &closed) || closed.ErrorCode != quic.ApplicationErrorCode(http3.ErrCodeExcessiveLoad) {
		t.Fatal(err)
	}
	if m := most.Load(); m > 32 {
		t.Fatalf("%d requests at once", m)
	}
	if resp, err := client(t, nil).Get("https://" + addr + "/next"); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal("the next caller was not served", err)
	}
}

func TestRequestsOverHTTP3FinishWithinTheGrace(t *testing.T) {
	t.Parallel()
	entered, release, drained := make(chan struct{}), make(chan struct{}), make(chan struct{})
	addr, stop := startQUIC(t, edge.Config{Grace: 20 * time.Second, OnDrain: func() { close(drained) }},
		http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(entered)
			<-release
			_, _ = io.WriteString(w, "finished")
		}))
	_, cc := dial(t, addr)
	got := make(chan string, 1)
	go func() {
		resp, err := cc.RoundTrip(get(context.Background(), t, addr))
		if err != nil {
			got <- err.Error()
			return
		}
		b, _ := io.ReadAll(resp.Body)
		got <- string(b)
	}()
	within(t, "the request", entered)
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	within(t, "the drain", drained)
	// A new connection is not taken, and neither is a new request on the old one.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := quic.DialAddr(ctx, addr, clientTLS(), nil); err == nil {
		t.Error("a new connection was taken")
	}
	if _, err := cc.RoundTrip(get(ctx, t, addr)); err == nil {
		t.Error("a new request was taken")
	}
	close(release)
	if body := within(t, "the answer", got); body != "finished" {
		t.Fatal(body)
	}
	if err := within(t, "the end", stopped); err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsCutOffOverHTTP3LearnsWhyAndMayAnswer(t *testing.T) {
	t.Parallel()
	why := errors.New("the end")
	entered := make(chan struct{})
	addr, stop := startQUIC(t, edge.Config{Grace: 20 * time.Millisecond, Cut: why}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
		if errors.Is(context.Cause(r.Context()), why) {
			w.WriteHeader(http.StatusTeapot)
		}
	}))
	_, cc := dial(t, addr)
	status := make(chan int, 1)
	go func() {
		resp, err := cc.RoundTrip(get(context.Background(), t, addr))
		if err != nil {
			status <- 0
			return
		}
		status <- resp.StatusCode
	}()
	within(t, "the request", entered)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if got := within(t, "the answer", status); got != http.StatusTeapot {
		t.Fatalf("status %d", got)
	}
}

func TestAnIdleCallerDoesNotHoldUpTheEnd(t *testing.T) {
	t.Parallel()
	addr, stop := startQUIC(t, edge.Config{Grace: time.Hour}, hello)
	conn, err := quic.DialAddr(t.Context(), addr, clientTLS(), &quic.Config{KeepAlivePeriod: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- stop() }()
	if err := within(t, "the end", done); err != nil {
		t.Fatal(err)
	}
	within(t, "the caller learns it", conn.Context().Done())
}

func TestQUICNeedsTLS(t *testing.T) {
	t.Parallel()
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := edge.NewQUIC(edge.Config{}, socket, hello, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "TLS") {
		t.Fatal(err)
	}
}
