package jose_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/kit/jose"
)

const claims = `{"iss":"urn:x","sub":"alice","exp":9007199254740993}`

func newSigner(t testing.TB) (*jose.Signer, ed25519.PrivateKey) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := jose.NewSigner(key, "k1")
	if err != nil {
		t.Fatal(err)
	}
	return s, key
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// forge signs any header and payload, as the owner of the key could.
func forge(key ed25519.PrivateKey, header, payload string) string {
	input := b64(header) + "." + b64(payload)
	return input + "." + b64(string(ed25519.Sign(key, []byte(input))))
}

func TestMintedTokensVerifyToTheSameBytes(t *testing.T) {
	t.Parallel()
	s, _ := newSigner(t)
	token, err := s.Mint(json.RawMessage(claims))
	if err != nil {
		t.Fatal(err)
	}
	got, kid, err := jose.Verify(token, []jose.Key{{KID: "other"}, s.Key()})
	if err != nil || string(got) != claims || kid != "k1" {
		t.Fatalf("got %s, %q, %v", got, kid, err)
	}
	u, err := jose.Parse(token)
	if err != nil || string(u.UnverifiedClaims()) != claims {
		t.Fatalf("got %v", err)
	}
}

func TestES256KeysVerify(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	input := b64(`{"alg":"ES256","kid":"e","typ":"application/AT+JWT"}`) + "." + b64(claims)
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, 64)
	r.FillBytes(raw[:32])
	s.FillBytes(raw[32:])
	keys := []jose.Key{{KID: "e", Alg: jose.ES256, Public: &key.PublicKey}}
	if _, _, err := jose.Verify(input+"."+b64(string(raw)), keys); err != nil {
		t.Fatal(err)
	}
	der, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	order := elliptic.P256().Params().N
	for name, sig := range map[string][]byte{
		"zeros": make([]byte, 64), "DER": der, "s is 0": append(raw[:32:32], make([]byte, 32)...),
		"s is the order": append(raw[:32:32], order.FillBytes(make([]byte, 32))...),
		"r is the order": append(order.FillBytes(make([]byte, 32)), raw[32:]...),
		"s plus one":     append(raw[:32:32], new(big.Int).Add(s, big.NewInt(1)).FillBytes(make([]byte, 32))...),
	} {
		if _, _, err := jose.Verify(input+"."+b64(string(sig)), keys); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestHostileHeadersAreRefused(t *testing.T) {
	t.Parallel()
	s, key := newSigner(t)
	for header, want := range map[string]error{
		`{"alg":"none","kid":"k1","typ":"at+jwt"}`:                                jose.ErrAlgorithm,
		`{"alg":"None","kid":"k1","typ":"at+jwt"}`:                                jose.ErrAlgorithm,
		`{"alg":"nOnE","kid":"k1","typ":"at+jwt"}`:                                jose.ErrAlgorithm,
		`{"alg":"","kid":"k1","typ":"at+jwt"}`:                                    jose.ErrAlgorithm,
		`{"kid":"k1","typ":"at+jwt"}`:                                             jose.ErrAlgorithm,
		`{"alg":"eddsa","kid":"k1","typ":"at+jwt"}`:                               jose.ErrAlgorithm,
		`{"alg":"HS256","kid":"k1","typ":"at+jwt"}`:                               jose.ErrAlgorithm,
		`{"alg":"ES256K","kid":"k1","typ":"at+jwt"}`:                              jose.ErrAlgorithm,
		`{"alg":"RS1","kid":"k1","typ":"at+jwt"}`:                                 jose.ErrAlgorithm,
		`{"alg":"ES256","kid":"k1","typ":"at+jwt"}`:                               jose.ErrAlgorithm,
		`{"alg":["EdDSA"],"kid":"k1","typ":"at+jwt"}`:                             jose.ErrMalformed,
		`{"alg":"EdDSA","kid":"k1"}`:                                              jose.ErrType,
		`{"alg":"EdDSA","kid":"k1","typ":"JWT"}`:                                  jose.ErrType,
		`{"alg":"EdDSA","typ":"at+jwt"}`:                                          jose.ErrUnknownKey,
		`{"alg":"EdDSA","kid":"","typ":"at+jwt"}`:                                 jose.ErrUnknownKey,
		`{"alg":"EdDSA","kid":"k2","typ":"at+jwt"}`:                               jose.ErrUnknownKey,
		`{"alg":"EdDSA","kid":"../../dev/null","typ":"at+jwt"}`:                   jose.ErrUnknownKey,
		`{"alg":"EdDSA","kid":1,"typ":"at+jwt"}`:                                  jose.ErrMalformed,
		`{"alg":"EdDSA","kid":"` + strings.Repeat("k", 200) + `","typ":"at+jwt"}`: jose.ErrMalformed,
		`{"alg":"EdDSA","kid":"k1","typ":"at+jwt","jku":"https://evil"}`:          jose.ErrMalformed,
		`{"alg":"EdDSA","kid":"k1","typ":"at+jwt","x5u":"https://evil"}`:          jose.ErrMalformed,
		`{"alg":"EdDSA","kid":"k1","typ":"at+jwt","jwk":{"kty":"OKP"}}`:           jose.ErrMalformed,
		`{"alg":"EdDSA","kid":"k1","typ":"at+jwt","x5c":["MII="]}`:                jose.ErrMalformed,
		`{"alg":"EdDSA","kid":"k1","typ":"at+jwt","crit":["exp"]}`:                jose.ErrMalformed,
		`{"alg":"EdDSA","kid":"k1","typ":"at+jwt","b64":false}`:                   jose.ErrMalformed,
		`{"alg":"EdDSA","kid":"k1","typ":"at+jwt","zip":"DEF"}`:                   jose.ErrMalformed,
		`{"alg":"EdDSA","kid":"k1","typ":"at+jwt","cty":"JWT"}`:                   jose.ErrMalformed,
		`{"alg":"none","alg":"EdDSA","kid":"k1","typ":"at+jwt"}`:                  jose.ErrMalformed,
		`{"Alg":"EdDSA","kid":"k1","typ":"at+jwt"}`:                               jose.ErrMalformed,
		`{"alg":"EdDSA","kid":"k1","typ":"at+jwt"} x`:                             jose.ErrMalformed,
		`["EdDSA"]`: jose.ErrMalformed,
		`null`:      jose.ErrMalformed,
		``:          jose.ErrMalformed,
	} {
		if _, _, err := jose.Verify(forge(key, header, claims), []jose.Key{s.Key()}); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", header, err, want)
		}
	}
}

