package store_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
)

func write(tb testing.TB, s *store.Store, tenant controlplane.TenantID, fn func(tx *store.Tx) error) {
	tb.Helper()
	_, err := s.Write(tb.Context(), tenant, "test", func(tx *store.Tx) error {
		if err := fn(tx); err != nil {
			return err
		}
		return tx.Change(tb.Context(), "x", "x", nil)
	})
	if err != nil {
		tb.Fatal(err)
	}
}

func policyRows(tb testing.TB, s *store.Store, tenant controlplane.TenantID) (rows store.PolicyRows) {
	tb.Helper()
	err := s.Read(tb.Context(), tenant, func(tx *store.Tx) (err error) {
		rows, err = tx.PolicyRows(tb.Context())
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return rows
}

func TestPolicyRowsAreTheWholeGraphOfOneTenant(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t)
	acme, globex := storetest.Tenant(t, s, "acme"), storetest.Tenant(t, s, "globex")
	ctx := t.Context()
	write(t, s, acme.ID, func(tx *store.Tx) error {
		parent := ""
		for _, name := range []string{"world", "emea", "dach", "germany", "berlin", "mitte"} {
			if _, err := tx.InsertUnit(ctx, controlplane.Unit{Name: name, Parent: parent}); err != nil {
				return err
			}
			parent = name
		}
		for _, r := range []controlplane.Role{{Name: "reader"}, {Name: "editor", Inherits: []string{"reader"}}} {
			if _, err := tx.InsertRole(ctx, r); err != nil {
				return err
			}
		}
		if _, err := tx.InsertTeam(ctx, controlplane.Team{Name: "ops", Unit: "berlin"}); err != nil {
			return err
		}
		for _, name := range []string{"eng", "all"} {
			if _, err := tx.InsertGroup(ctx, controlplane.Group{Name: name, Source: controlplane.GroupManual}); err != nil {
				return err
			}
		}
		u := controlplane.User{Name: "spiffe://td/a", Kind: controlplane.Workload, Unit: "mitte", Clearance: 3, Region: "eu"}
		for _, u := range []controlplane.User{u, {Name: "bob", Kind: controlplane.Person}} {
			if _, err := tx.InsertUser(ctx, u); err != nil {
				return err
			}
		}
		for _, err := range []error{
			tx.SetTeamMember(ctx, "ops", u.Name, false), tx.SetGroupMember(ctx, "eng", u.Name, false), tx.SetGroupMember(ctx, "all", u.Name, false),
			tx.SetRoleMember(ctx, "editor", store.MemberUser, u.Name, false), tx.SetRoleMember(ctx, "reader", store.MemberUnit, "dach", false),
			tx.SetRoleMember(ctx, "reader", store.MemberGroup, "eng", false), tx.SetRoleMember(ctx, "editor", store.MemberTeam, "ops", false),
		} {
			if err != nil {
				return err
			}
		}
		return nil
	})
	rows := policyRows(t, s, acme.ID)
	i := slices.IndexFunc(rows.Users, func(u store.PolicyUser) bool { return u.Kind == controlplane.Workload })
	if i < 0 || len(rows.Users) != 2 {
		t.Fatalf("got %+v", rows.Users)
	}
	if got, want := fmt.Sprintf("%+v", rows.Users[i]), "{Name:spiffe://td/a Kind:workload Disabled:false Clearance:3 Region:eu Unit:mitte Teams:[ops] Groups:[all eng] Roles:[editor]}"; got != want {
		t.Errorf("got %s", got)
	}
	for list, want := range map[string]string{
		fmt.Sprint(rows.Teams):  "[{ops berlin [editor]}]",
		fmt.Sprint(rows.Groups): "[{all  []} {eng  [reader]}]",
		fmt.Sprint(rows.Roles):  "[{editor  [reader]} {reader  []}]",
		fmt.Sprint(rows.Units):  "[{berlin germany []} {dach emea [reader]} {emea world []} {germany dach []} {mitte berlin []} {world  []}]",
	} {
		if list != want {
			t.Errorf("got %s, want %s", list, want)
		}
	}
	other := policyRows(t, s, globex.ID)
	if n := len(other.Users) + len(other.Units) + len(other.Teams) + len(other.Groups) + len(other.Roles); n != 0 {
		t.Errorf("another tenant sees %d rows", n)
	}
}

// BenchmarkPolicyRows10k reads a directory of 10,000 users, each in a team, a group and a unit and with a role.
func BenchmarkPolicyRows10k(b *testing.B) {
	s := storetest.Open(b)
	acme := storetest.Tenant(b, s, "acme")
	ctx := b.Context()
	write(b, s, acme.ID, func(tx *store.Tx) error {
		for i := range 100 {
			name := fmt.Sprintf("n%d", i)
			if _, err := tx.InsertUnit(ctx, controlplane.Unit{Name: name}); err != nil {
				return err
			}
			if _, err := tx.InsertTeam(ctx, controlplane.Team{Name: name, Unit: name}); err != nil {
				return err
			}
			if _, err := tx.InsertGroup(ctx, controlplane.Group{Name: name, Source: controlplane.GroupManual}); err != nil {
				return err
			}
			if _, err := tx.InsertRole(ctx, controlplane.Role{Name: name}); err != nil {
				return err
			}
		}
		for i := range 10_000 {
			u, node := fmt.Sprintf("user-%05d", i), fmt.Sprintf("n%d", i%100)
			if _, err := tx.InsertUser(ctx, controlplane.User{Name: u, Kind: controlplane.Person, Unit: node}); err != nil {
				return err
			}
			for _, err := range []error{
				tx.SetTeamMember(ctx, node, u, false), tx.SetGroupMember(ctx, node, u, false), tx.SetRoleMember(ctx, node, store.MemberUser, u, false),
			} {
				if err != nil {
					return err
				}
			}
		}
		return nil
	})
	b.ReportAllocs()
	for b.Loop() {
		if rows := policyRows(b, s, acme.ID); len(rows.Users) != 10_000 {
			b.Fatal(len(rows.Users))
		}
	}
}
