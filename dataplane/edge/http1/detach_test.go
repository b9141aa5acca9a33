package http1_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/edge/http1"
)

// detached is what a handler has handed over.
type detached struct {
	w      http.ResponseWriter
	r      *http.Request
	finish func()
}

func (d *detached) say(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(d.w, text); err != nil {
		t.Error(err)
	}
	if err := http.NewResponseController(d.w).Flush(); err != nil {
		t.Error(err)
	}
}

// handsOver is a server whose handler returns at once from /stream, after before has seen what it hands over.
func handsOver(t *testing.T, before func(*detached)) (s *http1.Server, addr string, streams chan *detached) {
	t.Helper()
	streams = make(chan *detached, 16)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path != "/stream" {
			_, _ = w.Write(append([]byte("plain "), body...))
			return
		}
		w.Header()["Content-Type"] = []string{"text/event-stream"}
		_ = http.NewResponseController(w).Flush()
		finish, ok := w.(interface{ Detach() (func(), bool) }).Detach()
		if !ok {
			t.Error("the handler may not leave")
			return
		}
		d := &detached{w, r, finish}
		if before != nil {
			before(d)
		}
		streams <- d
	})
	s = http1.New(http1.Config{Handler: h})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(func() { _ = s.Close() })
	return s, ln.Addr().String(), streams
}

func ask(t *testing.T, addr, path string) (net.Conn, *bufio.Reader, *http.Response) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	r := bufio.NewReader(c)
	return c, r, askOn(t, c, r, path)
}

func askOn(t *testing.T, c net.Conn, r *bufio.Reader, path string) *http.Response {
	t.Helper()
	if _, err := io.WriteString(c, "POST "+path+" HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func TestAnAnswerGoesOnAfterItsHandler(t *testing.T) {
	t.Parallel()
	_, addr, streams := handsOver(t, nil)
	c, r, resp := ask(t, addr, "/stream")
	d := <-streams
	for range 3 {
		d.say(t, "some")
		got := make([]byte, 4)
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != "some" {
			t.Fatalf("%q %v", got, err)
		}
	}
	if d.r.Header.Get("Content-Length") != "2" || d.r.Context().Err() != nil {
		t.Fatal("the request is gone")
	}
	d.finish()
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) != 0 {
		t.Fatalf("%q %v", rest, err)
	}
	<-d.r.Context().Done()
	if _, err := io.WriteString(d.w, "late"); err == nil {
		t.Fatal("written after the end")
	}
	resp = askOn(t, c, r, "/other")
	if got, err := io.ReadAll(resp.Body); err != nil || string(got) != "plain hi" {
		t.Fatalf("the next request on the connection: %q %v", got, err)
	}
	d.finish() // of a request that has ended: nothing
	resp = askOn(t, c, r, "/stream")
	(<-streams).finish()
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
}

func TestAnAnswerThatEndsBeforeItsHandlerIsWhole(t *testing.T) {
	t.Parallel()
	_, addr, _ := handsOver(t, func(d *detached) {
		d.say(t, "all")
		d.finish()
	})
	c, r, resp := ask(t, addr, "/stream")
	for range 10 {
		if got, err := io.ReadAll(resp.Body); err != nil || string(got) != "all" {
			t.Fatalf("%q %v", got, err)
		}
		resp = askOn(t, c, r, "/stream")
	}
}

func TestADetachedRequestEndsWhenItsClientLeaves(t *testing.T) {
	t.Parallel()
	_, addr, streams := handsOver(t, nil)
	c, _, _ := ask(t, addr, "/stream")
	d := <-streams
	_ = c.Close()
	select {
	case <-d.r.Context().Done():
		d.finish()
	case <-time.After(10 * time.Second):
		t.Fatal("nobody noticed")
	}
}

func TestShutdownWaitsForDetachedAnswers(t *testing.T) {
	t.Parallel()
	s, addr, streams := handsOver(t, nil)
	_, _, resp := ask(t, addr, "/stream")
	d := <-streams
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(t.Context()) }()
	d.say(t, "last")
	select {
	case <-down:
		t.Fatal("a stream was cut off")
	default:
	}
	d.finish()
	if err := <-down; err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(resp.Body); err != nil || string(got) != "last" {
		t.Fatalf("%q %v", got, err)
	}
}

func TestCloseEndsDetachedRequests(t *testing.T) {
	t.Parallel()
	s, addr, streams := handsOver(t, nil)
	ask(t, addr, "/stream")
	d := <-streams
	_ = s.Close()
	<-d.r.Context().Done()
	d.finish()
	if err := s.Shutdown(context.Background()); err != nil { // the connection is given up
		t.Fatal(err)
	}
}

func TestAHandlerStaysWithAnUnreadBodyOrAnUnsentHeader(t *testing.T) {
	t.Parallel()
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/read" {
			_, _ = io.Copy(io.Discard, r.Body)
		} else {
			_ = http.NewResponseController(w).Flush()
		}
		if _, ok := w.(interface{ Detach() (func(), bool) }).Detach(); ok {
			t.Error("it may leave")
		}
		w.Header()["X-Later"] = []string{"yes"}
		_, _ = io.WriteString(w, "here")
	})
	s := http1.New(http1.Config{Handler: h})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(ln) }()
	defer s.Close()
	for _, path := range []string{"/read", "/unread"} {
		_, _, resp := ask(t, ln.Addr().String(), path)
		if got, err := io.ReadAll(resp.Body); err != nil || !strings.HasPrefix(string(got), "here") {
			t.Fatalf("%s: %q %v", path, got, err)
		}
	}
}
