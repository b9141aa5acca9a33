package authn

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/mcpvault/mcpvault/kit/jose"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	acmeIssuer = "urn:mcpvault:issuer:acme"
	acmeAud    = "urn:mcpvault:acme"
	publicURL  = "https://cell.example/mcp"
)

var start = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// bundle is one tenant, its issuer's key and a clock.
type bundle struct {
	t      testing.TB
	auth   *Authenticator
	key    ed25519.PrivateKey
	signer *jose.Signer
	keys   TenantKeys

	mu  sync.Mutex
	now time.Time
}

func setup(t testing.TB) *bundle {
	t.Helper()
	b := &bundle{t: t, now: start}
	b.key, b.signer = newKey(t, "k1")
	b.keys = TenantKeys{
		TenantID: "0197-acme", Tenant: "acme", KeySet: 1,
		Issuers: []Issuer{{Issuer: acmeIssuer, Audiences: []string{acmeAud}, Keys: []jose.Key{b.signer.Key()}}},
	}
	auth, err := New(Config{Now: b.clock})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(auth.Close)
	b.auth = auth
	return b
}

func newKey(t testing.TB, kid string) (ed25519.PrivateKey, *jose.Signer) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := jose.NewSigner(key, kid)
	if err != nil {
		t.Fatal(err)
	}
	return key, s
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

// change is a claim and its value; a nil value removes it.
type change map[string]any

func (b *bundle) mint(c change) string {
	b.t.Helper()
	claims := map[string]any{
		"iss": acmeIssuer, "sub": "alice", "aud": []string{acmeAud}, "jti": "01JD", "client_id": "cli", "tenant": "acme",
		"iat": start.Unix(), "exp": start.Add(time.Hour).Unix(),
	}
	maps.Copy(claims, c)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	token, err := b.signer.Mint(claims)
	if err != nil {
		b.t.Fatal(err)
	}
	return token
}

func (b *bundle) reason(token string) Reason {
	b.t.Helper()
	_, err := b.auth.Bearer(token, b.keys)
	b.auth.cache.Wait()
	return reasonIn(b.t, err)
}

