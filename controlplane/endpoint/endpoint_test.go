package endpoint_test

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/endpoint"
	"github.com/mcpvault/mcpvault/controlplane/registry"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

// upstream stands for the network: the scanner has tests of its own against live servers.
type upstream struct{}

func (upstream) Scan(_ context.Context, url string) (*registry.Surface, error) {
	return &registry.Surface{
		URL: url, Tools: []registry.Tool{{Name: "export", Raw: []byte(`{"name":"export"}`)}, {Name: "find", Raw: []byte(`{"name":"find"}`)}},
		Prompts: []registry.Entry{{Name: "brief", Raw: []byte(`{"name":"brief"}`)}},
	}, nil
}

type bundle struct {
	ctx, other context.Context
	st         *store.Store
	end        *endpoint.Service
}

// setup has the server crm with two tools and a prompt, and the endpoint accounts.
func setup(t *testing.T) bundle {
	t.Helper()
	b := bundle{st: storetest.Open(t)}
	as := func(name string) context.Context {
		tenant := storetest.Tenant(t, b.st, name)
		return controlplane.WithCaller(t.Context(), controlplane.Caller{Principal: "root", TenantID: tenant.ID, Tenant: name, Home: name})
	}
	b.ctx, b.other, b.end = as("acme"), as("globex"), endpoint.New(b.st)
	reg := registry.New(b.st, upstream{}, slog.New(slog.DiscardHandler))
	if _, err := reg.AddServer(b.ctx, &adminv1.AddServerRequest{Name: "crm", Url: "http://crm.example/mcp"}); err != nil {
		t.Fatal(err)
	}
	_, err := b.end.CreateEndpoint(b.ctx, &adminv1.CreateEndpointRequest{Name: "accounts", Owner: "sales", Class: 2, Regions: []string{"us", "eu", "us"}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b bundle) get(t *testing.T, ctx context.Context) []*adminv1.Endpoint {
	t.Helper()
	res, err := b.end.ListEndpoints(ctx, &adminv1.ListEndpointsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return res.GetEndpoints()
}

func TestAnEndpointIsDescribedAndChanged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := b.get(t, b.ctx)[0]
	if e.GetOwner() != "sales" || e.GetClass() != 2 || !slices.Equal(e.GetRegions(), []string{"eu", "us"}) || !slices.Equal(e.GetAccess(), []string{"read", "write"}) {
		t.Errorf("got %v", e)
	}
	_, err := b.end.CreateEndpoint(b.ctx, &adminv1.CreateEndpointRequest{Name: "accounts"})
	if problem.CodeOf(err) != problem.Conflict {
		t.Errorf("the same name again: %v", err)
	}
	class := uint32(3)
	first, err := b.end.UpdateEndpoint(b.ctx, &adminv1.UpdateEndpointRequest{Name: "accounts", Class: &class})
	if err != nil || first.GetEndpoint().GetClass() != 3 || first.GetEndpoint().GetOwner() != "sales" {
		t.Errorf("got %v, %v", first, err)
	}
	again, err := b.end.UpdateEndpoint(b.ctx, &adminv1.UpdateEndpointRequest{Name: "accounts", Class: &class})
	if err != nil || again.GetRevision() != first.GetRevision() {
		t.Errorf("what is so already made revision %d, %v", again.GetRevision(), err)
	}
	_, err = b.end.UpdateEndpoint(b.ctx, &adminv1.UpdateEndpointRequest{Name: "acounts", Class: &class})
	if problem.CodeOf(err) != problem.NotFound || !strings.Contains(err.Error(), "did you mean accounts?") {
		t.Errorf("got %v", err)
	}
	if _, err := b.end.DeleteEndpoint(b.ctx, &adminv1.DeleteEndpointRequest{Name: "accounts"}); err != nil || len(b.get(t, b.ctx)) != 0 {
		t.Errorf("not deleted: %v", err)
	}
}

func TestALinkIsBetweenThingsThatExist(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, req := range []*adminv1.SetLinkRequest{
		{Target: "server:crm/export", Access: []string{"read"}}, {Target: "server:crm/prompt:brief"}, {Target: "server:crm/resource:crm://*", Access: []string{"read"}},
	} {
		req.Endpoint = "accounts"
		first, err := b.end.SetLink(b.ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := b.end.SetLink(b.ctx, req); err != nil || again.GetRevision() != first.GetRevision() {
			t.Errorf("%s again: %v, %v", req.GetTarget(), again, err)
		}
	}
	var got []string
	for _, l := range b.get(t, b.ctx)[0].GetLinks() {
		got = append(got, l.GetTarget()+" "+strings.Join(l.GetAccess(), ","))
	}
	if want := []string{"server:crm/prompt:brief read,write", "server:crm/resource:crm://* read", "server:crm/export read"}; !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
		t.Errorf("got %q", got)
	}
	for _, c := range []struct {
		endpoint, target, access, want string
		code                           problem.Code
	}{
		{"accounts", "server:crm/exprt", "", "did you mean server:crm/export?", problem.NotFound},
		{"accounts", "server:erp/export", "", "erp does not exist", problem.NotFound},
		{"acounts", "server:crm/export", "", "did you mean accounts?", problem.NotFound},
		{"accounts", "server:crm/export", "drop", "is used for read, write", problem.Invalid},
		{"accounts", "server:crm", "", "cannot be linked", problem.Invalid},
		{"accounts", "server:crm/tool:*", "", "cannot be linked", problem.Invalid},
		{"accounts", "tools:readOnlyHint", "", "cannot be linked", problem.Invalid},
	} {
		req := &adminv1.SetLinkRequest{Endpoint: c.endpoint, Target: c.target}
		if c.access != "" {
			req.Access = []string{c.access}
		}
		if _, err := b.end.SetLink(b.ctx, req); problem.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: got %v, want %q", c.endpoint, c.target, err, c.want)
		}
	}
	_, err := b.end.UpdateEndpoint(b.ctx, &adminv1.UpdateEndpointRequest{Name: "accounts", Access: []string{"write"}})
	if problem.CodeOf(err) != problem.Conflict {
		t.Errorf("a way of use that links name was taken away: %v", err)
	}
	if _, err := b.end.SetLink(b.ctx, &adminv1.SetLinkRequest{Endpoint: "accounts", Target: "server:crm/export", Remove: true}); err != nil || len(b.get(t, b.ctx)[0].GetLinks()) != 2 {
		t.Errorf("not unlinked: %v", err)
	}
}

func TestAnEndpointThatSomethingIsDeniedForIsNotDeleted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	target, err := controlplane.ParseTarget("endpoint:accounts/write")
	if err != nil {
		t.Fatal(err)
	}
	c := controlplane.CallerFrom(b.ctx)
	change := func(fn func(tx *store.Tx) error) {
		t.Helper()
		_, err := b.st.Write(t.Context(), c.TenantID, "test", func(tx *store.Tx) error {
			if err := fn(tx); err != nil {
				return err
			}
			return tx.Change(t.Context(), "x", "x", nil)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	id := store.NewID()
	change(func(tx *store.Tx) error {
		return tx.InsertGrant(t.Context(), store.Grant{ID: id, Deny: true, Subject: "everyone", Target: target})
	})
	_, err = b.end.DeleteEndpoint(b.ctx, &adminv1.DeleteEndpointRequest{Name: "accounts"})
	if problem.CodeOf(err) != problem.Conflict || !strings.Contains(err.Error(), "mcpvault revoke --id "+id) {
		t.Errorf("got %v", err)
	}
	change(func(tx *store.Tx) error { return tx.DeleteGrant(t.Context(), id) })
	if _, err := b.end.DeleteEndpoint(b.ctx, &adminv1.DeleteEndpointRequest{Name: "accounts"}); err != nil {
		t.Error(err)
	}
}

func TestAnotherTenantsEndpointsAreUnknown(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if list := b.get(t, b.other); len(list) != 0 {
		t.Errorf("globex sees %v", list)
	}
	class := uint32(0)
	_, err := b.end.UpdateEndpoint(b.other, &adminv1.UpdateEndpointRequest{Name: "accounts", Class: &class})
	if problem.CodeOf(err) != problem.NotFound {
		t.Errorf("got %v", err)
	}
	_, err = b.end.SetLink(b.other, &adminv1.SetLinkRequest{Endpoint: "accounts", Target: "server:crm/export"})
	if problem.CodeOf(err) != problem.NotFound {
		t.Errorf("got %v", err)
	}
}
