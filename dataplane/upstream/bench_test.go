package upstream_test

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/upstream"
)

// stub answers every request with the same bytes and does as little as a server can, so that a benchmark measures clients.
func stub(b *testing.B, answer string) string {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go stubConn(c, []byte(answer))
		}
	}()
	return "http://" + ln.Addr().String() + "/mcp"
}

func stubConn(c net.Conn, answer []byte) {
	defer c.Close()
	buf := make([]byte, 0, 32<<10)
	for {
		n, err := c.Read(buf[len(buf):cap(buf)])
		if err != nil {
			return
		}
		buf = buf[:len(buf)+n]
		// Every request here ends in "}}" and holds that nowhere else.
		if bytes.HasSuffix(buf, []byte("}}")) {
			if _, err := c.Write(answer); err != nil {
				return
			}
			buf = buf[:0]
		}
	}
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// parallel runs do from c goroutines and reports the CPU time of a call, the server's share included.
func parallel(b *testing.B, c int, do func() error) {
	b.Helper()
	b.ReportAllocs()
	work := make(chan struct{}, b.N)
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	b.ResetTimer()
	before := cpu()
	var wg sync.WaitGroup
	for range c {
		wg.Go(func() {
			for range work {
				if err := do(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64((cpu()-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

// BenchmarkCall compares this client with the standard library's, to the same server.
func BenchmarkCall(b *testing.B) {
	result := `{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"` + strings.Repeat("a", 128) + `"}]}}`
	url := stub(b, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 203\r\n\r\n"+result+strings.Repeat(" ", 203-len(result)))
	body := []byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"m":"` + strings.Repeat("b", 128) + `"}}`)
	header := http.Header{"Mcp-Protocol-Version": {"2026-07-28"}, "Mcp-Method": {"tools/call"}, "Mcp-Name": {"echo"}, "Authorization": {"x"}}
	set := http.Header{"X-Api-Key": {"secret"}}
	for _, c := range []int{1, 64} {
		name := map[int]string{1: "C=1", 64: "C=64"}[c]
		b.Run("own/"+name, func(b *testing.B) {
			up := client(upstream.Config{})
			defer up.Close()
			parallel(b, c, func() error {
				resp, err := up.Do(b.Context(), &upstream.Request{URL: url, Method: http.MethodPost, Header: header, Set: set, Body: body})
				if err == nil {
					resp.Close()
				}
				return err
			})
		})
		b.Run("nethttp/"+name, func(b *testing.B) {
			rt := &http.Transport{MaxIdleConnsPerHost: 128, DisableCompression: true}
			defer rt.CloseIdleConnections()
			parallel(b, c, func() error {
				req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, url, bytes.NewReader(body))
				if err != nil {
					return err
				}
				req.Header = http.Header{
					"Mcp-Protocol-Version": header["Mcp-Protocol-Version"], "Mcp-Method": header["Mcp-Method"], "Mcp-Name": header["Mcp-Name"],
					"X-Api-Key": set["X-Api-Key"], "Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"},
				}
				resp, err := rt.RoundTrip(req)
				if err != nil {
					return err
				}
				_, err = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				return err
			})
		})
	}
}
