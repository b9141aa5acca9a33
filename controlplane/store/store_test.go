package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// addUser is the smallest admin write.
func addUser(ctx context.Context, s *store.Store, tenant controlplane.TenantID, name string) (uint64, error) {
	return s.Write(ctx, tenant, "admin", func(tx *store.Tx) error {
		if _, err := tx.InsertUser(ctx, controlplane.User{Name: name, Kind: controlplane.Person}); err != nil {
			return err
		}
		return tx.Change(ctx, "user.create", "user:"+name, map[string]any{"kind": "person"})
	})
}

func users(t *testing.T, s *store.Store, tenant controlplane.TenantID) []controlplane.User {
	t.Helper()
	var list []controlplane.User
	err := s.Read(t.Context(), tenant, func(tx *store.Tx) (err error) {
		list, err = tx.Users(t.Context(), "", 100)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func changes(t *testing.T, s *store.Store, tenant controlplane.TenantID) []controlplane.Change {
	t.Helper()
	var list []controlplane.Change
	err := s.Read(t.Context(), tenant, func(tx *store.Tx) (err error) {
		list, err = tx.ChangesFrom(t.Context(), 1, 1000)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func outbox(t *testing.T, s *store.Store) []store.OutboxRow {
	t.Helper()
	var list []store.OutboxRow
	err := s.Platform(t.Context(), func(tx *store.Tx) (err error) {
		list, err = tx.OpenOutbox(t.Context(), 1000)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestWriteKeepsRowsLedgerAndOutboxTogether(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t)
	acme := storetest.Tenant(t, s, "acme")
	rev, err := addUser(t.Context(), s, acme.ID, "alice")
	if err != nil || rev != 2 {
		t.Fatalf("revision %d, %v", rev, err)
	}
	boom := errors.New("boom")
	_, err = s.Write(t.Context(), acme.ID, "admin", func(tx *store.Tx) error {
		if _, err := tx.InsertUser(t.Context(), controlplane.User{Name: "bob", Kind: controlplane.Person}); err != nil {
			return err
		}
		if err := tx.Change(t.Context(), "user.create", "user:bob", nil); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatalf("the caller's own error must come back, got %v", err)
	}
	if got := users(t, s, acme.ID); len(got) != 1 || got[0].Name != "alice" {
		t.Errorf("a failed write left rows: %+v", got)
	}
	if got := changes(t, s, acme.ID); len(got) != 2 || got[1].Object != "user:alice" || got[1].Revision != 2 {
		t.Errorf("the ledger holds %+v", got)
	}
	if got := outbox(t, s); len(got) != 2 || got[1].Revision != 2 || got[1].TenantID != acme.ID || got[1].Kind != store.OutboxPolicy {
		t.Errorf("the outbox holds %+v", got)
	}
}

func TestWriteWithoutLedgerEntryIsRefused(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t)
	acme := storetest.Tenant(t, s, "acme")
	_, err := s.Write(t.Context(), acme.ID, "admin", func(tx *store.Tx) error {
		_, err := tx.InsertUser(t.Context(), controlplane.User{Name: "bob", Kind: controlplane.Person})
		return err
	})
	if err == nil || len(users(t, s, acme.ID)) != 0 {
		t.Fatalf("a silent write passed: %v", err)
	}
}

func TestWriteThatChangesNothingMakesNoRevision(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t)
	acme := storetest.Tenant(t, s, "acme")
	if _, err := addUser(t.Context(), s, acme.ID, "alice"); err != nil {
		t.Fatal(err)
	}
	rev, err := s.Write(t.Context(), acme.ID, "admin", func(tx *store.Tx) error {
		return tx.SetUserDisabled(t.Context(), "alice", false)
	})
	if err != nil || rev != 2 {
		t.Fatalf("revision %d, %v", rev, err)
	}
	if got := outbox(t, s); len(got) != 2 {
		t.Errorf("work was left for a change that was none: %+v", got)
	}
}

func TestConcurrentWritesGetOneOrder(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t)
	acme := storetest.Tenant(t, s, "acme")
	const writers, each = 6, 5
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if _, err := addUser(t.Context(), s, acme.ID, fmt.Sprintf("u%d-%d", w, i)); err != nil {
					t.Errorf("write: %v", err)
				}
			}
		})
	}
	wg.Wait()
	ledger := changes(t, s, acme.ID)
	if len(ledger) != 1+writers*each {
		t.Fatalf("%d ledger entries", len(ledger))
	}
	for i, c := range ledger {
		if c.Sequence != uint64(i+1) || c.Revision != uint64(i+1) {
			t.Fatalf("entry %d is %d at revision %d", i, c.Sequence, c.Revision)
		}
	}
	if err := store.VerifyChanges(acme.ID, nil, ledger); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyFindsEveryTamperedChange(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t)
	acme := storetest.Tenant(t, s, "acme")
	for _, n := range []string{"alice", "bob", "carol"} {
		if _, err := addUser(t.Context(), s, acme.ID, n); err != nil {
			t.Fatal(err)
		}
	}
	tamper := map[string]func([]controlplane.Change) []controlplane.Change{
		"actor":  func(l []controlplane.Change) []controlplane.Change { l[1].Actor = "mallory"; return l },
		"detail": func(l []controlplane.Change) []controlplane.Change { l[1].Detail += " "; return l },
		"boundary": func(l []controlplane.Change) []controlplane.Change {
			l[1].Action += "u"
			l[1].Object = l[1].Object[1:]
			return l
		},
		"time":      func(l []controlplane.Change) []controlplane.Change { l[1].At = l[1].At.Add(time.Millisecond); return l },
		"left out":  func(l []controlplane.Change) []controlplane.Change { return append(l[:1], l[2:]...) },
		"swapped":   func(l []controlplane.Change) []controlplane.Change { l[1], l[2] = l[2], l[1]; return l },
		"hash":      func(l []controlplane.Change) []controlplane.Change { l[1].Hash[0] ^= 1; return l },
		"first out": func(l []controlplane.Change) []controlplane.Change { return l[1:] },
	}
	for name, f := range tamper {
		if err := store.VerifyChanges(acme.ID, nil, f(changes(t, s, acme.ID))); err == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
	if err := store.VerifyChanges("another", nil, changes(t, s, acme.ID)); err == nil {
		t.Error("the chain of one tenant passes for another's")
	}
}

func TestATransactionSeesItsTenantOnly(t *testing.T) {
	t.Parallel()
	url := storetest.URL(t)
	s := storetest.OpenAt(t, url, nil)
	acme, globex := storetest.Tenant(t, s, "acme"), storetest.Tenant(t, s, "globex")
	if _, err := addUser(t.Context(), s, acme.ID, "alice"); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	count := func(table string) (n int) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM "+pgx.Identifier{table}.Sanitize()).Scan(&n); err != nil {
			t.Fatalf("count %s: %v", table, err)
		}
		return n
	}
	exec("SET ROLE mcpvault_app")
	if n := count("users") + count("changes") + count("tenants") + count("outbox"); n != 0 {
		t.Errorf("without a tenant %d rows are seen", n)
	}
	exec("SELECT set_config('mcpvault.tenant', $1, false)", string(globex.ID))
	if n := count("users"); n != 0 {
		t.Errorf("another tenant sees %d users", n)
	}
	if n := count("tenants"); n != 1 {
		t.Errorf("a tenant sees %d tenants", n)
	}
	if _, err := conn.Exec(t.Context(), "INSERT INTO roles (tenant_id, id, name, created_at) VALUES ($1, $2, 'r', now())",
		string(acme.ID), store.NewID()); code(err) != "42501" {
		t.Errorf("a row was written into another tenant: %v", err)
	}
	exec("SELECT set_config('mcpvault.tenant', '', false), set_config('mcpvault.platform', 'on', false)")
	if n := count("tenants"); n != 2 {
		t.Errorf("the platform sees %d tenants", n)
	}
	if n := count("users") + count("changes") + count("generations"); n != 0 {
		t.Errorf("the platform sees %d rows inside tenants", n)
	}
}

func TestEveryTableOfATenantIsUnderForcedRowSecurity(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), storetest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	rows, err := conn.Query(t.Context(), `SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
		WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND a.attname = 'tenant_id'
		AND NOT (c.relrowsecurity AND c.relforcerowsecurity)`)
	if err != nil {
		t.Fatal(err)
	}
	open, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(open) > 0 {
		t.Errorf("without forced row-level security: %v (%v)", open, err)
	}
	rows, err = conn.Query(t.Context(), `SELECT relname FROM pg_class WHERE relowner = 'mcpvault_app'::regrole`)
	if err != nil {
		t.Fatal(err)
	}
	owned, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(owned) > 0 {
		t.Errorf("the app role owns %v (%v)", owned, err)
	}
}