func TestThePublicKeyIsNoHMACSecret(t *testing.T) {
	t.Parallel()
	s, _ := newSigner(t)
	pub := s.Key().Public.(ed25519.PublicKey)
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range [][]byte{pub, der, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})} {
		input := b64(`{"alg":"HS256","kid":"k1","typ":"at+jwt"}`) + "." + b64(claims)
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(input))
		if _, _, err := jose.Verify(input+"."+b64(string(mac.Sum(nil))), []jose.Key{s.Key()}); !errors.Is(err, jose.ErrAlgorithm) {
			t.Errorf("got %v", err)
		}
	}
}

func TestHostilePayloadsAndFormsAreRefused(t *testing.T) {
	t.Parallel()
	s, key := newSigner(t)
	const header = `{"alg":"EdDSA","kid":"k1","typ":"at+jwt"}`
	good := forge(key, header, claims)
	head, rest, _ := strings.Cut(good, ".")
	body, sig, _ := strings.Cut(rest, ".")
	for name, c := range map[string]struct {
		token string
		want  error
	}{
		"empty":              {"", jose.ErrMalformed},
		"two parts":          {head + "." + body, jose.ErrMalformed},
		"JWE":                {good + ".x.y", jose.ErrMalformed},
		"JSON serialisation": {`{"payload":"` + body + `"}`, jose.ErrMalformed},
		"no signature":       {head + "." + body + ".", jose.ErrMalformed},
		"padding":            {good + "==", jose.ErrMalformed},
		"line break":         {head + "." + body + ".\n" + sig, jose.ErrMalformed},
		"space":              {" " + good, jose.ErrMalformed},
		"standard alphabet":  {head + "." + body + "." + strings.Repeat("+/", 43), jose.ErrMalformed},
		"trailing bits":      {good[:len(good)-1] + bump(good[len(good)-1]), jose.ErrMalformed},
		"duplicate claim":    {forge(key, header, `{"aud":"a","aud":"b"}`), jose.ErrMalformed},
		"duplicate below":    {forge(key, header, `{"act":{"sub":"a","sub":"b"}}`), jose.ErrMalformed},
		"escaped duplicate":  {forge(key, header, `{"aud":"a","\u0061ud":"b"}`), jose.ErrMalformed},
		"invalid UTF-8":      {forge(key, header, "{\"sub\":\"\xff\"}"), jose.ErrMalformed},
		"lone surrogate":     {forge(key, header, `{"sub":"\ud800"}`), jose.ErrMalformed},
		"array":              {forge(key, header, `[]`), jose.ErrMalformed},
		"two objects":        {forge(key, header, `{}{}`), jose.ErrMalformed},
		"no claims":          {forge(key, header, ``), jose.ErrMalformed},
		"too large":          {forge(key, header, `{"x":"`+strings.Repeat("x", jose.MaxSize)+`"}`), jose.ErrTooLarge},
		"other body":         {head + "." + b64(`{"sub":"bob"}`) + "." + sig, jose.ErrSignature},
		"other signature":    {head + "." + body + "." + b64(strings.Repeat("s", 64)), jose.ErrSignature},
	} {
		if _, _, err := jose.Verify(c.token, []jose.Key{s.Key()}); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

// bump sets the lowest bit of the last character, which stands behind the last byte of 64.
func bump(c byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, c)|1])
}

