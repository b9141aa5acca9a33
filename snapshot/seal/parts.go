package seal

import (
	"crypto/ed25519"
	"fmt"

	"google.golang.org/protobuf/proto"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// SignPart is one root key's signature over roots: what each holder hands in when they do not meet.
func SignPart(body *snapshotv1.Roots, by *Signer) (*snapshotv1.Signature, error) {
	payload, err := rootsPayload(body)
	if err != nil {
		return nil, fmt.Errorf("sign roots: %w", err)
	}
	return &snapshotv1.Signature{KeyId: by.id, Sig: ed25519.Sign(by.key, pae(TypeRoots, payload))}, nil
}

// JoinRoots puts roots and the signatures of their holders together. Whether those are enough is for OpenRoots to say.
func JoinRoots(body *snapshotv1.Roots, parts ...*snapshotv1.Signature) ([]byte, error) {
	payload, err := rootsPayload(body)
	if err != nil {
		return nil, fmt.Errorf("join roots: %w", err)
	}
	if len(parts) == 0 || len(parts) > maxSignatures {
		return nil, fmt.Errorf("join roots: %d signatures: %w", len(parts), ErrSignature)
	}
	env, err := envelope(TypeRoots, MaxRoots, payload, parts)
	if err != nil {
		return nil, fmt.Errorf("join roots: %w", err)
	}
	return env, nil
}

// SignsRoots reports whether a signature over roots is that of a key.
func SignsRoots(body *snapshotv1.Roots, part *snapshotv1.Signature, key ed25519.PublicKey) bool {
	payload, err := rootsPayload(body)
	return err == nil && len(key) == ed25519.PublicKeySize && KeyID(key) == part.GetKeyId() && ed25519.Verify(key, pae(TypeRoots, payload), part.GetSig())
}

// RootsBody is what roots say. It checks no signature.
func RootsBody(env []byte) (*snapshotv1.Roots, error) {
	o, err := open(env, TypeRoots, MaxRoots)
	if err != nil {
		return nil, fmt.Errorf("read roots: %w", err)
	}
	body := &snapshotv1.Roots{}
	if err := o.decode(body); err != nil {
		return nil, fmt.Errorf("read roots: %w", err)
	}
	if _, err := trustOf(body); err != nil {
		return nil, fmt.Errorf("read roots: %w", err)
	}
	return body, nil
}

// BodyDigest is the SHA-256 of the payload that these roots will have: what RootsDigest says of them once they are signed.
func BodyDigest(body *snapshotv1.Roots) (snapshot.Digest, error) {
	payload, err := rootsPayload(body)
	return snapshot.DigestOf(payload), err
}

func rootsPayload(body *snapshotv1.Roots) ([]byte, error) {
	if _, err := trustOf(body); err != nil {
		return nil, err
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(body)
}
