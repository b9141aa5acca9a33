//go:build linux

package upstream_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/upstream"
)

const eventsHead = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

// speaker is a server whose streams say what a test has it say.
func speaker(t *testing.T, secure bool) (cfg upstream.Config, url string, words chan string) {
	t.Helper()
	words = make(chan string)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	scheme := "http"
	if secure {
		cert, roots := certificate(t)
		cfg.TLS, scheme = trusting(roots), "https"
		ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}})
	}
	s := serveRaw(t, ln, scheme, func(c net.Conn, _ *http.Request, _ string) bool {
		ok := say(c, eventsHead)
		for word := range words {
			ok = ok && say(c, word)
		}
		return ok
	})
	return cfg, s.url, words
}

// parked parks a stream, reading on when it was woken or could not be, until it has nothing more to tell.
func parked(t *testing.T, resp *upstream.Response) (woken chan struct{}) {
	t.Helper()
	woken = make(chan struct{}, 2)
	if !resp.Park(func() { woken <- struct{}{} }) {
		t.Fatal("the stream is not parked")
	}
	return woken
}

func next(t *testing.T, resp *upstream.Response, want string) {
	t.Helper()
	ev, err := resp.Events.Next()
	if err != nil || string(ev.Data) != want {
		t.Fatalf("%q %v, want %q", ev.Data, err, want)
	}
}

func comes(t *testing.T, woken chan struct{}) {
	t.Helper()
	select {
	case <-woken:
	case <-time.After(20 * time.Second):
		t.Fatal("nobody was woken")
	}
}

func TestAParkedStreamWakesForWhatComes(t *testing.T) {
	t.Parallel()
	for name, secure := range map[string]bool{"plain": false, "tls": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg, url, words := speaker(t, secure)
			c := client(cfg)
			defer c.Close()
			resp, err := c.Do(t.Context(), &upstream.Request{URL: url, Method: http.MethodGet, Long: true})
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Close()
			woken := parked(t, resp)
			words <- "9\r\ndata: a\n\n\r\n"
			comes(t, woken)
			next(t, resp, "a")
			woken = parked(t, resp)
			words <- "9\r\ndata"
			comes(t, woken) // a part of an event is something to read
			go func() { words <- ": b\n\n\r\n" }()
			next(t, resp, "b")
			woken = parked(t, resp)
			words <- "12\r\ndata: c\n\ndata: d\n\n\r\n"
			comes(t, woken)
			next(t, resp, "c")
			if resp.Park(func() { t.Error("woken") }) {
				t.Fatal("parked with an event in hand")
			}
			next(t, resp, "d")
			woken = parked(t, resp)
			words <- "0\r\n\r\n"
			comes(t, woken)
			if _, err := resp.Events.Next(); !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			if resp.Park(func() { t.Error("woken") }) {
				t.Fatal("parked at the end")
			}
			close(words)
		})
	}
}

func TestNoRecordOfTLSIsLeftBehindWhenAStreamIsParked(t *testing.T) {
	t.Parallel()
	cfg, url, words := speaker(t, true)
	c := client(cfg)
	defer c.Close()
	resp, err := c.Do(t.Context(), &upstream.Request{URL: url, Method: http.MethodGet, Long: true})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Close()
	const n = 200
	go func() {
		defer close(words)
		for range n { // a record each, more than one of which the socket may have at once
			words <- "9\r\ndata: a\n\n\r\n"
		}
	}()
	woken := make(chan struct{}, 1)
	for i := range n {
		next(t, resp, "a")
		if i < n-1 && resp.Park(func() { woken <- struct{}{} }) {
			comes(t, woken)
		}
	}
}

func TestAParkedStreamOnWhichNothingComesIsOverdue(t *testing.T) {
	t.Parallel()
	cfg, url, words := speaker(t, false)
	defer close(words)
	var now atomic.Int64 // minutes
	cfg.StreamIdle, cfg.Now = time.Hour, func() time.Time { return time.Now().Add(time.Duration(now.Load()) * time.Minute) }
	c := client(cfg)
	defer c.Close()
	resp, err := c.Do(t.Context(), &upstream.Request{URL: url, Method: http.MethodGet, Long: true})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Close()
	now.Store(1)
	if resp.Overdue() {
		t.Fatal("a stream is overdue that was not parked")
	}
	woken := parked(t, resp)
	now.Store(60)
	if resp.Overdue() {
		t.Fatal("overdue too soon")
	}
	now.Store(62)
	if !resp.Overdue() {
		t.Fatal("nothing came for too long")
	}
	words <- "9\r\ndata: a\n\n\r\n"
	comes(t, woken)
	next(t, resp, "a")
	if resp.Overdue() {
		t.Fatal("a stream is overdue on which something came")
	}
}

func TestAClosedStreamWakesNobody(t *testing.T) {
	t.Parallel()
	cfg, url, words := speaker(t, false)
	cfg.StreamIdle = 20 * time.Millisecond
	c := client(cfg)
	defer c.Close()
	resp, err := c.Do(t.Context(), &upstream.Request{URL: url, Method: http.MethodGet, Long: true})
	if err != nil {
		t.Fatal(err)
	}
	if !resp.Park(func() {}) {
		t.Fatal("not parked")
	}
	resp.Close()
	if resp.Park(func() { t.Error("woken") }) {
		t.Fatal("parked after its end")
	}
	close(words)
	if _, err := resp.Events.Next(); err == nil {
		t.Fatal("read after its end")
	}
}
