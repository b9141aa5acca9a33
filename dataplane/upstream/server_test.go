package upstream_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
)

// raw is a server that speaks in bytes: answer gets each request, after its body was read, and the connection to write on;
// it returns false to close it.
type raw struct {
	url      string
	conns    atomic.Int32
	requests atomic.Int32
}

func newRaw(t testing.TB, answer func(c net.Conn, r *http.Request, body string) bool) *raw {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveRaw(t, ln, "http", answer)
}

func serveRaw(t testing.TB, ln net.Listener, scheme string, answer func(c net.Conn, r *http.Request, body string) bool) *raw {
	t.Helper()
	s := &raw{url: scheme + "://" + ln.Addr().String() + "/mcp"}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.conns.Add(1)
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer func() {
					_ = c.Close()
					mu.Lock()
					delete(open, c)
					mu.Unlock()
				}()
				br := bufio.NewReader(c)
				for {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					b, err := io.ReadAll(r.Body)
					if err != nil {
						return
					}
					s.requests.Add(1)
					if !answer(c, r, string(b)) {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return s
}

const okAnswer = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

func say(c net.Conn, text string) bool {
	_, err := io.WriteString(c, text)
	return err == nil
}
