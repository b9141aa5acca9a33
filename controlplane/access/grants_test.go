package access_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// people puts alice into a unit of two levels and a group, and makes an endpoint that refund touches.
func (b *bundle) people(t *testing.T) {
	t.Helper()
	_, err := b.st.Write(b.ctx, b.acme.ID, "test", func(tx *store.Tx) error {
		for _, u := range []controlplane.Unit{{Name: "emea"}, {Name: "berlin", Parent: "emea"}} {
			if _, err := tx.InsertUnit(b.ctx, u); err != nil {
				return err
			}
		}
		if _, err := tx.InsertGroup(b.ctx, controlplane.Group{Name: "eng", Source: controlplane.GroupManual}); err != nil {
			return err
		}
		if err := tx.SetGroupMember(b.ctx, "eng", "alice", false); err != nil {
			return err
		}
		if err := tx.UpdateUser(b.ctx, controlplane.User{Name: "alice", Unit: "berlin"}); err != nil {
			return err
		}
		e, err := tx.InsertEndpoint(b.ctx, controlplane.Endpoint{Name: "ledger", Class: 3, Access: []string{"read"}})
		if err != nil {
			return err
		}
		srv, err := tx.Server(b.ctx, "payments")
		if err != nil {
			return err
		}
		if err := tx.PutLink(b.ctx, e, srv, "refund", []string{"read"}); err != nil {
			return err
		}
		return tx.Change(b.ctx, "x", "x", nil)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAGrantReachesEverybodyBelowItsSubjectAndWhatItsTargetPicks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.people(t)
	for _, c := range []struct{ subject, target, tool, path string }{
		{"unit:emea", "server:payments/refund", "refund", "user:alice > unit:berlin > unit:emea"},
		{"group:eng", "server:payments/refund", "refund", "user:alice > group:eng"},
		{"user:alice", "tools:readOnlyHint", "balance", "user:alice"},
		{"user:alice", "tools:effect=read", "balance", "user:alice"},
		{"user:alice", "endpoint:ledger/read", "refund", "user:alice"},
		{"user:alice", "server:payments@1/refund", "refund", "user:alice"},
		{"user:alice", "server:payments/tool:*", "refund", "user:alice"},
	} {
		g := b.grant(t, &adminv1.CreateGrantRequest{Effect: allow, Subject: c.subject, Target: c.target})
		if want := strings.Replace(c.target, "readOnlyHint", "readOnlyHint=true", 1); g.GetTarget() != want {
			t.Errorf("%s is shown as %s", c.target, g.GetTarget())
		}
		r := b.explain(t, "alice", "payments/"+c.tool, `{"amount":5}`)
		if !r.GetAllowed() || len(r.GetGrants()) != 1 || r.GetGrants()[0].GetPath() != c.path {
			t.Errorf("%s %s: got %v", c.subject, c.target, r)
		}
		if r := b.explain(t, "bob", "payments/"+c.tool, `{"amount":5}`); r.GetAllowed() {
			t.Errorf("%s %s reaches bob: %v", c.subject, c.target, r)
		}
		res, err := b.acc.DeleteGrants(b.ctx, &adminv1.DeleteGrantsRequest{Subject: c.subject, Target: c.target})
		if err != nil || len(res.GetDeleted()) != 1 {
			t.Fatalf("%s %s: got %v %v", c.subject, c.target, res, err)
		}
		b.await(t, res.GetRevision())
	}
}

func TestALabelMovesAToolIntoAGrant(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.grant(t, &adminv1.CreateGrantRequest{Effect: allow, Subject: "user:bob", Target: "tools:label.pci=true"})
	if r := b.explain(t, "bob", "payments/refund", `{"amount":5}`); r.GetAllowed() || r.GetVisible() {
		t.Errorf("before the label: %v", r)
	}
	res, err := b.reg.SetLabels(b.ctx, &adminv1.SetLabelsRequest{Name: "payments", Tool: "refund", Set: map[string]string{"pci": "true"}})
	if err != nil {
		t.Fatal(err)
	}
	b.await(t, res.GetRevision())
	if r := b.explain(t, "bob", "payments/refund", `{"amount":5}`); !r.GetAllowed() {
		t.Errorf("with the label: %v", r)
	}
	if r := b.explain(t, "bob", "payments/balance", ""); r.GetAllowed() {
		t.Errorf("another tool: %v", r)
	}
}

func TestLimitsAreShownInWords(t *testing.T) {
	t.Parallel()
	b := setup(t)
	req := &adminv1.CreateGrantRequest{
		Effect: allow, Subject: "user:alice", Target: "server:payments/refund", Condition: "context.args.amount < 100",
		Limits: &adminv1.GrantLimits{
			Networks: []string{"192.0.2.0/24", "10.0.0.0/8"}, Between: "22:00-06:00", Days: "fri,sat", TimeZone: "Europe/Berlin",
			Regions: []string{"eu"}, WithinClearance: true, NotActing: true,
		},
	}
	g := b.grant(t, req)
	want := []string{
		"from 10.0.0.0/8 or 192.0.2.0/24", "fri,sat 22:00-06:00 in Europe/Berlin", "through a cell in eu", "within their clearance",
		"with nobody acting for them", "when context.args.amount < 100",
	}
	if !slices.Equal(g.GetTerms(), want) || g.GetLimits().GetBetween() != "22:00-06:00" || g.GetLimits().GetDays() != "fri,sat" {
		t.Errorf("got %q, %v", g.GetTerms(), g.GetLimits())
	}
	if again := b.grant(t, req); again.GetId() != g.GetId() {
		t.Error("the same limits made another grant")
	}
	r := b.explain(t, "alice", "payments/refund", `{"amount":5}`)
	if r.GetAllowed() || !strings.Contains(r.GetSentence(), "from 10.0.0.0/8 or 192.0.2.0/24") {
		t.Errorf("got %v", r)
	}
	list, err := b.acc.ListGrants(b.ctx, &adminv1.ListGrantsRequest{Target: "server:payments/tool:refund"})
	if err != nil || len(list.GetGrants()) != 1 || !slices.Equal(list.GetGrants()[0].GetTerms(), want) {
		t.Errorf("got %v, %v", list, err)
	}
}

func TestAGrantBeginsAndEndsByItself(t *testing.T) {
	t.Parallel()
	b := setup(t)
	begin := time.Now().Add(time.Hour).Truncate(time.Millisecond)
	g := b.grant(t, &adminv1.CreateGrantRequest{
		Effect: allow, Subject: "user:alice", Target: "server:payments/refund", NotBeforeMs: begin.UnixMilli(), ValidFor: durationpb.New(time.Hour),
	})
	if g.GetNotBeforeMs() != begin.UnixMilli() || g.GetExpiresMs() != begin.Add(time.Hour).UnixMilli() {
		t.Errorf("got %v", g)
	}
	r := b.explain(t, "alice", "payments/refund", `{"amount":5}`)
	if r.GetAllowed() || !strings.Contains(r.GetSentence(), "has not begun") {
		t.Errorf("got %v", r)
	}
}

func TestATimeThatCannotBeMeantIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	now := time.Now()
	for want, req := range map[string]*adminv1.CreateGrantRequest{
		"two ends":                 {ValidFor: durationpb.New(time.Hour), NotAfterMs: now.Add(time.Hour).UnixMilli()},
		"end before it begins":     {NotBeforeMs: now.Add(2 * time.Hour).UnixMilli(), NotAfterMs: now.Add(time.Hour).UnixMilli()},
		"would end before":         {NotAfterMs: now.Add(-time.Hour).UnixMilli()},
		"that far in the future":   {NotBeforeMs: now.Add(11 * 365 * 24 * time.Hour).UnixMilli()},
		"begin or last that far":   {NotAfterMs: now.Add(11 * 365 * 24 * time.Hour).UnixMilli()},
		"is no network":            {Limits: &adminv1.GrantLimits{Networks: []string{"office"}}},
		"no condition can be put":  {Target: "tools:readOnlyHint", Condition: "context.args.amount < 100"},
		"endpoint crm does not":    {Target: "endpoint:crm"},
		"no prompt review":         {Target: "server:payments/prompt:review"},
		"has no version 9":         {Target: "server:payments@9/refund"},
		"unit emea does not exist": {Subject: "unit:emea"},
		"group eng does not exist": {Subject: "group:eng"},
	} {
		if req.Subject == "" {
			req.Subject = "user:alice"
		}
		if req.Target == "" {
			req.Target = "server:payments/refund"
		}
		req.Effect = allow
		if _, err := b.acc.CreateGrant(b.ctx, req); err == nil || problem.CodeOf(err) == problem.Internal || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
