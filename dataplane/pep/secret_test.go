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

func (credential) Inject(_ context.Context, _ *pdp.Tenant, _ *pdp.Server, set http.Header) error {
	set.Set("Authorization", "Bearer upstream-credential")
	return nil
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
