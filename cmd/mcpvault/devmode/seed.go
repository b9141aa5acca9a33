package devmode

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// The people of development.
const (
	alice    = "alice"
	bob      = "bob"
	theAdmin = "admin"
	mallory  = "mallory"
)

// people lists who is where.
func people() map[string]string {
	return map[string]string{alice: tenant, bob: tenant, theAdmin: tenant, mallory: otherTenant}
}

// seeded is what a data directory has been given, so that a later start need not ask for each piece.
type seeded struct {
	Form int `json:"form"`
	// Servers are the demo servers' addresses by name; empty without them.
	Servers map[string]string `json:"servers"`
}

// form counts changes of what is given.
const form = 1

func (p *plan) wanted() seeded {
	s := seeded{Form: form, Servers: map[string]string{}}
	if !p.cfg.NoDemo {
		s.Servers["demo"] = "http://" + addr(p.demoPort()) + "/mcp"
		s.Servers["payments"] = "http://" + addr(p.paymentsPort()) + "/mcp"
	}
	return s
}

func (p *plan) found() seeded {
	var s seeded
	raw, err := os.ReadFile(p.marker())
	if err != nil || json.Unmarshal(raw, &s) != nil {
		return seeded{}
	}
	return s
}

// seeder gives a new installation its people and servers. Every step may find its work done.
type seeder struct {
	c *admin.Client
}

// seed brings the installation to what was asked for.
func (d *Dev) seed(ctx context.Context, c *admin.Client) error {
	want, have := d.plan.wanted(), d.plan.found()
	if reflect.DeepEqual(want, have) && d.cfg.DatabaseURL == "" {
		return nil
	}
	s := seeder{c}
	if err := s.tenants(ctx); err != nil {
		return fmt.Errorf("make the tenants: %w", err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.acme(gctx) })
	g.Go(func() error {
		return made(s.c.Directory.CreateUser(gctx, &adminv1.CreateUserRequest{Tenant: otherTenant, Name: mallory, DisplayName: "Mallory"}))
	})
	if err := g.Wait(); err != nil {
		return fmt.Errorf("make the people: %w", err)
	}
	if err := s.servers(ctx, have.Servers, want.Servers); err != nil {
		return fmt.Errorf("register the demo servers: %w", err)
	}
	raw, err := json.Marshal(want)
	if err != nil {
		return err
	}
	return writeFile(d.plan.marker(), raw)
}

// made is nil for what was made and for what was there.
func made[T any](_ T, err error) error {
	if err == nil || admin.IsConflict(err) {
		return nil
	}
	return admin.Problem(err, "")
}

func (s seeder) tenants(ctx context.Context) error {
	for _, t := range []string{tenant, otherTenant} {
		if err := made(s.c.Organisations.CreateTenant(ctx, &adminv1.CreateTenantRequest{Name: t, Hosts: []string{t + hostSuffix}})); err != nil {
			return err
		}
	}
	return nil
}

func (s seeder) acme(ctx context.Context) error {
	for _, u := range []*adminv1.CreateUserRequest{
		{Tenant: tenant, Name: bob, DisplayName: "Bob"},
		{Tenant: tenant, Name: alice, DisplayName: "Alice", Supervisor: bob},
		{Tenant: tenant, Name: theAdmin, DisplayName: "Administrator"},
	} {
		u.Kind = adminv1.UserKind_USER_KIND_PERSON
		if err := made(s.c.Directory.CreateUser(ctx, u)); err != nil {
			return err
		}
	}
	for _, r := range []struct{ role, description, user string }{
		{"analyst", "Looks things up.", alice},
		{"supervisor", "Answers for analysts.", bob},
		{"admin", "May do everything, for trying things out.", theAdmin},
	} {
		if err := made(s.c.Directory.CreateRole(ctx, &adminv1.CreateRoleRequest{Tenant: tenant, Name: r.role, Description: r.description})); err != nil {
			return err
		}
		if err := made(s.c.Directory.SetRoleMember(ctx, &adminv1.SetRoleMemberRequest{Tenant: tenant, Role: r.role, Member: "user:" + r.user})); err != nil {
			return err
		}
	}
	return s.grant(ctx, "role:admin", "server:*")
}