func TestAKeyIsUsedOnlyWithItsOwnAlgorithm(t *testing.T) {
	t.Parallel()
	s, _ := newSigner(t)
	token, err := s.Mint(json.RawMessage(claims))
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]jose.Key{
		"says ES256":     {KID: "k1", Alg: jose.ES256, Public: s.Key().Public},
		"says nothing":   {KID: "k1", Public: s.Key().Public},
		"is P-384":       {KID: "k1", Alg: jose.EdDSA, Public: &p384.PublicKey},
		"is nil":         {KID: "k1", Alg: jose.EdDSA},
		"is bytes":       {KID: "k1", Alg: jose.EdDSA, Public: []byte("x")},
		"is short":       {KID: "k1", Alg: jose.EdDSA, Public: ed25519.PublicKey("x")},
		"is nil ECDSA":   {KID: "k1", Alg: jose.EdDSA, Public: (*ecdsa.PublicKey)(nil)},
		"is empty ECDSA": {KID: "k1", Alg: jose.EdDSA, Public: &ecdsa.PublicKey{}},
	} {
		if _, _, err := jose.Verify(token, []jose.Key{k}); !errors.Is(err, jose.ErrAlgorithm) {
			t.Errorf("a key that %s: got %v", name, err)
		}
	}
	// A name that was used for two keys, as in a careless rotation, finds the right one.
	other, _ := newSigner(t)
	if _, _, err := jose.Verify(token, []jose.Key{other.Key(), s.Key()}); err != nil {
		t.Fatal(err)
	}
}

func TestMintRefusesWhatVerifyWouldRefuse(t *testing.T) {
	t.Parallel()
	s, key := newSigner(t)
	for name, c := range map[string]any{
		"array": []int{1}, "duplicate": json.RawMessage(`{"a":1,"a":2}`), "function": func() {},
		"too large": map[string]string{"x": strings.Repeat("x", jose.MaxSize)}, "nothing": nil,
	} {
		if _, err := s.Mint(c); err == nil {
			t.Errorf("%s was minted", name)
		}
	}
	for _, kid := range []string{"", strings.Repeat("k", 129)} {
		if _, err := jose.NewSigner(key, kid); err == nil {
			t.Errorf("the name %q was taken", kid)
		}
	}
	if _, err := jose.NewSigner(nil, "k"); err == nil {
		t.Error("no key was taken")
	}
}

func FuzzVerify(f *testing.F) {
	s, key := newSigner(f)
	good, err := s.Mint(json.RawMessage(claims))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(forge(key, `{"alg":"none"}`, claims))
	f.Add("..")
	f.Add("e30.e30.")
	f.Fuzz(func(t *testing.T, token string) {
		got, _, err := jose.Verify(token, []jose.Key{s.Key()})
		if err == nil && token != good {
			t.Fatalf("a token that was never minted was taken: %s", got)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	s, _ := newSigner(b)
	token, err := s.Mint(json.RawMessage(claims))
	if err != nil {
		b.Fatal(err)
	}
	keys := []jose.Key{s.Key()}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := jose.Verify(token, keys); err != nil {
			b.Fatal(err)
		}
	}
}
