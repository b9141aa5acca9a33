package policies_test

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/access"
	"github.com/mcpvault/mcpvault/controlplane/keyring/keyringtest"
	"github.com/mcpvault/mcpvault/controlplane/policies"
	"github.com/mcpvault/mcpvault/controlplane/policy"
	"github.com/mcpvault/mcpvault/controlplane/publish"
	"github.com/mcpvault/mcpvault/controlplane/registry"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

// upstream stands for the network: the scanner has tests of its own against live servers.
type upstream struct{ refund string }

const refund = `{"name":"refund","inputSchema":{"properties":{"amount":{"type":"integer"},"note":{"type":"string"}},"required":["amount"]}}`

func (u *upstream) Scan(_ context.Context, url string) (*registry.Surface, error) {
	return &registry.Surface{URL: url, ProtocolVersions: []string{"2025-11-25"}, Tools: []registry.Tool{
		{Name: "refund", Raw: []byte(u.refund)},
		{Name: "balance", Raw: []byte(`{"name":"balance","annotations":{"readOnlyHint":true}}`)},
	}}, nil
}

type bundle struct {
	st   *store.Store
	acme controlplane.Tenant
	svc  *policies.Service
	up   *upstream
	reg  *registry.Service
	ctx  context.Context
}

// setup makes acme with alice in team ops, and the servers payments, published, and crm, which waits for approval.
func setup(t *testing.T) *bundle {
	t.Helper()
	b := &bundle{st: storetest.Open(t), up: &upstream{refund}}
	b.acme = storetest.Tenant(t, b.st, "acme")
	b.svc = policies.New(policies.Config{Store: b.st})
	b.ctx = as(t, b.acme)
	b.reg = registry.New(b.st, b.up, slog.New(slog.DiscardHandler))
	_, err := b.st.Write(b.ctx, b.acme.ID, "test", func(tx *store.Tx) error {
		if _, err := tx.InsertUser(b.ctx, controlplane.User{Name: "alice", Kind: controlplane.Person}); err != nil {
			return err
		}
		if _, err := tx.InsertTeam(b.ctx, controlplane.Team{Name: "ops"}); err != nil {
			return err
		}
		if err := tx.SetTeamMember(b.ctx, "ops", "alice", false); err != nil {
			return err
		}
		return tx.Change(b.ctx, "x", "x", nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"payments", "crm"} {
		if _, err := b.reg.AddServer(b.ctx, &adminv1.AddServerRequest{Name: name, Url: "http://" + name + ".example/mcp"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.reg.ApproveVersion(b.ctx, &adminv1.ApproveVersionRequest{Name: "payments", Source: adminv1.EffectSource_EFFECT_SOURCE_HINTS}); err != nil {
		t.Fatal(err)
	}
	return b
}

func as(t *testing.T, tenant controlplane.Tenant) context.Context {
	return controlplane.WithCaller(t.Context(), controlplane.Caller{Principal: "root", TenantID: tenant.ID, Tenant: tenant.Name, Home: tenant.Name})
}

func (b *bundle) put(name, text string) (*adminv1.PutPolicyResponse, error) {
	return b.svc.PutPolicy(b.ctx, &adminv1.PutPolicyRequest{Name: name, Text: text})
}

const small = `@id("small") permit (principal in Team::"ops", action == Action::"call", resource == Tool::"payments/refund") when { context.args.amount < 100 };`

func TestPutWritesCountsAndIsInTheLedger(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, err := b.put("refunds", small)
	if err != nil {
		t.Fatal(err)
	}
	p := first.GetPolicy()
	if p.GetVersion() != 1 || p.GetUpdatedBy() != "root" || !slices.Equal(p.GetRules(), []string{"policy:refunds/small"}) {
		t.Fatalf("%+v", p)
	}
	same, err := b.put("refunds", small)
	if err != nil || same.GetPolicy().GetVersion() != 1 || same.GetRevision() != first.GetRevision() {
		t.Fatalf("the same text again: %+v %v", same, err)
	}
	second, err := b.put("refunds", strings.Replace(small, "100", "50", 1))
	if err != nil || second.GetPolicy().GetVersion() != 2 || second.GetRevision() != first.GetRevision()+1 {
		t.Fatalf("another text: %+v %v", second, err)
	}
	_, err = b.svc.PutPolicy(b.ctx, &adminv1.PutPolicyRequest{Name: "refunds", Text: small, ExpectVersion: 1})
	if problem.CodeOf(err) != problem.Conflict {
		t.Fatalf("a write over somebody else's: %v", err)
	}
	if _, err := b.svc.DeletePolicy(b.ctx, &adminv1.DeletePolicyRequest{Name: "refunds"}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.svc.GetPolicy(b.ctx, &adminv1.GetPolicyRequest{Name: "refunds"}); problem.CodeOf(err) != problem.NotFound {
		t.Fatalf("deleted and still there: %v", err)
	}
	var actions []string
	err = b.st.Read(b.ctx, b.acme.ID, func(tx *store.Tx) error {
		list, err := tx.Changes(b.ctx, 10)
		for _, c := range list {
			if c.Object == "policy:refunds" {
				actions = append(actions, c.Action)
			}
		}
		return err
	})
	if err != nil || !slices.Equal(actions, []string{"policy.delete", "policy.put", "policy.put"}) {
		t.Fatalf("ledger: %v %v", actions, err)
	}
}

func TestPutRefusesWithThePlaceAndWritesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for text, want := range map[string]string{
		`permit (principal in Team::"opps", action, resource);`:                                                                       `1:22: Team "opps" does not exist: did you mean "ops"?`,
		`permit (principal, action, resource in Server::"payment");`:                                                                  `1:40: Server "payment" does not exist: did you mean "payments"?`,
		"forbid (principal, action == Action::\"call\", resource == Tool::\"payments/refund\")\nwhen { context.args.note == \"x\" };": `2:21: payments/refund may be called without note, which is optional in its schema`,
		`forbid (principal, action, resource) when { context.args.amount > 5 };`:                                                      `1:58: context.args.amount: only a call has arguments`,
		`permit (principal, action, resource`:                                                                                         `1:36: unexpected`,
		`permit (principal in Team::"a", action, resource); permit (principal in Team::"b", action, resource);`:                       `(and 1 more)`,
	} {
		if _, err := b.put("bad", text); problem.CodeOf(err) != problem.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if list, err := b.svc.ListPolicies(b.ctx, &adminv1.ListPoliciesRequest{}); err != nil || len(list.GetPolicies()) != 0 {
		t.Fatalf("written all the same: %v %v", list, err)
	}
	// A server that waits for its approval can be named: its newest surface is known.
	if _, err := b.put("early", strings.Replace(small, "payments", "crm", 1)); err != nil {
		t.Errorf("a server that is not published yet: %v", err)
	}
}

func TestAVersionThatAPolicyDoesNotFitIsNotApproved(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if _, err := b.put("refunds", small); err != nil {
		t.Fatal(err)
	}
	b.up.refund = strings.ReplaceAll(refund, "amount", "cents")
	if _, err := b.reg.ScanServer(b.ctx, &adminv1.ScanServerRequest{Name: "payments"}); err != nil {
		t.Fatal(err)
	}
	approve := &adminv1.ApproveVersionRequest{Name: "payments", Source: adminv1.EffectSource_EFFECT_SOURCE_HINTS}
	_, err := b.reg.ApproveVersion(b.ctx, approve)
	if problem.CodeOf(err) != problem.Conflict || !strings.Contains(err.Error(), "policy refunds/small does not fit this version: 1:") {
		t.Fatalf("%v", err)
	}
	if _, err := b.svc.DeletePolicy(b.ctx, &adminv1.DeletePolicyRequest{Name: "refunds"}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.reg.ApproveVersion(b.ctx, approve); err != nil {
		t.Fatal(err)
	}
}

func TestValidateSaysEverythingAndWritesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	res, err := b.svc.ValidatePolicy(b.ctx, &adminv1.ValidatePolicyRequest{Text: small + "\npermit (principal in Team::\"opps\", action, resource);\npermit (principal == User::\"alicia\", action, resource);"})
	if err != nil || len(res.GetIssues()) != 2 || len(res.GetRules()) != 3 {
		t.Fatalf("%+v %v", res, err)
	}
	if i := res.GetIssues()[1]; i.GetLine() != 3 || i.GetColumn() != 22 || i.GetFix() != `did you mean "alice"?` {
		t.Errorf("%+v", i)
	}
	res, err = b.svc.ValidatePolicy(b.ctx, &adminv1.ValidatePolicyRequest{Text: "permit ("})
	if err != nil || len(res.GetIssues()) != 1 {
		t.Fatalf("%+v %v", res, err)
	}
}

// TestAPolicyIsDecidedAndExplained goes all the way: written, published, opened as a cell would, and asked.
func TestAPolicyIsDecidedAndExplained(t *testing.T) {
	t.Parallel()
	b := setup(t)
	auth := snapshottest.NewAuthority(t)
	pub := publish.New(publish.Config{
		Store: b.st, Keys: keyringtest.Of(t, auth), Cells: map[string][]string{"local": {publish.Everyone}}, Logger: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { _ = pub.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	asked := access.New(access.Config{Store: b.st, Keys: keyringtest.Of(t, auth), Logger: slog.New(slog.DiscardHandler)})

	res, err := b.put("refunds", small+`
		@id("even") forbid (principal, action == Action::"call", resource == Tool::"payments/refund") when { context.args.amount * 2 == 84 };
		@id("hints") permit (principal == User::"alice", action == Action::"call", resource in Server::"payments") when { resource has readOnlyHint && resource.readOnlyHint };`)
	if err != nil {
		t.Fatal(err)
	}
	await(t, pub, b.acme.ID, res.GetRevision())
	for _, tc := range []struct {
		tool, args string
		allowed    bool
		by         string
	}{
		{"refund", `{"amount":5}`, true, "policy:refunds/small"},
		{"refund", `{"amount":42}`, false, "policy:refunds/even"},
		{"refund", `{"amount":500}`, false, "policy:refunds/small"},
		{"refund", `{}`, false, "policy:refunds/even"},
		{"balance", `{}`, true, "policy:refunds/hints"},
	} {
		e, err := asked.Explain(b.ctx, &adminv1.ExplainRequest{Principal: "alice", Server: "payments", Tool: tc.tool, Arguments: tc.args})
		if err != nil {
			t.Fatal(err)
		}
		by := ""
		for _, g := range e.GetGrants() {
			if g.GetDecided() {
				by = g.GetGrant().GetId()
			}
		}
		if e.GetAllowed() != tc.allowed || by != tc.by {
			t.Errorf("%s %s: allowed %v by %q, want %v by %q: %s", tc.tool, tc.args, e.GetAllowed(), by, tc.allowed, tc.by, e.GetSentence())
		}
	}
}

func await(t *testing.T, pub *publish.Publisher, tenant controlplane.TenantID, revision uint64) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		_, changed, ok := pub.View("local")
		if h := pub.Head(tenant); h != nil && h.Revision >= revision {
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
	t.Fatalf("revision %d was not published: %+v", revision, pub.Status())
}

func TestAnotherTenantSeesNoPolicy(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if _, err := b.put("refunds", small); err != nil {
		t.Fatal(err)
	}
	globex := as(t, storetest.Tenant(t, b.st, "globex"))
	if list, err := b.svc.ListPolicies(globex, &adminv1.ListPoliciesRequest{}); err != nil || len(list.GetPolicies()) != 0 {
		t.Errorf("%v %v", list, err)
	}
	if _, err := b.svc.GetPolicy(globex, &adminv1.GetPolicyRequest{Name: "refunds"}); problem.CodeOf(err) != problem.NotFound {
		t.Errorf("%v", err)
	}
	if _, err := b.svc.DeletePolicy(globex, &adminv1.DeletePolicyRequest{Name: "refunds"}); problem.CodeOf(err) != problem.NotFound {
		t.Errorf("%v", err)
	}
}

func TestExportHoldsGrantsAndPoliciesAndReadsBack(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if _, err := b.put("refunds", small); err != nil {
		t.Fatal(err)
	}
	_, err := b.st.Write(b.ctx, b.acme.ID, "test", func(tx *store.Tx) error {
		g := store.Grant{ID: store.NewID(), Subject: "everyone", Condition: "context.args.amount < 7", CreatedBy: "test"}
		g.Server, g.Item = "payments", "refund"
		if err := tx.InsertGrant(b.ctx, g); err != nil {
			return err
		}
		return tx.Change(b.ctx, "x", "x", nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	res, err := b.svc.ExportPolicy(b.ctx, &adminv1.ExportPolicyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`@id("policy:refunds/small")`, `principal in Team::"ops"`, "context.args.amount < 100", "context.args.amount < 7", `resource == Tool::"payments/refund"`} {
		if !strings.Contains(res.GetCedar(), want) {
			t.Errorf("the export lacks %s:\n%s", want, res.GetCedar())
		}
	}
	if !strings.Contains(res.GetEntities(), `"alice"`) || !strings.Contains(res.GetEntities(), `"payments/balance"`) {
		t.Errorf("entities:\n%s", res.GetEntities())
	}
	doc, err := policy.Parse("export", res.GetCedar())
	if err != nil || len(doc.Policies) != 2 {
		t.Fatalf("the export does not read back: %v\n%s", err, res.GetCedar())
	}
}

func TestSchemaAndFormatAreServed(t *testing.T) {
	t.Parallel()
	svc := policies.New(policies.Config{})
	s, err := svc.GetSchema(t.Context(), &adminv1.GetSchemaRequest{})
	if err != nil || s.GetVersion() != 1 || !strings.Contains(s.GetText(), "entity Tool") {
		t.Errorf("%v %v", s, err)
	}
	f, err := svc.FormatPolicy(t.Context(), &adminv1.FormatPolicyRequest{Text: "permit(principal,action,resource);"})
	if err != nil || f.GetText() != "permit ( principal, action, resource );\n" {
		t.Errorf("%q %v", f.GetText(), err)
	}
}
