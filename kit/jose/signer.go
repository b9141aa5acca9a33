package jose

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"

	gojose "github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json/jsontext"
)

// Signer mints access tokens with one Ed25519 key. It may be used by many goroutines.
type Signer struct {
	kid    string
	public ed25519.PublicKey
	signer gojose.Signer
}

// NewSigner names the key kid, 1 to 128 bytes.
func NewSigner(key ed25519.PrivateKey, kid string) (*Signer, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("make a token signer: not an Ed25519 private key")
	}
	if kid == "" || len(kid) > maxKID {
		return nil, fmt.Errorf("make a token signer: a key's name has 1 to %d bytes", maxKID)
	}
	public, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("make a token signer: not an Ed25519 private key")
	}
	s, err := gojose.NewSigner(
		gojose.SigningKey{Algorithm: gojose.EdDSA, Key: gojose.JSONWebKey{Key: key, KeyID: kid}},
		(&gojose.SignerOptions{}).WithType(Type),
	)
	if err != nil {
		return nil, fmt.Errorf("make a token signer: %w", err)
	}
	return &Signer{kid: kid, public: public, signer: s}, nil
}

// Key verifies what the signer mints.
func (s *Signer) Key() Key { return Key{KID: s.kid, Alg: EdDSA, Public: s.public} }

// Mint signs claims, anything that encodes as a JSON object. What it returns is taken by Verify; claims that would not be
// (too large, a member twice) are an error.
func (s *Signer) Mint(claims any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("mint a token: encode the claims: %w", err)
	}
	if v := jsontext.Value(payload); v.Kind() != '{' || !v.IsValid() {
		return "", errors.New("mint a token: the claims are not one strict JSON object")
	}
	jws, err := s.signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("mint a token: %w", err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("mint a token: %w", err)
	}
	if len(token) > MaxSize {
		return "", fmt.Errorf("mint a token: %w", ErrTooLarge)
	}
	return token, nil
}