func reasonIn(t testing.TB, err error) Reason {
	t.Helper()
	var e *Error
	if err != nil && !errors.As(err, &e) {
		t.Fatalf("not an *Error: %v", err)
	}
	if e == nil {
		return "accepted"
	}
	return e.Reason
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func forge(key ed25519.PrivateKey, header, payload string) string {
	input := b64(header) + "." + b64(payload)
	return input + "." + b64(string(ed25519.Sign(key, []byte(input))))
}

func TestAGoodTokenNamesItsPrincipal(t *testing.T) {
	t.Parallel()
	b := setup(t)
	want := Principal{
		Name: "alice", Issuer: acmeIssuer, Subject: "alice", JTI: "01JD", KeyID: "k1", ClientID: "cli", Type: "user",
		ExpiresAt: start.Add(time.Hour),
	}
	for range 3 {
		got, err := b.auth.Bearer(b.mint(nil), b.keys)
		if err != nil || got != want {
			t.Fatalf("got %+v, %v", got, err)
		}
		b.auth.cache.Wait()
	}
}

func TestClaimsAreJudged(t *testing.T) {
	t.Parallel()
	sec := start.Unix()
	many := make([]string, 17)
	for i := range many {
		many[i] = acmeAud
	}
	for name, c := range map[string]struct {
		change change
		want   Reason
	}{
		"unchanged":                  {nil, "accepted"},
		"aud as text":                {change{"aud": acmeAud}, "accepted"},
		"one of two audiences":       {change{"aud": []string{"urn:other", acmeAud}}, "accepted"},
		"16 audiences":               {change{"aud": many[:16]}, "accepted"},
		"17 audiences":               {change{"aud": many}, TokenMalformed},
		"no audience":                {change{"aud": nil}, TokenAudience},
		"empty audience list":        {change{"aud": []string{}}, TokenAudience},
		"empty audience":             {change{"aud": ""}, TokenAudience},
		"audience is a number":       {change{"aud": 1}, TokenMalformed},
		"audience of another tenant": {change{"aud": "urn:mcpvault:globex"}, TokenAudience},
		"audience with a suffix":     {change{"aud": acmeAud + ".evil"}, TokenAudience},
		"audience is a prefix":       {change{"aud": acmeAud[:len(acmeAud)-1]}, TokenAudience},
		"audience in other case":     {change{"aud": strings.ToUpper(acmeAud)}, TokenAudience},
		"audience with a slash":      {change{"aud": acmeAud + "/"}, TokenAudience},
		"audience with a space":      {change{"aud": acmeAud + " x"}, TokenAudience},
		"public URL, not asked for":  {change{"aud": publicURL}, TokenAudience},

		"other issuer":        {change{"iss": "urn:mcpvault:issuer:globex"}, TokenIssuer},
		"issuer with slash":   {change{"iss": acmeIssuer + "/"}, TokenIssuer},
		"issuer, other case":  {change{"iss": "urn:mcpvault:issuer:Acme"}, TokenIssuer},
		"no issuer":           {change{"iss": nil}, TokenIssuer},
		"issuer is a number":  {change{"iss": 7}, TokenMalformed},
		"other tenant":        {change{"tenant": "globex"}, TokenTenant},
		"tenant, other case":  {change{"tenant": "Acme"}, TokenTenant},
		"no tenant":           {change{"tenant": nil}, TokenTenant},
		"tenant is its id":    {change{"tenant": "0197-acme"}, TokenTenant},
		"Tenant, other claim": {change{"tenant": nil, "Tenant": "acme"}, TokenTenant},

		"expired 59 s ago":      {change{"exp": sec - 59}, "accepted"},
		"expired 60 s ago":      {change{"exp": sec - 60}, TokenExpired},
		"expired 61 s ago":      {change{"exp": sec - 61}, TokenExpired},
		"exp 0":                 {change{"exp": 0}, TokenExpired},
		"no exp":                {change{"exp": nil}, TokenMalformed},
		"EXP, other claim":      {change{"exp": nil, "EXP": sec + 60}, TokenMalformed},
		"exp in milliseconds":   {change{"exp": start.Add(time.Hour).UnixMilli()}, TokenMalformed},
		"exp negative":          {change{"exp": -1}, TokenMalformed},
		"exp is text":           {change{"exp": fmt.Sprint(sec + 60)}, TokenMalformed},
		"exp is endless":        {change{"exp": json.RawMessage("1e400")}, TokenMalformed},
		"exp is large":          {change{"exp": json.RawMessage("1e18")}, TokenMalformed},
		"exp has many digits":   {change{"exp": json.RawMessage("1" + strings.Repeat("0", 1000))}, TokenMalformed},
		"exp with a fraction":   {change{"exp": json.RawMessage(fmt.Sprintf("%d.5", sec+60))}, "accepted"},
		"exp is a list":         {change{"exp": []int64{sec + 60}}, TokenMalformed},
		"nbf in 60 s":           {change{"nbf": sec + 60}, "accepted"},
		"nbf in 61 s":           {change{"nbf": sec + 61}, TokenNotYet},
		"iat in 61 s":           {change{"iat": sec + 61}, TokenNotYet},
		"nbf is text":           {change{"nbf": "soon"}, TokenMalformed},
		"no iat":                {change{"iat": nil}, "accepted"},
		"no sub":                {change{"sub": nil}, TokenMalformed},
		"sub with a line break": {change{"sub": "alice\nbob"}, TokenMalformed},
		"sub too long":          {change{"sub": strings.Repeat("a", 257)}, TokenMalformed},
		"no jti":                {change{"jti": nil}, TokenMalformed},
		"jti too long":          {change{"jti": strings.Repeat("a", 257)}, TokenMalformed},
		"service account":       {change{"mcpvault_type": "service_account"}, "accepted"},
		"unknown type":          {change{"mcpvault_type": "root"}, TokenMalformed},
		"somebody acts":         {change{"act": map[string]any{"sub": "bot", "iss": "urn:x"}}, "accepted"},
		"nobody acts":           {change{"act": json.RawMessage("null")}, "accepted"},
		"actor is text":         {change{"act": "bot"}, TokenMalformed},
		"actor is a list":       {change{"act": []string{"bot"}}, TokenMalformed},
		"actor without sub":     {change{"act": map[string]any{"iss": "urn:x"}}, TokenMalformed},
		"actor's sub in case":   {change{"act": map[string]any{"Sub": "bot"}}, TokenMalformed},
		"actor's sub is number": {change{"act": map[string]any{"sub": 7}}, TokenMalformed},
		"actor with controls":   {change{"act": map[string]any{"sub": "bot\nboss"}}, TokenMalformed},
		"actor too long":        {change{"act": map[string]any{"sub": strings.Repeat("a", 257)}}, TokenMalformed},
		"8 actors":              {change{"act": actors(8)}, "accepted"},
		"9 actors":              {change{"act": actors(9)}, TokenMalformed},
		"a bad one before":      {change{"act": map[string]any{"sub": "bot", "act": map[string]any{}}}, TokenMalformed},
		"unknown claims":        {change{"x": map[string]any{"y": []int{1}}}, "accepted"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			token := b.mint(c.change)
			// The second time may come from the cache and must say the same.
			for i := range 2 {
				if got := b.reason(token); got != c.want {
					t.Errorf("time %d: got %s, want %s", i+1, got, c.want)
				}
			}
		})
	}
}

