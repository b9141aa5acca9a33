package access_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// whoCan gathers all pages of a report.
func (b *bundle) whoCan(t *testing.T, server, tool string, size uint32) (all []*adminv1.Holder, pages int) {
	t.Helper()
	req := &adminv1.WhoCanRequest{Server: server, Tool: tool, PageSize: size}
	for {
		res, err := b.acc.WhoCan(b.ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		all, pages = append(all, res.GetHolders()...), pages+1
		if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
			return all, pages
		}
	}
}

// whatCan gathers all pages as "server/name access path...; conditions".
func (b *bundle) whatCan(t *testing.T, principal string, size uint32) []string {
	t.Helper()
	var all []string
	req := &adminv1.WhatCanRequest{Principal: principal, PageSize: size}
	for {
		res, err := b.acc.WhatCan(b.ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range res.GetUsable() {
			all = append(all, fmt.Sprintf("%s %s %s: %s by %s %s", u.GetServer(), u.GetKind(), u.GetName(), u.GetAccess(),
				strings.Join(u.GetPaths(), ", "), strings.Join(u.GetConditions(), ", ")))
		}
		if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
			return all
		}
	}
}

func TestWhatCanListsEverythingThatMayBeUsed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.grant(t, &adminv1.CreateGrantRequest{Effect: allow, Subject: "role:analyst", Target: "server:payments"})
	b.grant(t, &adminv1.CreateGrantRequest{Effect: deny, Subject: "user:alice", Target: "server:payments/refund", Condition: "context.args.amount > 100"})
	b.grant(t, &adminv1.CreateGrantRequest{Effect: allow, Subject: "user:bob", Target: "server:payments/refund", Condition: "context.args.amount < 100"})
	want := []string{
		"payments other : always by user:alice > team:ops > role:analyst ",
		"payments tool balance: always by user:alice > team:ops > role:analyst ",
		"payments tool refund: conditional by user:alice > team:ops > role:analyst not (context.args.amount > 100)",
	}
	for _, size := range []uint32{0, 1, 2} {
		if got := b.whatCan(t, "alice", size); !slices.Equal(got, want) {
			t.Errorf("in pages of %d: %q", size, got)
		}
	}
	if got := b.whatCan(t, "bob", 0); !slices.Equal(got, []string{"payments tool refund: conditional by user:bob context.args.amount < 100"}) {
		t.Errorf("bob: %q", got)
	}
	b.grant(t, &adminv1.CreateGrantRequest{Effect: deny, Subject: "everyone", Target: "server:payments"})
	if got := b.whatCan(t, "alice", 0); len(got) != 0 {
		t.Errorf("what is denied without a condition is not usable: %q", got)
	}
	if _, err := b.acc.WhatCan(b.ctx, &adminv1.WhatCanRequest{Principal: "nobody"}); problem.CodeOf(err) != problem.NotFound {
		t.Errorf("got %v", err)
	}
}

func TestAllPagesOfAReportAreOfOneGeneration(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.grant(t, &adminv1.CreateGrantRequest{Effect: allow, Subject: "everyone", Target: "server:payments"})
	first, err := b.acc.WhoCan(b.ctx, &adminv1.WhoCanRequest{Server: "payments", PageSize: 1})
	if err != nil || len(first.GetHolders()) != 1 || first.GetNextPageToken() == "" || first.GetTotal() != 2 || first.GetDone() != 1 {
		t.Fatalf("got %v %v", first, err)
	}
	b.grant(t, &adminv1.CreateGrantRequest{Effect: deny, Subject: "everyone", Target: "server:payments"})
	second, err := b.acc.WhoCan(b.ctx, &adminv1.WhoCanRequest{Server: "payments", PageSize: 1, PageToken: first.GetNextPageToken()})
	if err != nil || len(second.GetHolders()) != 1 || second.GetGeneration() != first.GetGeneration() || second.GetNextPageToken() != "" {
		t.Errorf("got %v %v", second, err)
	}
	if all, _ := b.whoCan(t, "payments", "", 0); len(all) != 0 {
		t.Errorf("a new report is of the newest generation: %v", all)
	}
	for _, token := range []string{"x", "1.2.3", "1.1.1.-1.0", first.GetNextPageToken() + " ", "0" + first.GetNextPageToken(), "1.999.1.0.0"} {
		if _, err := b.acc.WhoCan(b.ctx, &adminv1.WhoCanRequest{Server: "payments", PageToken: token}); problem.CodeOf(err) != problem.Invalid && problem.CodeOf(err) != problem.NotFound {
			t.Errorf("%q: %v", token, err)
		}
	}
}

