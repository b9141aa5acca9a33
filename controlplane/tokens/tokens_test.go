package tokens_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/directory"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	"github.com/mcpvault/mcpvault/controlplane/tokens"
	"github.com/mcpvault/mcpvault/kit/jose"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

// killer stands in for the room that signs kills.
type killer struct {
	err   error
	kills []*adminv1.KillRequest
}

func (k *killer) Kill(_ context.Context, req *adminv1.KillRequest) (*adminv1.KillResponse, error) {
	if k.err != nil {
		return nil, k.err
	}
	k.kills = append(k.kills, req)
	return &adminv1.KillResponse{Id: "kill"}, nil
}

type bundle struct {
	store  *store.Store
	dir    *directory.Service
	tokens *tokens.Service
	signer *jose.Signer
	killer *killer
	acme   controlplane.Tenant
	admin  context.Context
	clock  *time.Time
}

func setup(t *testing.T) bundle {
	t.Helper()
	clock := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	b := bundle{clock: &clock, killer: &killer{}}
	now := func() time.Time { return *b.clock }
	b.store = storetest.OpenAt(t, storetest.URL(t), now)
	b.signer = signer(t)
	b.dir = directory.New(directory.Config{Store: b.store})
	b.tokens = tokens.New(tokens.Config{Store: b.store, Signer: b.signer, Keys: []jose.Key{b.signer.Key()}, Killer: b.killer, Now: now})
	b.acme = storetest.Tenant(t, b.store, "acme")
	for name, roles := range map[string][]string{"alice": nil, "admin": {"admin"}, "owner": {"owner"}} {
		err := b.dir.EnsureUser(t.Context(), b.acme, "setup", controlplane.User{Name: name, Kind: controlplane.Person, AdminRoles: roles})
		if err != nil {
			t.Fatal(err)
		}
	}
	b.admin = b.as(t, "admin", "admin")
	return b
}

func signer(t *testing.T) *jose.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := jose.NewSigner(key, "k1")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (b bundle) as(t *testing.T, name string, roles ...string) context.Context {
	return controlplane.WithCaller(t.Context(), controlplane.Caller{
		Principal: name, TenantID: b.acme.ID, Tenant: "acme", Home: "acme", Roles: roles,
	})
}

func (b bundle) mint(t *testing.T, ctx context.Context, principal string) *adminv1.CreateTokenResponse {
	t.Helper()
	res, err := b.tokens.CreateToken(ctx, &adminv1.CreateTokenRequest{Principal: principal})
	if err != nil {
		t.Fatalf("mint for %s: %v", principal, err)
	}
	return res
}

func refused(t *testing.T, err error, want problem.Code) {
	t.Helper()
	if problem.CodeOf(err) != want {
		t.Errorf("want %s, got %v", want, err)
	}
}

func TestATokenSaysWhoAndForWhomAndUntilWhen(t *testing.T) {
	t.Parallel()
	b := setup(t)
	res := b.mint(t, b.admin, "alice")
	raw, _, err := jose.Verify(res.GetSecret(), []jose.Key{b.signer.Key()})
	if err != nil {
		t.Fatal(err)
	}
	var c map[string]any
	if err := json.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	iat := float64(b.clock.Unix())
	for key, want := range map[string]any{
		"iss": "urn:mcpvault:issuer:acme", "sub": "alice", "tenant": "acme", "jti": res.GetToken().GetId(),
		"iat": iat, "exp": iat + 24*3600, "client_id": "mcpvault",
	} {
		if c[key] != want {
			t.Errorf("%s is %v, want %v", key, c[key], want)
		}
	}
	if aud := c["aud"].([]any); len(aud) != 1 || aud[0] != "urn:mcpvault:acme" {
		t.Errorf("audience %v", aud)
	}
	if _, ok := c["mcpvault_roles"]; ok {
		t.Error("alice has admin roles in her token")
	}
	list, err := b.tokens.ListTokens(b.admin, &adminv1.ListTokensRequest{})
	if err != nil || len(list.GetTokens()) != 1 || list.GetTokens()[0].GetPrincipal() != "alice" {
		t.Errorf("listed %v, %v", list, err)
	}
}

func TestATokenIsBoundedInTime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, ttl := range []time.Duration{0, -time.Hour, 30*24*time.Hour + time.Second} {
		_, err := b.tokens.CreateToken(b.admin, &adminv1.CreateTokenRequest{Principal: "alice", Ttl: durationpb.New(ttl)})
		refused(t, err, problem.Invalid)
	}
	_, err := b.tokens.CreateToken(b.admin, &adminv1.CreateTokenRequest{Principal: "alice", Ttl: durationpb.New(tokens.MaxTTL)})
	if err != nil {
		t.Error(err)
	}
}

func TestNobodyMintsATokenAboveThemselves(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.tokens.CreateToken(b.admin, &adminv1.CreateTokenRequest{Principal: "owner"})
	refused(t, err, problem.Denied)
	b.mint(t, b.as(t, "owner", "owner"), "owner")
	_, err = b.tokens.CreateToken(b.admin, &adminv1.CreateTokenRequest{Principal: "nobody"})
	refused(t, err, problem.NotFound)
	if _, err := b.dir.SetUserDisabled(b.admin, &adminv1.SetUserDisabledRequest{Name: "alice", Disabled: true}); err != nil {
		t.Fatal(err)
	}
	_, err = b.tokens.CreateToken(b.admin, &adminv1.CreateTokenRequest{Principal: "alice"})
	refused(t, err, problem.Denied)
}

