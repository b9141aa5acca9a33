package pep_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mcpvault/mcpvault/dataplane/authn"
	"github.com/mcpvault/mcpvault/dataplane/jwks"
	"github.com/mcpvault/mcpvault/dataplane/pep"
	"github.com/mcpvault/mcpvault/kit/egress"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// safe is a buffer that the gateway logs into.
type safe struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safe) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safe) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// resource is a gateway whose tenant lets people log in at an outside issuer with an ES256 key.
type resource struct {
	*gateway
	up   *scripted
	logs *safe
	key  *ecdsa.PrivateKey
	idp  *snapshotv1.Issuer
	// jwks is the issuer's key set; asked counts who fetched it.
	jwks   *httptest.Server
	serves atomic.Pointer[string]
	asked  atomic.Int64
}

const idpURL = "https://login.example"

func protect(t *testing.T, rules ...*snapshotv1.ScopeRule) *resource {
	t.Helper()
	r := &resource{up: newScripted(t), logs: &safe{}}
	r.serve(`{"keys":[]}`)
	r.jwks = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		r.asked.Add(1)
		_, _ = w.Write([]byte(*r.serves.Load()))
	}))
	t.Cleanup(r.jwks.Close)
	transport, err := egress.NewTransport([]string{"127.0.0.0/8:*"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(transport.CloseIdleConnections)
	newer, err := jwks.New(jwks.Config{Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	auth, err := authn.New(authn.Config{Newer: newer})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(auth.Close)
	r.gateway = assembled(t, pep.Config{}, func(p *pep.Parts) {
		p.Authn, p.Injector, p.Log = auth, credential{}, slog.New(slog.NewTextHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}, []snapshot.Grant{{ID: "g1", Subject: "user:alice", Server: "pay"}},
		catalogueServer("pay", r.up.url, allEras(), plainTool("balance", read), plainTool("refund", destructive)),
		catalogueServer("hidden", r.up.url, allEras(), plainTool("x", read)))
	if r.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&r.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	r.idp = &snapshotv1.Issuer{
		Issuer: idpURL, External: true, JwksUrl: r.jwks.URL, Scopes: rules,
		Keys: []*snapshotv1.IssuerKey{{Kid: "idp", Alg: "ES256", PublicKey: spki}},
	}
	r.cat.Issuers = append(r.cat.Issuers, r.idp)
	r.publish()
	return r
}

func (r *resource) serve(set string) { r.serves.Store(&set) }

func enc(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (r *resource) idpClaims(change map[string]any) string {
	claims := map[string]any{
		"iss": idpURL, "sub": "alice", "aud": r.url + "/mcp", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
		"client_id": "cli", "scope": "mcp",
	}
	maps.Copy(claims, change)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	b, err := json.Marshal(claims)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

const es256Head = `{"alg":"ES256","kid":"idp","typ":"at+jwt"}`

// signed is a token of that header and payload with the issuer's, or another, ES256 key.
func (r *resource) signed(header, payload string, key *ecdsa.PrivateKey) string {
	input := enc([]byte(header)) + "." + enc([]byte(payload))
	return input + "." + enc(rawSignature(r.t, input, key))
}

func rawSignature(t testing.TB, input string, key *ecdsa.PrivateKey) []byte {
	sum := sha256.Sum256([]byte(input))
	a, b, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	a.FillBytes(sig[:32])
	b.FillBytes(sig[32:])
	return sig
}

func (r *resource) logIn(change map[string]any) string {
	return r.signed(es256Head, r.idpClaims(change), r.key)
}

// callWith calls a tool of the server pay with a token.
func (r *resource) callWith(token, tool string) *answer {
	r.t.Helper()
	return r.post("/mcp/pay", "", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"`+tool+`",`+meta+`}}`,
		"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", tool, "Authorization", "Bearer "+token)
}

func TestAnOutsideTokenIsServed(t *testing.T) {
	t.Parallel()
	r := protect(t)
	for _, aud := range []string{r.url + "/mcp", r.url + "/mcp/pay"} {
		if a := r.callWith(r.logIn(map[string]any{"aud": aud}), "balance"); string(a.Result) != oddResult {
			t.Errorf("%s: %d %s", aud, a.status, a.body)
		}
	}
	if r.asked.Load() != 0 {
		t.Error("the issuer was asked for a key that the snapshot carries")
	}
}

// Rows D01 to D15, D18, D20 and D21 of hostile tokens: one answer for all of them.
func TestHostileTokensGetOneAnswer(t *testing.T) {
	t.Parallel()
	r := protect(t, &snapshotv1.ScopeRule{Scope: "mcp"})
	var canary atomic.Int64
	evil := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { canary.Add(1) }))
	defer evil.Close()
	stranger, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	payload := r.idpClaims(nil)
	head := func(alg string) string { return strings.Replace(es256Head, "ES256", alg, 1) }
	with := func(members string) string {
		return r.signed(strings.TrimSuffix(es256Head, "}")+","+members+"}", payload, r.key)
	}
	claim := func(name string, value any) string { return r.logIn(map[string]any{name: value}) }
	raw := func(v string) json.RawMessage { return json.RawMessage(v) }
	unsigned := func(alg, sig string) string { return enc([]byte(head(alg))) + "." + enc([]byte(payload)) + "." + sig }
	in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	der, _ := x509.MarshalPKIXPublicKey(&r.key.PublicKey)
	mac := func(secret []byte) string {
		input := enc([]byte(head("HS256"))) + "." + enc([]byte(payload))
		h := hmac.New(sha256.New, secret)
		h.Write([]byte(input))
		return input + "." + enc(h.Sum(nil))
	}
	input := enc([]byte(es256Head)) + "." + enc([]byte(payload))
	good := rawSignature(t, input, r.key)
	sum := sha256.Sum256([]byte(input))
	asn1, _ := r.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	beyond := new(big.Int).Add(new(big.Int).SetBytes(good[32:]), elliptic.P256().Params().N)
	overflow := append(bytes.Clone(good[:32]), beyond.Bytes()...)
	jwk := `{"kty":"EC","crv":"P-256","x":"` + enc(stranger.X.FillBytes(make([]byte, 32))) + `","y":"` + enc(stranger.Y.FillBytes(make([]byte, 32))) + `"}`
	nested := enc([]byte(`{"alg":"dir","enc":"A256GCM","zip":"DEF","cty":"JWT"}`))
	audiences := make([]string, 100)
	for i := range audiences {
		audiences[i] = fmt.Sprintf("https://x.example/%d", i)
	}

	rows := []struct{ row, token, reason string }{
		{"D03 none", unsigned("none", ""), authn.TokenAlgorithm},
		{"D03 None", unsigned("None", ""), authn.TokenAlgorithm},
		{"D03 nOnE", unsigned("nOnE", "AA"), authn.TokenAlgorithm},
		{"D03 empty signature", unsigned("ES256", ""), authn.TokenMalformed},
		{"D04 DER", mac(der), authn.TokenAlgorithm},
		{"D04 PEM", mac(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), authn.TokenAlgorithm},
		{"D04 JWK", mac([]byte(jwk)), authn.TokenAlgorithm},
		{"D05 ES256K", r.signed(head("ES256K"), payload, r.key), authn.TokenAlgorithm},
		{"D05 RS1", r.signed(head("RS1"), payload, r.key), authn.TokenAlgorithm},
		{"D05 HS512", r.signed(head("HS512"), payload, r.key), authn.TokenAlgorithm},
		{"D05 EdDSA of an ES256 key", r.signed(head("EdDSA"), payload, r.key), authn.TokenAlgorithm},
		{"D06 jku", with(`"jku":"` + evil.URL + `"`), authn.TokenMalformed},
		{"D06 x5u", with(`"x5u":"` + evil.URL + `"`), authn.TokenMalformed},
		{"D06 jwk", r.signed(strings.TrimSuffix(es256Head, "}")+`,"jwk":`+jwk+`}`, payload, stranger), authn.TokenMalformed},
		{"D06 x5c", with(`"x5c":["MII="]`), authn.TokenMalformed},
		{"D06 iss", claim("iss", evil.URL), authn.TokenIssuer},
		{"D07 path", r.signed(strings.Replace(es256Head, "idp", "../../dev/null", 1), payload, r.key), authn.TokenSignature},
		{"D07 SQL", r.signed(strings.Replace(es256Head, "idp", "' OR 1=1 --", 1), payload, r.key), authn.TokenSignature},
		{"D07 unknown", r.signed(strings.Replace(es256Head, "idp", "new", 1), payload, r.key), authn.TokenSignature},
		{"D07 long", r.signed(strings.Replace(es256Head, "idp", strings.Repeat("k", 4096), 1), payload, r.key), authn.TokenMalformed},
		{"D08 crit", with(`"crit":["exp"],"exp":1`), authn.TokenMalformed},
		{"D08 b64", with(`"crit":["b64"],"b64":false`), authn.TokenMalformed},
		{"D09 ID token", r.signed(strings.Replace(es256Head, "at+jwt", "JWT", 1), payload, r.key), authn.TokenMalformed},
		{"D09 no typ", r.signed(`{"alg":"ES256","kid":"idp"}`, payload, r.key), authn.TokenMalformed},
		{"D10 zeros", input + "." + enc(make([]byte, 64)), authn.TokenSignature},
		{"D10 DER", input + "." + enc(asn1), authn.TokenMalformed},
		{"D10 s beyond the order", input + "." + enc(overflow), map[bool]string{true: authn.TokenSignature, false: authn.TokenMalformed}[len(overflow) == 64]},
		{"D10 other key", r.signed(es256Head, payload, stranger), authn.TokenSignature},
		{"D11 expired", claim("exp", in(-61*time.Second)), authn.TokenExpired},
		{"D11 missing", claim("exp", nil), authn.TokenMalformed},
		{"D11 1e400", claim("exp", raw("1e400")), authn.TokenMalformed},
		{"D11 negative", claim("exp", -1), authn.TokenMalformed},
		{"D11 text", claim("exp", "9999999999"), authn.TokenMalformed},
		{"D11 ms", claim("exp", time.Now().Add(time.Hour).UnixMilli()), authn.TokenMalformed},
		{"D12 nbf", claim("nbf", in(65*time.Second)), authn.TokenNotYet},
		{"D12 iat", claim("iat", in(65*time.Second)), authn.TokenNotYet},
		{"D13 other server", claim("aud", r.url+"/mcp/hidden"), authn.TokenAudience},
		{"D13 the IdP", claim("aud", idpURL), authn.TokenAudience},
		{"D13 100 audiences", claim("aud", append(audiences, r.url+"/mcp")), authn.TokenMalformed},
		{"D13 prefix", claim("aud", r.url+"/mcp.evil"), authn.TokenAudience},
		{"D14 other tenant", claim("iss", idpURL+"/t2"), authn.TokenIssuer},
		{"D14 slash", claim("iss", idpURL+"/"), authn.TokenIssuer},
		{"D14 case", claim("iss", "https://LOGIN.example"), authn.TokenIssuer},
		{"D14 the gateway's own", claim("iss", "urn:mcpvault:issuer:acme"), authn.TokenSignature},
		{"D15 tenant", claim("tenant", "globex"), authn.TokenTenant},
		{"D18 DPoP", claim("cnf", map[string]string{"jkt": strings.Repeat("A", 43)}), authn.TokenBinding},
		{"D18 certificate", claim("cnf", map[string]string{"x5t#S256": strings.Repeat("A", 43)}), authn.TokenBinding},
		{"D20 JWE", nested + "." + strings.Repeat("a", 40) + ".b.c.d", authn.TokenMalformed},
		{"D20 nested", strings.Repeat(nested+".", 5) + "x", authn.TokenMalformed},
		{"D20 bomb", with(`"zip":"DEF"`), authn.TokenMalformed},
		{"D20 20 KiB", claim("x", strings.Repeat("x", 15<<10)), authn.TokenTooLarge},
		{"D21 aud twice", r.signed(es256Head, `{"aud":"x",`+payload[1:], r.key), authn.TokenMalformed},
		{"D21 UTF-8", r.signed(es256Head, "{\"x\":\"\xff\","+payload[1:], r.key), authn.TokenMalformed},
		{"a workload's name", claim("sub", "spiffe://example.org/agent"), authn.TokenUser},
	}
	want := `Bearer error="invalid_token", scope="mcp", resource_metadata="` + r.url + `/.well-known/oauth-protected-resource/mcp/pay"`
	body := r.callWith("x", "balance").body
	for _, row := range rows {
		a := r.callWith(row.token, "balance")
		r.refused(t, r.up, row.row, a, http.StatusUnauthorized, -32000, row.reason)
		if got := a.header.Get("Www-Authenticate"); got != want {
			t.Errorf("%s: challenge %s", row.row, got)
		}
		if a.body != body {
			t.Errorf("%s: the body tells it from others: %s", row.row, a.body)
		}
	}
	if canary.Load() != 0 {
		t.Errorf("D06: the attacker's address saw %d requests", canary.Load())
	}
	if r.asked.Load() != 1 {
		t.Errorf("D07: the issuer saw %d requests", r.asked.Load())
	}
}

func TestCredentialsThatAreNoneAreRefused(t *testing.T) {
	t.Parallel()
	r := protect(t)
	token := r.logIn(nil)
	ping := `{"jsonrpc":"2.0","id":1,"method":"ping"}`
	metadata := `resource_metadata="` + r.url + `/.well-known/oauth-protected-resource/mcp/pay"`
	invalid := `Bearer error="invalid_token", ` + metadata
	for row, c := range map[string]struct {
		query     string
		header    []string
		status    int
		challenge string
	}{
		"D01 none":           {"", nil, 401, "Bearer " + metadata},
		"D02 Basic":          {"", []string{"Basic YTpi"}, 401, invalid},
		"D02 bearer twice":   {"", []string{"Bearer " + token + ", Bearer " + token}, 401, invalid},
		"D02 bearer bearer":  {"", []string{"Bearer Bearer " + token}, 401, invalid},
		"D02 two headers":    {"", []string{"Bearer " + token, "Bearer " + token}, 401, invalid},
		"D02 query":          {"?access_token=" + token, nil, 400, `Bearer error="invalid_request", ` + metadata},
		"D02 query too":      {"?access_token=" + token, []string{"Bearer " + token}, 400, `Bearer error="invalid_request", ` + metadata},
		"D18 DPoP's scheme":  {"", []string{"DPoP " + token}, 401, invalid},
		"D20 empty":          {"", []string{"Bearer "}, 401, invalid},
		"D02 token and junk": {"", []string{"Bearer " + token + " x"}, 401, invalid},
	} {
		req := r.request(t.Context(), http.MethodPost, "/mcp/pay"+c.query, "", ping)
		req.Header["Authorization"] = c.header
		a := r.do(req)
		if a.status != c.status || a.header.Get("Www-Authenticate") != c.challenge {
			t.Errorf("%s: %d %s", row, a.status, a.header.Get("Www-Authenticate"))
		}
	}
	form := r.post("/mcp/pay", "", "access_token="+token, "Content-Type", "application/x-www-form-urlencoded")
	if form.status != http.StatusUnsupportedMediaType {
		t.Errorf("D02 body: %d", form.status)
	}
	for _, method := range []string{http.MethodGet, http.MethodDelete} {
		if a := r.do(r.request(t.Context(), method, "/mcp/pay", "", "")); a.status != http.StatusUnauthorized {
			t.Errorf("D01 %s: %d", method, a.status)
		}
	}
	if log := r.logs.String(); strings.Contains(log, token) {
		t.Error("D02: the token is in the log")
	}
}

func TestTheDocumentNamesTheTenantsIssuersAndScopes(t *testing.T) {
	t.Parallel()
	r := protect(t,
		&snapshotv1.ScopeRule{Scope: "mcp"}, &snapshotv1.ScopeRule{Scope: "offline_access"},
		&snapshotv1.ScopeRule{Scope: "hidden", Server: "hidden"}, &snapshotv1.ScopeRule{Scope: "tools:write", Effect: snapshotv1.Effect_EFFECT_WRITE})
	r.cat.Issuers = append(r.cat.Issuers, &snapshotv1.Issuer{Issuer: "https://partner.example/oauth", External: true})
	r.publish()
	type document struct {
		Resource string
		Servers  []string `json:"authorization_servers"`
		Scopes   []string `json:"scopes_supported"`
		Methods  []string `json:"bearer_methods_supported"`
	}
	get := func(path string) (d document) {
		t.Helper()
		resp, err := http.Get(r.url + "/.well-known/oauth-protected-resource" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&d); err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %v", path, resp.StatusCode, err)
		}
		return d
	}
	for path, want := range map[string]document{
		"":            {r.url + "/mcp", []string{idpURL, "https://partner.example/oauth"}, []string{"hidden", "mcp", "tools:write"}, []string{"header"}},
		"/mcp":        {r.url + "/mcp", []string{idpURL, "https://partner.example/oauth"}, []string{"hidden", "mcp", "tools:write"}, []string{"header"}},
		"/mcp/pay":    {r.url + "/mcp/pay", []string{idpURL, "https://partner.example/oauth"}, []string{"mcp", "tools:write"}, []string{"header"}},
		"/mcp/nobody": {r.url + "/mcp/nobody", []string{idpURL, "https://partner.example/oauth"}, []string{"mcp", "tools:write"}, []string{"header"}},
	} {
		if got := get(path); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: got %+v", path, got)
		}
	}
	r.pdp.Kill(&snapshotv1.Kill{Kind: snapshotv1.KillKind_KILL_KIND_ISSUER, TenantId: "0192-acme", Subject: idpURL})
	if got := get("/mcp"); fmt.Sprint(got.Servers) != "[https://partner.example/oauth]" {
		t.Errorf("callers are sent to an issuer that was killed: %v", got.Servers)
	}
}

func TestD16MoreScopesAreAskedForOnlyWhereTheyHelp(t *testing.T) {
	t.Parallel()
	r := protect(t,
		&snapshotv1.ScopeRule{Scope: "mcp"}, &snapshotv1.ScopeRule{Scope: "pay", Server: "pay"},
		&snapshotv1.ScopeRule{Scope: "tools:write", Wider: []string{"admin"}, Effect: snapshotv1.Effect_EFFECT_WRITE})
	token := func(scope string) string { return r.logIn(map[string]any{"scope": scope}) }
	metadata := `, resource_metadata="` + r.url + `/.well-known/oauth-protected-resource/mcp/pay"`

	none := r.callWith("", "balance")
	if got := none.header.Get("Www-Authenticate"); none.status != 401 || !strings.Contains(got, `scope="mcp pay"`) {
		t.Errorf("to log in with: %s", got)
	}
	for _, c := range []struct{ scope, tool, need string }{
		{"mcp", "balance", "mcp pay"},
		{"", "balance", "mcp pay"},
		{"mcp pay", "refund", "mcp pay tools:write"},
		{"admin", "refund", "admin mcp pay"}, // what serves already is kept
	} {
		a := r.callWith(token(c.scope), c.tool)
		if want := `Bearer error="insufficient_scope", scope="` + c.need + `"` + metadata; a.status != 403 || a.header.Get("Www-Authenticate") != want {
			t.Errorf("%q calls %s: %d %s", c.scope, c.tool, a.status, a.header.Get("Www-Authenticate"))
		}
		if rec := r.book.of(a.decision()); len(rec) != 1 || rec[0].GetReason() != "insufficient_scope" || rec[0].GetDecision() != auditv1.Decision_DECISION_DENY {
			t.Errorf("recorded as %v", rec)
		}
	}
	if r.up.calls() != 0 {
		t.Error("something was called")
	}
	for _, c := range []struct{ scope, tool string }{{"mcp pay", "balance"}, {"mcp pay tools:write", "refund"}, {"mcp pay admin", "refund"}} {
		if a := r.callWith(token(c.scope), c.tool); string(a.Result) != oddResult {
			t.Errorf("%q calls %s: %d %s", c.scope, c.tool, a.status, a.body)
		}
	}
	// What no token cures has no challenge: a tool, a server and a person that policy does not know.
	for name, a := range map[string]*answer{
		"unknown tool":   r.callWith(token(""), "nothing"),
		"hidden server":  r.post("/mcp/hidden", "", `{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{`+meta+`}}`, "MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/list", "Authorization", "Bearer "+token("")),
		"unknown person": r.callWith(r.logIn(map[string]any{"sub": "nobody", "scope": ""}), "balance"),
	} {
		if a.status == 403 || a.header.Get("Www-Authenticate") != "" {
			t.Errorf("%s: %d %s", name, a.status, a.header.Get("Www-Authenticate"))
		}
	}
	// Our own tokens have no scopes, and nobody asks for any.
	if a := r.call("/mcp/pay", "alice", "refund", "{}"); string(a.Result) != oddResult {
		t.Errorf("with a token of our own: %d %s", a.status, a.body)
	}
	list := r.post("/mcp/pay", "", `{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{`+meta+`}}`, "MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/list", "Authorization", "Bearer "+token("mcp pay"))
	if !strings.Contains(list.body, `"refund"`) {
		t.Error("a tool for which a token can be had is not listed")
	}
}

func TestD17RevokedOutsideTokensEndAtOnce(t *testing.T) {
	t.Parallel()
	for kind, subject := range map[snapshotv1.KillKind]string{
		snapshotv1.KillKind_KILL_KIND_USER: "alice", snapshotv1.KillKind_KILL_KIND_TOKEN: "j-1", snapshotv1.KillKind_KILL_KIND_ISSUER: idpURL,
		snapshotv1.KillKind_KILL_KIND_KEY: "idp",
	} {
		r := protect(t)
		token := r.logIn(map[string]any{"jti": "j-1"})
		if a := r.callWith(token, "balance"); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		r.pdp.Kill(&snapshotv1.Kill{Kind: kind, TenantId: "0192-acme", Subject: subject})
		if a := r.callWith(token, "balance"); a.status != 401 || r.up.calls() != 1 {
			t.Errorf("D17 %v: %d %s", kind, a.status, a.body)
		}
	}
}

func TestAnIssuerThatIsTakenAwayEndsACallOnItsWay(t *testing.T) {
	t.Parallel()
	r := protect(t)
	token := r.logIn(nil)
	r.book.onIntent = func() {
		r.book.onIntent = nil
		r.cat.Issuers = r.cat.Issuers[:1]
		r.publish()
	}
	if a := r.callWith(token, "refund"); a.status != http.StatusUnauthorized || r.up.calls() != 0 {
		t.Errorf("got %d %s after %d calls", a.status, a.body, r.up.calls())
	}
}

// D19: the caller's token is nowhere but in the caller's request.
func TestD19TheCallersTokenGoesNowhere(t *testing.T) {
	t.Parallel()
	r := protect(t, &snapshotv1.ScopeRule{Scope: "mcp"})
	good, poor, bad := r.logIn(nil), r.logIn(map[string]any{"scope": ""}), r.logIn(map[string]any{"exp": 1})
	var answers []string
	for _, token := range []string{good, poor, bad} {
		for _, tool := range []string{"balance", "refund", "nothing"} {
			a := r.callWith(token, tool)
			answers = append(answers, a.body, fmt.Sprint(a.header))
		}
	}
	a := r.post("/mcp/pay?access_token="+good, "", `{"jsonrpc":"2.0","id":1,"method":"ping"}`)
	answers = append(answers, a.body, fmt.Sprint(a.header))
	if r.up.calls() != 2 {
		t.Fatalf("%d calls arrived", r.up.calls())
	}
	r.up.mu.Lock()
	upstream := fmt.Sprint(r.up.seen, r.up.header)
	r.up.mu.Unlock()
	if !strings.Contains(upstream, "Bearer upstream-credential") {
		t.Error("the upstream did not see its own credential")
	}
	var records strings.Builder
	r.book.mu.Lock()
	for _, rec := range r.book.records {
		records.WriteString(protojson.Format(rec))
	}
	r.book.mu.Unlock()
	for where, text := range map[string]string{"upstream": upstream, "log": r.logs.String(), "audit": records.String(), "answers": strings.Join(answers, "\n")} {
		for _, token := range []string{good, poor, bad} {
			for _, part := range strings.Split(token, ".")[1:] { // all headers are the same
				if strings.Contains(text, part) {
					t.Errorf("D19: a part of the caller's token is in: %s", where)
				}
			}
		}
	}
}

func TestNewKeysOfAnIssuerAreFoundAndItsOutageIsNotNoticed(t *testing.T) {
	t.Parallel()
	r := protect(t)
	fresh, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	r.serve(fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","kid":"next","use":"sig","alg":"ES256","x":%q,"y":%q}]}`,
		enc(fresh.X.FillBytes(make([]byte, 32))), enc(fresh.Y.FillBytes(make([]byte, 32)))))
	next := strings.Replace(es256Head, "idp", "next", 1)
	if a := r.callWith(r.signed(next, r.idpClaims(nil), fresh), "balance"); a.status != 200 || r.asked.Load() != 1 {
		t.Fatalf("a key newer than the snapshot: %d %s", a.status, a.body)
	}
	r.jwks.CloseClientConnections()
	r.jwks.Close()
	for name, token := range map[string]string{
		"old key": r.logIn(map[string]any{"jti": "2"}), "new key": r.signed(next, r.idpClaims(map[string]any{"jti": "2"}), fresh),
	} {
		if a := r.callWith(token, "balance"); a.status != 200 {
			t.Errorf("%s while the issuer is down: %d %s", name, a.status, a.body)
		}
	}
	if a := r.callWith(r.signed(strings.Replace(es256Head, "idp", "never", 1), r.idpClaims(nil), fresh), "balance"); a.status != 401 {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// What is longer than all headers together may be never gets as far as the tokens.
func TestATokenLongerThanHeadersMayBeIsRefused(t *testing.T) {
	t.Parallel()
	r := protect(t)
	for _, size := range []int{100 << 10, 1 << 20} {
		if a := r.callWith(strings.Repeat("a", size), "balance"); a.status != http.StatusRequestHeaderFieldsTooLarge || r.up.calls() != 0 {
			t.Errorf("D20, %d bytes: %d %s", size, a.status, a.body)
		}
	}
}
