package store_test

import (
	"net/url"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// as points the URL at another role and database of the same server.
func as(t *testing.T, rawURL, role, database string) string {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	u.User, u.Path = url.User(role), "/"+database
	return u.String()
}

func superuser(t *testing.T, rawURL string, statements ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), rawURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for _, sql := range statements {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

// A managed PostgreSQL gives nobody a superuser.
func TestAnOwnerWhoIsNoSuperuserIsEnough(t *testing.T) {
	t.Parallel()
	super := storetest.URL(t)
	superuser(t, super, "CREATE ROLE plain_owner LOGIN CREATEROLE", "GRANT mcpvault_app TO plain_owner WITH ADMIN OPTION", "CREATE DATABASE plain OWNER plain_owner")
	s := storetest.OpenAt(t, as(t, super, "plain_owner", "plain"), nil)
	acme := storetest.Tenant(t, s, "acme")
	if _, err := addUser(t.Context(), s, acme.ID, "alice"); err != nil {
		t.Fatal(err)
	}
	if got := users(t, s, acme.ID); len(got) != 1 {
		t.Errorf("got %v", got)
	}
	// Not even the owner sees rows of no tenant.
	conn, err := pgx.Connect(t.Context(), as(t, super, "plain_owner", "plain"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var n int
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM users").Scan(&n); err != nil || n != 0 {
		t.Errorf("the owner sees %d users, %v", n, err)
	}
}

func TestARoleThatMayNotSetUpTheSchemaIsTold(t *testing.T) {
	t.Parallel()
	super := storetest.URL(t)
	superuser(t, super, "CREATE ROLE bystander LOGIN", "CREATE DATABASE theirs")
	_, err := store.Open(t.Context(), store.Config{URL: as(t, super, "bystander", "theirs")})
	if p, ok := problem.As(err); !ok || p.Code != problem.Denied || p.Fix == "" {
		t.Errorf("got %v", err)
	}
	superuser(t, super, "CREATE ROLE outsider LOGIN", "CREATE DATABASE outside OWNER outsider")
	_, err = store.Open(t.Context(), store.Config{URL: as(t, super, "outsider", "outside")})
	if p, ok := problem.As(err); !ok || p.Code != problem.Denied || p.Fix == "" {
		t.Errorf("got %v", err)
	}
}

func TestABadURLIsToldWithoutItsPassword(t *testing.T) {
	t.Parallel()
	_, err := store.Open(t.Context(), store.Config{URL: "postgres://user:hunter2@[bad"})
	if p, ok := problem.As(err); !ok || p.Code != problem.Invalid || p.Cause != nil {
		t.Errorf("got %v", err)
	}
	_, err = store.Open(t.Context(), store.Config{URL: "postgres://nobody@127.0.0.1:1/none"})
	if problem.CodeOf(err) != problem.Unavailable {
		t.Errorf("got %v", err)
	}
}
