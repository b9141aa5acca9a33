// Package seal signs what the control plane publishes and opens what a cell receives.
//
// A sealed thing is a DSSE envelope (secure-systems-lab/dsse, version 1): the signature covers the type of the payload as
// well as its bytes, so that a heartbeat cannot pass for a head. Signatures are Ed25519. Which key may sign what is said
// by Roots, which a threshold of offline root keys signs; a Trust is the Roots that a node believes.
//
// Opening refuses first what is too large, then what is not signed by a key of the right role, and only then decodes.
// It promises nothing about time: whether a head is in force is judged by CheckTime when it is to be activated. It keeps
// no state either: floors (a lower generation never replaces a higher one) are kept by whoever stores what was opened.
package seal

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/proto"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// What opening refuses. Every error of this package wraps one of these, or comes from a file.
var (
	ErrSignature = errors.New("no valid signature")
	ErrRole      = errors.New("signed by a key of another role")
	ErrSize      = errors.New("too large")
	ErrType      = errors.New("another type of payload")
	ErrFormat    = errors.New("malformed")
	ErrRollback  = errors.New("older than what is trusted")
	ErrEpoch     = errors.New("epoch that the roots do not know")
	ErrExpired   = errors.New("expired")
	ErrNotYet    = errors.New("not in force yet")
	ErrCell      = errors.New("made for another cell")
	ErrTenant    = errors.New("made for another tenant")
	ErrPin       = errors.New("not the pinned roots")
	ErrDigest    = errors.New("digest does not match")
)

// The payload types.
const (
	TypeRoots     = "application/vnd.mcpvault.roots.v1+proto"
	TypeHead      = "application/vnd.mcpvault.head.v1+proto"
	TypeManifest  = "application/vnd.mcpvault.manifest.v1+proto"
	TypeHeartbeat = "application/vnd.mcpvault.heartbeat.v1+proto"
	TypeKill      = "application/vnd.mcpvault.kill.v1+proto"
)

// The bounds of envelopes in bytes. A head has to fit a log entry of the cell.
const (
	MaxRoots     = 60 << 10
	MaxHead      = 60 << 10
	MaxManifest  = 1 << 20
	MaxHeartbeat = 4 << 10
	MaxKill      = 8 << 10

	maxSignatures = 16
)

// pae is the pre-authentication encoding: what is signed.
func pae(payloadType string, payload []byte) []byte {
	b := make([]byte, 0, len(payloadType)+len(payload)+48)
	b = append(b, "DSSEv1 "...)
	b = strconv.AppendInt(b, int64(len(payloadType)), 10)
	b = append(b, ' ')
	b = append(b, payloadType...)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(len(payload)), 10)
	b = append(b, ' ')
	return append(b, payload...)
}

// sign makes an envelope; the same body and keys give the same bytes.
func sign(payloadType string, limit int, body proto.Message, signers []*Signer) ([]byte, error) {
	if len(signers) == 0 || len(signers) > maxSignatures {
		return nil, fmt.Errorf("%d signers: %w", len(signers), ErrSignature)
	}
	payload, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", payloadType, err)
	}
	msg := pae(payloadType, payload)
	var sigs []*snapshotv1.Signature
	for _, s := range signers {
		sigs = append(sigs, &snapshotv1.Signature{KeyId: s.id, Sig: ed25519.Sign(s.key, msg)})
	}
	return envelope(payloadType, limit, payload, sigs)
}

func envelope(payloadType string, limit int, payload []byte, sigs []*snapshotv1.Signature) ([]byte, error) {
	env := &snapshotv1.Envelope{PayloadType: payloadType, Payload: payload, Signatures: sigs}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(env)
	if err != nil {
		return nil, fmt.Errorf("encode envelope: %w", err)
	}
	if len(b) > limit {
		return nil, fmt.Errorf("envelope of %d bytes, at most %d: %w", len(b), limit, ErrSize)
	}
	return b, nil
}

// opened is an envelope of the right type whose signatures were not checked yet.
type opened struct {
	payload []byte
	msg     []byte
	sigs    []*snapshotv1.Signature
}

func open(env []byte, payloadType string, limit int) (*opened, error) {
	if len(env) > limit {
		return nil, fmt.Errorf("envelope of %d bytes, at most %d: %w", len(env), limit, ErrSize)
	}
	var e snapshotv1.Envelope
	if err := proto.Unmarshal(env, &e); err != nil {
		return nil, fmt.Errorf("envelope: %w", ErrFormat)
	}
	if e.GetPayloadType() != payloadType {
		return nil, fmt.Errorf("payload type %.64q, want %q: %w", e.GetPayloadType(), payloadType, ErrType)
	}
	if len(e.GetSignatures()) > maxSignatures {
		return nil, fmt.Errorf("%d signatures, at most %d: %w", len(e.GetSignatures()), maxSignatures, ErrSize)
	}
	return &opened{payload: e.GetPayload(), msg: pae(payloadType, e.GetPayload()), sigs: e.GetSignatures()}, nil
}

// verify counts the distinct keys of a role that signed and compares with the threshold. Signatures of unknown keys are
// nobody's business; they are ignored.
func (o *opened) verify(keys map[string]roleKey, role snapshotv1.KeyRole, threshold int) error {
	good := map[string]bool{}
	otherRole := false
	for _, s := range o.sigs {
		k, known := keys[s.GetKeyId()]
		switch {
		case !known || good[s.GetKeyId()]:
		case k.role != role:
			otherRole = otherRole || ed25519.Verify(k.pub, o.msg, s.GetSig())
		case ed25519.Verify(k.pub, o.msg, s.GetSig()):
			good[s.GetKeyId()] = true
		}
	}
	switch {
	case threshold > 0 && len(good) >= threshold:
		return nil
	case otherRole && len(good) == 0:
		return ErrRole
	}
	return fmt.Errorf("%d of %d signatures: %w", len(good), threshold, ErrSignature)
}

func (o *opened) decode(body proto.Message) error {
	if err := proto.Unmarshal(o.payload, body); err != nil {
		return fmt.Errorf("payload: %w", ErrFormat)
	}
	return nil
}

// HeadDigest is the SHA-256 of a head's payload: what a manifest and the next head's parent name it by. It checks no
// signature.
func HeadDigest(env []byte) (snapshot.Digest, error) {
	o, err := open(env, TypeHead, MaxHead)
	if err != nil {
		return snapshot.Digest{}, fmt.Errorf("head digest: %w", err)
	}
	return snapshot.DigestOf(o.payload), nil
}

// RootsDigest is the SHA-256 of the payload of roots: what a join token pins. It checks no signature.
func RootsDigest(env []byte) (snapshot.Digest, error) {
	o, err := open(env, TypeRoots, MaxRoots)
	if err != nil {
		return snapshot.Digest{}, fmt.Errorf("roots digest: %w", err)
	}
	return snapshot.DigestOf(o.payload), nil
}

// SamePayload reports whether two envelopes carry the same bytes of the same type, whoever signed them.
func SamePayload(a, b []byte) bool {
	var x, y snapshotv1.Envelope
	return proto.Unmarshal(a, &x) == nil && proto.Unmarshal(b, &y) == nil &&
		x.GetPayloadType() == y.GetPayloadType() && bytes.Equal(x.GetPayload(), y.GetPayload())
}
