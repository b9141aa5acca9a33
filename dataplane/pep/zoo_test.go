package pep_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// cage is a server that misbehaves once it has read a request.
func cage(t *testing.T, behave func(c net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					_, _ = io.Copy(io.Discard, r.Body)
					behave(c)
				}
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return "http://" + ln.Addr().String() + "/mcp"
}

// refusing is an address where nobody listens, and where nobody else can begin to while the test runs: the near end of a
// connection to somewhere else.
func refusing(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return "http://" + c.LocalAddr().String() + "/mcp"
}

const (
	zooJSON   = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	zooEvents = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
	zooAnswer = `{"jsonrpc":"2.0","id":1,"result":{}}`
)

func says(text string) func(net.Conn) {
	return func(c net.Conn) { _, _ = io.WriteString(c, text) }
}

func answers(body string) func(net.Conn) {
	return says(fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", zooJSON, len(body), body))
}

// pours says something once and then something else until nobody takes it.
func pours(once, block string) func(net.Conn) {
	return func(c net.Conn) {
		_, err := io.WriteString(c, once)
		for b := []byte(block); err == nil; {
			_, err = c.Write(b)
		}
	}
}

func waits(once string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = io.WriteString(c, once)
		_, _ = io.Copy(io.Discard, c) // until the gateway hangs up
	}
}

// Whatever a server does, its caller gets one answer that says what happened, and callers of other servers notice nothing.
func TestTheZooIsToldPlainlyAndOthersAreServed(t *testing.T) {
	t.Parallel()
	megabyte := strings.Repeat("a", 1<<20)
	selfSigned := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("E15: it was sent something") }))
	defer selfSigned.Close()
	type animal struct{ row, url, reason string }
	patient := []animal{
		{"E01 refuses", refusing(t), "upstream_unavailable"},
		{"E01 resets", cage(t, func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) }), "upstream_broken"},
		{"E04 100 MB", cage(t, pours(zooJSON+"Content-Length: 104857600\r\n\r\n", megabyte)), "upstream_too_large"},
		{"E04 1 GiB in chunks", cage(t, pours(zooJSON+"Transfer-Encoding: chunked\r\n\r\n", "100000\r\n"+megabyte+"\r\n")), "upstream_too_large"},
		{"E05 malformed", cage(t, answers(`{"jsonrpc":"2.0","id":1,"result":{}`)), "upstream_protocol"},
		{"E05 not UTF-8", cage(t, answers("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"a\":\"\xff\"}}")), "upstream_protocol"},
		{"E05 other id", cage(t, answers(`{"jsonrpc":"2.0","id":2,"result":{}}`)), "upstream_protocol"},
		{"E05 two answers", cage(t, answers(zooAnswer+zooAnswer)), "upstream_protocol"},
		{"E05 two answers of HTTP", cage(t, func(c net.Conn) { answers(zooAnswer)(c); answers(zooAnswer)(c) }), ""},
		{"E05 batch", cage(t, answers("["+zooAnswer+"]")), "upstream_protocol"},
		{"E05 promises less", cage(t, says(zooJSON+"Content-Length: 3\r\n\r\n"+zooAnswer)), "upstream_protocol"},
		{"E05 two lengths", cage(t, says(zooJSON+"Content-Length: 36\r\nContent-Length: 36\r\n\r\n"+zooAnswer)), "upstream_protocol"},
		{"E05 header flood", cage(t, pours("HTTP/1.1 200 OK\r\n", "X: "+megabyte[:1000]+"\r\n")), "upstream_protocol"},
		{"E06 an event of 64 MiB", cage(t, pours(zooEvents, "data: "+megabyte+"\n")), "upstream_too_large"},
		{"E06 no newline for ever", cage(t, pours(zooEvents, megabyte)), "upstream_too_large"},
		{"E08 redirect to the metadata service", cage(t, says("HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n")), "upstream_redirect"},
		{"reset in the body", cage(t, says(zooJSON+"Content-Length: 100\r\n\r\n{")), "upstream_broken"},
		{"E15 unknown authority", selfSigned.URL + "/mcp", "upstream_identity"},
		{"E16 the metadata service itself", "http://169.254.169.254/latest", "ssrf_blocked"},
		{"E16 by another spelling", "http://[::ffff:169.254.169.254]/latest", "ssrf_blocked"},
	}
	impatient := []animal{
		{"E02 hangs", cage(t, waits("")), "upstream_timeout"},
		{"E03 stops in the head", cage(t, waits("HTTP/1.1 200 O")), "upstream_timeout"},
		{"E03 stops in the body", cage(t, waits(zooJSON+"Content-Length: 100\r\n\r\n{")), "upstream_timeout"},
		{"E06 comments without end", cage(t, pours(zooEvents, ": hi\n\n")), "upstream_timeout"},
		{"E06 newlines without end", cage(t, pours(zooEvents, "\n\n\n\n")), "upstream_timeout"},
	}
	healthy := newScripted(t)
	visit := func(cfg pep.Config, animals []animal) {
		servers := []*snapshotv1.CatalogueServer{catalogueServer("healthy", healthy.url, allEras(), plainTool("balance", read))}
		for i, a := range animals {
			servers = append(servers, catalogueServer(fmt.Sprintf("zoo%02d", i), a.url, allEras(), plainTool("balance", read)))
		}
		g := newGateway(t, cfg, nil, servers...)
		var wg sync.WaitGroup
		for i, a := range animals {
			wg.Go(func() {
				got := g.call(fmt.Sprintf("/mcp/zoo%02d", i), "root", "balance", "{}")
				if a.reason == "" { // the first answer may have been taken before the second came
					if !strings.Contains(got.body, `"reason":"upstream_protocol"`) && string(got.Result) != "{}" {
						t.Errorf("%s: %s", a.row, got.body)
					}
					return
				}
				if got.code() != -32000 || !strings.Contains(got.body, `"reason":"`+a.reason+`"`) || string(got.ID) != "1" {
					t.Errorf("%s: %d %.300s", a.row, got.status, got.body)
				}
			})
		}
		gone := make(chan struct{})
		go func() { wg.Wait(); close(gone) }()
		for n := 0; ; n++ {
			if a := g.call("/mcp/healthy", "root", "balance", "{}"); string(a.Result) != oddResult {
				t.Fatalf("call %d to the healthy server: %s", n, a.body)
			}
			select {
			case <-gone:
				return
			default:
			}
		}
	}
	visit(pep.Config{}, patient)
	visit(pep.Config{CallTimeout: 2 * time.Second}, impatient)
}