// grant allows, unless the same words do already.
func (s seeder) grant(ctx context.Context, subject, target string) error {
	resp, err := s.c.Access.ListGrants(ctx, &adminv1.ListGrantsRequest{Tenant: tenant, Subject: subject, Target: target})
	if err != nil {
		return admin.Problem(err, "")
	}
	if len(resp.GetGrants()) > 0 {
		return nil
	}
	return made(s.c.Access.CreateGrant(ctx, &adminv1.CreateGrantRequest{
		Tenant: tenant, Effect: adminv1.GrantEffect_GRANT_EFFECT_ALLOW, Subject: subject, Target: target, Reason: "development",
	}))
}

// servers takes away what is not wanted (another port base makes another address) and adds what is missing.
func (s seeder) servers(ctx context.Context, have, want map[string]string) error {
	for name, url := range have {
		if want[name] == url {
			continue
		}
		if _, err := s.c.Registry.RemoveServer(ctx, &adminv1.RemoveServerRequest{Tenant: tenant, Name: name}); err != nil {
			return admin.Problem(err, "")
		}
	}
	if len(want) == 0 {
		return s.withoutDemo(ctx)
	}
	g, gctx := errgroup.WithContext(ctx)
	for name, url := range want {
		g.Go(func() error { return s.server(gctx, name, url) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, target := range []string{"server:demo", "server:payments/balance"} {
		if err := s.grant(ctx, "role:analyst", target); err != nil {
			return err
		}
	}
	return nil
}

func (s seeder) server(ctx context.Context, name, url string) error {
	if err := made(s.c.Registry.AddServer(ctx, &adminv1.AddServerRequest{Tenant: tenant, Name: name, Url: url, Description: "demo server of mcpvault dev"})); err != nil {
		return err
	}
	resp, err := s.c.Registry.GetServer(ctx, &adminv1.GetServerRequest{Tenant: tenant, Name: name})
	if err != nil {
		return admin.Problem(err, "")
	}
	if resp.GetServer().GetLatestVersion() == 0 || resp.GetServer().GetLastError() != "" {
		scan, err := s.c.Registry.ScanServer(ctx, &adminv1.ScanServerRequest{Tenant: tenant, Name: name})
		if err != nil {
			return admin.Problem(err, "")
		}
		if e := scan.GetServer().GetLastError(); e != "" {
			return fmt.Errorf("scan %s: %s", name, e)
		}
	} else if resp.GetServer().GetPublishedVersion() == resp.GetServer().GetLatestVersion() {
		return nil
	}
	return made(s.c.Registry.ApproveVersion(ctx, &adminv1.ApproveVersionRequest{Tenant: tenant, Name: name, Source: adminv1.EffectSource_EFFECT_SOURCE_HINTS}))
}

// withoutDemo takes the demo servers' grants away.
func (s seeder) withoutDemo(ctx context.Context) error {
	for _, target := range []string{"server:demo", "server:payments/balance"} {
		resp, err := s.c.Access.ListGrants(ctx, &adminv1.ListGrantsRequest{Tenant: tenant, Target: target})
		if err != nil {
			return admin.Problem(err, "")
		}
		for _, g := range resp.GetGrants() {
			if _, err := s.c.Access.DeleteGrants(ctx, &adminv1.DeleteGrantsRequest{Tenant: tenant, Id: g.GetId()}); err != nil {
				return admin.Problem(err, "")
			}
		}
	}
	return nil
}

// mint makes today's tokens.
func mint(ctx context.Context, c *admin.Client) (map[string]string, error) {
	var mu sync.Mutex
	tokens := map[string]string{}
	g, ctx := errgroup.WithContext(ctx)
	for who, where := range people() {
		g.Go(func() error {
			resp, err := c.Tokens.CreateToken(ctx, &adminv1.CreateTokenRequest{Tenant: where, Principal: who})
			if err != nil {
				return fmt.Errorf("make the token of %s: %w", who, admin.Problem(err, c.URL))
			}
			mu.Lock()
			defer mu.Unlock()
			tokens[who] = resp.GetSecret()
			return nil
		})
	}
	return tokens, g.Wait()
}
