// Package ceremony changes the roots of an installation without bringing the root keys together: a proposal says what the
// next roots are, each holder signs it on their own machine, and whoever collects the signatures puts them together.
//
// Proposals and signatures are JSON that a person can read and compare; what is signed is the exact body that the cells
// will check, computed from the proposal by whoever signs it. Nothing here talks to a network.
package ceremony

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// The bounds of the files.
const (
	MaxProposal  = 128 << 10
	MaxSignature = 4 << 10
)

// What is refused; every error wraps one of these or one of snapshot/seal.
var (
	ErrFormat = errors.New("not what the ceremony writes")
	ErrKey    = errors.New("no such key, or it is there already")
	ErrOther  = errors.New("of another proposal")
)

const (
	proposalKind  = "mcpvault roots proposal"
	signatureKind = "mcpvault roots signature"
)

// Proposal is what the next roots shall say.
type Proposal struct {
	Kind    string `json:"kind"`
	Version uint64 `json:"version"`
	Epoch   uint64 `json:"epoch"`
	// Threshold of the root keys below have to sign the roots after these.
	Threshold uint32 `json:"threshold"`
	// Replaces is the SHA-256 of the roots that it was made from, hex; empty for the first.
	Replaces string `json:"replaces,omitempty"`
	Keys     []Key  `json:"keys"`
}

// Key is one key and what it may sign.
type Key struct {
	Role   string `json:"role"`
	ID     string `json:"id"`
	Since  uint64 `json:"since"`
	Public string `json:"ed25519"`
}

// Signature is one root key's over a proposal.
type Signature struct {
	Kind string `json:"kind"`
	// Body is the SHA-256 of what is signed, hex.
	Body  string `json:"body_sha256"`
	KeyID string `json:"key_id"`
	Sig   string `json:"signature"`
}

// Roles are the words for what keys may sign.
func Roles() []string { return []string{"root", "head", "heartbeat", "kill"} }

func roleOf(word string) (snapshotv1.KeyRole, bool) {
	at := slices.Index(Roles(), word)
	return snapshotv1.KeyRole(at + 1), at >= 0
}

// RoleName is the word for a role.
func RoleName(r snapshotv1.KeyRole) string {
	if at := int(r) - 1; at >= 0 && at < len(Roles()) {
		return Roles()[at]
	}
	return "unknown"
}

// First proposes the roots of a new installation.
func First(threshold uint32) *Proposal {
	return &Proposal{Kind: proposalKind, Version: 1, Epoch: 1, Threshold: threshold, Keys: []Key{}}
}

// After proposes what comes after sealed roots: the same, one version on.
func After(roots []byte) (*Proposal, error) {
	body, err := seal.RootsBody(roots)
	if err != nil {
		return nil, err
	}
	digest, err := seal.RootsDigest(roots)
	if err != nil {
		return nil, err
	}
	p := FromBody(body)
	p.Version++
	p.Replaces = digest.String()
	return p, nil
}

// FromBody writes what roots say in the form of a proposal.
func FromBody(body *snapshotv1.Roots) *Proposal {
	p := &Proposal{Kind: proposalKind, Version: body.GetVersion(), Epoch: body.GetEpoch(), Threshold: body.GetThreshold(), Keys: []Key{}}
	for _, k := range body.GetKeys() {
		p.Keys = append(p.Keys, Key{
			Role: RoleName(k.GetRole()), ID: k.GetKeyId(), Since: k.GetSince(), Public: base64.StdEncoding.EncodeToString(k.GetEd25519()),
		})
	}
	return p
}

// Add gives a role to a key, from the proposed version on.
func (p *Proposal) Add(role string, key ed25519.PublicKey) error {
	if _, known := roleOf(role); !known {
		return fmt.Errorf("role %q: %w", role, ErrFormat)
	}
	id := seal.KeyID(key)
	if slices.ContainsFunc(p.Keys, func(k Key) bool { return k.ID == id }) {
		return fmt.Errorf("key %s: %w", id, ErrKey)
	}
	p.Keys = append(p.Keys, Key{Role: role, ID: id, Since: p.Version, Public: base64.StdEncoding.EncodeToString(key)})
	return nil
}

