// Package jose mints and verifies access tokens: compact JWS (RFC 7515) that carry a JWT (RFC 7519) of the type at+jwt
// (RFC 9068). It is the only door to the JOSE library and lets little of it through: two signature algorithms, three
// header members, one serialisation.
//
// It promises that the claims it returns were signed by one of the keys that were given, with the algorithm that this key
// is for, and that every JSON reader reads them alike: valid UTF-8, no member twice. What the claims mean (who, for whom,
// until when) is the caller's.
package jose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	gojose "github.com/go-jose/go-jose/v4"
	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// The algorithms. Others are refused before any key is looked at.
const (
	EdDSA = "EdDSA"
	ES256 = "ES256"
)

const (
	// Type is the header's typ of an access token.
	Type = "at+jwt"
	// MaxSize bounds a token, in bytes.
	MaxSize = 16 << 10
	// maxKID bounds a key's name, in bytes.
	maxKID = 128
)

// Why a token is refused. Errors wrap one of these.
var (
	ErrTooLarge   = errors.New("token is larger than 16 KiB")
	ErrMalformed  = errors.New("token is malformed")
	ErrAlgorithm  = errors.New("token's algorithm is not allowed")
	ErrType       = errors.New("token is not an access token")
	ErrUnknownKey = errors.New("token's key is unknown")
	ErrSignature  = errors.New("token's signature is wrong")
)

// Key verifies signatures.
type Key struct {
	// KID is the key's name in a token's header.
	KID string
	// Alg is EdDSA or ES256, the only one that this key is used with.
	Alg string
	// Public is an ed25519.PublicKey or an *ecdsa.PublicKey on P-256.
	Public crypto.PublicKey
}

// fits reports whether the key is what its algorithm needs.
func (k Key) fits() bool {
	switch pub := k.Public.(type) {
	case ed25519.PublicKey:
		return k.Alg == EdDSA && len(pub) == ed25519.PublicKeySize
	case *ecdsa.PublicKey:
		return k.Alg == ES256 && pub != nil && pub.Curve == elliptic.P256()
	}
	return false
}

// Unverified is a token whose form is right and whose signature has not been looked at.
type Unverified struct {
	// KID and Alg are the header's; Alg is one of the allowed ones.
	KID, Alg string
	token    string
	claims   jsontext.Value
}

// Parse checks everything about a token that needs no key.
func Parse(token string) (*Unverified, error) {
	if len(token) > MaxSize {
		return nil, ErrTooLarge
	}
	parts := strings.Split(token, ".")
	const compact = 3
	if len(parts) != compact {
		return nil, fmt.Errorf("%w: it has %d parts", ErrMalformed, len(parts))
	}
	head, err := decodeObject(parts[0])
	if err != nil {
		return nil, fmt.Errorf("%w: header: %w", ErrMalformed, err)
	}
	u := &Unverified{token: token}
	if u.KID, u.Alg, err = readHeader(head); err != nil {
		return nil, err
	}
	if u.claims, err = decodeObject(parts[1]); err != nil {
		return nil, fmt.Errorf("%w: claims: %w", ErrMalformed, err)
	}
	const signature = 64 // both algorithms' signatures are this long
	if b, err := decode(parts[2]); err != nil || len(b) != signature {
		return nil, fmt.Errorf("%w: signature is not %d bytes", ErrMalformed, signature)
	}
	return u, nil
}

// UnverifiedClaims are what the token says. They serve to find the keys that it must be verified with, and nothing else.
func (u *Unverified) UnverifiedClaims() json.RawMessage { return json.RawMessage(u.claims) }

// Verify returns the claims when one of the keys has signed them. Keys of another name or algorithm are not tried.
func (u *Unverified) Verify(keys []Key) (json.RawMessage, error) {
	why := ErrUnknownKey
	for _, k := range keys {
		if k.KID != u.KID {
			continue
		}
		if k.Alg != u.Alg || !k.fits() {
			why = ErrAlgorithm
			continue
		}
		jws, err := gojose.ParseSignedCompact(u.token, []gojose.SignatureAlgorithm{gojose.SignatureAlgorithm(k.Alg)})
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		claims, err := jws.Verify(k.Public)
		if err == nil {
			return claims, nil
		}
		why = ErrSignature
	}
	return nil, why
}

// Verify parses and verifies a token in one step, and returns its claims and its key's name.
func Verify(token string, keys []Key) (claims json.RawMessage, kid string, err error) {
	u, err := Parse(token)
	if err != nil {
		return nil, "", err
	}
	if claims, err = u.Verify(keys); err != nil {
		return nil, "", err
	}
	return claims, u.KID, nil
}

// readHeader takes a header of alg, kid and typ. Everything else is refused and not merely ignored: members such as jwk,
// jku, x5u and x5c offer a key of the sender's, crit and b64 change what was signed, zip unpacks.
func readHeader(head jsontext.Value) (kid, alg string, err error) {
	var h struct {
		Alg string `json:"alg"`
		KID string `json:"kid"`
		Typ string `json:"typ"`
	}
	if err := jsonv2.Unmarshal(head, &h, jsonv2.RejectUnknownMembers(true)); err != nil {
		return "", "", fmt.Errorf("%w: header: %w", ErrMalformed, err)
	}
	if h.Alg != EdDSA && h.Alg != ES256 {
		return "", "", ErrAlgorithm
	}
	// A media type is compared without case and may be written in full (RFC 7515, 4.1.9).
	if typ := strings.ToLower(h.Typ); typ != Type && typ != "application/"+Type {
		return "", "", ErrType
	}
	if h.KID == "" {
		return "", "", ErrUnknownKey
	}
	if len(h.KID) > maxKID {
		return "", "", fmt.Errorf("%w: kid is longer than %d bytes", ErrMalformed, maxKID)
	}
	return h.KID, h.Alg, nil
}

// decodeObject decodes one JSON object, in which no member may stand twice at any depth.
func decodeObject(part string) (jsontext.Value, error) {
	b, err := decode(part)
	if err != nil {
		return nil, err
	}
	v := jsontext.Value(b)
	// IsValid refuses duplicate names, invalid UTF-8 and trailing data.
	if v.Kind() != '{' || !v.IsValid() {
		return nil, errors.New("not one strict JSON object")
	}
	return v, nil
}

// decode is strict: the library's decoder skips line breaks and takes set bits behind the end, so that many texts would
// stand for the same bytes.
func decode(part string) ([]byte, error) {
	if strings.ContainsAny(part, "\r\n") {
		return nil, errors.New("line break in base64")
	}
	return base64.RawURLEncoding.Strict().DecodeString(part)
}
