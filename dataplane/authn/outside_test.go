package authn

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/kit/jose"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

const loginURL = "https://login.example"

// outsider is a bundle that also trusts an issuer outside of MCPVault.
func outsider(t *testing.T, issuer Issuer, newer Newer) (*bundle, *jose.Signer, ed25519.PrivateKey) {
	t.Helper()
	b := setup(t)
	key, signer := newKey(t, "idp-1")
	issuer.Issuer, issuer.External = loginURL, true
	issuer.Keys = append(issuer.Keys, signer.Key())
	b.keys.Issuers = append(b.keys.Issuers, issuer)
	auth, err := New(Config{Now: b.clock, Newer: newer})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(auth.Close)
	b.auth = auth
	return b, signer, key
}

func outsideClaims(c change) map[string]any {
	claims := map[string]any{"iss": loginURL, "sub": "alice", "aud": publicURL, "exp": start.Add(time.Hour).Unix()}
	maps.Copy(claims, c)
	return claims
}

func mintWith(t *testing.T, s *jose.Signer, claims map[string]any) string {
	t.Helper()
	token, err := s.Mint(claims)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func (b *bundle) public(token string) (Principal, Reason) {
	b.t.Helper()
	p, err := b.auth.BearerFor(token, b.keys, publicURL, publicURL+"/pay")
	b.auth.cache.Wait()
	return p, reasonIn(b.t, err)
}

func TestClaimsNameUsersByTheIssuersRule(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		rule   UserClaim
		claims change
		want   string // "" for a refusal
	}{
		"sub":                       {UserClaim{}, nil, "alice"},
		"sub by name":               {UserClaim{Claim: "sub"}, nil, "alice"},
		"another claim":             {UserClaim{Claim: "preferred_username"}, change{"preferred_username": "bob"}, "bob"},
		"the claim is not there":    {UserClaim{Claim: "preferred_username"}, nil, ""},
		"the claim is null":         {UserClaim{Claim: "preferred_username"}, change{"preferred_username": json.RawMessage("null")}, ""},
		"the claim is a list":       {UserClaim{Claim: "preferred_username"}, change{"preferred_username": []string{"bob"}}, ""},
		"the claim's case differs":  {UserClaim{Claim: "upn"}, change{"UPN": "bob"}, ""},
		"empty":                     {UserClaim{Claim: "upn"}, change{"upn": ""}, ""},
		"domain":                    {UserClaim{Claim: "email", Domain: "acme.example"}, change{"email": "bob@Acme.example"}, "bob"},
		"domain, verified":          {UserClaim{Claim: "email", Domain: "acme.example"}, change{"email": "bob@acme.example", "email_verified": true}, "bob"},
		"domain, not verified":      {UserClaim{Claim: "email", Domain: "acme.example"}, change{"email": "bob@acme.example", "email_verified": false}, ""},
		"verified is text":          {UserClaim{Claim: "email", Domain: "acme.example"}, change{"email": "bob@acme.example", "email_verified": "true"}, ""},
		"other domain":              {UserClaim{Claim: "email", Domain: "acme.example"}, change{"email": "bob@evil.example"}, ""},
		"domain behind another":     {UserClaim{Claim: "email", Domain: "acme.example"}, change{"email": "bob@evilacme.example"}, ""},
		"domain in front":           {UserClaim{Claim: "email", Domain: "acme.example"}, change{"email": "bob@acme.example@evil.example"}, ""},
		"only a domain":             {UserClaim{Claim: "email", Domain: "acme.example"}, change{"email": "@acme.example"}, ""},
		"prefix":                    {UserClaim{Prefix: "corp-"}, nil, "corp-alice"},
		"a workload's name":         {UserClaim{}, change{"sub": "spiffe://example.org/agent"}, ""},
		"a name with a line break":  {UserClaim{Claim: "upn"}, change{"upn": "bob\n"}, ""},
		"a name of another charset": {UserClaim{Claim: "upn"}, change{"upn": "\u0430dmin"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, signer, _ := outsider(t, Issuer{User: c.rule}, nil)
			token := mintWith(t, signer, outsideClaims(c.claims))
			for range 2 { // the second answer may come from the cache
				p, reason := b.public(token)
				if c.want == "" && reason != TokenUser || c.want != "" && p.Name != c.want {
					t.Errorf("got %q, %s", p.Name, reason)
				}
			}
		})
	}
}

func TestAnOutsideIssuerSaysNothingOfTypes(t *testing.T) {
	t.Parallel()
	b, signer, _ := outsider(t, Issuer{}, nil)
	p, reason := b.public(mintWith(t, signer, outsideClaims(change{"mcpvault_type": "workload"})))
	if p.Type != TypeUser || p.Issuer != loginURL || p.Subject != "alice" {
		t.Errorf("got %+v, %s", p, reason)
	}
}

