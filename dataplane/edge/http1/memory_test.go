package http1_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/edge/http1"
)

// BenchmarkIdleStream measures what a connection takes of this process's memory while its handler waits in a stream for
// something to send: the socket, the goroutine and whatever the server holds for it. The clients are in the same process
// and take a socket and 1 KB each.
func BenchmarkIdleStream(b *testing.B) {
	for _, front := range []string{"http1", "nethttp"} {
		b.Run(front, func(b *testing.B) {
			var perStream float64
			for range b.N {
				perStream = idleStreams(b, front, 1000)
			}
			b.ReportMetric(perStream, "B/stream")
		})
	}
}

func idleStreams(b *testing.B, front string, n int) float64 {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	waiting := make(chan struct{}, n)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header()["Content-Type"] = []string{"text/event-stream"}
		_ = http.NewResponseController(w).Flush()
		waiting <- struct{}{}
		<-r.Context().Done()
	})
	if front == "http1" {
		s := http1.New(http1.Config{Handler: h})
		go func() { _ = s.Serve(ln) }()
		defer s.Close()
	} else {
		s := &http.Server{Handler: h, ReadHeaderTimeout: 5e9}
		go func() { _ = s.Serve(ln) }()
		defer s.Close()
	}
	before := inUse(b)
	conns := make([]net.Conn, 0, n)
	for range n {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
		_, _ = c.Write(call)
		<-waiting
		if _, err := http.ReadResponse(bufio.NewReaderSize(c, 512), nil); err != nil {
			b.Fatal(err)
		}
	}
	per := float64(inUse(b)-before) / float64(n)
	runtime.KeepAlive(conns)
	return per
}

// inUse is the memory of this process that is not given back.
func inUse(b *testing.B) int64 {
	debug.FreeOSMemory()
	debug.FreeOSMemory()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Skip("needs /proc:", err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return kb << 10
}