// actors is a chain of n, the last to act first.
func actors(n int) json.RawMessage {
	return json.RawMessage(strings.Repeat(`{"sub":"a","act":`, n-1) + `{"sub":"first"}` + strings.Repeat("}", n-1))
}

func TestTheOneWhoActsNowIsTheActor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	act := map[string]any{"sub": "bot", "act": map[string]any{"sub": "script"}}
	got, err := b.auth.Bearer(b.mint(change{"act": act}), b.keys)
	if err != nil || got.Name != "alice" || got.Actor != "bot" {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err = b.auth.Bearer(b.mint(nil), b.keys); err != nil || got.Actor != "" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestForgedTokensAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	payload := fmt.Sprintf(`{"iss":%q,"sub":"alice","aud":%q,"jti":"j","tenant":"acme","exp":%d}`, acmeIssuer, acmeAud, start.Unix()+60)
	head := func(alg string) string { return `{"alg":"` + alg + `","kid":"k1","typ":"at+jwt"}` }
	with := func(member string) string {
		return forge(b.key, `{"alg":"EdDSA","kid":"k1","typ":"at+jwt",`+member+`}`, payload)
	}
	unsigned := func(alg string) string { return b64(head(alg)) + "." + b64(payload) + "." }
	stranger, _ := newKey(t, "k1")
	hs := b64(head("HS256")) + "." + b64(payload)
	mac := hmac.New(sha256.New, b.key.Public().(ed25519.PublicKey))
	mac.Write([]byte(hs))
	good := forge(b.key, head("EdDSA"), payload)
	if got := b.reason(good); got != "accepted" {
		t.Fatalf("the model of the forgeries is refused: %s", got)
	}
	for name, c := range map[string]struct {
		token string
		want  Reason
	}{
		"empty":             {"", TokenMissing},
		"garbage":           {"x", TokenMalformed},
		"none":              {unsigned("none"), TokenAlgorithm},
		"None":              {unsigned("None"), TokenAlgorithm},
		"NONE":              {unsigned("NONE"), TokenAlgorithm},
		"nOnE":              {unsigned("nOnE"), TokenAlgorithm},
		"signed none":       {forge(b.key, head("none"), payload), TokenAlgorithm},
		"empty signature":   {unsigned("EdDSA"), TokenMalformed},
		"HS256, public key": {hs + "." + b64(string(mac.Sum(nil))), TokenAlgorithm},
		"ES256":             {forge(b.key, head("ES256"), payload), TokenAlgorithm},
		"RS256, too short":  {forge(b.key, head("RS256"), payload), TokenMalformed},
		"other key":         {forge(stranger, head("EdDSA"), payload), TokenSignature},
		"unknown kid":       {forge(b.key, `{"alg":"EdDSA","kid":"k2","typ":"at+jwt"}`, payload), TokenSignature},
		"kid is a path":     {forge(b.key, `{"alg":"EdDSA","kid":"../../dev/null","typ":"at+jwt"}`, payload), TokenSignature},
		"ID token":          {forge(b.key, `{"alg":"EdDSA","kid":"k1","typ":"JWT"}`, payload), TokenMalformed},
		"no typ":            {forge(b.key, `{"alg":"EdDSA","kid":"k1"}`, payload), TokenMalformed},
		"jku":               {with(`"jku":"https://evil.example/k"`), TokenMalformed},
		"x5u":               {with(`"x5u":"https://evil.example/c"`), TokenMalformed},
		"jwk":               {with(`"jwk":{"kty":"OKP"}`), TokenMalformed},
		"x5c":               {with(`"x5c":["AA=="]`), TokenMalformed},
		"crit":              {with(`"crit":["x"]`), TokenMalformed},
		"b64":               {with(`"b64":false`), TokenMalformed},
		"zip":               {with(`"zip":"DEF"`), TokenMalformed},
		"duplicate aud":     {forge(b.key, head("EdDSA"), `{"aud":"urn:x",`+payload[1:]), TokenMalformed},
		"duplicate iss":     {forge(b.key, head("EdDSA"), `{"iss":"urn:x",`+payload[1:]), TokenMalformed},
		"invalid UTF-8":     {forge(b.key, head("EdDSA"), "{\"x\":\"\xff\","+payload[1:]), TokenMalformed},
		"100 KiB":           {strings.Repeat("x", 100<<10), TokenTooLarge},
		"changed":           {strings.Replace(good, b64(payload), b64(strings.Replace(payload, "alice", "admin", 1)), 1), TokenSignature},
	} {
		if got := b.reason(c.token); got != c.want {
			t.Errorf("%s: got %s, want %s", name, got, c.want)
		}
	}
}

