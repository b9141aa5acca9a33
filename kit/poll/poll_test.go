//go:build linux

package poll_test

import (
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/kit/poll"
)

// pair is a connection: the watched end's socket and both ends.
func pair(t *testing.T) (socket syscall.RawConn, here, there *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	here, there = a.(*net.TCPConn), b.(*net.TCPConn)
	if socket, err = here.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	return socket, here, there
}

// watch returns a channel that gets one value when the poller calls.
func watch(t *testing.T, p *poll.Poller, socket syscall.RawConn, what poll.What) (poll.ID, chan struct{}) {
	t.Helper()
	called := make(chan struct{}, 2)
	id := p.Watch(socket, what, func() { called <- struct{}{} })
	if id == 0 {
		t.Fatal("the socket is not watched")
	}
	return id, called
}

func comes(t *testing.T, called chan struct{}) {
	t.Helper()
	select {
	case <-called:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody was called")
	}
}

func TestBytesAreToldOnceAndAgainAfterTheNextWatch(t *testing.T) {
	t.Parallel()
	var p poll.Poller
	defer p.Close()
	socket, here, there := pair(t)
	_, called := watch(t, &p, socket, poll.Bytes)
	_, _ = there.Write([]byte("x"))
	comes(t, called)
	_, _ = there.Write([]byte("y"))
	var b [2]byte
	for n := 0; n < 2; {
		m, err := here.Read(b[:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	_, called = watch(t, &p, socket, poll.Bytes)
	if len(called) != 0 {
		t.Fatal("what was read already was told of")
	}
	_, _ = there.Write([]byte("z"))
	comes(t, called)
}

func TestBytesThatWaitAlreadyAreTold(t *testing.T) {
	t.Parallel()
	var p poll.Poller
	defer p.Close()
	socket, _, there := pair(t)
	_, _ = there.Write([]byte("x"))
	_, called := watch(t, &p, socket, poll.Bytes)
	comes(t, called)
}

func TestTheEndIsToldToBoth(t *testing.T) {
	t.Parallel()
	for _, what := range []poll.What{poll.Gone, poll.Bytes} {
		var p poll.Poller
		socket, _, there := pair(t)
		_, called := watch(t, &p, socket, what)
		_ = there.CloseWrite()
		comes(t, called)
		p.Close()
	}
}

func TestBytesAreNotTheEnd(t *testing.T) {
	t.Parallel()
	var p poll.Poller
	defer p.Close()
	socket, _, there := pair(t)
	other, _, otherThere := pair(t)
	_, gone := watch(t, &p, socket, poll.Gone)
	_, bytes := watch(t, &p, other, poll.Bytes)
	_, _ = there.Write([]byte("x"))
	_, _ = otherThere.Write([]byte("x")) // told after the other one would have been
	comes(t, bytes)
	if len(gone) != 0 {
		t.Fatal("bytes were taken for the end")
	}
	_ = there.Close()
	comes(t, gone)
}

func TestWhoStopsIsNotCalled(t *testing.T) {
	t.Parallel()
	var p poll.Poller
	defer p.Close()
	socket, _, there := pair(t)
	other, _, otherThere := pair(t)
	id, called := watch(t, &p, socket, poll.Bytes)
	if !p.Stop(socket, id) || p.Stop(socket, id) {
		t.Fatal("a watch is stopped once")
	}
	_, later := watch(t, &p, other, poll.Bytes)
	_, _ = there.Write([]byte("x"))
	_, _ = otherThere.Write([]byte("x"))
	comes(t, later)
	if len(called) != 0 {
		t.Fatal("called after the stop")
	}
	_, called = watch(t, &p, socket, poll.Bytes)
	comes(t, called)
}

func TestAClosedSocketIsNotWatched(t *testing.T) {
	t.Parallel()
	var p poll.Poller
	socket, here, _ := pair(t)
	_ = here.Close()
	if p.Watch(socket, poll.Bytes, func() {}) != 0 {
		t.Fatal("a closed socket is watched")
	}
	p.Close()
	if socket, _, _ := pair(t); p.Watch(socket, poll.Bytes, func() {}) != 0 {
		t.Fatal("a closed poller watches")
	}
}