func TestD13AudiencesOfOutsideTokensAreExact(t *testing.T) {
	t.Parallel()
	b, signer, _ := outsider(t, Issuer{Audiences: []string{"api://acme"}}, nil)
	many := make([]string, 100)
	for i := range many {
		many[i] = "https://x.example/" + strings.Repeat("x", i)
	}
	for name, c := range map[string]struct {
		aud  any
		want Reason
	}{
		"aggregate":        {publicURL, "accepted"},
		"this server":      {publicURL + "/pay", "accepted"},
		"the issuer's own": {"api://acme", "accepted"},
		"one of several":   {[]string{"https://x.example", publicURL}, "accepted"},
		"other server":     {publicURL + "/crm", TokenAudience},
		"the IdP":          {loginURL, TokenAudience},
		"prefix":           {publicURL + ".evil", TokenAudience},
		"trailing slash":   {publicURL + "/", TokenAudience},
		"case":             {strings.ToUpper(publicURL), TokenAudience},
		"of our tokens":    {acmeAud, TokenAudience},
		"100 audiences":    {append(many, publicURL), TokenMalformed},
		"none":             {[]string{}, TokenAudience},
	} {
		if _, got := b.public(mintWith(t, signer, outsideClaims(change{"aud": c.aud}))); got != c.want {
			t.Errorf("D13 %s: got %s, want %s", name, got, c.want)
		}
	}
}

func TestD14IssuersVouchOnlyForThemselves(t *testing.T) {
	t.Parallel()
	b, signer, _ := outsider(t, Issuer{}, nil)
	for iss, want := range map[string]Reason{
		loginURL: "accepted", loginURL + "/": TokenIssuer, loginURL + "/other-tenant": TokenIssuer, "HTTPS://login.example": TokenIssuer,
		acmeIssuer: TokenSignature, // of which this key is none
	} {
		if _, got := b.public(mintWith(t, signer, outsideClaims(change{"iss": iss}))); got != want {
			t.Errorf("D14 %s: got %s, want %s", iss, got, want)
		}
	}
}

func TestD09OtherTypesOnlyWhereTheIssuerIsSetSo(t *testing.T) {
	t.Parallel()
	for _, lax := range []bool{false, true} {
		b, _, key := outsider(t, Issuer{AnyType: lax}, nil)
		payload, _ := json.Marshal(outsideClaims(nil))
		ours, _ := json.Marshal(map[string]any{
			"iss": acmeIssuer, "sub": "alice", "aud": acmeAud, "jti": "j", "tenant": "acme", "exp": start.Add(time.Hour).Unix(),
		})
		for _, typ := range []string{`"typ":"JWT",`, ``} {
			want := TokenMalformed
			if lax {
				want = "accepted"
			}
			if _, got := b.public(forge(key, `{"alg":"EdDSA",`+typ+`"kid":"idp-1"}`, string(payload))); got != want {
				t.Errorf("D09 %s lax %v: got %s", typ, lax, got)
			}
			if _, got := b.public(forge(b.key, `{"alg":"EdDSA",`+typ+`"kid":"k1"}`, string(ours))); got != TokenMalformed {
				t.Errorf("D09 our own %s: got %s", typ, got)
			}
		}
	}
}

func TestD18ProofsThatCannotBeAskedForAreRefused(t *testing.T) {
	t.Parallel()
	b, signer, _ := outsider(t, Issuer{}, nil)
	thumb := strings.Repeat("A", 43)
	for name, c := range map[string]struct {
		cnf  any
		want Reason
	}{
		"certificate":         {map[string]any{"x5t#S256": thumb}, "accepted"},
		"DPoP":                {map[string]any{"jkt": thumb}, TokenBinding},
		"both":                {map[string]any{"x5t#S256": thumb, "jkt": thumb}, TokenBinding},
		"none of them":        {map[string]any{}, TokenBinding},
		"no thumbprint":       {map[string]any{"x5t#S256": ""}, TokenBinding},
		"something like text": {"x5t#S256", TokenBinding},
	} {
		p, got := b.public(mintWith(t, signer, outsideClaims(change{"cnf": c.cnf})))
		if got != c.want || got == "accepted" && p.Bound != thumb {
			t.Errorf("D18 %s: got %s, %+v", name, got, p)
		}
	}
}

// shelf is what an issuer's address has, and until when.
type shelf struct {
	asked atomic.Int64
	keys  []jose.Key
	until time.Time
}

func (s *shelf) Keys(url, kid string) ([]jose.Key, time.Time) {
	s.asked.Add(1)
	if url != loginURL+"/jwks" {
		return nil, time.Time{}
	}
	return slices.DeleteFunc(slices.Clone(s.keys), func(k jose.Key) bool { return k.KID != kid }), s.until
}

