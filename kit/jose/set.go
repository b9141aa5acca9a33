package jose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"

	gojose "github.com/go-jose/go-jose/v4"
	jsonv2 "github.com/go-json-experiment/json"
)

// The bounds of a key set.
const (
	// MaxSetSize is in bytes.
	MaxSetSize = 256 << 10
	// MaxSetKeys counts the keys that can be used.
	MaxSetKeys = 64
)

// ParseSet reads an issuer's key set (RFC 7517, section 5). Keys that are not for verifying signatures, have no name, or
// are of a kind that is not used here, are passed over, as the RFC asks; one that is there twice counts once. An RSA key
// that does not say for which algorithm it is may be used with both.
func ParseSet(raw []byte) ([]Key, error) {
	if len(raw) > MaxSetSize {
		return nil, fmt.Errorf("key set is larger than %d bytes", MaxSetSize)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := jsonv2.Unmarshal(raw, &set); err != nil {
		return nil, fmt.Errorf("key set: %w", err)
	}
	if set.Keys == nil {
		return nil, errors.New("key set has no keys member")
	}
	var keys []Key
	type once struct {
		kid, alg string
		sum      [sha256.Size]byte
	}
	seen := map[once]bool{}
	for _, one := range set.Keys {
		var k gojose.JSONWebKey
		// A key that the library does not know is one that nobody here can use.
		if json.Unmarshal(one, &k) != nil || !k.IsPublic() || k.KeyID == "" || len(k.KeyID) > maxKID || (k.Use != "" && k.Use != "sig") {
			continue
		}
		for _, alg := range algorithms(k.Key, k.Algorithm) {
			key := Key{KID: k.KeyID, Alg: alg, Public: k.Key}
			sum, err := key.Thumbprint()
			if !key.fits() || err != nil || seen[once{k.KeyID, alg, sum}] {
				continue
			}
			seen[once{k.KeyID, alg, sum}] = true
			if keys = append(keys, key); len(keys) > MaxSetKeys {
				return nil, fmt.Errorf("key set has more than %d keys", MaxSetKeys)
			}
		}
	}
	return keys, nil
}

// algorithms are those that a key may be used with.
func algorithms(pub crypto.PublicKey, says string) []string {
	var all []string
	switch pub.(type) {
	case ed25519.PublicKey:
		if says == "Ed25519" { // RFC 9864's word for it
			says = EdDSA
		}
		all = []string{EdDSA}
	case *ecdsa.PublicKey:
		all = []string{ES256}
	case *rsa.PublicKey:
		all = []string{RS256, PS256}
	}
	if says == "" {
		return all
	}
	for _, alg := range all {
		if alg == says {
			return []string{alg}
		}
	}
	return nil
}

// Thumbprint is the SHA-256 of the key's bytes (SubjectPublicKeyInfo, DER): the same under whatever name it goes.
func (k Key) Thumbprint() ([sha256.Size]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(k.Public)
	return sha256.Sum256(der), err
}
