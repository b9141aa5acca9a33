package registry_test

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/registry"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	"github.com/mcpvault/mcpvault/kit/egress"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

type bundle struct {
	ctx context.Context
	st  *store.Store
	reg *registry.Service
	mcp *server.MCPServer
	srv *httptest.Server
}

// setup has a live server of the protocol library with three tools, which may be changed.
func setup(t *testing.T) *bundle {
	t.Helper()
	b := &bundle{st: storetest.Open(t), mcp: server.NewMCPServer("pay", "1.0", server.WithToolCapabilities(true))}
	acme := storetest.Tenant(t, b.st, "acme")
	b.ctx = controlplane.WithCaller(t.Context(), controlplane.Caller{Principal: "root", TenantID: acme.ID, Tenant: "acme", Home: "acme"})
	yes, no := true, false
	b.mcp.AddTool(mcp.NewTool("balance", mcp.WithToolAnnotation(mcp.ToolAnnotation{ReadOnlyHint: &yes})), nil)
	b.mcp.AddTool(mcp.NewTool("refund", mcp.WithDescription("gives back"), mcp.WithNumber("amount", mcp.Required()),
		mcp.WithToolAnnotation(mcp.ToolAnnotation{ReadOnlyHint: &no, DestructiveHint: &no})), nil)
	b.mcp.AddTool(mcp.Tool{Name: "wipe", RawInputSchema: []byte(`{"type":"object"}`)}, nil)
	b.srv = httptest.NewServer(server.NewStreamableHTTPServer(b.mcp))
	t.Cleanup(b.srv.Close)
	transport, err := egress.NewTransport([]string{"127.0.0.0/8:*"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(transport.CloseIdleConnections)
	b.reg = registry.New(b.st, registry.NewScanner(transport, nil, "test", slog.New(slog.DiscardHandler)), slog.New(slog.DiscardHandler))
	return b
}

func (b *bundle) add(t *testing.T) *adminv1.AddServerResponse {
	t.Helper()
	res, err := b.reg.AddServer(b.ctx, &adminv1.AddServerRequest{Name: "pay", Url: b.srv.URL + "/mcp", Description: "money"})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func effects(v *adminv1.ServerVersion) map[string]snapshotv1.Effect {
	out := map[string]snapshotv1.Effect{}
	for _, t := range v.GetTools() {
		out[t.GetName()] = t.GetEffect()
	}
	return out
}

const (
	read        = snapshotv1.Effect_EFFECT_READ
	write       = snapshotv1.Effect_EFFECT_WRITE
	destructive = snapshotv1.Effect_EFFECT_DESTRUCTIVE
)

func TestAddScansAndProposesWhatTheServerSays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	res := b.add(t)
	if res.GetServer().GetPublishedVersion() != 0 || res.GetServer().GetLatestVersion() != 1 || res.GetServer().GetLastError() != "" || res.GetRevision() == 0 {
		t.Errorf("got %v", res.GetServer())
	}
	v := res.GetVersion()
	if v.GetState() != adminv1.VersionState_VERSION_STATE_PENDING || v.GetServerName() != "pay" || !slices.Contains(v.GetProtocolVersions(), "2025-11-25") || len(v.GetDigest()) != 64 {
		t.Errorf("got %v", v)
	}
	if e := effects(v); e["balance"] != read || e["refund"] != write || e["wipe"] != destructive {
		t.Errorf("got %v", e)
	}
	if _, err := b.reg.AddServer(b.ctx, &adminv1.AddServerRequest{Name: "pay", Url: b.srv.URL}); problem.CodeOf(err) != problem.Conflict {
		t.Errorf("the same name again: %v", err)
	}
}

func TestAServerThatDoesNotAnswerIsRegisteredWithTheReason(t *testing.T) {
	t.Parallel()
	b := setup(t)
	res, err := b.reg.AddServer(b.ctx, &adminv1.AddServerRequest{Name: "gone", Url: "http://127.0.0.1:1/mcp"})
	if err != nil || res.GetServer().GetLastError() == "" || res.GetVersion() != nil {
		t.Fatalf("got %v %v", res, err)
	}
	if _, err := b.reg.ApproveVersion(b.ctx, &adminv1.ApproveVersionRequest{Name: "gone"}); problem.CodeOf(err) != problem.Conflict || !strings.Contains(err.Error(), "mcpvault server scan gone") {
		t.Errorf("got %v", err)
	}
	if _, err := b.reg.ScanServer(b.ctx, &adminv1.ScanServerRequest{Name: "gone"}); problem.CodeOf(err) != problem.Unavailable {
		t.Errorf("got %v", err)
	}
	inside, err := b.reg.AddServer(b.ctx, &adminv1.AddServerRequest{Name: "inside", Url: "http://169.254.169.254/latest"})
	if err != nil || !strings.Contains(inside.GetServer().GetLastError(), "egress_allow") {
		t.Errorf("a private address: %v %v", inside, err)
	}
	for _, url := range []string{"ftp://x/", "http://user:pw@x/", "http://x/#f", "nowhere"} {
		if _, err := b.reg.AddServer(b.ctx, &adminv1.AddServerRequest{Name: "odd", Url: url}); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestTheSameSurfaceIsTheSameVersionAndAnotherIsPending(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t)
	approve := &adminv1.ApproveVersionRequest{Name: "pay", Source: adminv1.EffectSource_EFFECT_SOURCE_HINTS}
	if _, err := b.reg.ApproveVersion(b.ctx, approve); err != nil {
		t.Fatal(err)
	}
	scan, err := b.reg.ScanServer(b.ctx, &adminv1.ScanServerRequest{Name: "pay"})
	if err != nil || scan.GetIsNew() || scan.GetVersion().GetNumber() != 1 {
		t.Fatalf("got %v %v", scan, err)
	}
	b.mcp.DeleteTools("wipe")
	b.mcp.AddTool(mcp.NewTool("refund", mcp.WithDescription("gives more back"), mcp.WithNumber("amount", mcp.Required())), nil)
	b.mcp.AddTool(mcp.NewTool("audit"), nil)
	scan, err = b.reg.ScanServer(b.ctx, &adminv1.ScanServerRequest{Name: "pay"})
	if err != nil || !scan.GetIsNew() || scan.GetVersion().GetNumber() != 2 {
		t.Fatalf("got %v %v", scan, err)
	}
	changes := map[string]string{}
	for _, tool := range scan.GetVersion().GetTools() {
		changes[tool.GetName()] = tool.GetChange()
	}
	if changes["wipe"] != "removed" || changes["refund"] != "changed" || changes["audit"] != "added" || changes["balance"] != "" {
		t.Errorf("got %v", changes)
	}
	get, err := b.reg.GetServer(b.ctx, &adminv1.GetServerRequest{Name: "pay"})
	if err != nil || get.GetVersion().GetNumber() != 1 {
		t.Errorf("callers are served what was approved: %v %v", get, err)
	}
	if _, err := b.reg.ApproveVersion(b.ctx, approve); err != nil {
		t.Fatal(err)
	}
	list, err := b.reg.ListVersions(b.ctx, &adminv1.ListVersionsRequest{Name: "pay"})
	if err != nil || len(list.GetVersions()) != 2 || list.GetVersions()[0].GetState() != adminv1.VersionState_VERSION_STATE_PUBLISHED ||
		list.GetVersions()[1].GetState() != adminv1.VersionState_VERSION_STATE_SUPERSEDED || list.GetVersions()[0].GetApprovedBy() != "root" {
		t.Errorf("got %v %v", list, err)
	}
	approve.Version = 1
	if res, err := b.reg.ApproveVersion(b.ctx, approve); err != nil || res.GetServer().GetPublishedVersion() != 1 {
		t.Errorf("back to the first: %v %v", res, err)
	}
}

func TestEffectsAreWhatTheApproverSays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t)
	for _, c := range []struct {
		req                   *adminv1.ApproveVersionRequest
		balance, refund, wipe snapshotv1.Effect
	}{
		{&adminv1.ApproveVersionRequest{}, destructive, destructive, destructive},
		{&adminv1.ApproveVersionRequest{Source: adminv1.EffectSource_EFFECT_SOURCE_HINTS}, read, write, destructive},
		{&adminv1.ApproveVersionRequest{DefaultEffect: write}, write, write, write},
		{&adminv1.ApproveVersionRequest{Source: adminv1.EffectSource_EFFECT_SOURCE_HINTS, ToolEffects: map[string]snapshotv1.Effect{"wipe": write}}, read, write, write},
	} {
		c.req.Name = "pay"
		res, err := b.reg.ApproveVersion(b.ctx, c.req)
		if err != nil {
			t.Fatal(err)
		}
		if e := effects(res.GetVersion()); e["balance"] != c.balance || e["refund"] != c.refund || e["wipe"] != c.wipe {
			t.Errorf("%v: got %v", c.req, e)
		}
	}
	_, err := b.reg.ApproveVersion(b.ctx, &adminv1.ApproveVersionRequest{Name: "pay", ToolEffects: map[string]snapshotv1.Effect{"refnd": read}})
	if problem.CodeOf(err) != problem.Invalid || !strings.Contains(err.Error(), "did you mean refund?") {
		t.Errorf("got %v", err)
	}
	if _, err := b.reg.ApproveVersion(b.ctx, &adminv1.ApproveVersionRequest{Name: "pay", Version: 9}); problem.CodeOf(err) != problem.NotFound {
		t.Errorf("got %v", err)
	}
	if _, err := b.reg.ApproveVersion(b.ctx, &adminv1.ApproveVersionRequest{Name: "pya"}); problem.CodeOf(err) != problem.NotFound || !strings.Contains(err.Error(), "did you mean pay?") {
		t.Errorf("got %v", err)
	}
}

func TestRemoveTakesTheServerAway(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t)
	if _, err := b.reg.RemoveServer(b.ctx, &adminv1.RemoveServerRequest{Name: "pay"}); err != nil {
		t.Fatal(err)
	}
	if list, err := b.reg.ListServers(b.ctx, &adminv1.ListServersRequest{}); err != nil || len(list.GetServers()) != 0 {
		t.Errorf("got %v %v", list, err)
	}
	if _, err := b.reg.RemoveServer(b.ctx, &adminv1.RemoveServerRequest{Name: "pay"}); problem.CodeOf(err) != problem.NotFound {
		t.Errorf("got %v", err)
	}
	if res := b.add(t); res.GetVersion().GetNumber() != 1 {
		t.Errorf("got %v", res)
	}
}

