package tokens

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/jose"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// Authenticate says who holds a token of the admin API: the token's roles as far as the directory still gives them, so
// that taking a role away takes effect at once. The caller's tenant is their own.
//
// The error is unauthenticated when the token is not accepted, and unavailable when PostgreSQL, which knows what was
// revoked, cannot be asked: nobody is let in on the token's word alone.
func (s *Service) Authenticate(ctx context.Context, token string) (controlplane.Caller, error) {
	c, err := s.open(token)
	if err != nil {
		return controlplane.Caller{}, err
	}
	tenant, err := s.tenant(ctx, c.Tenant)
	if errors.Is(err, store.ErrNotFound) {
		return controlplane.Caller{}, refuse("the token is not accepted").Because(err)
	}
	if err != nil {
		return controlplane.Caller{}, err
	}
	var b store.Bearer
	err = s.store.Read(ctx, tenant, func(tx *store.Tx) (err error) {
		b, err = tx.Bearer(ctx, c.ID)
		return err
	})
	switch {
	case errors.Is(err, store.ErrNotFound), err == nil && b.Principal != c.Subject:
		return controlplane.Caller{}, refuse("the token is not accepted").Because(err)
	case err != nil:
		return controlplane.Caller{}, err
	case b.Revoked:
		return controlplane.Caller{}, refuse("the token was revoked")
	case b.Disabled:
		return controlplane.Caller{}, refuse(c.Subject + " is disabled")
	}
	roles := slices.DeleteFunc(c.Roles, func(r string) bool { return !slices.Contains(b.AdminRoles, r) })
	return controlplane.Caller{
		Principal: c.Subject, TenantID: tenant, Tenant: c.Tenant, Home: c.Tenant, Roles: roles,
		TokenID: c.ID, ExpiresAt: time.Unix(c.Expires, 0).UTC(),
	}, nil
}

// open checks what the token itself says.
func (s *Service) open(token string) (claims, error) {
	raw, _, err := jose.Verify(token, s.cfg.Keys)
	if err != nil {
		return claims{}, refuse("the token is not accepted").Because(err)
	}
	var c claims
	if err := json.Unmarshal(raw, &c); err != nil {
		return claims{}, refuse("the token is not accepted").Because(err)
	}
	now := s.now()
	switch {
	case c.ID == "" || c.Subject == "" || c.Tenant == "" || c.Issuer != IssuerOf(c.Tenant):
		return claims{}, refuse("the token is not accepted")
	case !slices.Contains(c.Audience, AdminAudience):
		return claims{}, refuse("the token is not one for the admin API")
	case now.After(time.Unix(c.Expires, 0).Add(Leeway)):
		return claims{}, refuse("the token has expired")
	case now.Add(Leeway).Before(time.Unix(c.IssuedAt, 0)):
		return claims{}, refuse("the token is from the future")
	}
	return c, nil
}

func refuse(what string) *problem.Problem {
	return problem.New(problem.Unauthenticated, what, "log in again: mcpvault login")
}

// tenantCache remembers the ids of tenants, which never change: no tenant is renamed or deleted.
type tenantCache struct {
	mu  sync.Mutex
	ids map[string]controlplane.TenantID // guarded by mu
}

func (s *Service) tenant(ctx context.Context, name string) (controlplane.TenantID, error) {
	s.tenants.mu.Lock()
	id, ok := s.tenants.ids[name]
	s.tenants.mu.Unlock()
	if ok {
		return id, nil
	}
	t, err := s.store.TenantByName(ctx, name)
	if err != nil {
		return "", err
	}
	s.tenants.mu.Lock()
	defer s.tenants.mu.Unlock()
	if s.tenants.ids == nil {
		s.tenants.ids = map[string]controlplane.TenantID{}
	}
	s.tenants.ids[name] = t.ID
	return t.ID, nil
}
