package pep_test

import (
	"net/http"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	"github.com/mcpvault/mcpvault/dataplane/remote"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
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