// swapping replaces the server by another of the same name while it is being scanned.
type swapping struct {
	*registry.Scanner
	during func()
}

func (s swapping) Scan(ctx context.Context, url string) (*registry.Surface, error) {
	if s.during != nil {
		s.during()
	}
	return s.Scanner.Scan(ctx, url)
}

func TestAScanDoesNotEndUpWithAnotherServerOfTheSameName(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t)
	transport, err := egress.NewTransport([]string{"127.0.0.0/8:*"})
	if err != nil {
		t.Fatal(err)
	}
	defer transport.CloseIdleConnections()
	slow := registry.New(b.st, swapping{registry.NewScanner(transport, nil, "test", slog.New(slog.DiscardHandler)), func() {
		if _, err := b.reg.RemoveServer(b.ctx, &adminv1.RemoveServerRequest{Name: "pay"}); err != nil {
			t.Error(err)
		}
		if _, err := b.reg.AddServer(b.ctx, &adminv1.AddServerRequest{Name: "pay", Url: "http://127.0.0.1:1/mcp"}); err != nil {
			t.Error(err)
		}
	}}, slog.New(slog.DiscardHandler))
	if _, err := slow.ScanServer(b.ctx, &adminv1.ScanServerRequest{Name: "pay"}); problem.CodeOf(err) != problem.Conflict {
		t.Errorf("got %v", err)
	}
	if list, err := b.reg.ListVersions(b.ctx, &adminv1.ListVersionsRequest{Name: "pay"}); err != nil || len(list.GetVersions()) != 0 {
		t.Errorf("got %v %v", list, err)
	}
}

