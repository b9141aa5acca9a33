package edge_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/mcpvault/mcpvault/dataplane/edge"
)

// told counts what a listener says that it did not take, by address and reason.
type told struct {
	mu sync.Mutex
	n  map[string]int
}

func (d *told) take(from net.Addr, reason string) {
	host := "unknown"
	if from != nil {
		host, _, _ = net.SplitHostPort(from.String())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.n == nil {
		d.n = map[string]int{}
	}
	d.n[host+" "+reason]++
}

func (d *told) of(what string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.n[what]
}

// dialFrom connects from a loopback address of the test's choice.
func dialFrom(tb testing.TB, ip, addr string) net.Conn {
	tb.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// neighbour is a caller at another address, on one connection.
type neighbour struct {
	tb testing.TB
	c  net.Conn
	r  *bufio.Reader
}

func newNeighbour(tb testing.TB, addr string) *neighbour {
	c := dialFrom(tb, "127.0.0.2", addr)
	tb.Cleanup(func() { _ = c.Close() })
	return &neighbour{tb, c, bufio.NewReader(c)}
}

func (n *neighbour) ask() time.Duration {
	n.tb.Helper()
	began := time.Now()
	_, _ = io.WriteString(n.c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, err := http.ReadResponse(n.r, nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		n.tb.Fatal(resp, err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return time.Since(began)
}

// crowd opens connections from one address and says first on each; they are closed at the end.
func crowd(tb testing.TB, addr string, n int, first string) []net.Conn {
	tb.Helper()
	all := make([]net.Conn, n)
	for i := range all {
		all[i] = dialFrom(tb, "127.0.0.1", addr)
		_, _ = io.WriteString(all[i], first)
	}
	tb.Cleanup(func() {
		for _, c := range all {
			_ = c.Close()
		}
	})
	return all
}

// turnedAway opens connections, one after the other in a few places, and returns how many the server closed at once.
func turnedAway(tb testing.TB, addr string, n int) int {
	tb.Helper()
	var closed atomic.Int64
	var wg sync.WaitGroup
	places := make(chan struct{}, 32)
	for range n {
		places <- struct{}{}
		c := dialFrom(tb, "127.0.0.1", addr)
		wg.Go(func() {
			defer func() { <-places }()
			defer c.Close()
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := c.Read(make([]byte, 1)); err != nil && !isTimeout(err) {
				closed.Add(1)
			}
		})
	}
	wg.Wait()
	return int(closed.Load())
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error) //nolint:errorlint // as the socket returns it
	return ok && ne.Timeout()
}

func TestA34TenThousandConnectionsOfOneAddressAreAThousand(t *testing.T) { //nolint:paralleltest // a crowd leaves little to others
	onBoth(t, func(t *testing.T, front edge.Front) {
		var d told
		addr, _ := start(t, edge.Config{Front: front, Dropped: d.take, HeaderTimeout: time.Hour, IdleTimeout: time.Hour}, hello)
		before := newNeighbour(t, addr)
		before.ask()
		held := crowd(t, addr, 1000, "")
		if n := turnedAway(t, addr, 9000); n != 9000 {
			t.Errorf("A34: %d of 9,000 more were closed", n)
		}
		if n := d.of("127.0.0.1 too_many_connections"); n != 9000 {
			t.Errorf("A34: it was told of %d", n)
		}
		for i, c := range held {
			_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); !isTimeout(err) {
				t.Fatalf("A34: connection %d of 1,000 was closed: %v", i, err)
			}
		}
		before.ask()
		newNeighbour(t, addr).ask()
	})
}

func TestA16AThousandSlowClientsLoseTheirPlacesAndNobodyElseDoes(t *testing.T) { //nolint:paralleltest // a crowd leaves little to others
	onBoth(t, func(t *testing.T, front edge.Front) {
		var slow atomic.Int64
		addr, _ := start(t, edge.Config{
			Front: front,
			Refused: func(_ net.Addr, status int, _ string) {
				if status == http.StatusRequestTimeout {
					slow.Add(1)
				}
			},
		}, hello)
		open := crowd(t, addr, 1000, "GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ")
		other := newNeighbour(t, addr)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		wg.Go(func() { // a byte now and then extends nothing
			for ctx.Err() == nil {
				for _, c := range open {
					_, _ = io.WriteString(c, "a")
				}
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
		})
		for range 20 {
			other.ask()
		}
		for i, c := range open {
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.Copy(io.Discard, c); isTimeout(err) {
				t.Fatalf("A16: connection %d is open after its time", i)
			}
		}
		cancel()
		if n := slow.Load(); n != 1000 {
			t.Errorf("A16: it was told of %d", n)
		}
		other.ask()
		newNeighbour(t, addr).ask()
	})
}

// forging sends each packet from another address, as somebody does who writes false ones into them; it hears nothing, and
// counts the Retry packets that went there.
type forging struct {
	net.PacketConn
	to      *net.UDPAddr
	n       atomic.Int64
	retries *atomic.Int64
}

func (f *forging) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		if _, _, err := f.PacketConn.ReadFrom(b); err != nil {
			return 0, nil, err
		}
	}
}

func (f *forging) WriteTo(b []byte, _ net.Addr) (int, error) {
	n := f.n.Add(1)
	from := &net.UDPAddr{IP: net.IPv4(127, byte(1+n>>16), byte(n>>8), byte(n))}
	c, err := net.DialUDP("udp", from, f.to)
	if err != nil {
		return 0, err
	}
	go func() {
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		buf := make([]byte, 2048)
		if n, err := c.Read(buf); err == nil && n > 0 && buf[0]&0xf0 == 0xf0 { // RFC 9000, 17.2: a long header of type 3
			f.retries.Add(1)
		}
	}()
	return c.Write(b)
}

func TestA23AFloodFromForgedAddressesIsToldToProveThem(t *testing.T) { //nolint:paralleltest // a crowd leaves little to others
	probe, err := net.ListenPacket("udp", "127.77.0.1:0")
	if err != nil {
		t.Skip("this system has no loopback addresses besides 127.0.0.1:", err)
	}
	_ = probe.Close()
	certs, _ := donor()
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var d told
	s, err := edge.NewQUIC(edge.Config{TLS: &tls.Config{Certificates: certs}, HeaderTimeout: 5 * time.Minute, Dropped: d.take}, socket, hello, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		stop()
		<-done
	}()
	var retries atomic.Int64
	to := s.Addr().(*net.UDPAddr)
	// Each call is one Initial, and then silence: its answers go to an address that knows nothing of it.
	flood := func(n int) {
		f := &forging{PacketConn: loopbackSocket(t), to: to, retries: &retries}
		f.n.Store(retries.Load() + 10_000)
		tr := &quic.Transport{Conn: f}
		defer tr.Close()
		var wg sync.WaitGroup
		places := make(chan struct{}, 64)
		for range n {
			places <- struct{}{}
			wg.Go(func() {
				defer func() { <-places }()
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				_, _ = tr.Dial(ctx, to, clientTLS(), nil)
			})
		}
		wg.Wait()
	}
	const enough = 200
	deadline := time.Now().Add(2 * time.Minute)
	for s.Opening() < 512 && time.Now().Before(deadline) {
		flood(256)
	}
	held := s.Opening()
	for retries.Load() < enough && time.Now().Before(deadline) {
		flood(1000)
	}
	if after := s.Opening(); held < 512 || after > held+64 {
		t.Errorf("A23: %d handshakes are held after the flood, %d before", after, held)
	}
	if n := retries.Load(); n < enough {
		t.Errorf("A23: %d of the forged addresses were told to prove themselves", n)
	}
	if n := d.of("unknown quic_retry"); n < enough {
		t.Errorf("A23: it was told of %d, by address: %v", n, d.n)
	}
	// Whoever answers the Retry is served.
	resp, err := client(t, nil).Get(fmt.Sprintf("https://%s/", to))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(err)
	}
}

// BenchmarkGoodTraffic measures what callers at other addresses notice of a crowd: the p99 of their requests beside it,
// over the p99 without it, in turns. Rows A16 and A34 want less than 2.
func BenchmarkGoodTraffic(b *testing.B) {
	for _, tc := range []struct{ name, first string }{{"A16-slow-heads", "GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "}, {"A34-idle", ""}} {
		b.Run(tc.name, func(b *testing.B) {
			calm, _ := start(b, edge.Config{}, hello)
			busy, _ := start(b, edge.Config{HeaderTimeout: time.Hour, IdleTimeout: time.Hour}, hello)
			open := crowd(b, busy, 1000, tc.first)
			if tc.first == "" {
				turnedAway(b, busy, 9000)
			}
			done := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				for tc.first != "" {
					for _, c := range open {
						_, _ = io.WriteString(c, "a")
					}
					select {
					case <-done:
						return
					case <-time.After(time.Second):
					}
				}
			})
			alone, beside := newNeighbour(b, calm), newNeighbour(b, busy)
			var took [2][]time.Duration
			for b.Loop() {
				took[0] = append(took[0], alone.ask())
				took[1] = append(took[1], beside.ask())
			}
			close(done)
			wg.Wait()
			p99 := func(d []time.Duration) float64 {
				slices.Sort(d)
				return float64(d[len(d)*99/100])
			}
			b.ReportMetric(p99(took[1])/p99(took[0]), "p99_ratio")
			b.ReportMetric(p99(took[1])/1e3, "p99_us")
		})
	}
}