func TestTheAppRoleCannotRewriteTheLedger(t *testing.T) {
	t.Parallel()
	url := storetest.URL(t)
	s := storetest.OpenAt(t, url, nil)
	acme := storetest.Tenant(t, s, "acme")
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), "SELECT set_config('mcpvault.tenant', $1, false)", string(acme.ID)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "SET ROLE mcpvault_app"); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		"UPDATE changes SET actor = 'nobody'", "DELETE FROM changes", "TRUNCATE changes", "DELETE FROM kills", "UPDATE kills SET reason = ''",
		"UPDATE tokens SET expires_at = now()", "DELETE FROM tokens", "ALTER TABLE changes DISABLE ROW LEVEL SECURITY", "DELETE FROM tenants",
		"UPDATE generations SET envelope = ''",
	} {
		if _, err := conn.Exec(t.Context(), sql); code(err) != "42501" {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

func code(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

func TestDuplicatesAreConflicts(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t)
	acme := storetest.Tenant(t, s, "acme")
	if _, err := addUser(t.Context(), s, acme.ID, "alice"); err != nil {
		t.Fatal(err)
	}
	_, err := addUser(t.Context(), s, acme.ID, "alice")
	p, ok := problem.As(err)
	if !ok || p.Code != problem.Conflict || !errors.Is(err, store.ErrDuplicate) || !strings.Contains(p.What, "user") {
		t.Errorf("second alice: %v", err)
	}
	if _, err := s.CreateTenant(t.Context(), "root", "initech", []string{"mcp.example.com"}); err != nil {
		t.Fatal(err)
	}
	_, err = s.CreateTenant(t.Context(), "root", "umbrella", []string{"mcp.example.com"})
	if problem.CodeOf(err) != problem.Conflict {
		t.Errorf("two tenants with one host: %v", err)
	}
	if _, err := s.TenantByName(t.Context(), "umbrella"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the refused tenant is there: %v", err)
	}
	_, err = addUser(t.Context(), s, controlplane.TenantID(store.NewID()), "x")
	if problem.CodeOf(err) != problem.NotFound {
		t.Errorf("a write to no tenant: %v", err)
	}
}

func TestCirclesAreRefusedByTheSchema(t *testing.T) {
	t.Parallel()
	url := storetest.URL(t)
	s := storetest.OpenAt(t, url, nil)
	acme := storetest.Tenant(t, s, "acme")
	_, err := s.Write(t.Context(), acme.ID, "admin", func(tx *store.Tx) error {
		for _, u := range []controlplane.Unit{{Name: "a"}, {Name: "b", Parent: "a"}, {Name: "c", Parent: "b"}} {
			if _, err := tx.InsertUnit(t.Context(), u); err != nil {
				return err
			}
		}
		for _, u := range []controlplane.User{{Name: "a"}, {Name: "b", Supervisor: "a"}} {
			u.Kind = controlplane.Person
			if _, err := tx.InsertUser(t.Context(), u); err != nil {
				return err
			}
		}
		for _, r := range []controlplane.Role{{Name: "a"}, {Name: "b", Inherits: []string{"a"}}} {
			if _, err := tx.InsertRole(t.Context(), r); err != nil {
				return err
			}
		}
		return tx.Change(t.Context(), "test", "test", nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for _, sql := range []string{
		"UPDATE units SET parent_id = (SELECT id FROM units WHERE name = 'c') WHERE name = 'a'",
		"UPDATE users SET supervisor_id = (SELECT id FROM users WHERE name = 'b') WHERE name = 'a'",
		"UPDATE users SET supervisor_id = id WHERE name = 'a'",
		"INSERT INTO role_inherits SELECT a.tenant_id, a.id, b.id FROM roles a, roles b WHERE a.name = 'a' AND b.name = 'b'",
	} {
		if _, err := conn.Exec(t.Context(), sql); code(err) != "23514" {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

func TestMigratorsAtOnceDoTheWorkOnce(t *testing.T) {
	t.Parallel()
	url := storetest.URL(t)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			s, err := store.Open(t.Context(), store.Config{URL: url})
			if err != nil {
				t.Errorf("open: %v", err)
				return
			}
			s.Close()
		})
	}
	wg.Wait()
}

func TestListenHearsAWriteAndEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t)
	acme := storetest.Tenant(t, s, "acme")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	hints := s.Listen(ctx, store.OutboxChannel)
	if first := <-hints; first != "" {
		t.Errorf("the first hint is %q", first)
	}
	if _, err := addUser(t.Context(), s, acme.ID, "alice"); err != nil {
		t.Fatal(err)
	}
	if got := <-hints; got != string(acme.ID) {
		t.Errorf("heard %q", got)
	}
	cancel()
	for range hints { // until it is closed
	}
}

func TestWorkIsSummedUpPerTenantHoweverMuchThereIs(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t)
	acme, globex := storetest.Tenant(t, s, "acme"), storetest.Tenant(t, s, "globex")
	kill := func(tx *store.Tx) error {
		tx.SetKind(store.OutboxKill)
		return tx.Change(t.Context(), "kill", "x", nil)
	}
	if _, err := s.Write(t.Context(), globex.ID, "test", kill); err != nil {
		t.Fatal(err)
	}
	if err := s.Record(t.Context(), globex.ID, func(tx *store.Tx) error { return tx.FinishOutbox(t.Context(), globex.ID, store.OutboxPolicy, 1) }); err != nil {
		t.Fatal(err)
	}
	var all, own []store.Pending
	if err := s.Platform(t.Context(), func(tx *store.Tx) (err error) { all, err = tx.Pending(t.Context()); return err }); err != nil {
		t.Fatal(err)
	}
	if err := s.Read(t.Context(), globex.ID, func(tx *store.Tx) (err error) { own, err = tx.Pending(t.Context()); return err }); err != nil {
		t.Fatal(err)
	}
	if len(all) != 2 || len(own) != 1 || own[0].TenantID != globex.ID || own[0].Policy || own[0].Revision != 2 || own[0].Since.IsZero() {
		t.Errorf("of all %+v, of globex %+v", all, own)
	}
	if i := slices.IndexFunc(all, func(p store.Pending) bool { return p.TenantID == acme.ID }); i < 0 || !all[i].Policy {
		t.Errorf("of all %+v", all)
	}
}
