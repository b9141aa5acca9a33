package issuers_test

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/directory"
	"github.com/mcpvault/mcpvault/controlplane/issuers"
	"github.com/mcpvault/mcpvault/controlplane/publish"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	"github.com/mcpvault/mcpvault/kit/egress"
	"github.com/mcpvault/mcpvault/kit/jose"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

// login is an issuer of the test's own.
type login struct {
	url string

	mu   sync.Mutex
	kids []string
	says string // the issuer in its metadata
	down bool
}

func signer(t *testing.T, kid string) *jose.Signer {
	t.Helper()
	s, err := jose.NewSigner(keyOf(kid), kid)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func keyOf(kid string) ed25519.PrivateKey {
	seed := [ed25519.SeedSize]byte{}
	copy(seed[:], kid)
	return ed25519.NewKeyFromSeed(seed[:])
}

func newLogin(t *testing.T, kids ...string) *login {
	t.Helper()
	l := &login{kids: kids}
	srv := httptest.NewServer(l)
	t.Cleanup(srv.Close)
	l.url, l.says = srv.URL, srv.URL
	return l
}

func (l *login) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.down:
		w.WriteHeader(http.StatusBadGateway)
	case r.URL.Path == "/.well-known/oauth-authorization-server":
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": l.says, "jwks_uri": l.url + "/keys"})
	case r.URL.Path == "/keys":
		var keys []string
		for _, kid := range l.kids {
			pub := keyOf(kid).Public().(ed25519.PublicKey)
			keys = append(keys, fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","kid":%q,"x":%q}`, kid, base64.RawURLEncoding.EncodeToString(pub)))
		}
		_, _ = fmt.Fprintf(w, `{"keys":[%s]}`, strings.Join(keys, ","))
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (l *login) publish(kids ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kids = kids
}

type bundle struct {
	t   *testing.T
	st  *store.Store
	s   *issuers.Service
	ctx context.Context
	id  controlplane.TenantID

	mu  sync.Mutex
	now time.Time
}

func setup(t *testing.T) *bundle {
	t.Helper()
	b := &bundle{t: t, st: storetest.Open(t), now: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	tenant := storetest.Tenant(t, b.st, "acme")
	b.id = tenant.ID
	b.ctx = controlplane.WithCaller(t.Context(), controlplane.Caller{Principal: "root", TenantID: tenant.ID, Tenant: "acme", Home: "acme"})
	transport, err := egress.NewTransport([]string{"127.0.0.0/8:*"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(transport.CloseIdleConnections)
	b.s = issuers.New(issuers.Config{Store: b.st, Transport: transport, Now: b.clock})
	return b
}

func (b *bundle) clock() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}

func (b *bundle) advance(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now = b.now.Add(d)
}

func (b *bundle) put(i *adminv1.Issuer) (*adminv1.Issuer, error) {
	res, err := b.s.PutIssuer(b.ctx, &adminv1.PutIssuerRequest{Issuer: i})
	return res.GetIssuer(), err
}

func (b *bundle) mustPut(i *adminv1.Issuer) *adminv1.Issuer {
	b.t.Helper()
	got, err := b.put(i)
	if err != nil {
		b.t.Fatal(err)
	}
	return got
}

// carried is the issuer of that URL as the next snapshot has it.
func (b *bundle) carried(url string) *snapshotv1.Issuer {
	b.t.Helper()
	var found *snapshotv1.Issuer
	err := b.st.Read(b.ctx, b.id, func(tx *store.Tx) error {
		in, err := publish.ReadInput(b.ctx, tx)
		for _, i := range in.Issuers {
			if i.GetIssuer() == url {
				found = i
			}
		}
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return found
}

func kids(i *snapshotv1.Issuer) string {
	var out []string
	for _, k := range i.GetKeys() {
		out = append(out, k.GetKid())
	}
	return strings.Join(out, " ")
}

func (b *bundle) refresh() {
	b.t.Helper()
	if _, err := b.s.RefreshIssuer(b.ctx, &adminv1.RefreshIssuerRequest{Name: "corp"}); err != nil {
		b.t.Fatal(err)
	}
}

func TestTheSnapshotCarriesATrustedIssuerWithItsKeysAndRules(t *testing.T) {
	t.Parallel()
	b, l := setup(t), newLogin(t, "a", "b")
	got := b.mustPut(&adminv1.Issuer{
		Name: "corp", Url: l.url, Audiences: []string{"api://mcp"}, UserClaim: "email", UserDomain: "acme.example", UserPrefix: "c-",
		Scopes: []*adminv1.IssuerScope{{Scope: "mcp"}, {Scope: "w", Wider: []string{"admin"}, Server: "crm", Effect: "write"}},
	})
	if got.GetJwksUrl() != l.url+"/keys" || len(got.GetKeys()) != 2 {
		t.Errorf("got %v", got)
	}
	i := b.carried(l.url)
	w := i.GetScopes()[1]
	if !i.GetExternal() || kids(i) != "a b" || i.GetJwksUrl() != l.url+"/keys" || i.GetAnyType() || i.GetUserClaim() != "email" ||
		i.GetUserDomain() != "acme.example" || i.GetUserPrefix() != "c-" || w.GetEffect() != snapshotv1.Effect_EFFECT_WRITE || w.GetServer() != "crm" {
		t.Errorf("carried %v", i)
	}
	again, err := b.s.PutIssuer(b.ctx, &adminv1.PutIssuerRequest{Issuer: &adminv1.Issuer{Name: "corp", Url: l.url}})
	if err != nil || len(again.GetIssuer().GetKeys()) != 2 || len(b.carried(l.url).GetScopes()) != 0 {
		t.Errorf("other rules: %v, %v", again, err)
	}
	if _, err := b.s.DeleteIssuer(b.ctx, &adminv1.DeleteIssuerRequest{Name: "corp"}); err != nil || b.carried(l.url) != nil {
		t.Errorf("deleted, and still carried: %v", err)
	}
}

func TestWhatCannotBeTrustedIsNotWritten(t *testing.T) {
	t.Parallel()
	b, l := setup(t), newLogin(t, "a")
	empty, liar := newLogin(t), newLogin(t, "a")
	liar.says = "https://login.example"
	b.mustPut(&adminv1.Issuer{Name: "first", Url: l.url})
	for name, c := range map[string]struct {
		i    *adminv1.Issuer
		want problem.Code
	}{
		"our own":         {&adminv1.Issuer{Name: "x", Url: "urn:mcpvault:issuer:acme"}, problem.Invalid},
		"plain http":      {&adminv1.Issuer{Name: "x", Url: "http://login.example"}, problem.Invalid},
		"with a query":    {&adminv1.Issuer{Name: "x", Url: "https://login.example/?a=b"}, problem.Invalid},
		"keys over http":  {&adminv1.Issuer{Name: "x", Url: "https://login.example", JwksUrl: "http://login.example/keys"}, problem.Invalid},
		"a private host":  {&adminv1.Issuer{Name: "x", Url: "https://login.example", JwksUrl: "https://10.1.2.3/keys"}, problem.Unavailable},
		"metadata host":   {&adminv1.Issuer{Name: "x", Url: "https://login.example", JwksUrl: "https://[::ffff:169.254.169.254]/keys"}, problem.Unavailable},
		"no keys":         {&adminv1.Issuer{Name: "x", Url: empty.url}, problem.Invalid},
		"another's name":  {&adminv1.Issuer{Name: "x", Url: liar.url}, problem.Invalid},
		"taken":           {&adminv1.Issuer{Name: "x", Url: l.url}, problem.Conflict},
		"mapping nothing": {&adminv1.Issuer{Name: "x", Url: l.url, Mappings: []*adminv1.ClaimMapping{{Value: "a", Target: "group:a"}}}, problem.Invalid},
		"spaces":          {&adminv1.Issuer{Name: "x", Url: l.url, UserClaim: "e mail"}, problem.Invalid},
	} {
		if _, err := b.put(c.i); problem.CodeOf(err) != c.want {
			t.Errorf("%s: got %v", name, err)
		}
	}
	list, err := b.s.ListIssuers(b.ctx, &adminv1.ListIssuersRequest{})
	if err != nil || len(list.GetIssuers()) != 1 {
		t.Errorf("got %v, %v", list, err)
	}
}

func TestKeysFollowTheIssuerAndWithdrawnOnesNeverReturn(t *testing.T) {
	t.Parallel()
	b, l := setup(t), newLogin(t, "a")
	b.mustPut(&adminv1.Issuer{Name: "corp", Url: l.url})
	l.publish("a", "b")
	if b.refresh(); kids(b.carried(l.url)) != "a b" {
		t.Errorf("a new key is not carried: %s", kids(b.carried(l.url)))
	}
	// A machine that has not heard of the new key answers once.
	l.publish("a")
	b.refresh()
	l.publish("a", "b")
	b.advance(5 * time.Minute)
	if b.refresh(); kids(b.carried(l.url)) != "a b" {
		t.Error("a key that was missing for a moment is withdrawn")
	}
	l.publish("b")
	b.refresh()
	b.advance(5 * time.Minute)
	if b.refresh(); kids(b.carried(l.url)) != "b" || len(b.carried(l.url).GetWithdrawn()) != 1 {
		t.Errorf("a key that the issuer took away counts: %v", b.carried(l.url))
	}
	l.publish("a", "b")
	if b.refresh(); kids(b.carried(l.url)) != "b" {
		t.Error("a withdrawn key lives again")
	}
	if _, err := b.s.WithdrawIssuerKey(b.ctx, &adminv1.WithdrawIssuerKeyRequest{Name: "corp", Kid: "b"}); err != nil {
		t.Fatal(err)
	}
	if b.refresh(); kids(b.carried(l.url)) != "" || len(b.carried(l.url).GetWithdrawn()) != 2 {
		t.Error("a key that somebody withdrew lives again because the issuer publishes it")
	}
	if b.mustPut(&adminv1.Issuer{Name: "corp", Url: l.url}); kids(b.carried(l.url)) != "" {
		t.Error("a key lives again because the rules were written anew")
	}
	if _, err := b.s.WithdrawIssuerKey(b.ctx, &adminv1.WithdrawIssuerKeyRequest{Name: "corp", Kid: "z"}); problem.CodeOf(err) != problem.NotFound {
		t.Errorf("got %v", err)
	}
}

func TestAnIssuerInTroubleKeepsItsKeys(t *testing.T) {
	t.Parallel()
	b, l := setup(t), newLogin(t, "a")
	b.mustPut(&adminv1.Issuer{Name: "corp", Url: l.url})
	refused := func(why string) {
		t.Helper()
		b.advance(5 * time.Minute)
		if _, err := b.s.RefreshIssuer(b.ctx, &adminv1.RefreshIssuerRequest{Name: "corp"}); err == nil || kids(b.carried(l.url)) != "a" {
			t.Errorf("%s: %v, %s", why, err, kids(b.carried(l.url)))
		}
	}
	l.publish()
	refused("no keys")
	l.mu.Lock()
	l.down = true
	l.mu.Unlock()
	refused("an error")
	refused("the same again")
}

func TestLookingAtUnchangedKeysChangesNothing(t *testing.T) {
	t.Parallel()
	b, l := setup(t), newLogin(t, "a")
	b.mustPut(&adminv1.Issuer{Name: "corp", Url: l.url})
	first, err := b.s.RefreshIssuer(b.ctx, &adminv1.RefreshIssuerRequest{Name: "corp"})
	if err != nil {
		t.Fatal(err)
	}
	second, err := b.s.RefreshIssuer(b.ctx, &adminv1.RefreshIssuerRequest{Name: "corp"})
	if err != nil || first.GetRevision() != second.GetRevision() {
		t.Errorf("revision %d, then %d: %v", first.GetRevision(), second.GetRevision(), err)
	}
}

func TestATokensGroupsBecomeMembershipsAndEndThem(t *testing.T) {
	t.Parallel()
	b, l := setup(t), newLogin(t, "a")
	people := directory.New(directory.Config{Store: b.st})
	for _, g := range []string{"eng", "ops", "kept"} {
		if _, err := people.CreateGroup(b.ctx, &adminv1.CreateGroupRequest{Name: g}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := people.CreateTeam(b.ctx, &adminv1.CreateTeamRequest{Name: "payments"}); err != nil {
		t.Fatal(err)
	}
	if _, err := people.CreateRole(b.ctx, &adminv1.CreateRoleRequest{Name: "analyst"}); err != nil {
		t.Fatal(err)
	}
	mappings := []*adminv1.ClaimMapping{
		{Value: "Engineers", Target: "group:eng"},
		{Value: "Platform", Target: "group:eng"},
		{Value: "Ops", Target: "group:ops"},
		{Value: "Pay", Target: "team:payments"},
		{Value: "Analysts", Target: "role:analyst"},
	}
	rules := &adminv1.Issuer{Name: "corp", Url: l.url, UserClaim: "email", UserDomain: "acme.example", GroupsClaim: "groups", Mappings: mappings}
	b.mustPut(rules)
	provision := func(change map[string]any) (*adminv1.ProvisionUserResponse, error) {
		claims := map[string]any{"iss": l.url, "sub": "1", "email": "zoe@acme.example", "exp": b.clock().Add(time.Hour).Unix()}
		maps.Copy(claims, change)
		token, err := signer(t, "a").Mint(claims)
		if err != nil {
			t.Fatal(err)
		}
		return b.s.ProvisionUser(b.ctx, &adminv1.ProvisionUserRequest{Token: token})
	}
	if _, err := provision(nil); problem.CodeOf(err) != problem.NotFound {
		t.Errorf("somebody unknown: %v", err)
	}
	rules.CreateUsers = true
	b.mustPut(rules)
	for _, step := range []struct {
		groups              any
		created             bool
		added, removed, why string
	}{
		{[]string{"Engineers", "Analysts", "else"}, true, "group:eng role:analyst", "", "the first time"},
		{[]string{"Platform", "Analysts"}, false, "", "", "the same by another way"},
		{[]string{"Pay", "Ops"}, false, "group:ops team:payments", "group:eng role:analyst", "others"},
		{"Engineers", false, "group:eng", "group:ops team:payments", "one text"},
		{nil, false, "", "group:eng", "none any more"},
	} {
		change := map[string]any{}
		if step.groups != nil {
			change["groups"] = step.groups
		}
		res, err := provision(change)
		if err != nil || res.GetUser() != "zoe" || res.GetCreated() != step.created || strings.Join(res.GetAdded(), " ") != step.added || strings.Join(res.GetRemoved(), " ") != step.removed {
			t.Errorf("%s: %v, %v", step.why, res, err)
		}
		if step.created {
			if _, err := people.SetGroupMember(b.ctx, &adminv1.SetGroupMemberRequest{Group: "kept", User: "zoe"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	groups, err := people.ListGroups(b.ctx, &adminv1.ListGroupsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups.GetGroups() {
		if want := g.GetName() == "kept"; (len(g.GetMembers()) == 1) != want {
			t.Errorf("%s has %v", g.GetName(), g.GetMembers())
		}
	}
	for why, change := range map[string]map[string]any{
		"expired":        {"exp": b.clock().Add(-time.Hour).Unix()},
		"no end":         {"exp": nil},
		"not yet":        {"nbf": b.clock().Add(time.Hour).Unix()},
		"another issuer": {"iss": "https://login.example"},
		"another domain": {"email": "zoe@evil.example"},
		"groups unread":  {"groups": map[string]string{"a": "b"}},
		"a bad name":     {"email": "zoe\n@acme.example"},
	} {
		if res, err := provision(change); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("%s: %v, %v", why, res, err)
		}
	}
	forged, err := signer(t, "mallory").Mint(map[string]any{"iss": l.url, "email": "zoe@acme.example", "exp": b.clock().Add(time.Hour).Unix()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.s.ProvisionUser(b.ctx, &adminv1.ProvisionUserRequest{Token: forged}); problem.CodeOf(err) != problem.Invalid {
		t.Errorf("forged: %v", err)
	}
	if _, err := b.s.WithdrawIssuerKey(b.ctx, &adminv1.WithdrawIssuerKeyRequest{Name: "corp", Kid: "a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := provision(nil); problem.CodeOf(err) != problem.Invalid {
		t.Errorf("signed with a withdrawn key: %v", err)
	}
}