func TestANewerKeyCountsWithinItsTimeAndUnlessItWasWithdrawn(t *testing.T) {
	t.Parallel()
	_, fresh := newKey(t, "idp-2")
	s := &shelf{keys: []jose.Key{fresh.Key()}, until: start.Add(30 * time.Minute)}
	b, signer, _ := outsider(t, Issuer{JWKSURL: loginURL + "/jwks"}, s)
	token := mintWith(t, fresh, outsideClaims(nil))
	for range 3 {
		if _, got := b.public(token); got != "accepted" {
			t.Fatalf("got %s", got)
		}
	}
	if s.asked.Load() != 1 {
		t.Errorf("asked %d times for one token", s.asked.Load())
	}
	if b.public(mintWith(t, signer, outsideClaims(nil))); s.asked.Load() != 1 {
		t.Error("asked for a key that the snapshot has")
	}
	if _, got := b.public(forge(b.key, `{"alg":"EdDSA","kid":"k2","typ":"at+jwt"}`, `{"iss":"`+acmeIssuer+`"}`)); got != TokenSignature || s.asked.Load() != 1 {
		t.Errorf("asked for a key of our own: %s", got)
	}
	b.advance(30 * time.Minute)
	s.keys = nil
	if _, got := b.public(token); got != TokenSignature {
		t.Errorf("the verdict outlives the key: %s", got)
	}
	s.keys, s.until = []jose.Key{fresh.Key()}, start.Add(24*time.Hour)
	if _, got := b.public(token); got != "accepted" {
		t.Errorf("got %s", got)
	}
	thumb, _ := fresh.Key().Thumbprint()
	b.keys.Issuers[1].Withdrawn = map[[sha256.Size]byte]bool{thumb: true}
	b.keys.KeySet++
	if _, got := b.public(token); got != TokenSignature {
		t.Errorf("a withdrawn key lives again: %s", got)
	}
}

func TestScopesAreAskedForWhereTheyMatter(t *testing.T) {
	t.Parallel()
	const (
		none        = snapshotv1.Effect_EFFECT_UNSPECIFIED
		read        = snapshotv1.Effect_EFFECT_READ
		write       = snapshotv1.Effect_EFFECT_WRITE
		destructive = snapshotv1.Effect_EFFECT_DESTRUCTIVE
	)
	i := &Issuer{ScopeRules: []ScopeRule{
		{Scope: "mcp"},
		{Scope: "tools:read", Wider: []string{"tools:write"}, Effect: read},
		{Scope: "tools:write", Wider: []string{"admin"}, Effect: write},
		{Scope: "wipe", Effect: destructive},
		{Scope: "crm", Server: "crm"},
	}}
	for _, c := range []struct {
		op     Operation
		have   string
		need   string
		enough bool
	}{
		{Operation{}, "mcp", "mcp", true},
		{Operation{}, "", "mcp", false},
		{Operation{}, "MCP mcpx", "mcp", false},
		{Operation{Server: "pay"}, "mcp", "mcp", true},
		{Operation{Server: "crm"}, "mcp", "crm mcp", false},
		{Operation{Server: "pay", Call: true, Effect: read}, "mcp", "mcp tools:read", false},
		{Operation{Server: "pay", Call: true, Effect: read}, "mcp tools:write", "mcp tools:write", true},
		{Operation{Server: "pay", Call: true, Effect: write}, "mcp tools:read", "mcp tools:read tools:write", false},
		{Operation{Server: "pay", Call: true, Effect: write}, "mcp admin", "admin mcp", true},
		{Operation{Server: "pay", Call: true, Effect: destructive}, "mcp admin", "admin mcp wipe", false},
		{Operation{Server: "pay", Call: true, Effect: none}, "mcp", "mcp tools:write wipe", false},
		{Operation{Server: "crm", Call: true, Effect: destructive}, "", "crm mcp tools:write wipe", false},
		{Operation{Server: "crm", Call: true, Effect: destructive}, "wipe crm mcp tools:write", "crm mcp tools:write wipe", true},
	} {
		need, enough := i.Scopes(c.op, c.have)
		if strings.Join(need, " ") != c.need || enough != c.enough {
			t.Errorf("%+v with %q: got %v, %v", c.op, c.have, need, enough)
		}
	}
	k := TenantKeys{Issuers: []Issuer{*i, {ScopeRules: []ScopeRule{{Scope: "mcp"}, {Scope: "offline_access"}}}}}
	for server, want := range map[string][2]string{
		"":    {"mcp tools:read", "crm mcp tools:read tools:write wipe"},
		"pay": {"mcp tools:read", "mcp tools:read tools:write wipe"},
		"crm": {"crm mcp tools:read", "crm mcp tools:read tools:write wipe"},
	} {
		if got := strings.Join(k.First(server), " "); got != want[0] {
			t.Errorf("to begin with on %q: got %s", server, got)
		}
		if got := strings.Join(k.Supported(server), " "); got != want[1] {
			t.Errorf("supported on %q: got %s", server, got)
		}
	}
}

func TestBothSpellingsOfScopesAreRead(t *testing.T) {
	t.Parallel()
	b, signer, _ := outsider(t, Issuer{}, nil)
	for _, c := range []change{{"scope": "a b"}, {"scp": []string{"a", "b"}}, {"scp": "a b"}} {
		if p, got := b.public(mintWith(t, signer, outsideClaims(c))); p.Scope != "a b" {
			t.Errorf("%v: got %q, %s", c, p.Scope, got)
		}
	}
	if _, got := b.public(mintWith(t, signer, outsideClaims(change{"scope": []string{"a"}}))); got != TokenMalformed {
		t.Errorf("got %s", got)
	}
}
