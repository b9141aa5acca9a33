package edge_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/mcpvault/mcpvault/dataplane/edge"
)

// h2 is a connection of HTTP/2 on which a test says what no client would.
type h2 struct {
	t      *testing.T
	conn   *tls.Conn
	framer *http2.Framer
	enc    *hpack.Encoder
	block  bytes.Buffer
	stream uint32
}

func startTLS(t *testing.T, cfg edge.Config, h http.Handler) string {
	t.Helper()
	certs, _ := donor()
	cfg.TLS = &tls.Config{Certificates: certs}
	addr, _ := start(t, cfg, h)
	return addr
}

func dialH2(t *testing.T, addr string) *h2 {
	t.Helper()
	cfg := clientTLS()
	cfg.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	c := &h2{t: t, conn: conn, framer: http2.NewFramer(conn, conn), stream: 1}
	c.framer.SetMaxReadFrameSize(1 << 20)
	c.enc = hpack.NewEncoder(&c.block)
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	if err := c.framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return c
}

// fields is a header block with the four fields that every request has, those given replacing them or coming after.
func (c *h2) fields(extra ...[2]string) []byte {
	c.block.Reset()
	all := [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "example.com"}, {":path", "/"}}
	for _, f := range extra {
		if i := slices.IndexFunc(all[:4], func(o [2]string) bool { return o[0] == f[0] }); i >= 0 {
			all[i] = f
			continue
		}
		all = append(all, f)
	}
	for _, f := range all {
		_ = c.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return c.block.Bytes()
}

// request begins a whole request and returns its stream.
func (c *h2) request(block []byte) (uint32, error) {
	id := c.stream
	c.stream += 2
	return id, c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndStream: true, EndHeaders: true})
}

// verdict reads until the server judges the stream or the connection: the status of an answer, the code of RST_STREAM or of
// GOAWAY, or closed.
func (c *h2) verdict(stream uint32) (status string, code http2.ErrCode, closed bool) {
	dec := hpack.NewDecoder(4096, nil)
	for {
		f, err := c.framer.ReadFrame()
		if err != nil {
			return "", 0, true
		}
		switch f := f.(type) {
		case *http2.HeadersFrame:
			fields, err := dec.DecodeFull(f.HeaderBlockFragment())
			if err != nil {
				c.t.Fatal(err)
			}
			if f.StreamID == stream {
				return fields[0].Value, 0, false
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == stream {
				return "", f.ErrCode, false
			}
		case *http2.GoAwayFrame:
			return "", f.ErrCode, true
		}
	}
}

// nextIsServed holds after every row: another caller is served at once.
func nextIsServed(t *testing.T, addr string) {
	t.Helper()
	c := dialH2(t, addr)
	began := time.Now()
	id, err := c.request(c.fields())
	if err != nil {
		t.Fatal(err)
	}
	if status, code, closed := c.verdict(id); status != "200" {
		t.Fatalf("the next caller got %q, %v, closed %v, after %s", status, code, closed, time.Since(began))
	}
}

// heap is what is in use after a collection.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestA19RapidReset(t *testing.T) {
	t.Parallel()
	var now atomic.Int64
	addr := startTLS(t, edge.Config{}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		now.Add(1)
		defer now.Add(-1)
		if r.Header.Get("Slow") != "" {
			<-r.Context().Done()
		}
	}))
	c := dialH2(t, addr)
	var err error
	for range 1000 {
		var id uint32
		if id, err = c.request(c.fields([2]string{"slow", "1"})); err != nil {
			break
		}
		if err = c.framer.WriteRSTStream(id, http2.ErrCodeCancel); err != nil {
			break
		}
	}
	if _, code, closed := c.verdict(0); !closed || code != 0 && code != http2.ErrCodeEnhanceYourCalm {
		t.Fatalf("1,000 requests were taken back, and the connection stays: %v", code)
	}
	deadline := time.Now().Add(2 * time.Second)
	for now.Load() > 0 {
		if time.Now().After(deadline) {
			t.Fatalf("%d requests are still in the handler", now.Load())
		}
		time.Sleep(time.Millisecond)
	}
	nextIsServed(t, addr)
}

