package svid_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/kit/svid"
)

// clock is a clock that a test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// link is a connection between two nodes with a guard at each end.
type link struct {
	ca     *svid.CA
	dirs   [2]string
	srcs   [2]*svid.Source
	guards [2]*svid.Guard
	clock  *clock
	client *tls.Conn
	server chan net.Conn
	banned atomic.Bool
}

func connect(t *testing.T, ttl time.Duration) *link {
	t.Helper()
	l := &link{ca: newCA(t), clock: &clock{at: time.Now()}, server: make(chan net.Conn, 8)}
	for i, name := range []string{"n1", "n2"} {
		l.dirs[i] = t.TempDir()
		certPEM, keyPEM, err := l.ca.IssueNode(nodeID(t, "eu", name), ttl)
		must(t, err)
		must(t, svid.WriteIdentity(l.dirs[i], certPEM, keyPEM, l.ca.Bundle()))
		l.srcs[i], err = svid.Open(t.Context(), svid.Config{Dir: l.dirs[i], Now: l.clock.now})
		must(t, err)
		l.guards[i] = svid.NewGuard(l.srcs[i], slog.New(slog.DiscardHandler), l.clock.now)
	}
	allow := func(svid.ID) error {
		if l.banned.Load() {
			return svid.ErrRefused
		}
		return nil
	}
	tcp, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	ln := tls.NewListener(l.guards[0].Listen(tcp), l.guards[0].ServerTLS(allow, allow, "x"))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = conn.Write([]byte{1})
				l.server <- conn
			}()
		}
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		<-done
		for len(l.server) > 0 {
			_ = (<-l.server).Close()
		}
	})
	l.client, err = l.guards[1].Dial(t.Context(), "tcp", tcp.Addr().String(), svid.Exactly(nodeID(t, "eu", "n1")), "x")
	must(t, err)
	t.Cleanup(func() { _ = l.client.Close() })
	_, err = io.ReadFull(l.client, make([]byte, 1))
	must(t, err)
	return l
}

// alive reports whether nobody has hung up.
func (l *link) alive(t *testing.T) bool {
	t.Helper()
	if l.client.SetReadDeadline(time.Now().Add(50*time.Millisecond)) != nil {
		return false // closed on this side
	}
	_, err := l.client.Read(make([]byte, 1))
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func TestAConnectionEndsWithTheSVIDOfItsPeer(t *testing.T) {
	t.Parallel()
	for i, end := range []string{"server", "client"} {
		l := connect(t, time.Hour)
		l.clock.add(59 * time.Minute)
		l.guards[i].Check()
		if !l.alive(t) {
			t.Fatalf("the %s ended a good connection", end)
		}
		l.clock.add(61 * time.Second)
		l.guards[i].Check()
		if l.alive(t) {
			t.Errorf("the %s keeps a connection whose peer's SVID has expired", end)
		}
	}
}

func TestAConnectionEndsWithTheBeliefInItsAuthority(t *testing.T) {
	t.Parallel()
	l := connect(t, time.Hour)
	other := newCA(t)
	// Overlap: both are believed, and nothing ends.
	certPEM, keyPEM, err := other.IssueNode(nodeID(t, "eu", "n1"), time.Hour)
	must(t, err)
	must(t, svid.WriteIdentity(l.dirs[0], certPEM, keyPEM, append(l.ca.Bundle(), other.Bundle()...)))
	l.clock.add(2 * time.Second)
	l.guards[0].Check()
	if !l.alive(t) {
		t.Fatal("a connection of the old authority ended while that is believed")
	}
	must(t, svid.WriteIdentity(l.dirs[0], certPEM, keyPEM, other.Bundle()))
	l.clock.add(2 * time.Second)
	l.guards[0].Check()
	if l.alive(t) {
		t.Fatal("a connection outlives the belief in its authority")
	}
}

func TestAConnectionEndsSoonAfterItsPeerIsRefused(t *testing.T) {
	t.Parallel()
	l := connect(t, time.Hour)
	l.banned.Store(true)
	l.guards[0].Check()
	if !l.alive(t) {
		t.Fatal("the peer was not told why")
	}
	for range 4 { // within five seconds, at a look each second
		l.clock.add(time.Second)
		l.guards[0].Check()
	}
	if l.alive(t) {
		t.Fatal("a refused peer stays connected")
	}
}

func TestAPeerThatIsAdmittedAgainStays(t *testing.T) {
	t.Parallel()
	l := connect(t, time.Hour)
	l.banned.Store(true)
	l.guards[0].Check()
	l.banned.Store(false)
	l.clock.add(2 * time.Second)
	l.guards[0].Check()
	l.banned.Store(true)
	l.clock.add(2 * time.Second)
	l.guards[0].Check()
	if !l.alive(t) {
		t.Fatal("the time of an earlier refusal counts")
	}
}

func TestTheGuardRunsByItself(t *testing.T) {
	t.Parallel()
	l := connect(t, time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.guards[0].Run(ctx) }()
	l.clock.add(2 * time.Hour)
	must(t, l.client.SetReadDeadline(time.Now().Add(5*time.Second)))
	_, err := l.client.Read(make([]byte, 1))
	var timeout net.Error
	if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Fatalf("five seconds later it is open: %v", err)
	}
	cancel()
	must(t, <-done)
}

func TestAGuardedListenerResumesNothing(t *testing.T) {
	t.Parallel()
	l := connect(t, time.Hour)
	tcp, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	ln := tls.NewListener(l.guards[0].Listen(tcp), l.guards[0].ServerTLS(svid.AnyCellNode(domain), svid.AnyCellNode(domain), "x"))
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte{1})
			_ = conn.Close()
		}
	}()
	client := svid.ClientTLS(l.srcs[1], svid.AnyCellNode(domain), "x")
	client.SessionTicketsDisabled, client.ServerName = false, "n1"
	client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	for range 3 {
		cs, err := dial(tcp.Addr().String(), client)
		must(t, err)
		if cs.DidResume {
			t.Fatal("a session was resumed")
		}
	}
}
