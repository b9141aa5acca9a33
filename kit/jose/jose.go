// Package jose mints and verifies access tokens: compact JWS (RFC 7515) that carry a JWT (RFC 7519) of the type at+jwt
// (RFC 9068). It is the only door to the JOSE library and lets little of it through: four signature algorithms, three
// header members, one serialisation, and the key sets of other issuers.
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
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	gojose "github.com/go-jose/go-jose/v4"
	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// The algorithms. Others are refused before any key is looked at. Our own tokens are EdDSA.
const (
	EdDSA = "EdDSA"
	ES256 = "ES256"
	RS256 = "RS256"
	PS256 = "PS256"
)

// The length of an RSA key's modulus, in bits. Longer ones would have the caller choose how long a verification takes.
const (
	minRSA = 2048
	maxRSA = 4096
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
	// Alg is the one algorithm that this key is used with.
	Alg string
	// Public is an ed25519.PublicKey, an *ecdsa.PublicKey on P-256 or an *rsa.PublicKey of 2048 to 4096 bits.
	Public crypto.PublicKey
}

// fits reports whether the key is what its algorithm needs.
func (k Key) fits() bool {
	switch pub := k.Public.(type) {
	case ed25519.PublicKey:
		return k.Alg == EdDSA && len(pub) == ed25519.PublicKeySize
	case *ecdsa.PublicKey:
		return k.Alg == ES256 && pub != nil && pub.Curve == elliptic.P256()
	case *rsa.PublicKey:
		return (k.Alg == RS256 || k.Alg == PS256) && pub != nil && pub.N.BitLen() >= minRSA && pub.N.BitLen() <= maxRSA
	}
	return false
}

// Unverified is a token whose form is right and whose signature has not been looked at.
type Unverified struct {
	// KID and Alg are the header's; Alg is one of the allowed ones.
	KID, Alg string
	// Access says that the header's typ is that of an access token.
	Access bool
	token  string
	claims jsontext.Value
}

// Parse checks everything about a token that needs no key.
func Parse(token string) (*Unverified, error) {
	u, err := ParseAny(token)
	if err == nil && !u.Access {
		return nil, ErrType
	}
	return u, err
}

// ParseAny is Parse for a token that need not call itself an access token: some issuers write JWT, or nothing, as typ. It
// is for the caller to know that this issuer is one of them.
func ParseAny(token string) (*Unverified, error) {
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
	if err := u.readHeader(head); err != nil {
		return nil, err
	}
	if u.claims, err = decodeObject(parts[1]); err != nil {
		return nil, fmt.Errorf("%w: claims: %w", ErrMalformed, err)
	}
	if b, err := decode(parts[2]); err != nil || !signatureFits(u.Alg, len(b)) {
		return nil, fmt.Errorf("%w: signature is not as long as %s makes them", ErrMalformed, u.Alg)
	}
	return u, nil
}

func signatureFits(alg string, n int) bool {
	if alg == RS256 || alg == PS256 {
		return n >= minRSA/8 && n <= maxRSA/8
	}
	return n == 64
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
// jku, x5u and x5c offer a key of the sender's, crit and b64 change what was signed, zip unpacks. A thumbprint of the
// issuer's certificate offers nothing, and some issuers send one.
func (u *Unverified) readHeader(head jsontext.Value) error {
	var h struct {
		Alg     string         `json:"alg"`
		KID     string         `json:"kid"`
		Typ     string         `json:"typ"`
		X5T     jsontext.Value `json:"x5t"`
		X5TS256 jsontext.Value `json:"x5t#S256"`
	}
	if err := jsonv2.Unmarshal(head, &h, jsonv2.RejectUnknownMembers(true)); err != nil {
		return fmt.Errorf("%w: header: %w", ErrMalformed, err)
	}
	if !slices.Contains([]string{EdDSA, ES256, RS256, PS256}, h.Alg) {
		return ErrAlgorithm
	}
	// A media type is compared without case and may be written in full (RFC 7515, 4.1.9).
	switch strings.ToLower(h.Typ) {
	case Type, "application/" + Type:
		u.Access = true
	case "", "jwt", "application/jwt":
	default:
		return ErrType
	}
	if h.KID == "" {
		return ErrUnknownKey
	}
	if len(h.KID) > maxKID {
		return fmt.Errorf("%w: kid is longer than %d bytes", ErrMalformed, maxKID)
	}
	u.KID, u.Alg = h.KID, h.Alg
	return nil
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