func TestAuthenticateKnowsTheHolder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	res := b.mint(t, b.admin, "admin")
	c, err := b.tokens.Authenticate(t.Context(), res.GetSecret())
	if err != nil {
		t.Fatal(err)
	}
	if c.Principal != "admin" || c.TenantID != b.acme.ID || c.Home != "acme" || !slices.Equal(c.Roles, []string{"admin"}) || c.TokenID != res.GetToken().GetId() {
		t.Errorf("got %+v", c)
	}
	if err := b.dir.EnsureUser(t.Context(), b.acme, "setup", controlplane.User{Name: "admin", Kind: controlplane.Person, AdminRoles: []string{"auditor"}}); err != nil {
		t.Fatal(err)
	}
	c, err = b.tokens.Authenticate(t.Context(), res.GetSecret())
	if err != nil || len(c.Roles) != 0 {
		t.Errorf("a role that was taken away, or one that the token never had, counts: %v, %v", c.Roles, err)
	}
}

func TestAuthenticateRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	good := b.mint(t, b.admin, "admin")
	claims := func(change func(map[string]any)) string {
		t.Helper()
		m := map[string]any{
			"iss": tokens.IssuerOf("acme"), "sub": "admin", "aud": []string{tokens.AdminAudience}, "jti": good.GetToken().GetId(),
			"iat": b.clock.Unix(), "exp": b.clock.Add(time.Hour).Unix(), "tenant": "acme", "mcpvault_roles": []string{"owner"},
		}
		change(m)
		text, err := b.signer.Mint(m)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	if c, err := b.tokens.Authenticate(t.Context(), claims(func(map[string]any) {})); err != nil || c.Has("owner") {
		t.Fatalf("the base case must pass, without a role that the directory does not give: %v, %v", c.Roles, err)
	}
	stranger, err := signer(t).Mint(map[string]any{"sub": "admin"})
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{
		"empty":             "",
		"no token":          "hello",
		"another's key":     stranger,
		"no admin audience": b.mint(t, b.admin, "alice").GetSecret(),
		"expired":           claims(func(m map[string]any) { m["exp"] = b.clock.Add(-2 * time.Minute).Unix() }),
		"never expires":     claims(func(m map[string]any) { delete(m, "exp") }),
		"from the future":   claims(func(m map[string]any) { m["iat"] = b.clock.Add(2 * time.Minute).Unix() }),
		"another issuer":    claims(func(m map[string]any) { m["iss"] = tokens.IssuerOf("globex") }),
		"no such tenant":    claims(func(m map[string]any) { m["iss"], m["tenant"] = tokens.IssuerOf("initech"), "initech" }),
		"unknown id":        claims(func(m map[string]any) { m["jti"] = "01ARZ3NDEKTSV4RRFFQ69G5FAV" }),
		"another's id":      claims(func(m map[string]any) { m["sub"] = "alice" }),
		"odd claims":        claims(func(m map[string]any) { m["aud"] = 7 }),
	} {
		if _, err := b.tokens.Authenticate(t.Context(), token); problem.CodeOf(err) != problem.Unauthenticated {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestARevokedTokenEndsEverywhere(t *testing.T) {
	t.Parallel()
	b := setup(t)
	res := b.mint(t, b.admin, "admin")
	revoke := &adminv1.RevokeTokenRequest{Id: res.GetToken().GetId()}

	b.killer.err = errors.New("no signature")
	if _, err := b.tokens.RevokeToken(b.admin, revoke); err == nil {
		t.Fatal("a revocation without a kill passed")
	}
	if _, err := b.tokens.Authenticate(t.Context(), res.GetSecret()); err != nil {
		t.Errorf("half a revocation was kept: %v", err)
	}
	b.killer.err = nil
	for range 2 {
		if _, err := b.tokens.RevokeToken(b.admin, revoke); err != nil {
			t.Fatal(err)
		}
	}
	if len(b.killer.kills) != 2 || b.killer.kills[0].GetKind() != "token" || b.killer.kills[0].GetSubject() != res.GetToken().GetId() {
		t.Errorf("kills: %v", b.killer.kills)
	}
	_, err := b.tokens.Authenticate(t.Context(), res.GetSecret())
	refused(t, err, problem.Unauthenticated)
	_, err = b.tokens.RevokeToken(b.admin, &adminv1.RevokeTokenRequest{Id: "01ARZ3NDEKTSV4RRFFQ69G5FAV"})
	refused(t, err, problem.NotFound)
}

func TestAKilledOrDisabledUserIsLetInNoMore(t *testing.T) {
	t.Parallel()
	b := setup(t)
	admin, owner := b.mint(t, b.admin, "admin"), b.mint(t, b.as(t, "owner", "owner"), "owner")
	if _, err := b.dir.SetUserDisabled(b.as(t, "owner", "owner"), &adminv1.SetUserDisabledRequest{Name: "admin", Disabled: true}); err != nil {
		t.Fatal(err)
	}
	_, err := b.tokens.Authenticate(t.Context(), admin.GetSecret())
	refused(t, err, problem.Unauthenticated)
	_, err = b.store.Write(t.Context(), b.acme.ID, "test", func(tx *store.Tx) error {
		kill := store.Kill{ID: "01ARZ3NDEKTSV4RRFFQ69G5FAV", Kind: "user", Subject: "owner", IssuedAt: tx.Now(), Envelope: []byte{1}}
		if _, err := tx.InsertKill(t.Context(), kill); err != nil {
			return err
		}
		return tx.Change(t.Context(), "kill", "user:owner", nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.tokens.Authenticate(t.Context(), owner.GetSecret())
	refused(t, err, problem.Unauthenticated)
}