func TestACachedTokenStillExpires(t *testing.T) {
	t.Parallel()
	b := setup(t)
	token := b.mint(nil)
	for _, step := range []struct {
		advance time.Duration
		want    Reason
	}{{0, "accepted"}, {time.Hour + 59*time.Second, "accepted"}, {time.Second, TokenExpired}, {-2 * time.Hour, TokenNotYet}} {
		b.advance(step.advance)
		if got := b.reason(token); got != step.want {
			t.Errorf("at %v: got %s, want %s", b.clock(), got, step.want)
		}
	}
}

func TestAWithdrawnKeyEndsCachedTokens(t *testing.T) {
	t.Parallel()
	b := setup(t)
	token := b.mint(nil)
	if got := b.reason(token); got != "accepted" {
		t.Fatal(got)
	}
	_, next := newKey(t, "k2")
	b.keys.Issuers = []Issuer{{Issuer: acmeIssuer, Audiences: []string{acmeAud}, Keys: []jose.Key{next.Key()}}}
	b.keys.KeySet = 2
	if got := b.reason(token); got != TokenSignature {
		t.Fatal(got)
	}
}

func TestOneTenantsCachedTokenIsWorthNothingAtAnother(t *testing.T) {
	t.Parallel()
	b := setup(t)
	token := b.mint(nil)
	if got := b.reason(token); got != "accepted" {
		t.Fatal(got)
	}
	// Even a tenant that were to trust the same keys.
	globex := b.keys
	globex.TenantID, globex.Tenant = "0197-globex", "globex"
	if _, err := b.auth.Bearer(token, globex); reasonIn(t, err) != TokenTenant {
		t.Fatalf("got %v", err)
	}
	globex.Issuers = []Issuer{{Issuer: "urn:mcpvault:issuer:globex", Audiences: []string{acmeAud}, Keys: b.keys.Issuers[0].Keys}}
	if _, err := b.auth.Bearer(token, globex); reasonIn(t, err) != TokenIssuer {
		t.Fatalf("got %v", err)
	}
	narrowed := b.keys
	narrowed.Issuers = []Issuer{{Issuer: acmeIssuer, Audiences: []string{"urn:new"}, Keys: b.keys.Issuers[0].Keys}}
	if _, err := b.auth.Bearer(token, narrowed); reasonIn(t, err) != TokenAudience {
		t.Fatalf("got %v", err)
	}
}

func TestAnIssuersKeyVouchesForThatIssuerOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	// Another issuer of the same tenant, whose key even has the same name.
	key, other := newKey(t, "k1")
	b.keys.Issuers = append(b.keys.Issuers, Issuer{
		Issuer: "https://idp.example", Audiences: []string{publicURL}, Keys: []jose.Key{other.Key()}, External: true,
	})
	forged := forge(key, `{"alg":"EdDSA","kid":"k1","typ":"at+jwt"}`,
		fmt.Sprintf(`{"iss":%q,"sub":"alice","aud":%q,"jti":"j","tenant":"acme","exp":%d}`, acmeIssuer, acmeAud, start.Unix()+60))
	if got := b.reason(forged); got != TokenSignature {
		t.Fatalf("got %s", got)
	}
	own := forge(key, `{"alg":"EdDSA","kid":"k1","typ":"at+jwt"}`,
		fmt.Sprintf(`{"iss":"https://idp.example","sub":"a@x","aud":%q,"exp":%d}`, publicURL, start.Unix()+60))
	if got := b.reason(own); got != "accepted" {
		t.Fatalf("an external issuer needs no tenant and no jti: %s", got)
	}
	crossed := forge(key, `{"alg":"EdDSA","kid":"k1","typ":"at+jwt"}`,
		fmt.Sprintf(`{"iss":"https://idp.example","sub":"a@x","aud":%q,"exp":%d}`, acmeAud, start.Unix()+60))
	if got := b.reason(crossed); got != TokenAudience {
		t.Fatalf("an issuer's audiences are its own: %s", got)
	}
	foreign := forge(key, `{"alg":"EdDSA","kid":"k1","typ":"at+jwt"}`,
		fmt.Sprintf(`{"iss":"https://idp.example","sub":"a@x","aud":%q,"tenant":"globex","exp":%d}`, publicURL, start.Unix()+60))
	if got := b.reason(foreign); got != TokenTenant {
		t.Fatalf("got %s", got)
	}
}