func TestPromptsAndResourcesArePartOfAVersion(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.mcp.AddPrompt(mcp.NewPrompt("review", mcp.WithPromptDescription("reads a change")), nil)
	b.mcp.AddResource(mcp.NewResource("file:///pub/a", "a"), nil)
	b.mcp.AddResourceTemplate(mcp.NewResourceTemplate("file:///pub/{id}", "by id"), nil)
	v := b.add(t).GetVersion()
	if len(v.GetPrompts()) != 1 || v.GetPrompts()[0].GetName() != "review" || v.GetPrompts()[0].GetDescription() != "reads a change" {
		t.Errorf("prompts: %v", v.GetPrompts())
	}
	if len(v.GetResources()) != 1 || v.GetResources()[0].GetName() != "file:///pub/a" || len(v.GetResourceTemplates()) != 1 {
		t.Errorf("resources: %v, templates: %v", v.GetResources(), v.GetResourceTemplates())
	}
	if _, err := b.reg.ApproveVersion(b.ctx, &adminv1.ApproveVersionRequest{Name: "pay"}); err != nil {
		t.Fatal(err)
	}
	b.mcp.DeletePrompts("review")
	b.mcp.AddPrompt(mcp.NewPrompt("brief"), nil)
	next, err := b.reg.ScanServer(b.ctx, &adminv1.ScanServerRequest{Name: "pay"})
	if err != nil || !next.GetIsNew() {
		t.Fatalf("a server with other prompts is no new version: %v, %v", next, err)
	}
	changes := map[string]string{}
	for _, p := range next.GetVersion().GetPrompts() {
		changes[p.GetName()] = p.GetChange()
	}
	if changes["review"] != "removed" || changes["brief"] != "added" || next.GetVersion().GetResources()[0].GetChange() != "" {
		t.Errorf("got %v, %v", changes, next.GetVersion().GetResources())
	}
}

