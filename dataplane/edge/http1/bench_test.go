package http1_test

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/edge/http1"
)

// answerMCP is a handler that does nothing but what every call does: read the body, set the headers, write the answer.
func answerMCP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	h := w.Header()
	h["Content-Type"], h["Cache-Control"] = typeJSON, noStore
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(answerBody)
}

var (
	typeJSON, noStore = []string{"application/json"}, []string{"no-store"}
	answerBody        = []byte(`{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"` + strings.Repeat("x", 128) + `"}]}}`)
)

// call is a call as an MCP client sends it, with a token of 800 bytes.
var call = func() []byte {
	body := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"` + strings.Repeat("x", 128) + `"}}}`
	return []byte("POST /mcp/demo HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: bench/1\r\nContent-Length: " + strconv.Itoa(len(body)) +
		"\r\nAccept: application/json, text/event-stream\r\nAuthorization: Bearer " + strings.Repeat("t", 800) +
		"\r\nContent-Type: application/json\r\nMcp-Method: tools/call\r\nMcp-Name: echo\r\nMcp-Protocol-Version: 2026-07-28\r\nAccept-Encoding: gzip\r\n\r\n" + body)
}()

// BenchmarkCall compares this server with net/http and with a server that only reads and writes: "floor" is what the
// sockets and the client take by themselves. cpu-us/op is of the whole process, the client included.
func BenchmarkCall(b *testing.B) {
	for _, front := range []struct {
		name  string
		serve func(net.Listener) (stop func())
	}{
		{"floor", func(ln net.Listener) func() {
			go serveFloor(ln)
			return func() { _ = ln.Close() }
		}},
		{"http1", func(ln net.Listener) func() {
			s := http1.New(http1.Config{Handler: http.HandlerFunc(answerMCP)})
			go func() { _ = s.Serve(ln) }()
			return func() { _ = s.Close() }
		}},
		{"nethttp", func(ln net.Listener) func() {
			s := &http.Server{
				Handler: http.HandlerFunc(answerMCP), ReadHeaderTimeout: 5e9, IdleTimeout: 60e9,
				BaseContext: func(net.Listener) context.Context { return context.Background() },
				ErrorLog:    slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
			}
			go func() { _ = s.Serve(ln) }()
			return func() { _ = s.Close() }
		}},
	} {
		b.Run(front.name, func(b *testing.B) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer front.serve(ln)()
			b.ReportAllocs()
			before := cpu(b)
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) { callOnOneConnection(b, pb, ln.Addr().String()) })
			b.ReportMetric(float64(cpu(b)-before)/1e3/float64(b.N), "cpu-us/op")
		})
	}
}

func callOnOneConnection(b *testing.B, pb *testing.PB, addr string) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Error(err)
		return
	}
	defer c.Close()
	buf := make([]byte, 4096)
	for pb.Next() {
		if _, err := c.Write(call); err != nil {
			b.Error(err)
			return
		}
		for n := 0; ; {
			m, err := c.Read(buf[n:])
			if err != nil {
				b.Error(err)
				return
			}
			if n += m; n > len(answerBody) && string(buf[n-len(answerBody):n]) == string(answerBody) {
				break
			}
		}
	}
}

func serveFloor(ln net.Listener) {
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(len(answerBody)) + "\r\n\r\n" + string(answerBody))
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			r := bufio.NewReaderSize(c, 8<<10)
			for {
				if n, err := r.Discard(len(call)); n < len(call) || err != nil {
					return
				}
				if _, err := c.Write(answer); err != nil {
					return
				}
			}
		}()
	}
}

// cpu is the processor time of this process, in nanoseconds.
func cpu(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
