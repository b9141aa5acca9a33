// Package tokens mints the access tokens (RFC 9068) of people and service accounts, and says who holds one. It answers the
// admin API's TokenService.
//
// It promises that a token is noted down before anybody has it, that its text is kept nowhere, that it never outlives 30
// days, that nobody mints one that may do more than themselves, and that revoking is a kill first: no cell serves the
// token any more even when nothing else of the revocation succeeds.
package tokens

import (
	"context"
	"time"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/jose"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/secret"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

const (
	// DefaultTTL is how long a token is good unless the request says.
	DefaultTTL = 24 * time.Hour
	// MaxTTL is the longest that anybody gets.
	MaxTTL = 30 * 24 * time.Hour
	// AdminAudience is what makes a token one for the admin API.
	AdminAudience = "urn:mcpvault:admin"
	// Leeway is how far clocks may be apart.
	Leeway = time.Minute

	clientID = "mcpvault"
)

// IssuerOf is the issuer of a tenant's own tokens. It is bound to that tenant: a token by it names nobody else's people.
func IssuerOf(tenant string) string { return "urn:mcpvault:issuer:" + tenant }

// AudienceOf is what a tenant's tokens are good for on every cell.
func AudienceOf(tenant string) string { return "urn:mcpvault:" + tenant }

// Signer makes a signed token (typ at+jwt) of claims.
type Signer interface {
	Mint(claims any) (string, error)
}

// Killer makes a kill known everywhere. It returns when the kill is stored and signed.
type Killer interface {
	Kill(ctx context.Context, req *adminv1.KillRequest) (*adminv1.KillResponse, error)
}

// Config is what the service stands on.
type Config struct {
	Store  *store.Store
	Signer Signer
	// Keys verify what Signer signed, and what signers before it did.
	Keys   []jose.Key
	Killer Killer
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Service mints, lists, revokes and recognises tokens. It is safe for concurrent use.
type Service struct {
	cfg     Config
	store   *store.Store
	now     func() time.Time
	tenants tenantCache
}

// New makes the service.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{cfg: cfg, store: cfg.Store, now: cfg.Now}
}

// claims is the body of a token.
type claims struct {
	Issuer   string   `json:"iss"`
	Subject  string   `json:"sub"`
	Audience []string `json:"aud"`
	ID       string   `json:"jti"`
	IssuedAt int64    `json:"iat"`
	Expires  int64    `json:"exp"`
	ClientID string   `json:"client_id"`
	Tenant   string   `json:"tenant"`
	Roles    []string `json:"mcpvault_roles,omitempty"`
}

// CreateToken mints a token for a person or a service account of the tenant. The answer is the only time it is shown.
func (s *Service) CreateToken(ctx context.Context, req *adminv1.CreateTokenRequest) (*adminv1.CreateTokenResponse, error) {
	c := controlplane.CallerFrom(ctx)
	ttl := DefaultTTL
	if req.GetTtl() != nil {
		ttl = req.GetTtl().AsDuration()
	}
	t, value, err := s.Mint(ctx, Order{
		TenantID: c.TenantID, Tenant: c.Tenant, Principal: req.GetPrincipal(), TTL: ttl, Actor: c.Actor(),
		MayGive: func(role string) bool { return c.Has(controlplane.RoleOwner) || role != controlplane.RoleOwner },
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.CreateTokenResponse{Token: s.convert(t), Secret: string(value.Reveal())}, nil
}

// Order asks for one token.
type Order struct {
	TenantID  controlplane.TenantID
	Tenant    string
	Principal string
	TTL       time.Duration
	// Actor is what the ledger says.
	Actor string
	// MayGive says whether whoever asks may hand out a token with that admin role; nil means every one.
	MayGive func(role string) bool
}

// Mint mints a token with the admin roles that the principal has, for the request of an admin or for the program's own
// set-up. It is not_found without such a principal, denied when they are disabled or the order goes too far.
func (s *Service) Mint(ctx context.Context, o Order) (controlplane.Token, secret.Value, error) {
	if o.TTL < time.Second || o.TTL > MaxTTL {
		return controlplane.Token{}, secret.Value{}, problem.Newf(problem.Invalid, "ask for 1s to 720h", "a token cannot be good for %s", o.TTL)
	}
	var t controlplane.Token
	var text string
	_, err := s.store.Write(ctx, o.TenantID, o.Actor, func(tx *store.Tx) error {
		tx.SetKind(store.OutboxNone)
		u, err := tx.UserByName(ctx, o.Principal)
		if err != nil {
			return err
		}
		if err := mayMint(o, u); err != nil {
			return err
		}
		now := s.now().UTC().Truncate(time.Second)
		t = controlplane.Token{ID: store.NewULID(now), Principal: u.Name, IssuedAt: now, ExpiresAt: now.Add(o.TTL).Truncate(time.Second), CreatedBy: o.Actor}
		if text, err = s.cfg.Signer.Mint(body(o.Tenant, t, u.AdminRoles)); err != nil {
			return err
		}
		if err := tx.InsertToken(ctx, t); err != nil {
			return err
		}
		return tx.Change(ctx, "token.create", "token:"+t.ID, map[string]any{
			"principal": t.Principal, "expires_at": t.ExpiresAt, "admin_roles": u.AdminRoles,
		})
	})
	if err != nil {
		return controlplane.Token{}, secret.Value{}, err
	}
	return t, secret.New([]byte(text)), nil
}

func mayMint(o Order, u controlplane.User) error {
	if u.Disabled {
		return problem.Newf(problem.Denied, "enable them first: mcpvault user enable "+u.Name, "%s is disabled", u.Name)
	}
	for _, role := range u.AdminRoles {
		if o.MayGive != nil && !o.MayGive(role) {
			return problem.Newf(problem.Denied, "ask an owner", "%s is an %s, and you are not", u.Name, role)
		}
	}
	return nil
}

func body(tenant string, t controlplane.Token, roles []string) claims {
	c := claims{
		Issuer: IssuerOf(tenant), Subject: t.Principal, Audience: []string{AudienceOf(tenant)}, ID: t.ID,
		IssuedAt: t.IssuedAt.Unix(), Expires: t.ExpiresAt.Unix(), ClientID: clientID, Tenant: tenant, Roles: roles,
	}
	if len(roles) > 0 {
		c.Audience = append(c.Audience, AdminAudience)
	}
	return c
}

// ListTokens lists the tenant's tokens, newest first, never with their text.
func (s *Service) ListTokens(ctx context.Context, _ *adminv1.ListTokensRequest) (*adminv1.ListTokensResponse, error) {
	res := &adminv1.ListTokensResponse{}
	err := s.store.Read(ctx, controlplane.CallerFrom(ctx).TenantID, func(tx *store.Tx) error {
		list, err := tx.Tokens(ctx)
		res.Tokens = make([]*adminv1.Token, len(list))
		for i, t := range list {
			res.Tokens[i] = s.convert(t)
		}
		return err
	})
	return res, err
}

// RevokeToken ends a token everywhere. It may be repeated: the kill goes out again.
func (s *Service) RevokeToken(ctx context.Context, req *adminv1.RevokeTokenRequest) (*adminv1.RevokeTokenResponse, error) {
	c := controlplane.CallerFrom(ctx)
	var t controlplane.Token
	err := s.store.Read(ctx, c.TenantID, func(tx *store.Tx) (err error) {
		t, err = tx.TokenByID(ctx, req.GetId())
		return err
	})
	if err != nil {
		return nil, err
	}
	kill := &adminv1.KillRequest{Tenant: req.GetTenant(), Kind: "token", Subject: t.ID, Reason: "revoked by " + c.Actor()}
	if _, err := s.cfg.Killer.Kill(ctx, kill); err != nil {
		return nil, err
	}
	_, err = s.store.Write(ctx, c.TenantID, c.Actor(), func(tx *store.Tx) error {
		tx.SetKind(store.OutboxNone)
		if err := tx.RevokeToken(ctx, t.ID); err != nil {
			return err
		}
		return tx.Change(ctx, "token.revoke", "token:"+t.ID, map[string]any{"principal": t.Principal})
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.RevokeTokenResponse{}, nil
}

func (s *Service) convert(t controlplane.Token) *adminv1.Token {
	return &adminv1.Token{
		Id: t.ID, Principal: t.Principal, IssuedMs: t.IssuedAt.UnixMilli(), ExpiresMs: t.ExpiresAt.UnixMilli(),
		Revoked: !t.RevokedAt.IsZero(), CreatedBy: t.CreatedBy,
	}
}
