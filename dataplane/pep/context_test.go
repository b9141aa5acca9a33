package pep_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	"github.com/mcpvault/mcpvault/dataplane/remote"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/replay"
)

// tokenWith mints a token for a user with claims changed.
func (g *gateway) tokenWith(user string, change map[string]any) string {
	g.t.Helper()
	claims := g.claims(user)
	for k, v := range change {
		claims[k] = v
	}
	tok, err := g.signer.Mint(claims)
	if err != nil {
		g.t.Fatal(err)
	}
	return tok
}

const callBalance = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"balance","arguments":{},` + meta + `}}`

// callAs calls pay/balance with a token and further headers.
func (g *gateway) callAs(token string, header ...string) *answer {
	g.t.Helper()
	header = append([]string{"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "balance"}, header...)
	req := g.request(g.t.Context(), http.MethodPost, "/mcp/pay", "", callBalance, header...)
	req.Header.Set("Authorization", "Bearer "+token)
	return g.do(req)
}

func TestARecordSaysFromWhereInWhichRegionAndWhoActed(t *testing.T) {
	t.Parallel()
	up := newScripted(t)
	proxies, err := remote.ParseProxies([]string{"127.0.0.0/8"})
	if err != nil {
		t.Fatal(err)
	}
	g := newGateway(t, pep.Config{Region: "eu", Proxies: proxies}, nil, catalogueServer("pay", up.url, allEras(), plainTool("balance", read)))
	for _, tc := range []struct{ header, want string }{
		{"203.0.113.5", "203.0.113.5"}, {"10.0.0.1, 2001:db8::5", "2001:db8::5"}, {"", "127.0.0.1"},
	} {
		a := g.callAs(g.tokenWith("root", map[string]any{"act": map[string]any{"sub": "bot"}}), "X-Forwarded-For", tc.header)
		rec := g.book.of(a.decision())[0]
		if rec.GetClient().GetAddress() != tc.want || rec.GetRegion() != "eu" || rec.GetActor().GetName() != "bot" || rec.GetPrincipal().GetName() != "root" {
			t.Errorf("%q: recorded as %v", tc.header, rec)
		}
	}
	a := g.callAs(g.token("root"), "X-Forwarded-For", "somewhere")
	if rec := g.book.of(a.decision())[0]; rec.GetClient().GetAddress()[:8] != "unknown," || rec.GetActor() != nil {
		t.Errorf("recorded as %v", rec)
	}
}

func TestWhoWasKilledDoesNotActForOthers(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	token := g.tokenWith("alice", map[string]any{"act": map[string]any{"sub": "bot"}})
	if a := g.callAs(token); a.code() != 0 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	g.pdp.Kill(&snapshotv1.Kill{Kind: snapshotv1.KillKind_KILL_KIND_USER, TenantId: "0192-acme", Subject: "bot"})
	a := g.callAs(token)
	if a.status != http.StatusUnauthorized || up.calls() != 1 || g.book.of(a.decision())[0].GetReason() != "token_actor_killed" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := g.callAs(g.token("alice")); a.code() != 0 {
		t.Errorf("alice herself: %s", a.body)
	}
}

// TestConditionsSeeFromWhereInWhichRegionAndWhoActs: the circumstances of a call reach its conditions, and one that is not
// known does not help.
func TestConditionsSeeFromWhereInWhichRegionAndWhoActs(t *testing.T) {
	t.Parallel()
	text := func(s string) snapshot.Value { return snapshot.Value{Type: snapshot.TypeString, Str: s} }
	within := &snapshot.Cond{Op: snapshot.OpInRange, From: snapshot.FromContext, Arg: "ip", Value: text("203.0.113.0/24")}
	proxies, err := remote.ParseProxies([]string{"127.0.0.0/8"})
	if err != nil {
		t.Fatal(err)
	}
	acting := map[string]any{"act": map[string]any{"sub": "bot"}}
	for name, tc := range map[string]struct {
		grant  snapshot.Grant
		from   string
		claims map[string]any
		want   string // reason in the record
	}{
		"from the office":              {snapshot.Grant{When: within}, "203.0.113.5", nil, "allowed"},
		"from elsewhere":               {snapshot.Grant{When: within}, "198.51.100.5", nil, "condition"},
		"left of the proxy's word":     {snapshot.Grant{When: within}, "203.0.113.5, 198.51.100.5", nil, "condition"},
		"from nobody knows":            {snapshot.Grant{When: within}, "somewhere", nil, "argument_type"},
		"denied in the office":         {snapshot.Grant{Deny: true, When: within}, "203.0.113.5", nil, "condition"},
		"denied, from elsewhere":       {snapshot.Grant{Deny: true, When: within}, "198.51.100.5", nil, "allowed"},
		"denied, from nobody knows":    {snapshot.Grant{Deny: true, When: within}, "somewhere", nil, "argument_type"},
		"in this region":               {snapshot.Grant{When: &snapshot.Cond{Op: snapshot.OpEq, From: snapshot.FromContext, Arg: "region", Value: text("eu")}}, "", nil, "allowed"},
		"in another region":            {snapshot.Grant{When: &snapshot.Cond{Op: snapshot.OpEq, From: snapshot.FromContext, Arg: "region", Value: text("us")}}, "", nil, "condition"},
		"a bot may not act":            {snapshot.Grant{Deny: true, When: &snapshot.Cond{Op: snapshot.OpHas, From: snapshot.FromContext, Arg: "actor"}}, "", acting, "condition"},
		"alice herself may":            {snapshot.Grant{Deny: true, When: &snapshot.Cond{Op: snapshot.OpHas, From: snapshot.FromContext, Arg: "actor"}}, "", nil, "allowed"},
		"only this bot, for her":       {snapshot.Grant{When: &snapshot.Cond{Op: snapshot.OpEq, From: snapshot.FromContext, Arg: "actor", Value: text("bot")}}, "", acting, "allowed"},
		"only this bot, not herself":   {snapshot.Grant{When: &snapshot.Cond{Op: snapshot.OpEq, From: snapshot.FromContext, Arg: "actor", Value: text("bot")}}, "", nil, "argument_type"},
		"only another bot, and not it": {snapshot.Grant{When: &snapshot.Cond{Op: snapshot.OpEq, From: snapshot.FromContext, Arg: "actor", Value: text("clerk")}}, "", acting, "condition"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := newScripted(t)
			tc.grant.ID, tc.grant.Subject, tc.grant.Server, tc.grant.Tool = "g1", "user:alice", "pay", "balance"
			grants := []snapshot.Grant{tc.grant}
			if tc.grant.Deny {
				grants = append(grants, snapshot.Grant{ID: "g0", Subject: "user:alice", Server: "pay", Tool: "balance"})
			}
			g := newGateway(t, pep.Config{Region: "eu", Proxies: proxies}, grants, catalogueServer("pay", up.url, allEras(), plainTool("balance", read)))
			header := []string{}
			if tc.from != "" {
				header = []string{"X-Forwarded-For", tc.from}
			}
			token := g.tokenWith("alice", tc.claims)
			a := g.callAs(token, header...)
			// Who sees nothing at all on a server is told that there is none; the record says the same of both.
			rec := g.book.of(a.decision())[0]
			if rec.GetReason() != tc.want || up.calls() != map[bool]int{true: 1}[tc.want == "allowed"] {
				t.Fatalf("%s, want %s: %d %s", rec.GetReason(), tc.want, a.status, a.body)
			}
			// What a list knows as well as a call, it shows or hides as the call is allowed or not.
			body := `{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{` + meta + `}}`
			req := g.request(t.Context(), http.MethodPost, "/mcp/pay", "", body, append([]string{"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/list"}, header...)...)
			req.Header.Set("Authorization", "Bearer "+token)
			if l := g.do(req); strings.Contains(l.body, `"balance"`) != (tc.want == "allowed") {
				t.Errorf("%s, and the list: %s", rec.GetReason(), l.body)
			}
			checkReplay(t, g, rec)
		})
	}
}

// checkReplay makes the decision of a record again on the policy that is live.
func checkReplay(t *testing.T, g *gateway, rec *auditv1.Record) {
	t.Helper()
	x := g.pdp.Current().Tenant("0192-acme").Index
	got, err := replay.Decide(x, rec, nil)
	if err != nil || len(got.Differences) > 0 {
		t.Errorf("%v\n%+v %v", rec, got, err)
	}
}
