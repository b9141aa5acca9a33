package jose_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/kit/jose"
)

func jwkOf(pub crypto.PublicKey, members string) string {
	enc := base64.RawURLEncoding.EncodeToString
	switch k := pub.(type) {
	case ed25519.PublicKey:
		return fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","x":%q,%s}`, enc(k), members)
	case *rsa.PublicKey:
		return fmt.Sprintf(`{"kty":"RSA","n":%q,"e":%q,%s}`, enc(k.N.Bytes()), enc(big.NewInt(int64(k.E)).Bytes()), members)
	case *ecdsa.PublicKey:
		b, _ := k.Bytes()
		n := (len(b) - 1) / 2
		return fmt.Sprintf(`{"kty":"EC","crv":%q,"x":%q,"y":%q,%s}`, k.Params().Name, enc(b[1:1+n]), enc(b[1+n:]), members)
	}
	return ""
}

func TestAKeySetYieldsTheKeysThatCanBeUsedHere(t *testing.T) {
	t.Parallel()
	ed, _, _ := ed25519.GenerateKey(nil)
	r, _ := rsa.GenerateKey(rand.Reader, 2048)
	short, _ := rsa.GenerateKey(rand.Reader, 1024)
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	set := `{"keys":[` + strings.Join([]string{
		jwkOf(ed, `"kid":"ed"`), jwkOf(ed, `"kid":"ed"`), jwkOf(ed, `"kid":"ed2","alg":"Ed25519"`),
		jwkOf(&r.PublicKey, `"kid":"rsa"`), jwkOf(&r.PublicKey, `"kid":"rsa-ps","alg":"PS256","use":"sig"`),
		jwkOf(&r.PublicKey, `"kid":"enc","use":"enc"`), jwkOf(&r.PublicKey, `"kid":"rs512","alg":"RS512"`), jwkOf(&r.PublicKey, `"use":"sig"`),
		jwkOf(&short.PublicKey, `"kid":"short"`), jwkOf(&p256.PublicKey, `"kid":"p256"`), jwkOf(&p384.PublicKey, `"kid":"p384"`),
		`{"kty":"oct","kid":"secret","k":"c2VjcmV0"}`, `{"kty":"new","kid":"n"}`, `7`,
	}, ",") + `],"else":1}`
	keys, err := jose.ParseSet([]byte(set))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, k := range keys {
		got = append(got, k.KID+"/"+k.Alg)
	}
	if want := "ed/EdDSA ed2/EdDSA rsa/RS256 rsa/PS256 rsa-ps/PS256 p256/ES256"; strings.Join(got, " ") != want {
		t.Errorf("got %s, want %s", got, want)
	}
	a, _ := keys[0].Thumbprint()
	b, _ := keys[1].Thumbprint()
	if a != b {
		t.Error("a key under another name is another key")
	}
	for name, raw := range map[string]string{
		"no object": `[]`, "no keys": `{}`, "cut": `{"keys":[`, "twice": `{"keys":[],"keys":[]}`, "large": strings.Repeat(" ", jose.MaxSetSize+1),
	} {
		if _, err := jose.ParseSet([]byte(raw)); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	var many []string
	for i := range jose.MaxSetKeys + 1 {
		many = append(many, jwkOf(ed, fmt.Sprintf(`"kid":"k%d"`, i)))
	}
	if _, err := jose.ParseSet([]byte(`{"keys":[` + strings.Join(many, ",") + `]}`)); err == nil {
		t.Error("more keys than there may be were taken")
	}
}

func TestRSASignaturesVerify(t *testing.T) {
	t.Parallel()
	key, _ := rsa.GenerateKey(rand.Reader, 2048)
	sign := func(alg string) string {
		input := b64(`{"alg":"`+alg+`","kid":"r","typ":"at+jwt"}`) + "." + b64(claims)
		sum := sha256.Sum256([]byte(input))
		var sig []byte
		var err error
		if alg == jose.PS256 {
			sig, err = rsa.SignPSS(rand.Reader, key, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		} else {
			sig, err = rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
		}
		if err != nil {
			t.Fatal(err)
		}
		return input + "." + b64(string(sig))
	}
	for _, alg := range []string{jose.RS256, jose.PS256} {
		of := func(alg string) []jose.Key { return []jose.Key{{KID: "r", Alg: alg, Public: &key.PublicKey}} }
		token := sign(alg)
		if _, _, err := jose.Verify(token, of(alg)); err != nil {
			t.Errorf("%s: %v", alg, err)
		}
		other := map[string]string{jose.RS256: jose.PS256, jose.PS256: jose.RS256}[alg]
		if _, _, err := jose.Verify(token, of(other)); !errors.Is(err, jose.ErrAlgorithm) {
			t.Errorf("%s with a key for %s: %v", alg, other, err)
		}
		changed := token[:len(token)-8] + "AAAAAAAA"
		if _, _, err := jose.Verify(changed, of(alg)); err == nil {
			t.Errorf("%s: a changed signature was taken", alg)
		}
	}
}

func TestATokenOfAnyTypeMustBeAskedFor(t *testing.T) {
	t.Parallel()
	s, key := newSigner(t)
	for header, access := range map[string]bool{
		`{"alg":"EdDSA","kid":"k1","typ":"at+jwt"}`: true, `{"alg":"EdDSA","kid":"k1","typ":"JWT","x5t":"AA"}`: false, `{"alg":"EdDSA","kid":"k1"}`: false,
	} {
		token := forge(key, header, claims)
		u, err := jose.ParseAny(token)
		if err != nil || u.Access != access {
			t.Errorf("%s: %+v, %v", header, u, err)
		}
		if _, _, err := jose.Verify(token, []jose.Key{s.Key()}); (err == nil) != access {
			t.Errorf("%s: %v", header, err)
		}
	}
	if _, err := jose.ParseAny(forge(key, `{"alg":"EdDSA","kid":"k1","typ":"dpop+jwt"}`, claims)); !errors.Is(err, jose.ErrType) {
		t.Errorf("got %v", err)
	}
}

func FuzzParseSet(f *testing.F) {
	ed, _, _ := ed25519.GenerateKey(nil)
	f.Add([]byte(`{"keys":[` + jwkOf(ed, `"kid":"a"`) + `]}`))
	f.Add([]byte(`{"keys":[{"kty":"RSA","kid":"r","n":"AQ","e":"AQAB"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		keys, err := jose.ParseSet(raw)
		if err != nil {
			return
		}
		if len(keys) > jose.MaxSetKeys {
			t.Fatalf("%d keys", len(keys))
		}
		for _, k := range keys {
			if _, err := k.Thumbprint(); err != nil || k.KID == "" {
				t.Fatalf("%+v: %v", k, err)
			}
		}
	})
}