func TestA19RapidResetWhereNothingStops(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	addr := startTLS(t, edge.Config{MaxStreams: 16}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Slow") != "" {
			<-release
		}
	}))
	c := dialH2(t, addr)
	for range 1000 {
		id, err := c.request(c.fields([2]string{"slow", "1"}))
		if err != nil || c.framer.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			break
		}
	}
	if _, code, closed := c.verdict(0); !closed || code != 0 && code != http2.ErrCodeEnhanceYourCalm {
		t.Fatalf("requests that do not stop pile up: %v", code)
	}
	nextIsServed(t, addr)
}

func TestA20ContinuationFlood(t *testing.T) { //nolint:paralleltest // it measures the heap
	addr := startTLS(t, edge.Config{}, hello)
	before := heap()
	c := dialH2(t, addr)
	block := c.fields()
	if err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndStream: true}); err != nil {
		t.Fatal(err)
	}
	c.block.Reset()
	_ = c.enc.WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("a", 8<<10), Sensitive: true})
	sent := 0
	for range 10_000 {
		if c.framer.WriteContinuation(1, false, c.block.Bytes()) != nil {
			break
		}
		sent++
	}
	if sent == 10_000 {
		t.Fatal("80 MB of CONTINUATION frames were taken")
	}
	if grown := heap() - before; grown > 8<<20 {
		t.Fatalf("the heap grew by %d bytes", grown)
	}
	nextIsServed(t, addr)
}

func TestA20HeaderBomb(t *testing.T) { //nolint:paralleltest // it measures the heap
	addr := startTLS(t, edge.Config{}, hello)
	before := heap()
	c := dialH2(t, addr)
	// One entry of the dynamic table, named 16,000 times by one byte each: 60 MB when it is written out.
	c.fields([2]string{"x", strings.Repeat("a", 3800)})
	block := append(bytes.Clone(c.block.Bytes()), bytes.Repeat([]byte{0x80 | 62}, 16_000)...)
	id, err := c.request(block)
	if err != nil {
		t.Fatal(err)
	}
	if status, code, closed := c.verdict(id); status != "431" && !closed && code == 0 {
		t.Fatalf("status %q, code %v", status, code)
	}
	if grown := heap() - before; grown > 8<<20 {
		t.Fatalf("the heap grew by %d bytes", grown)
	}
	nextIsServed(t, addr)
}

func TestA21FieldsThatHTTP2Forbids(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	addr := startTLS(t, edge.Config{}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Row") != "" {
			calls.Add(1)
		}
	}))
	for row, f := range map[string][2]string{
		"connection": {"connection", "mcp-session-id"},
		"te":         {"te", "gzip"},
		"upper case": {"Mcp-Name", "x"},
		"encoding":   {"transfer-encoding", "chunked"},
		"upgrade":    {"upgrade", "h2c"},
		"userinfo":   {":authority", "user@example.com"},
		"line break": {"x", "a\r\nb: c"},
	} {
		c := dialH2(t, addr)
		id, err := c.request(c.fields(f, [2]string{"row", row}))
		if err != nil {
			t.Fatal(err)
		}
		status, code, closed := c.verdict(id)
		if status != "400" && code != http2.ErrCodeProtocol && !(closed && code == 0) {
			t.Errorf("%s: status %q, code %v, closed %v", row, status, code, closed)
		}
	}
	if n := calls.Load(); n != 0 {
		t.Errorf("%d of them reached the handler", n)
	}
	nextIsServed(t, addr)
}

func TestA24OlderTLSIsRefusedByAnAlert(t *testing.T) {
	t.Parallel()
	addr := startTLS(t, edge.Config{}, hello)
	cfg := clientTLS()
	cfg.MaxVersion = tls.VersionTLS12
	_, err := (&tls.Dialer{Config: cfg}).DialContext(context.Background(), "tcp", addr)
	if err == nil || !strings.Contains(err.Error(), "remote error: tls: protocol version not supported") {
		t.Fatal(err)
	}
}
