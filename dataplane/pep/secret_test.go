package pep_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/pep"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// credential adds one secret to every call of a server.
type credential struct{}

func (credential) Secrets(_ *pdp.Tenant, s *pdp.Server) []string { return []string{"vault/" + s.Name} }

func (credential) Inject(_ context.Context, _ *pdp.Tenant, _ *pdp.Server, set http.Header) ([][]byte, error) {
	set.Set("Authorization", "Bearer upstream-credential")
	return [][]byte{[]byte("upstream-credential")}, nil
}

func paying(t *testing.T) (*gateway, *scripted) {
	t.Helper()
	up := newScripted(t)
	grants := []snapshot.Grant{{ID: "g1", Subject: "user:alice", Server: "*"}}
	g := injecting(t, pep.Config{}, credential{}, grants,
		catalogueServer("pay", up.url, allEras(), plainTool("balance", read), plainTool("refund", destructive)),
		catalogueServer("mail", up.url, allEras(), plainTool("send", destructive)))
	return g, up
}

func TestASecretThatWasKilledIsNotSent(t *testing.T) {
	t.Parallel()
	g, up := paying(t)
	a := g.call("/mcp/pay", "alice", "balance", "{}")
	if _, header := up.last(); a.Result == nil || header.Get("Authorization") != "Bearer upstream-credential" {
		t.Fatalf("the credential is not added: %s", a.body)
	}
	before := up.calls()
	g.pdp.Kill(&snapshotv1.Kill{Kind: snapshotv1.KillKind_KILL_KIND_SECRET, TenantId: "0192-acme", Subject: "vault/pay"})
	for _, path := range []string{"/mcp/pay", "/mcp"} {
		name := "balance"
		if path == "/mcp" {
			name = "pay__balance"
		}
		a := g.call(path, "alice", name, "{}")
		if !strings.Contains(a.body, `"reason":"secret_killed"`) || strings.Contains(a.body, "vault/pay") {
			t.Errorf("%s: %s", path, a.body)
		}
	}
	if a := g.modern("/mcp/pay", "alice", "prompts/list", "", ""); a.Error == nil || !strings.Contains(a.body, "secret_killed") {
		t.Errorf("prompts: %s", a.body)
	}
	if up.calls() != before {
		t.Error("it was sent")
	}
	if a := g.call("/mcp/mail", "alice", "send", "{}"); a.Result == nil || strings.Contains(a.body, "secret_killed") {
		t.Errorf("another server's secret: %s", a.body)
	}
}

func TestASecretThatIsKilledWhileTheIntentIsOnItsWayToTheDiskIsNotSent(t *testing.T) {
	t.Parallel()
	g, up := paying(t)
	g.book.onIntent = func() {
		g.pdp.Kill(&snapshotv1.Kill{Kind: snapshotv1.KillKind_KILL_KIND_SECRET, Subject: "vault/pay"})
	}
	if a := g.call("/mcp/pay", "alice", "refund", "{}"); !strings.Contains(a.body, "secret_killed") || up.calls() != 0 {
		t.Errorf("%s", a.body)
	}
}

func TestAnInjectedCredentialNeverComesBack(t *testing.T) {
	t.Parallel()
	g, up := paying(t)
	for name, reply := range map[string]func(w http.ResponseWriter, said string){
		"in an answer": func(w http.ResponseWriter, said string) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`{"jsonrpc":"2.0","id":1,"result":{"resultType":"complete","content":[{"type":"text","text":"you sent ` + said + `"}]}}`))
		},
		"in an error": func(w http.ResponseWriter, said string) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"bad header ` + said + `"}}`))
		},
		"in a stream": func(w http.ResponseWriter, said string) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = w.Write([]byte("data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{\"data\":\"" + said + "\"}}\n\n" +
				"data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"resultType\":\"complete\",\ndata: \"content\":[],\"said\":\"" + said + "\"}}\n\n"))
		},
	} {
		up.script(func(w http.ResponseWriter, r *http.Request, _ string) { reply(w, r.Header.Get("Authorization")) })
		for _, called := range []string{"balance", "refund"} {
			a := g.call("/mcp/pay", "alice", called, "{}")
			if strings.Contains(a.body, "upstream-credential") || !strings.Contains(a.body, "Bearer [secret]") {
				t.Errorf("E11: %s of %s: %s", name, called, a.body)
			}
			recs := g.book.of(a.decision())
			if last := recs[len(recs)-1]; last.GetDetail() != "leak_blocked" {
				t.Errorf("E11: %s of %s is recorded as %v", name, called, last)
			}
		}
	}
}
