package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	"github.com/mcpvault/mcpvault/kit/problem"
)

func TestPostgresGoneInTheMiddleOfAWriteLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	srv := storetest.Server(t, dir)
	s := storetest.OpenAt(t, srv.URL(), nil)
	acme := storetest.Tenant(t, s, "acme")

	killed := false
	_, err := s.Write(t.Context(), acme.ID, "admin", func(tx *store.Tx) error {
		if _, err := tx.InsertUser(t.Context(), controlplane.User{Name: "alice", Kind: controlplane.Person}); err != nil {
			return err
		}
		if !killed {
			killed = true
			srv.Kill()
			// A backend may outlive its postmaster for a moment, and would then commit in earnest.
			for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
				if _, err := tx.Units(t.Context()); err != nil {
					break
				}
			}
		}
		return tx.Change(t.Context(), "user.create", "user:alice", nil)
	})
	p, ok := problem.As(err)
	if !ok || p.Code != problem.Unavailable || p.What != "PostgreSQL is not reachable" || p.Fix == "" {
		t.Fatalf("want a clear unavailable problem, got %v", err)
	}
	if err := s.Ping(t.Context()); problem.CodeOf(err) != problem.Unavailable {
		t.Errorf("ping: %v", err)
	}

	storetest.Server(t, dir)
	if got := users(t, s, acme.ID); len(got) != 0 {
		t.Errorf("half a write was kept: %+v", got)
	}
	if n := len(changes(t, s, acme.ID)); n != 1 {
		t.Errorf("%d ledger entries", n)
	}
	if rev, err := addUser(t.Context(), s, acme.ID, "alice"); err != nil || rev != 2 {
		t.Errorf("the same pool must work again: revision %d, %v", rev, err)
	}
}

func TestARestartBetweenTwoWritesIsNotNoticed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	srv := storetest.Server(t, dir)
	s := storetest.OpenAt(t, srv.URL(), nil)
	acme := storetest.Tenant(t, s, "acme")
	srv.Kill()
	storetest.Server(t, dir)
	// The pool still holds connections of the old server.
	if _, err := addUser(t.Context(), s, acme.ID, "alice"); err != nil {
		t.Fatal(err)
	}
}

func TestListenComesBackWithPostgres(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	srv := storetest.Server(t, dir)
	s := storetest.OpenAt(t, srv.URL(), nil)
	acme := storetest.Tenant(t, s, "acme")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hints := s.Listen(ctx, store.OutboxChannel)
	if first, ok := <-hints; first != "" || !ok {
		t.Fatalf("the first hint is %q", first)
	}
	srv.Kill()
	storetest.Server(t, dir)
	if again, ok := <-hints; again != "" || !ok {
		t.Errorf("after the outage, which may have hidden writes, the hint is %q", again)
	}
	if _, err := addUser(t.Context(), s, acme.ID, "alice"); err != nil {
		t.Fatal(err)
	}
	if got := <-hints; got != string(acme.ID) {
		t.Errorf("heard %q", got)
	}
}

// relay stands between the pool and PostgreSQL. When armed, it lets one COMMIT pass and cuts before the answer, or, with a
// channel in hold, keeps the answer until that is closed.
type relay struct {
	armed atomic.Bool
	cuts  atomic.Int32
	hold  chan struct{}
}

func (r *relay) serve(l net.Listener, target string) {
	for {
		client, err := l.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("unix", target)
		if err != nil {
			client.Close()
			continue
		}
		var mute atomic.Bool
		go func() {
			defer server.Close()
			buf := make([]byte, 64<<10)
			for {
				n, err := client.Read(buf)
				if n > 0 {
					if bytes.Contains(buf[:n], []byte("commit\x00")) && r.armed.CompareAndSwap(true, false) {
						mute.Store(true)
						r.cuts.Add(1)
					}
					if _, err := server.Write(buf[:n]); err != nil {
						return
					}
				}
				if err != nil {
					return
				}
			}
		}()
		go func() {
			defer client.Close()
			buf := make([]byte, 64<<10)
			for {
				n, err := server.Read(buf)
				if mute.Load() && r.hold != nil {
					<-r.hold
				}
				if mute.Load() || err != nil {
					return
				}
				if _, err := client.Write(buf[:n]); err != nil && !errors.Is(err, io.EOF) {
					return
				}
			}
		}()
	}
}

// through is a fresh database behind the relay.
func (r *relay) through(t *testing.T) string {
	t.Helper()
	u, err := url.Parse(storetest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	socket := ".s.PGSQL." + q.Get("port")
	target := filepath.Join(q.Get("host"), socket)
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, socket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go r.serve(l, target)
	q.Set("host", dir)
	u.RawQuery = q.Encode()
	return u.String()
}

func TestACommitThatIsNotAnsweredInTimeIsUnknownToo(t *testing.T) {
	t.Parallel()
	r := relay{hold: make(chan struct{})}
	s := storetest.OpenAt(t, r.through(t), nil)
	defer close(r.hold)
	acme := storetest.Tenant(t, s, "acme")
	r.armed.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := addUser(ctx, s, acme.ID, "alice")
	if p, ok := problem.As(err); !ok || p.Code != problem.Unavailable || !strings.Contains(p.What, "in full or not at all") {
		t.Fatalf("got %v", err)
	}
}

func TestALostAnswerToCommitIsReportedAsUnknownAndNotRepeated(t *testing.T) {
	t.Parallel()
	var r relay
	s := storetest.OpenAt(t, r.through(t), nil)
	acme := storetest.Tenant(t, s, "acme")
	r.armed.Store(true)
	_, err := addUser(t.Context(), s, acme.ID, "alice")
	p, ok := problem.As(err)
	if !ok || p.Code != problem.Unavailable || !strings.Contains(p.What, "in full or not at all") || r.cuts.Load() != 1 {
		t.Fatalf("got %v after %d cuts", err, r.cuts.Load())
	}
	if got, ledger := users(t, s, acme.ID), changes(t, s, acme.ID); len(got) != 1 || len(ledger) != 2 {
		t.Errorf("%d users and %d entries: the write was repeated or halved", len(got), len(ledger))
	}
}
