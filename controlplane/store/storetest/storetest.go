// Package storetest gives each test a database of its own, migrated, on one private PostgreSQL for the whole test binary.
// A test package calls Main from its TestMain, so that the server is stopped and its files are removed.
package storetest

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/pgdev"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// template is migrated once; a copy of it is quicker than the migrations.
const template = "mcpvault_template"

// shared is the one server of this test binary.
type shared struct {
	once   sync.Once
	server *pgdev.Server
	err    error
	count  atomic.Int64
	mu     sync.Mutex // guards the template: PostgreSQL copies it only while nobody else does
}

var binary shared

// Main runs the tests and stops the server. The result is for os.Exit.
func Main(m *testing.M) int {
	code := m.Run()
	if binary.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := binary.server.Stop(ctx); err != nil {
			fmt.Println("stop postgresql:", err)
			return max(code, 1)
		}
	}
	return code
}

// Open gives a store on a fresh database. It is closed when the test ends.
func Open(t testing.TB) *store.Store {
	t.Helper()
	return OpenAt(t, URL(t), nil)
}

// OpenAt gives a store on the database, with a clock (nil means time.Now). It is closed when the test ends.
func OpenAt(t testing.TB, databaseURL string, now func() time.Time) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: databaseURL, MaxConns: 6, Now: now})
	if err != nil {
		t.Fatalf("open store: %v", err)
	}
	t.Cleanup(s.Close)
	return s
}

// URL makes a fresh, migrated database and returns its owner's connection string.
func URL(t testing.TB) string {
	t.Helper()
	binary.once.Do(func() { binary.server, binary.err = start() })
	if binary.err != nil {
		t.Fatalf("start postgresql: %v", binary.err)
	}
	name := fmt.Sprintf("t%d", binary.count.Add(1))
	binary.mu.Lock()
	defer binary.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := execute(ctx, binary.server.URL(), "CREATE DATABASE "+name+" TEMPLATE "+template+" STRATEGY file_copy"); err != nil {
		t.Fatalf("copy the template database: %v", err)
	}
	u, err := databaseURL(binary.server.URL(), name)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// Server starts a PostgreSQL of the test's own on dir, for tests that take it away with Kill, after which another
// Server on the same dir has the same data. When the test ends, nothing is left.
func Server(t testing.TB, dir string) *pgdev.Server {
	t.Helper()
	srv, err := startServer(t.Context(), pgdev.Config{Dir: dir, Ephemeral: true})
	if err != nil {
		t.Fatalf("start postgresql: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := srv.Stop(ctx); err != nil {
			t.Errorf("stop postgresql: %v", err)
		}
	})
	return srv
}

// startServer waits for the directory's lock: a process that another test is just starting may hold a copy of it until
// that process runs its own program.
func startServer(ctx context.Context, cfg pgdev.Config) (*pgdev.Server, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		srv, err := pgdev.Start(ctx, cfg)
		if problem.CodeOf(err) != problem.Conflict {
			return srv, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
		}
	}
}

// Tenant makes a tenant in the store.
func Tenant(t testing.TB, s *store.Store, name string) controlplane.Tenant {
	t.Helper()
	tenant, err := s.CreateTenant(t.Context(), "test", name, nil)
	if err != nil {
		t.Fatalf("create tenant %s: %v", name, err)
	}
	return tenant
}

func start() (*pgdev.Server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	srv, err := startServer(ctx, pgdev.Config{Ephemeral: true})
	if err != nil {
		return nil, err
	}
	if err := execute(ctx, srv.URL(), "CREATE DATABASE "+template); err != nil {
		return srv, err
	}
	u, err := databaseURL(srv.URL(), template)
	if err != nil {
		return srv, err
	}
	return srv, store.Migrate(ctx, u, slog.New(slog.DiscardHandler))
}

// databaseURL points the same server's URL at another database.
func databaseURL(server, name string) (string, error) {
	u, err := url.Parse(server)
	if err != nil {
		return "", err
	}
	u.Path = "/" + name
	return u.String(), nil
}

func execute(ctx context.Context, databaseURL, sql string) error {
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, sql)
	return err
}
