package access_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/policies"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// whoCan gathers all pages of a report.
func (b *bundle) whoCan(t testing.TB, server, tool string, size uint32) (all []*adminv1.Holder, pages int) {
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
func (b *bundle) whatCan(t testing.TB, principal string, size uint32) []string {
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

// tenThousand is a tenant with teams, roles and grants of all kinds, each with its tenth of the users.
func tenThousand(t testing.TB) *bundle {
	t.Helper()
	b := setup(t)
	rev, err := b.st.Write(b.ctx, b.acme.ID, "test", func(tx *store.Tx) error { return fill(b, tx, 10_000, 400, 50) })
	if err != nil {
		t.Fatal(err)
	}
	b.await(t, rev)
	return b
}

func TestReportsCoverTenThousandUsers(t *testing.T) {
	t.Parallel()
	const users = 10_000
	b := tenThousand(t)
	if all, pages := b.whoCan(t, "payments", "", 0); len(all) < users || pages < 10 {
		t.Errorf("%d holders on %d pages", len(all), pages)
	}
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
	if got := b.whatCan(t, "u7", 0); len(got) == 0 {
		t.Error("u7 may use nothing")
	}
	if r := b.explain(t, "u7", "payments/refund", `{"amount":5}`); r.GetReason() == "unknown_principal" || len(r.GetGrants()) == 0 {
		t.Errorf("got %v", r)
	}
}

// BenchmarkReports10k says how long a whole report takes, page by page, on PostgreSQL.
func BenchmarkReports10k(b *testing.B) {
	all := tenThousand(b)
	for name, report := range map[string]func(){
		"who-can server": func() { all.whoCan(b, "payments", "", 0) },
		"who-can tool":   func() { all.whoCan(b, "payments", "refund", 5000) },
		"what-can":       func() { all.whatCan(b, "u7", 0) },
		"explain":        func() { all.explain(b, "u7", "payments/refund", `{"amount":5}`) },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				report()
			}
		})
	}
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

func TestAPolicyIsNamedWhereAGrantWouldBe(t *testing.T) {
	t.Parallel()
	b := setup(t)
	put, err := policies.New(policies.Config{Store: b.st}).PutPolicy(b.ctx, &adminv1.PutPolicyRequest{Name: "refunds", Text: `
@id("small") permit (principal in Team::"ops", action == Action::"call", resource == Tool::"payments/refund") when { context.args.amount < 100 };
@id("never") forbid (principal == User::"bob", action == Action::"call", resource in Server::"payments");`})
	if err != nil {
		t.Fatal(err)
	}
	b.await(t, put.GetRevision())
	b.grant(t, &adminv1.CreateGrantRequest{Effect: allow, Subject: "user:bob", Target: "server:payments"})
	r := b.explain(t, "alice", "payments/refund", `{"amount":5}`)
	if !r.GetAllowed() || len(r.GetGrants()) != 1 || r.GetGrants()[0].GetPolicy() != "refunds/small" || r.GetGrants()[0].GetPath() != "user:alice > team:ops" ||
		!strings.Contains(r.GetSentence(), "by policy refunds/small") {
		t.Errorf("got %v", r)
	}
	r = b.explain(t, "bob", "payments/refund", `{"amount":5}`)
	if r.GetAllowed() || !slices.Contains(r.GetFixes(), "mcpvault policy get refunds") || !strings.Contains(r.GetSentence(), "by policy refunds/never") {
		t.Errorf("got %v", r)
	}
	if got := b.whatCan(t, "alice", 0); !slices.Equal(got, []string{"payments tool refund: conditional by user:alice > team:ops policy refunds/small"}) {
		t.Errorf("alice: %q", got)
	}
	// Calls are forbidden; what is no call is not.
	if got := b.whatCan(t, "bob", 0); !slices.Equal(got, []string{"payments other : always by user:bob "}) {
		t.Errorf("bob: %q", got)
	}
}

func TestCircumstancesThatAreNotSaidAreNotKnown(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.grant(t, &adminv1.CreateGrantRequest{
		Effect: allow, Subject: "user:alice", Target: "server:payments/balance",
		Limits: &adminv1.GrantLimits{Networks: []string{"10.20.0.0/16"}, Between: "09:00-17:00", TimeZone: "Europe/Berlin", Regions: []string{"eu"}, NotActing: true},
	})
	noon := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	good := &adminv1.ExplainRequest{Principal: "alice", Server: "payments", Tool: "balance", Arguments: "{}", Ip: "10.20.1.1", AtMs: noon.UnixMilli(), Region: "eu"}
	for name, c := range map[string]struct {
		change func(*adminv1.ExplainRequest)
		want   string
	}{
		"all of it":          {func(*adminv1.ExplainRequest) {}, "allowed"},
		"IPv4 in IPv6 form":  {func(r *adminv1.ExplainRequest) { r.Ip = "::ffff:10.20.1.1" }, "allowed"},
		"from elsewhere":     {func(r *adminv1.ExplainRequest) { r.Ip = "192.0.2.1" }, "condition"},
		"from nobody knows":  {func(r *adminv1.ExplainRequest) { r.Ip = "" }, "argument_type"},
		"at night":           {func(r *adminv1.ExplainRequest) { r.AtMs = noon.Add(12 * time.Hour).UnixMilli() }, "condition"},
		"in another region":  {func(r *adminv1.ExplainRequest) { r.Region = "us" }, "condition"},
		"a bot acts for her": {func(r *adminv1.ExplainRequest) { r.Actor = "bot" }, "condition"},
	} {
		req := proto.Clone(good).(*adminv1.ExplainRequest)
		c.change(req)
		r, err := b.acc.Explain(b.ctx, req)
		if err != nil || r.GetReason() != c.want {
			t.Errorf("%s: %v %v", name, r, err)
		}
	}
	nothing := &adminv1.ExplainRequest{Principal: "alice", Server: "payments", Tool: "balance", Arguments: "{}", AtMs: noon.UnixMilli()}
	if r, err := b.acc.Explain(b.ctx, nothing); err != nil || !strings.Contains(r.GetSentence(), "--ip") {
		t.Errorf("what is not known is not told: %v %v", r, err)
	}
	if _, err := b.acc.Explain(b.ctx, &adminv1.ExplainRequest{Principal: "alice", Server: "payments", Tool: "balance", Ip: "10.20.0.0/16"}); problem.CodeOf(err) != problem.Invalid {
		t.Errorf("got %v", err)
	}
	got := b.whatCan(t, "alice", 0)
	if len(got) != 1 || !strings.HasPrefix(got[0], "payments tool balance: conditional by user:alice ") || !strings.Contains(got[0], "10.20.0.0/16") {
		t.Errorf("what depends on the address is usable by nobody: %q", got)
	}
}
