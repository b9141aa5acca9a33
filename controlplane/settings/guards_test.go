package settings_test

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/settings"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

func TestGuardsAreOnAtFirstAndChangedOneByOne(t *testing.T) {
	t.Parallel()
	st := storetest.Open(t)
	tenant := storetest.Tenant(t, st, "acme")
	ctx := controlplane.WithCaller(t.Context(), controlplane.Caller{Principal: "root", TenantID: tenant.ID, Tenant: "acme", Home: "acme"})
	s := settings.New(st)
	now := func() *adminv1.Guards {
		t.Helper()
		res, err := s.GetSettings(ctx, &adminv1.GetSettingsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return res.GetSettings().GetGuards()
	}
	if g := now(); g.GetResults() != "strip" || g.GetQuestions() != "block" || g.GetChangedTools() != "refuse" || g.GetCheckArguments() || len(g.GetForbidden()) != 0 {
		t.Errorf("at first: %v", g)
	}
	set := func(c *adminv1.GuardsChange) error {
		_, err := s.UpdateSettings(ctx, &adminv1.UpdateSettingsRequest{Guards: c})
		return err
	}
	for _, c := range []*adminv1.GuardsChange{
		{Results: proto.String("block"), CheckArguments: proto.Bool(true)},
		{Origins: &adminv1.OriginList{Origins: []string{"https://login.example.com", "https://a.example:8443"}}},
		{Forbidden: &adminv1.RequestList{Requests: []string{"sampling", "roots"}}, Questions: proto.String("pass"), ChangedTools: proto.String("serve")},
	} {
		if err := set(c); err != nil {
			t.Fatal(err)
		}
	}
	g := now()
	if g.GetResults() != "block" || g.GetQuestions() != "pass" || g.GetChangedTools() != "serve" || !g.GetCheckArguments() ||
		!slices.Equal(g.GetForbidden(), []string{"roots", "sampling"}) || !slices.Equal(g.GetOrigins(), []string{"https://a.example:8443", "https://login.example.com"}) {
		t.Errorf("changed one by one: %v", g)
	}
	if err := set(&adminv1.GuardsChange{Results: proto.String("default"), Origins: &adminv1.OriginList{}}); err != nil {
		t.Fatal(err)
	}
	if g = now(); g.GetResults() != "strip" || len(g.GetOrigins()) != 0 || len(g.GetForbidden()) != 2 {
		t.Errorf("taken back: %v", g)
	}
	for _, origin := range []string{"https://login.example.com/x", "https://", "login.example.com"} {
		if err := set(&adminv1.GuardsChange{Origins: &adminv1.OriginList{Origins: []string{origin}}}); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("%q: %v", origin, err)
		}
	}
}