// Remove withdraws a key.
func (p *Proposal) Remove(id string) error {
	at := slices.IndexFunc(p.Keys, func(k Key) bool { return k.ID == id })
	if at < 0 {
		return fmt.Errorf("key %s: %w", id, ErrKey)
	}
	p.Keys = slices.Delete(p.Keys, at, at+1)
	return nil
}

// RaiseEpoch makes every tenant's generations begin again from 1 under a higher epoch: whatever was published before, by
// whoever had the keys, can never replace what comes after.
func (p *Proposal) RaiseEpoch() { p.Epoch++ }

// Body is what is signed. A proposal that no cell would take is refused.
func (p *Proposal) Body() (*snapshotv1.Roots, error) {
	if p.Kind != proposalKind {
		return nil, fmt.Errorf("kind %.64q: %w", p.Kind, ErrFormat)
	}
	var keys []seal.RoleKey
	for _, k := range p.Keys {
		role, known := roleOf(k.Role)
		pub, err := base64.StdEncoding.Strict().DecodeString(k.Public)
		if !known || err != nil || len(pub) != ed25519.PublicKeySize || seal.KeyID(pub) != k.ID {
			return nil, fmt.Errorf("key %.64q of role %.64q: %w", k.ID, k.Role, ErrFormat)
		}
		keys = append(keys, seal.RoleKey{Role: role, Key: pub, Since: k.Since})
	}
	body := seal.BuildRoots(p.Version, snapshot.Epoch(p.Epoch), p.Threshold, keys...)
	for _, role := range Roles() {
		if !slices.ContainsFunc(p.Keys, func(k Key) bool { return k.Role == role }) {
			return nil, fmt.Errorf("no %s key: %w", role, ErrKey)
		}
	}
	return body, nil
}

// Digest is the SHA-256 of what is signed: what holders compare over the telephone.
func (p *Proposal) Digest() (snapshot.Digest, error) {
	body, err := p.Body()
	if err != nil {
		return snapshot.Digest{}, err
	}
	return seal.BodyDigest(body)
}

// Encode writes the proposal for people and for ParseProposal.
func (p *Proposal) Encode() ([]byte, error) { return encode(p) }

// ParseProposal reads what Encode wrote; unknown members are refused: nobody signs what they do not see.
func ParseProposal(b []byte) (*Proposal, error) {
	p := &Proposal{}
	if err := decode(b, MaxProposal, p); err != nil {
		return nil, fmt.Errorf("proposal: %w", err)
	}
	if p.Kind != proposalKind {
		return nil, fmt.Errorf("proposal of kind %.64q: %w", p.Kind, ErrFormat)
	}
	return p, nil
}

// Sign is a holder's signature.
func (p *Proposal) Sign(by *seal.Signer) (*Signature, error) {
	body, err := p.Body()
	if err != nil {
		return nil, err
	}
	part, err := seal.SignPart(body, by)
	if err != nil {
		return nil, err
	}
	digest, err := seal.BodyDigest(body)
	if err != nil {
		return nil, err
	}
	return &Signature{Kind: signatureKind, Body: digest.String(), KeyID: by.KeyID(), Sig: base64.StdEncoding.EncodeToString(part.GetSig())}, nil
}

// Encode writes the signature for ParseSignature.
func (s *Signature) Encode() ([]byte, error) { return encode(s) }

// ParseSignature reads what Encode wrote.
func ParseSignature(b []byte) (*Signature, error) {
	s := &Signature{}
	if err := decode(b, MaxSignature, s); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	if s.Kind != signatureKind {
		return nil, fmt.Errorf("signature of kind %.64q: %w", s.Kind, ErrFormat)
	}
	return s, nil
}

func encode(v any) ([]byte, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(b, '\n'), nil
}

func decode(b []byte, limit int, v any) error {
	if len(b) > limit {
		return fmt.Errorf("%d bytes, at most %d: %w", len(b), limit, seal.ErrSize)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("something follows it: %w", ErrFormat)
	}
	return nil
}
