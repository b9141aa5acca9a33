package cell

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/kit/svid"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

// promised are the names that dashboards and alerts go by.
func promised() []string {
	return []string{
		"mcpvault_build_info", "mcpvault_authz_decisions_total", "mcpvault_authz_decision_duration_seconds",
		"mcpvault_snapshot_version", "mcpvault_snapshot_age_seconds", "mcpvault_snapshot_apply_duration_seconds",
		"mcpvault_snapshot_verify_failures_total", "mcpvault_controlplane_connected", "mcpvault_raft_state",
		"mcpvault_raft_leader_last_contact_seconds", "mcpvault_raft_commit_index", "mcpvault_raft_applied_index",
		"mcpvault_raft_elections_total", "mcpvault_streams_active", "mcpvault_upstream_up", "mcpvault_circuit_breaker_state",
		"mcpvault_svid_not_after_timestamp_seconds", "mcpvault_audit_events_total", "mcpvault_audit_queue_depth",
		"mcpvault_audit_export_lag_seconds", "mcpvault_audit_dropped_total", "mcpvault_audit_checkpoint_timestamp_seconds",
		"mcpvault_staleness_ratio", "mcpvault_ratelimited_total", "mcp_server_operation_duration_seconds", "mcp_client_operation_duration_seconds",
	}
}

// built makes a node's rooms without running them.
func built(t *testing.T) *Node {
	t.Helper()
	n, _ := builtBy(t)
	return n
}

// builtBy is built, with the authority that the node believes.
func builtBy(t *testing.T) (*Node, *snapshottest.Authority) {
	t.Helper()
	authority := snapshottest.NewAuthority(t)
	dir := t.TempDir()
	ca, err := svid.CreateCA(filepath.Join(dir, "ca"), "mcpvault.test")
	if err != nil {
		t.Fatal(err)
	}
	id, err := svid.NodeID("mcpvault.test", "eu", "n1")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.IssueNode(id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := svid.WriteIdentity(filepath.Join(dir, "identity"), cert, key, ca.Bundle()); err != nil {
		t.Fatal(err)
	}
	roots := filepath.Join(dir, "roots.pb")
	if err := os.WriteFile(roots, authority.Roots, 0o600); err != nil {
		t.Fatal(err)
	}
	n := &Node{log: slog.New(slog.DiscardHandler), started: time.Now(), cfg: Config{
		Cell: "eu", Node: "n1", DataDir: filepath.Join(dir, "data"), ControlPlane: "https://127.0.0.1:1", TrustDomain: "mcpvault.test",
		IdentityDir: filepath.Join(dir, "identity"), Roots: roots, Members: []Member{{"n1", "127.0.0.1:0", "127.0.0.1:0"}},
		Listen: Listen{HTTP: "127.0.0.1:0", Raft: "127.0.0.1:0", Peer: "127.0.0.1:0"}, Dev: true,
	}}
	t.Cleanup(n.close)
	if err := n.build(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n, authority
}

// serve puts a tenant with one server into the live policy.
func (n *Node) serve(t *testing.T) {
	t.Helper()
	b, err := builder.Build(&snapshot.Policy{Tenant: "0192-acme", Servers: []snapshot.Server{{Name: "pay", Items: []string{snapshot.ItemOther}}}})
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	d := snapshot.DigestOf(b)
	tenant, err := pdp.NewTenant(&snapshotv1.Head{TenantId: "0192-acme", Tenant: "acme", Epoch: 1, Generation: 7}, d, x, &snapshotv1.Catalogue{
		TenantId: "0192-acme", Tenant: "acme", Servers: []*snapshotv1.CatalogueServer{{Name: "pay", Url: "http://127.0.0.1:1/mcp", VersionDigest: d[:]}},
	})
	if err != nil {
		t.Fatal(err)
	}
	n.pdp.Activate([]*pdp.Tenant{tenant}, nil)
}

func TestEveryPromisedMetricIsThereAndDocumented(t *testing.T) {
	t.Parallel()
	n := built(t)
	n.serve(t)
	// The counts of an upstream begin with its first call.
	_, _ = n.upstream.Do(t.Context(), &upstream.Request{URL: "http://127.0.0.1:1/mcp", Method: http.MethodPost})
	families, err := n.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var there []string
	for _, f := range families {
		if name := f.GetName(); strings.HasPrefix(name, "mcp") {
			there = append(there, name)
		}
	}
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(doc), "### Metrics of a node")
	section, _, _ = strings.Cut(section, "\n## ")
	var documented []string
	for _, m := range regexp.MustCompile("`(mcp[a-z]*_[a-z_]+)[`{]").FindAllStringSubmatch(section, -1) {
		documented = append(documented, m[1])
	}
	if !found || len(documented) < len(promised()) {
		t.Fatalf("docs/operations.md lists only %v", documented)
	}
	for _, name := range promised() {
		if !slices.Contains(documented, name) {
			t.Errorf("%s is promised, and not in docs/operations.md", name)
		}
	}
	for _, name := range append(documented, promised()...) {
		if !slices.Contains(there, name) {
			t.Errorf("%s is documented, and not exported", name)
		}
	}
	// As a scraper sees it.
	rec := httptest.NewRecorder()
	n.healthMux().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, line := range []string{
		`mcpvault_upstream_up{server="pay",tenant="acme"} 1`, `mcpvault_circuit_breaker_state{server="pay",tenant="acme"} 0`,
		`mcpvault_snapshot_version{tenant="acme"} 7`, `mcpvault_ratelimited_total{limit="principal"} 0`,
		`mcpvault_audit_export_lag_seconds{sink="controlplane"}`,
	} {
		if !strings.Contains(rec.Body.String(), line) {
			t.Errorf("/metrics does not have %s", line)
		}
	}
}
