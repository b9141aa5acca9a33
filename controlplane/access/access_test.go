package access_test

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/access"
	"github.com/mcpvault/mcpvault/controlplane/keyring/keyringtest"
	"github.com/mcpvault/mcpvault/controlplane/publish"
	"github.com/mcpvault/mcpvault/controlplane/registry"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

const (
	refundTool  = `{"name":"refund","inputSchema":{"properties":{"amount":{"type":"number"},"note":{"type":"string"}},"required":["amount"]}}`
	balanceTool = `{"name":"balance","annotations":{"readOnlyHint":true}}`
)

// upstream stands for the network: the scanner has tests of its own against live servers.
type upstream struct {
	mu    sync.Mutex
	tools []registry.Tool
	err   error
}

func (u *upstream) Scan(_ context.Context, url string) (*registry.Surface, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err != nil {
		return nil, u.err
	}
	return &registry.Surface{URL: url, Tools: slices.Clone(u.tools), ProtocolVersions: []string{"2025-11-25"}}, nil
}

type bundle struct {
	st   *store.Store
	auth *snapshottest.Authority
	acme controlplane.Tenant
	pub  *publish.Publisher
	up   *upstream
	reg  *registry.Service
	acc  *access.Service
	ctx  context.Context
}

// setup makes acme with alice (role analyst through team ops), bob, and the server payments, published.
func setup(t testing.TB) *bundle {
	t.Helper()
	b := &bundle{st: storetest.Open(t), auth: snapshottest.NewAuthority(t), up: &upstream{
		tools: []registry.Tool{{Name: "balance", Raw: []byte(balanceTool)}, {Name: "refund", Raw: []byte(refundTool)}},
	}}
	b.acme = storetest.Tenant(t, b.st, "acme")
	b.ctx = controlplane.WithCaller(t.Context(), controlplane.Caller{Principal: "root", TenantID: b.acme.ID, Tenant: "acme", Home: "acme"})
	b.pub = publish.New(publish.Config{
		Store: b.st, Keys: keyringtest.Of(t, b.auth),
		Cells: map[string][]string{"local": {publish.Everyone}}, Logger: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { _ = b.pub.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	b.reg = registry.New(b.st, b.up, slog.New(slog.DiscardHandler))
	b.acc = access.New(access.Config{Store: b.st, Keys: keyringtest.Of(t, b.auth), Logger: slog.New(slog.DiscardHandler)})

	_, err := b.st.Write(b.ctx, b.acme.ID, "test", func(tx *store.Tx) error {
		for _, u := range []string{"alice", "bob"} {
			if _, err := tx.InsertUser(b.ctx, controlplane.User{Name: u, Kind: controlplane.Person}); err != nil {
				return err
			}
		}
		if _, err := tx.InsertTeam(b.ctx, controlplane.Team{Name: "ops"}); err != nil {
			return err
		}
		if _, err := tx.InsertRole(b.ctx, controlplane.Role{Name: "analyst"}); err != nil {
			return err
		}
		if err := tx.SetTeamMember(b.ctx, "ops", "alice", false); err != nil {
			return err
		}
		if err := tx.SetRoleMember(b.ctx, "analyst", store.MemberTeam, "ops", false); err != nil {
			return err
		}
		return tx.Change(b.ctx, "x", "x", nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.reg.AddServer(b.ctx, &adminv1.AddServerRequest{Name: "payments", Url: "http://payments.example/mcp"}); err != nil {
		t.Fatal(err)
	}
	res, err := b.reg.ApproveVersion(b.ctx, &adminv1.ApproveVersionRequest{Name: "payments", Source: adminv1.EffectSource_EFFECT_SOURCE_HINTS})
	if err != nil {
		t.Fatal(err)
	}
	b.await(t, res.GetRevision())
	return b
}

func (b *bundle) await(t testing.TB, revision uint64) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		_, changed, ok := b.pub.View("local")
		if h := b.pub.Head(b.acme.ID); h != nil && h.Revision >= revision {
			return
		}
		if !ok {
			changed = nil
		}
		select {
		case <-changed:
		case <-time.After(5 * time.Millisecond):
		}
	}
	t.Fatalf("revision %d was not published: %+v", revision, b.pub.Status())
}

func (b *bundle) grant(t *testing.T, req *adminv1.CreateGrantRequest) *adminv1.Grant {
	t.Helper()
	res, err := b.acc.CreateGrant(b.ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	b.await(t, res.GetRevision())
	return res.GetGrant()
}

func (b *bundle) explain(t testing.TB, user, tool, args string) *adminv1.ExplainResponse {
	t.Helper()
	server, tool, _ := strings.Cut(tool, "/")
	res, err := b.acc.Explain(b.ctx, &adminv1.ExplainRequest{Principal: user, Server: server, Tool: tool, Arguments: args})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

const (
	allow = adminv1.GrantEffect_GRANT_EFFECT_ALLOW
	deny  = adminv1.GrantEffect_GRANT_EFFECT_DENY
)

func TestAGrantThatCannotMeanWhatItSaysIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, c := range []struct {
		subject, target, when, want string
		code                        problem.Code
	}{
		{"user:alcie", "server:payments", "", "did you mean user:alice?", problem.NotFound},
		{"team:opps", "server:payments", "", "did you mean team:ops?", problem.NotFound},
		{"role:boss", "server:payments", "", "mcpvault role create boss", problem.NotFound},
		{"user:alice", "server:payment", "", "did you mean payments?", problem.NotFound},
		{"user:alice", "server:payments/refnd", "", "did you mean server:payments/refund?", problem.NotFound},
		{"user:alice", "server:*/refund", "", "name the server", problem.Invalid},
		{"user:alice", "server:payments/", "", "is no target", problem.Invalid},
		{"user:alice", "payments", "", "is no target", problem.Invalid},
		{"user:alice", "server:payments/refund", "context.args.amout < 100", "refund has no argument amout: did you mean amount?", problem.Invalid},
		{"user:alice", "server:payments/refund", "context.args.note == \"x\"", "optional", problem.Invalid},
		{"user:alice", "server:payments", "context.args.amount < 100", "name a tool: server:payments/TOOL", problem.Invalid},
		{"user:alice", "server:*", "context.args.amount < 100", "every server", problem.Invalid},
	} {
		_, err := b.acc.CreateGrant(b.ctx, &adminv1.CreateGrantRequest{Effect: allow, Subject: c.subject, Target: c.target, Condition: c.when})
		if problem.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s %s: got %v (%s), want %q", c.subject, c.target, c.when, err, problem.CodeOf(err), c.want)
		}
	}
	if res, err := b.acc.ListGrants(b.ctx, &adminv1.ListGrantsRequest{}); err != nil || len(res.GetGrants()) != 0 {
		t.Errorf("refused grants were kept: %v %v", res, err)
	}
}

func TestTheSameGrantTwiceIsOneGrant(t *testing.T) {
	t.Parallel()
	b := setup(t)
	req := &adminv1.CreateGrantRequest{Effect: allow, Subject: "user:alice", Target: "server:payments/balance"}
	first := b.grant(t, req)
	if again := b.grant(t, req); again.GetId() != first.GetId() {
		t.Error("a second grant was made")
	}
	req.ValidFor = durationpb.New(time.Hour)
	if other := b.grant(t, req); other.GetId() == first.GetId() || other.GetExpiresMs() == 0 {
		t.Error("a grant with an end is another grant")
	}
	req.ValidFor = durationpb.New(-time.Hour)
	if _, err := b.acc.CreateGrant(b.ctx, req); problem.CodeOf(err) != problem.Invalid {
		t.Errorf("a grant that ended before it began: %v", err)
	}
}

func TestRevokeTakesTheSameWordsAndNamesWhatIsNear(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.grant(t, &adminv1.CreateGrantRequest{Effect: allow, Subject: "user:alice", Target: "server:payments/refund", Condition: "context.args.amount < 100"})
	b.grant(t, &adminv1.CreateGrantRequest{Effect: deny, Subject: "user:alice", Target: "server:payments/refund"})
	_, err := b.acc.DeleteGrants(b.ctx, &adminv1.DeleteGrantsRequest{Subject: "user:alice", Target: "server:payments/balance"})
	if problem.CodeOf(err) != problem.NotFound || !strings.Contains(err.Error(), "user:alice server:payments/refund --deny") {
		t.Errorf("got %v", err)
	}
	res, err := b.acc.DeleteGrants(b.ctx, &adminv1.DeleteGrantsRequest{Subject: "user:alice", Target: "server:payments/refund", Effect: deny})
	if err != nil || len(res.GetDeleted()) != 1 || res.GetRevision() == 0 {
		t.Fatalf("got %v %v", res, err)
	}
	res, err = b.acc.DeleteGrants(b.ctx, &adminv1.DeleteGrantsRequest{Subject: "user:alice", Target: "server:payments/refund"})
	if err != nil || len(res.GetDeleted()) != 1 {
		t.Fatalf("got %v %v", res, err)
	}
	if _, err := b.acc.DeleteGrants(b.ctx, &adminv1.DeleteGrantsRequest{Id: "0199aaaa-0000-7000-8000-000000000001"}); problem.CodeOf(err) != problem.NotFound {
		t.Errorf("got %v", err)
	}
	if _, err := b.acc.DeleteGrants(b.ctx, &adminv1.DeleteGrantsRequest{}); problem.CodeOf(err) != problem.Invalid {
		t.Errorf("got %v", err)
	}
}

func TestExplainSaysWhyAndWhatWouldAllowIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.explain(t, "alice", "payments/refund", `{"amount":5}`)
	if r.GetAllowed() || r.GetReason() != "no_grant" || !slices.Equal(r.GetFixes(), []string{"mcpvault grant user:alice server:payments/refund"}) {
		t.Errorf("got %v", r)
	}
	b.grant(t, &adminv1.CreateGrantRequest{Effect: allow, Subject: "role:analyst", Target: "server:payments/refund", Condition: "context.args.amount < 100"})
	r = b.explain(t, "alice", "payments/refund", `{"amount":5}`)
	if !r.GetAllowed() || !r.GetVisible() || len(r.GetGrants()) != 1 || r.GetGrants()[0].GetPath() != "user:alice > team:ops > role:analyst" || r.GetGrants()[0].GetOutcome() != "matched" {
		t.Errorf("got %v", r)
	}
	if r = b.explain(t, "bob", "payments/refund", `{"amount":5}`); r.GetAllowed() || r.GetVisible() {
		t.Errorf("got %v", r)
	}
	r = b.explain(t, "alice", "payments/refund", `{"amount":500}`)
	if r.GetAllowed() || !r.GetVisible() || r.GetReason() != "condition" || !strings.Contains(r.GetSentence(), "context.args.amount < 100") || r.GetGrants()[0].GetOutcome() != "condition_false" {
		t.Errorf("got %v", r)
	}
	if r = b.explain(t, "alice", "payments/refund", ""); r.GetAllowed() || !r.GetVisible() {
		t.Errorf("got %v", r)
	}
	d := b.grant(t, &adminv1.CreateGrantRequest{Effect: deny, Subject: "everyone", Target: "server:payments"})
	r = b.explain(t, "alice", "payments/refund", `{"amount":5}`)
	if r.GetReason() != "explicit_deny" || !slices.Contains(r.GetFixes(), "mcpvault revoke --id "+d.GetId()) || r.GetVisible() {
		t.Errorf("got %v", r)
	}
	for _, c := range []struct{ user, tool, reason string }{
		{"nobody", "payments/refund", "unknown_principal"}, {"alice", "payments/nothing", "unknown_tool"}, {"alice", "crm/x", "unknown_tool"},
	} {
		if r := b.explain(t, c.user, c.tool, ""); r.GetReason() != c.reason || r.GetAllowed() || len(r.GetFixes()) == 0 {
			t.Errorf("%v: got %v", c, r)
		}
	}
	if _, err := b.acc.Explain(b.ctx, &adminv1.ExplainRequest{Principal: "alice", Server: "payments", Tool: "refund", Arguments: "[]"}); problem.CodeOf(err) != problem.Invalid {
		t.Errorf("got %v", err)
	}
}

func TestAGrantRunsOutByItself(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.grant(t, &adminv1.CreateGrantRequest{Effect: allow, Subject: "user:alice", Target: "server:payments/refund", ValidFor: durationpb.New(time.Hour)})
	if r := b.explain(t, "alice", "payments/refund", `{"amount":5}`); !r.GetAllowed() {
		t.Errorf("got %v", r)
	}
	later := access.New(access.Config{Store: b.st, Now: func() time.Time { return time.Now().Add(2 * time.Hour) }})
	r, err := later.Explain(b.ctx, &adminv1.ExplainRequest{Principal: "alice", Server: "payments", Tool: "refund", Arguments: `{"amount":5}`})
	if err != nil || r.GetAllowed() || r.GetVisible() || !strings.Contains(r.GetSentence(), "expired") {
		t.Errorf("got %v %v", r, err)
	}
}

func TestWhoCanNamesEverybodyAndHow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.grant(t, &adminv1.CreateGrantRequest{Effect: allow, Subject: "role:analyst", Target: "server:payments"})
	b.grant(t, &adminv1.CreateGrantRequest{Effect: allow, Subject: "user:bob", Target: "server:payments/refund", Condition: "context.args.amount < 100"})
	res, err := b.acc.WhoCan(b.ctx, &adminv1.WhoCanRequest{Server: "payments", Tool: "refund"})
	if err != nil || len(res.GetHolders()) != 2 {
		t.Fatalf("got %v %v", res, err)
	}
	alice, bob := res.GetHolders()[0], res.GetHolders()[1]
	if alice.GetUser() != "alice" {
		alice, bob = bob, alice
	}
	if alice.GetAccess() != "always" || !slices.Equal(alice.GetPaths(), []string{"user:alice > team:ops > role:analyst"}) {
		t.Errorf("got %v", alice)
	}
	if bob.GetAccess() != "conditional" || !slices.Equal(bob.GetConditions(), []string{"context.args.amount < 100"}) {
		t.Errorf("got %v", bob)
	}
	if res, err = b.acc.WhoCan(b.ctx, &adminv1.WhoCanRequest{Server: "payments", Tool: "balance"}); err != nil || len(res.GetHolders()) != 1 {
		t.Errorf("got %v %v", res, err)
	}
	if res, err = b.acc.WhoCan(b.ctx, &adminv1.WhoCanRequest{Server: "payments"}); err != nil || len(res.GetHolders()) != 2 {
		t.Errorf("got %v %v", res, err)
	}
	if _, err = b.acc.WhoCan(b.ctx, &adminv1.WhoCanRequest{Server: "crm"}); problem.CodeOf(err) != problem.NotFound {
		t.Errorf("got %v", err)
	}
}

func TestNobodyKillsThemselvesAndOnlyAnOwnerKillsAnOwner(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.st.Write(t.Context(), b.acme.ID, "test", func(tx *store.Tx) error {
		for _, u := range []controlplane.User{{Name: "boss", AdminRoles: []string{"owner"}}, {Name: "ann", AdminRoles: []string{"admin"}}} {
			u.Kind = controlplane.Person
			if _, err := tx.InsertUser(t.Context(), u); err != nil {
				return err
			}
		}
		return tx.Change(t.Context(), "x", "x", nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	as := func(name, role string) context.Context {
		return controlplane.WithCaller(t.Context(), controlplane.Caller{Principal: name, TenantID: b.acme.ID, Tenant: "acme", Home: "acme", Roles: []string{role}})
	}
	for _, c := range []struct {
		by, role, of string
		want         problem.Code
	}{
		{"ann", "admin", "boss", problem.Denied},
		{"ann", "admin", "ann", problem.Invalid},
		{"boss", "owner", "boss", problem.Invalid},
		{"boss", "owner", "ann", ""},
	} {
		_, err := b.acc.Kill(as(c.by, c.role), &adminv1.KillRequest{Kind: "user", Subject: c.of})
		if c.want == "" && err != nil || c.want != "" && problem.CodeOf(err) != c.want {
			t.Errorf("%s kills %s: %v", c.by, c.of, err)
		}
	}
}

func TestKillIsSignedAndNamesSomethingThatExists(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, c := range []struct{ kind, subject, want string }{
		{"user", "alcie", "did you mean user:alice?"},
		{"server", "payment", "did you mean payments?"},
		{"tool", "payments/refnd", "did you mean server:payments/refund?"},
		{"tool", "payments", "SERVER/TOOL"},
		{"moon", "x", "cannot be killed"},
	} {
		if _, err := b.acc.Kill(b.ctx, &adminv1.KillRequest{Kind: c.kind, Subject: c.subject}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: got %v", c, err)
		}
	}
	res, err := b.acc.Kill(b.ctx, &adminv1.KillRequest{Kind: "tool", Subject: "payments/refund", Reason: "incident"})
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		v, _, _ := b.pub.View("local")
		if len(v.Kills) == 1 {
			k, err := b.auth.Trust.OpenKill(v.Kills[0].Envelope)
			if err != nil || k.GetId() != res.GetId() || k.GetKind() != snapshotv1.KillKind_KILL_KIND_TOOL || k.GetTenantId() != string(b.acme.ID) {
				t.Errorf("got %v %v", k, err)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the kill was not published")
		}
		time.Sleep(time.Millisecond) // across the database's notification: there is nothing to wait on
	}
}

func TestAnApprovalThatWouldBreakAConditionIsRefusedAndNamesTheGrant(t *testing.T) {
	t.Parallel()
	b := setup(t)
	g := b.grant(t, &adminv1.CreateGrantRequest{Effect: allow, Subject: "user:alice", Target: "server:payments/refund", Condition: "context.args.amount < 100"})
	b.up.mu.Lock()
	b.up.tools[1].Raw = []byte(strings.Replace(refundTool, `"required":["amount"]`, `"required":[]`, 1))
	b.up.mu.Unlock()
	scan, err := b.reg.ScanServer(b.ctx, &adminv1.ScanServerRequest{Name: "payments"})
	if err != nil || !scan.GetIsNew() || scan.GetVersion().GetNumber() != 2 || scan.GetVersion().GetTools()[1].GetChange() != "changed" {
		t.Fatalf("got %v %v", scan, err)
	}
	_, err = b.reg.ApproveVersion(b.ctx, &adminv1.ApproveVersionRequest{Name: "payments"})
	if problem.CodeOf(err) != problem.Conflict || !strings.Contains(err.Error(), g.GetId()) {
		t.Errorf("got %v", err)
	}
	if _, err := b.acc.DeleteGrants(b.ctx, &adminv1.DeleteGrantsRequest{Id: g.GetId()}); err != nil {
		t.Fatal(err)
	}
	res, err := b.reg.ApproveVersion(b.ctx, &adminv1.ApproveVersionRequest{Name: "payments"})
	if err != nil || res.GetServer().GetPublishedVersion() != 2 {
		t.Fatalf("got %v %v", res, err)
	}
	if e := res.GetVersion().GetTools()[0].GetEffect(); e != snapshotv1.Effect_EFFECT_DESTRUCTIVE {
		t.Errorf("an effect that nobody set is %s", e)
	}
}