// TestReportsAnswerForTenThousandUsersInTwoSeconds is on a tenant with teams, roles and grants of all kinds, each with its
// tenth of the users.
func TestReportsAnswerForTenThousandUsersInTwoSeconds(t *testing.T) {
	t.Parallel()
	const users, teams, roles = 10_000, 400, 50
	b := setup(t)
	rev, err := b.st.Write(b.ctx, b.acme.ID, "test", func(tx *store.Tx) error { return fill(b, tx, users, teams, roles) })
	if err != nil {
		t.Fatal(err)
	}
	b.await(t, rev)
	took := func(what string, do func()) {
		t.Helper()
		began := time.Now()
		do()
		d := time.Since(began)
		t.Logf("%s: %s", what, d.Round(time.Millisecond))
		if d > 2*time.Second {
			t.Errorf("%s took %s", what, d)
		}
	}
	took("who-can payments", func() {
		all, pages := b.whoCan(t, "payments", "", 0)
		if len(all) < users || pages < 10 {
			t.Errorf("%d holders on %d pages", len(all), pages)
		}
	})
	took("who-can payments/refund", func() {
		all, _ := b.whoCan(t, "payments", "refund", 5000)
		conditional := 0
		for _, h := range all {
			if h.GetAccess() == "conditional" && len(h.GetConditions()) > 0 {
				conditional++
			}
		}
		if len(all) < users/2 || conditional < users/10 {
			t.Errorf("%d holders, %d of them with conditions", len(all), conditional)
		}
	})
	took("what-can u7", func() {
		if got := b.whatCan(t, "u7", 0); len(got) == 0 {
			t.Error("u7 may use nothing")
		}
	})
	took("explain u7", func() {
		if r := b.explain(t, "u7", "payments/refund", `{"amount":5}`); r.GetReason() == "unknown_principal" || len(r.GetGrants()) == 0 {
			t.Errorf("got %v", r)
		}
	})
}

// fill adds users, each in a team and every other one with a role; teams with roles; and three grants for ten users.
func fill(b *bundle, tx *store.Tx, users, teams, roles int) error {
	for i := range roles {
		if _, err := tx.InsertRole(b.ctx, controlplane.Role{Name: fmt.Sprintf("r%d", i)}); err != nil {
			return err
		}
	}
	for i := range teams {
		if _, err := tx.InsertTeam(b.ctx, controlplane.Team{Name: fmt.Sprintf("t%d", i)}); err != nil {
			return err
		}
		if err := tx.SetRoleMember(b.ctx, fmt.Sprintf("r%d", i%roles), store.MemberTeam, fmt.Sprintf("t%d", i), false); err != nil {
			return err
		}
	}
	for i := range users {
		name := fmt.Sprintf("u%d", i)
		if _, err := tx.InsertUser(b.ctx, controlplane.User{Name: name, Kind: controlplane.Person}); err != nil {
			return err
		}
		if err := tx.SetTeamMember(b.ctx, fmt.Sprintf("t%d", i%teams), name, false); err != nil {
			return err
		}
	}
	for i := range users * 3 / 10 {
		g := store.Grant{ID: store.NewID(), CreatedAt: tx.Now(), CreatedBy: "test", Target: controlplane.Target{Server: "payments"}, Deny: i%13 == 0}
		switch i % 3 {
		case 0:
			g.Subject = fmt.Sprintf("user:u%d", i*3%users)
		case 1:
			g.Subject = fmt.Sprintf("team:t%d", i%teams)
		default:
			g.Subject = fmt.Sprintf("role:r%d", i%roles)
		}
		if i%2 == 0 {
			g.Target.Item = "refund"
		}
		if i%3 != 1 || g.Deny {
			g.Target.Item, g.Condition = "refund", fmt.Sprintf("context.args.amount < %d", i)
		}
		if err := tx.InsertGrant(b.ctx, g); err != nil {
			return err
		}
	}
	return tx.Change(b.ctx, "x", "x", nil)
}
