package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
)

// animal is a server that misbehaves in one way.
type animal struct {
	name    string
	behave  func(c net.Conn) // what it does once it has read a request
	want    error
	onEvent bool // the error comes when the stream is read
	// hangs has the caller's deadline end it, soon.
	hangs bool
}

const (
	jsonHead  = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	eventHead = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
)

// pour writes a block so many times, and stops when nobody takes it.
func pour(c net.Conn, times int, block string) {
	b := []byte(block)
	for range times {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

func wait(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

func zoo() []animal {
	megabyte := strings.Repeat("a", 1<<20)
	chunk := "100000\r\n" + megabyte + "\r\n"
	line := "data: " + strings.Repeat("b", 1<<20-7) + "\n"
	return []animal{
		{name: "E02 hangs", behave: wait, want: context.DeadlineExceeded, hangs: true},
		{name: "E03 drips", behave: func(c net.Conn) {
			for _, b := range []byte(okAnswer) { // a byte at each third of the caller's patience
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		}, want: context.DeadlineExceeded, hangs: true},
		{name: "E03 drips chunks", behave: func(c net.Conn) {
			say(c, jsonHead+"Transfer-Encoding: chunked\r\n\r\n")
			for say(c, "1\r\na\r\n") {
				time.Sleep(50 * time.Millisecond)
			}
		}, want: context.DeadlineExceeded, hangs: true},
		{name: "E04 100 MB", behave: func(c net.Conn) {
			say(c, fmt.Sprintf("%sContent-Length: %d\r\n\r\n", jsonHead, 100<<20))
			pour(c, 100, megabyte)
		}, want: upstream.ErrTooLarge},
		{name: "E04 1 GiB in chunks", behave: func(c net.Conn) {
			say(c, jsonHead+"Transfer-Encoding: chunked\r\n\r\n")
			pour(c, 1024, chunk)
		}, want: upstream.ErrTooLarge},
		{name: "E04 1 GiB until it closes", behave: func(c net.Conn) {
			say(c, jsonHead+"\r\n")
			pour(c, 1024, megabyte)
		}, want: upstream.ErrTooLarge},
		{name: "E04 one chunk of 1 GiB", behave: func(c net.Conn) {
			say(c, jsonHead+"Transfer-Encoding: chunked\r\n\r\n40000000\r\n")
			pour(c, 1024, megabyte)
		}, want: upstream.ErrTooLarge},
		{name: "E06 an event of 64 MiB", behave: func(c net.Conn) {
			say(c, eventHead)
			pour(c, 64, line)
			say(c, "\n")
			wait(c)
		}, want: mcp.ErrEventTooLarge, onEvent: true},
		{name: "E06 a line that does not end", behave: func(c net.Conn) {
			say(c, eventHead)
			pour(c, 1024, megabyte)
		}, want: mcp.ErrEventTooLarge, onEvent: true},
		{name: "E06 events without end", behave: func(c net.Conn) {
			say(c, eventHead)
			pour(c, 1<<30, strings.Repeat("data: {}\n\n", 1000))
		}, want: context.DeadlineExceeded, onEvent: true, hangs: true},
		{name: "E06 comments without end", behave: func(c net.Conn) {
			say(c, eventHead)
			pour(c, 1<<30, strings.Repeat(":\n\n", 1000))
		}, want: context.DeadlineExceeded, onEvent: true, hangs: true},
		{name: "E06 newlines without end", behave: func(c net.Conn) {
			say(c, eventHead)
			pour(c, 1<<30, strings.Repeat("\n", 4000))
		}, want: context.DeadlineExceeded, onEvent: true, hangs: true},
		{name: "reset in the body", behave: func(c net.Conn) {
			say(c, jsonHead+"Content-Length: 100\r\n\r\n{")
			_ = c.(*net.TCPConn).SetLinger(0)
		}, want: upstream.ErrBroken},
		{name: "reset before the head", behave: func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) }, want: upstream.ErrBroken},
		{name: "ends in the head", behave: func(c net.Conn) { say(c, jsonHead) }, want: upstream.ErrBroken},
		{name: "promises more than it has", behave: func(c net.Conn) {
			say(c, jsonHead+"Content-Length: 1000000\r\n\r\n{}")
		}, want: upstream.ErrBroken},
		{name: "promises less than it has", behave: func(c net.Conn) {
			say(c, jsonHead+"Content-Length: 1\r\n\r\n{}")
		}, want: upstream.ErrProtocol},
		{name: "E05 two answers", behave: func(c net.Conn) { say(c, okAnswer+okAnswer) }, want: upstream.ErrProtocol},
		{name: "E08 redirect to the metadata service", behave: func(c net.Conn) {
			say(c, "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://169.254.169.254/latest/meta-data/\r\nContent-Length: 0\r\n\r\n")
		}, want: upstream.ErrRedirect},
		{name: "header flood", behave: func(c net.Conn) {
			say(c, "HTTP/1.1 200 OK\r\n")
			pour(c, 1<<30, "X-Flood: "+strings.Repeat("a", 1000)+"\r\n")
		}, want: upstream.ErrProtocol},
		{name: "a header that does not end", behave: func(c net.Conn) {
			say(c, "HTTP/1.1 200 OK\r\nX-Flood: ")
			pour(c, 1024, megabyte)
		}, want: upstream.ErrProtocol},
		{name: "interim answers without end", behave: func(c net.Conn) {
			pour(c, 1<<30, "HTTP/1.1 103 Early Hints\r\n\r\n")
		}, want: upstream.ErrProtocol},
		{name: "no HTTP", behave: func(c net.Conn) { say(c, "\x15\x03\x01\x00\x02\x02\x50\r\n") }, want: upstream.ErrProtocol},
	}
}

// visit makes one call and reads what comes to its end.
func (a animal) visit(ctx context.Context, c *upstream.Client, url string) error {
	if a.hangs {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 150*time.Millisecond)
		defer cancel()
	}
	resp, err := c.Do(ctx, post(url, "{}"))
	if err != nil || resp.Events == nil {
		return err
	}
	defer resp.Close()
	if !a.onEvent {
		return errors.New("it is a stream")
	}
	for err == nil {
		_, err = resp.Events.Next()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (a animal) cage(t testing.TB) string {
	t.Helper()
	return newRaw(t, func(c net.Conn, _ *http.Request, _ string) bool {
		a.behave(c)
		return false
	}).url
}

// The zoo one by one: each gives its error and takes a bounded memory. Not parallel: it measures this process.
func TestAHostileUpstreamTakesBoundedMemory(t *testing.T) {
	c := client(upstream.Config{})
	defer c.Close()
	for _, a := range zoo() {
		url := a.cage(t)
		runtime.GC()
		var before runtime.MemStats
		runtime.ReadMemStats(&before)
		var peak atomic.Uint64
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			tick := time.NewTicker(2 * time.Millisecond)
			defer tick.Stop()
			for {
				var now runtime.MemStats
				runtime.ReadMemStats(&now)
				peak.Store(max(peak.Load(), now.HeapAlloc))
				select {
				case <-stop:
					return
				case <-tick.C:
				}
			}
		}()
		err := a.visit(t.Context(), c, url)
		close(stop)
		<-stopped
		if !errors.Is(err, a.want) {
			t.Errorf("%s: %v", a.name, err)
		}
		// What is not collected yet is in it, for the tests' own blocks too.
		grown := int64(peak.Load()) - int64(before.HeapAlloc)
		t.Logf("%-40s %6d KiB", a.name, grown>>10)
		limit := int64(16 << 20)
		if a.onEvent {
			limit = 48 << 20 // an event of 8 MiB, its data, and what they grew from
		}
		if grown > limit {
			t.Errorf("%s: the heap grew by %d MiB", a.name, grown>>20)
		}
	}
}

// The zoo all at once, through the client that others use: they do not notice.
func TestAHostileUpstreamCostsOthersNothing(t *testing.T) {
	t.Parallel()
	healthy := newRaw(t, func(c net.Conn, _ *http.Request, _ string) bool { return say(c, okAnswer) })
	// Nobody listens at the near end of a connection, and nobody else can begin to.
	far, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	dead, err := net.Dial("tcp", far.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	refusing := "http://" + dead.LocalAddr().String()
	c := client(upstream.Config{MaxAnswer: 1 << 20, MaxEvent: 1 << 20, ConnectTimeout: 30 * time.Second})
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	var seen atomic.Int32
	animals := append(zoo(), animal{name: "E01 refuses", want: upstream.ErrUnavailable})
	urls := make([]string, len(animals))
	for i, a := range animals {
		urls[i] = refusing
		if a.behave != nil {
			urls[i] = a.cage(t)
		}
	}
	for i, a := range animals {
		go func() {
			defer func() { done <- struct{}{} }()
			for first := true; ctx.Err() == nil; first = false {
				// Its breaker opens after a while, which is as good.
				if err := a.visit(ctx, c, urls[i]); !errors.Is(err, a.want) && !errors.Is(err, upstream.ErrRefused) && ctx.Err() == nil {
					t.Errorf("%s: %v", a.name, err)
					return
				}
				if first {
					seen.Add(1)
				}
				select {
				case <-ctx.Done():
				case <-time.After(200 * time.Millisecond):
				}
			}
		}()
	}
	for n := 0; n < 300 || int(seen.Load()) < len(animals); n++ {
		resp, err := c.Do(t.Context(), post(healthy.url, "{}"))
		if err != nil || t.Failed() {
			t.Fatalf("call %d to the healthy server: %v", n, err)
		}
		resp.Close()
	}
	cancel()
	for range animals {
		<-done
	}
	if n := healthy.conns.Load(); n != 1 {
		t.Errorf("the healthy server saw %d connections", n)
	}
}
