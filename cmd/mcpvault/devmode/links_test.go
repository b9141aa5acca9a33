package devmode

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

const patience = 10 * time.Second

// linked is a caller "a" and a server "b" with a link between them.
type linked struct {
	t        *testing.T
	links    *links
	server   net.Listener
	accepted chan *net.TCPConn
}

func link(t *testing.T) *linked {
	t.Helper()
	ln, err := listen(0)
	if err != nil {
		t.Fatal(err)
	}
	x := &linked{t, newLinks(), ln, make(chan *net.TCPConn, 16)}
	if err := x.links.add("a", "b", ln.Addr().String(), func(int) bool { return false }); err != nil {
		t.Fatal(err)
	}
	bg := newBackground()
	x.links.run(bg)
	bg.run(func(context.Context) error {
		for {
			c, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if err != nil {
				return err
			}
			x.accepted <- c.(*net.TCPConn)
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		if err := bg.stop(); err != nil {
			t.Error(err)
		}
	})
	return x
}

func (x *linked) dial() *net.TCPConn {
	x.t.Helper()
	c, err := net.Dial("tcp", x.links.through("a", x.server.Addr().String()))
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

func (x *linked) accept() *net.TCPConn {
	x.t.Helper()
	select {
	case c := <-x.accepted:
		x.t.Cleanup(func() { _ = c.Close() })
		return c
	case <-time.After(patience):
		x.t.Fatal("no connection arrived")
		return nil
	}
}

func say(t *testing.T, c net.Conn, what string) {
	t.Helper()
	if _, err := c.Write([]byte(what)); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("heard %q, %v; want %q", b, err, want)
	}
}

func hearNothing(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("heard %d bytes, %v", n, err)
	}
}

func TestALinkChangesNoByte(t *testing.T) {
	t.Parallel()
	x := link(t)
	a := x.dial()
	b := x.accept()
	sent := bytes.Repeat([]byte("all that is said, "), 200_000)
	go func() {
		_, _ = a.Write(sent)
		_ = a.CloseWrite()
	}()
	got, err := io.ReadAll(b)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
		t.Fatalf("%d of %d bytes arrived, %v", len(got), len(sent), err)
	}
	// One side has said its last; the other may still answer.
	say(t, b, "answer")
	_ = b.Close()
	if got, err := io.ReadAll(a); err != nil || string(got) != "answer" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestEachDirectionIsCutByItself(t *testing.T) {
	t.Parallel()
	x := link(t)
	a := x.dial()
	b := x.accept()
	x.links.passage("a", "b").set(true, 0)
	say(t, a, "lost?")
	hearNothing(t, b)
	say(t, b, "the other way is open")
	hear(t, a, "the other way is open")
	x.links.passage("a", "b").set(false, 0)
	hear(t, b, "lost?")
	x.links.passage("b", "a").set(true, 0)
	say(t, a, "this way now")
	hear(t, b, "this way now")
	say(t, b, "held")
	hearNothing(t, a)
}

func TestNobodyConnectsAcrossACutInEitherDirection(t *testing.T) {
	t.Parallel()
	for _, w := range []way{{"a", "b"}, {"b", "a"}} {
		x := link(t)
		x.links.passage(w.from, w.to).set(true, 0)
		gone, waits := x.dial(), x.dial()
		say(t, waits, "hello")
		_ = gone.Close()
		select {
		case <-x.accepted:
			t.Fatalf("a connection passed the cut from %s to %s", w.from, w.to)
		case <-time.After(50 * time.Millisecond):
		}
		x.links.passage(w.from, w.to).set(false, 0)
		hear(t, x.accept(), "hello")
	}
}

func TestAnEndIsNotHeardAcrossACut(t *testing.T) {
	t.Parallel()
	x := link(t)
	a := x.dial()
	b := x.accept()
	x.links.passage("a", "b").set(true, 0)
	reset(a)
	hearNothing(t, b)
	x.links.passage("a", "b").set(false, 0)
	_ = b.SetReadDeadline(time.Now().Add(patience))
	if n, err := b.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d, %v: the connection should have ended", n, err)
	}
}

func TestADelayHoldsOneDirection(t *testing.T) {
	t.Parallel()
	const delay = 100 * time.Millisecond
	x := link(t)
	a := x.dial()
	b := x.accept()
	x.links.passage("b", "a").set(false, delay)
	began := time.Now()
	say(t, b, "late")
	say(t, a, "soon")
	hear(t, b, "soon")
	hear(t, a, "late")
	if took := time.Since(began); took < delay {
		t.Errorf("it arrived after %s, %s too soon", took, delay-took)
	}
}

func TestAServerThatIsNotThereEndsTheConnection(t *testing.T) {
	t.Parallel()
	x := link(t)
	_ = x.server.Close()
	a, err := net.Dial("tcp", x.links.through("a", x.server.Addr().String()))
	if err != nil {
		return // ended already
	}
	defer func() { _ = a.Close() }()
	_ = a.SetReadDeadline(time.Now().Add(patience))
	if _, err := a.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read: %v", err)
	}
}
