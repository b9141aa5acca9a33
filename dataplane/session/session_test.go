package session_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/snapshot"
)

type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func ring(t *testing.T, c *clock, keys ...byte) *session.Sessions {
	t.Helper()
	cfg := session.Config{Now: c.now}
	for _, k := range keys {
		cfg.Keys = append(cfg.Keys, session.Key{ID: k, Secret: [32]byte{k}})
	}
	s, err := session.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAnyNodeOfTheCellOpensASession(t *testing.T) {
	t.Parallel()
	c := &clock{time.UnixMilli(1_700_000_000_000)}
	claims := session.Claims{
		Tenant: "t", Server: "demo", Owner: session.OwnerOf("iss", "alice"), Upstream: "up-1", Revision: "2025-11-25",
		Created: c.t, Owned: true,
	}
	a, b := ring(t, c, 1), ring(t, c, 2, 1)
	id, err := a.Seal(claims)
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.Open(id)
	if err != nil || got != claims {
		t.Fatalf("got %+v, %v", got, err)
	}
	if again, _ := a.Seal(claims); again == id {
		t.Fatal("two sessions have one id")
	}
	if !session.WellFormed(id) || strings.Contains(id, "up-1") {
		t.Fatalf("id %q", id)
	}
	if _, err := ring(t, c, 3).Open(id); !errors.Is(err, session.ErrUnknown) {
		t.Fatal("another cell opened it")
	}
}

func TestForgedAndOldSessionsAreUnknown(t *testing.T) {
	t.Parallel()
	c := &clock{time.UnixMilli(1_700_000_000_000)}
	s := ring(t, c, 1)
	id, _ := s.Seal(session.Claims{Created: c.t})
	for i := range id {
		forged := []byte(id)
		forged[i] ^= 1
		if _, err := s.Open(string(forged)); err == nil {
			t.Fatalf("C15: opened with byte %d changed", i)
		}
	}
	if _, err := s.Open(s.SealCursor(session.Cursor{})); err == nil {
		t.Fatal("a cursor opened as a session")
	}
	old, _ := s.Seal(session.Claims{Created: c.t.Add(-session.MaxMax - time.Second)})
	if _, err := s.Open(old); err == nil {
		t.Fatal("an old session opened")
	}
	if _, err := s.Seal(session.Claims{Upstream: "a b"}); err == nil {
		t.Fatal("sealed a malformed upstream id")
	}
	for _, bad := range []string{"", "a b", "a\nb", "é", strings.Repeat("a", 4096)} {
		if session.WellFormed(bad) {
			t.Errorf("C16: %.10q is well-formed", bad)
		}
	}
}

func TestCursorsAreBoundToOwnerListAndVersion(t *testing.T) {
	t.Parallel()
	s := ring(t, &clock{}, 1)
	mine := session.Cursor{Owner: session.OwnerOf("i", "a"), List: "tools", Version: snapshot.Version{Epoch: 1, Generation: 2}, Offset: 7}
	text := s.SealCursor(mine)
	if off, err := s.OpenCursor(text, mine); err != nil || off != 7 {
		t.Fatal(off, err)
	}
	other, list, version := mine, mine, mine
	other.Owner = session.OwnerOf("i", "b")
	list.List = "x"
	version.Version.Generation++
	for _, want := range []session.Cursor{other, list, version} {
		if _, err := s.OpenCursor(text, want); err == nil {
			t.Errorf("B27: opened for %+v", want)
		}
	}
}

func TestTasksAreWhatWasSealedAndNothingElse(t *testing.T) {
	t.Parallel()
	s, err := session.New(session.Config{Keys: []session.Key{{ID: 1, Secret: [32]byte{1}}}})
	if err != nil {
		t.Fatal(err)
	}
	want := session.Task{Owner: session.Owner{1}, Tenant: "acme", Server: "ci", Tool: "build", ID: "täsk 1"}
	id := s.SealTask(want)
	if got, err := s.OpenTask(id); err != nil || got != want {
		t.Fatal(got, err)
	}
	for _, other := range []string{"", "t", id + "A", id[1:], s.SealState([]byte(id)), s.SealCursor(session.Cursor{}), strings.Repeat("A", 3000)} {
		if _, err := s.OpenTask(other); !errors.Is(err, session.ErrUnknown) {
			t.Errorf("%.40s: %v", other, err)
		}
	}
	if _, err := s.OpenState(id); err == nil {
		t.Error("a task opens as a state")
	}
}

func TestUpstreamSessionsAreOpenedOnce(t *testing.T) {
	t.Parallel()
	c := &clock{time.Unix(100, 0)}
	table := session.NewTable(2, time.Minute, c.now)
	var mu sync.Mutex
	opened := 0
	open := func(context.Context) (session.Upstream, error) {
		mu.Lock()
		defer mu.Unlock()
		opened++
		return session.Upstream{ID: "u"}, nil
	}
	key := session.TableKey{Owner: [16]byte{1}, Server: "demo"}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if up, err := table.Get(t.Context(), key, open); err != nil || up.ID != "u" {
				t.Error(up, err)
			}
		})
	}
	wg.Wait()
	if opened != 1 {
		t.Fatalf("opened %d times", opened)
	}
	if _, err := table.Get(t.Context(), session.TableKey{Server: "a"}, open); err != nil {
		t.Fatal(err)
	}
	if _, err := table.Get(t.Context(), session.TableKey{Server: "b"}, open); !errors.Is(err, session.ErrFull) {
		t.Fatal("the table is not bounded")
	}
	c.t = c.t.Add(30 * time.Second)
	_, _ = table.Get(t.Context(), key, open)
	c.t = c.t.Add(45 * time.Second)
	if swept := table.Sweep(); len(swept) != 1 || table.Len() != 1 {
		t.Fatalf("swept %d, kept %d", len(swept), table.Len())
	}
	if ended := table.End(key.Owner); len(ended) != 1 || table.Len() != 0 {
		t.Fatal("the owner's leaving did not take their upstream sessions along")
	}
}

func TestAFailedUpstreamSessionIsForgotten(t *testing.T) {
	t.Parallel()
	table := session.NewTable(1, time.Minute, nil)
	fail := errors.New("no")
	for range 2 {
		_, err := table.Get(t.Context(), session.TableKey{}, func(context.Context) (session.Upstream, error) { return session.Upstream{}, fail })
		if !errors.Is(err, fail) || table.Len() != 0 {
			t.Fatal(err, table.Len())
		}
	}
}

func TestTheNextCallerOpensWhatTheFirstOneLeft(t *testing.T) {
	t.Parallel()
	table := session.NewTable(1, time.Minute, nil)
	entered, leave := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		_, err := table.Get(t.Context(), session.TableKey{}, func(context.Context) (session.Upstream, error) {
			close(entered)
			<-leave
			return session.Upstream{}, context.Canceled
		})
		first <- err
	}()
	<-entered
	second := make(chan session.Upstream, 1)
	go func() {
		up, _ := table.Get(t.Context(), session.TableKey{}, func(context.Context) (session.Upstream, error) { return session.Upstream{ID: "u"}, nil })
		second <- up
	}()
	close(leave)
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if up := <-second; up.ID != "u" {
		t.Fatal(up)
	}
}

func FuzzOpen(f *testing.F) {
	s, _ := session.New(session.Config{Keys: []session.Key{{ID: 1}}})
	id, _ := s.Seal(session.Claims{Server: "demo"})
	f.Add(id)
	f.Add("AQE")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := s.Open(text); err == nil && text != id && c.Server != "demo" {
			t.Fatal("opened a forgery")
		}
	})
}