func TestThePublicURLIsAnAudienceWhenAskedFor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	token := b.mint(change{"aud": publicURL})
	for range 2 {
		if _, err := b.auth.BearerFor(token, b.keys, publicURL); err != nil {
			t.Fatal(err)
		}
		b.auth.cache.Wait()
		if _, err := b.auth.Bearer(token, b.keys); reasonIn(t, err) != TokenAudience {
			t.Fatalf("got %v", err)
		}
		if _, err := b.auth.BearerFor(token, b.keys, publicURL+".evil", ""); reasonIn(t, err) != TokenAudience {
			t.Fatalf("got %v", err)
		}
	}
}

func TestMetricsTellCachedFromVerifiedFromRefused(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	b := setup(t)
	auth, err := New(Config{Now: b.clock, Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	defer auth.Close()
	token := b.mint(nil)
	for range 3 {
		if _, err := auth.Bearer(token, b.keys); err != nil {
			t.Fatal(err)
		}
		auth.cache.Wait()
	}
	if _, err := auth.Bearer("x", b.keys); err == nil {
		t.Fatal("garbage was accepted")
	}
	families, err := reg.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "mcpvault_authn_tokens_total" {
		t.Fatalf("got %v, %v", families, err)
	}
	got := map[string]float64{}
	for _, m := range families[0].GetMetric() {
		got[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
	}
	if want := (map[string]float64{"cached": 2, "verified": 1, TokenMalformed: 1}); !maps.Equal(got, want) {
		t.Fatalf("got %v", got)
	}
}

func TestManyCallersShareTheCache(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tokens := make([]string, 8)
	for i := range tokens {
		tokens[i] = b.mint(change{"sub": fmt.Sprint("user", i)})
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 200 {
				p, err := b.auth.Bearer(tokens[i%len(tokens)], b.keys)
				if err != nil || p.Name != fmt.Sprint("user", i%len(tokens)) {
					t.Errorf("got %+v, %v", p, err)
				}
			}
		})
	}
	wg.Wait()
}

func FuzzBearer(f *testing.F) {
	b := setup(f)
	for _, claims := range []string{`{}`, `{"iss":"` + acmeIssuer + `","aud":[1]}`, `{"exp":1e400}`, `{"aud":"x","tenant":null}`} {
		f.Add(claims)
	}
	f.Fuzz(func(t *testing.T, claims string) {
		p, err := b.auth.Bearer(forge(b.key, `{"alg":"EdDSA","kid":"k1","typ":"at+jwt"}`, claims), b.keys)
		if err == nil && (p.Issuer != acmeIssuer || p.Name == "" || p.ExpiresAt.Before(start.Add(-DefaultLeeway))) {
			t.Fatalf("accepted %+v from %s", p, claims)
		}
	})
}

func BenchmarkBearerCached(b *testing.B) {
	s := setup(b)
	token := s.mint(nil)
	for {
		_, cached, err := s.auth.bearer(token, &s.keys, nil)
		if err != nil {
			b.Fatal(err)
		}
		if cached {
			break
		}
		s.auth.cache.Wait()
	}
	s.auth.now = func() time.Time { return start }
	b.SetBytes(int64(len(token)))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.auth.Bearer(token, s.keys); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkBearerCold(b *testing.B) {
	s := setup(b)
	token := s.mint(nil)
	b.ReportAllocs()
	for b.Loop() {
		// A new key set each time finds nothing in the cache.
		s.keys.KeySet++
		if _, err := s.auth.Bearer(token, s.keys); err != nil {
			b.Fatal(err)
		}
	}
}