func TestLabelsAreOfServersAndTheirTools(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t)
	first, err := b.reg.SetLabels(b.ctx, &adminv1.SetLabelsRequest{Name: "pay", Set: map[string]string{"env": "prod", "pci": "false"}})
	if err != nil || !slices.Equal(first.GetServer().GetLabels(), []string{"env=prod", "pci=false"}) {
		t.Fatalf("got %v, %v", first, err)
	}
	again, err := b.reg.SetLabels(b.ctx, &adminv1.SetLabelsRequest{Name: "pay", Set: map[string]string{"env": "prod"}})
	if err != nil || again.GetRevision() != first.GetRevision() {
		t.Errorf("what is so already made revision %d, %v", again.GetRevision(), err)
	}
	if _, err := b.reg.SetLabels(b.ctx, &adminv1.SetLabelsRequest{Name: "pay", Tool: "refund", Set: map[string]string{"pci": "true"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.reg.SetLabels(b.ctx, &adminv1.SetLabelsRequest{Name: "pay", Remove: []string{"env", "never"}}); err != nil {
		t.Fatal(err)
	}
	_, err = b.reg.SetLabels(b.ctx, &adminv1.SetLabelsRequest{Name: "pay", Tool: "refnd", Set: map[string]string{"pci": "true"}})
	if problem.CodeOf(err) != problem.NotFound || !strings.Contains(err.Error(), "did you mean server:pay/refund?") {
		t.Errorf("got %v", err)
	}
	got, err := b.reg.GetServer(b.ctx, &adminv1.GetServerRequest{Name: "pay"})
	if err != nil || !slices.Equal(got.GetServer().GetLabels(), []string{"pci=false"}) {
		t.Errorf("got %v, %v", got.GetServer(), err)
	}
	for _, tool := range got.GetVersion().GetTools() {
		if want := tool.GetName() == "refund"; slices.Equal(tool.GetLabels(), []string{"pci=true"}) != want {
			t.Errorf("%s has %v", tool.GetName(), tool.GetLabels())
		}
	}
	globex := storetest.Tenant(t, b.st, "globex")
	err = b.st.Read(t.Context(), globex.ID, func(tx *store.Tx) error {
		list, err := tx.Labels(t.Context())
		if len(list) != 0 {
			t.Errorf("another tenant sees %v", list)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
