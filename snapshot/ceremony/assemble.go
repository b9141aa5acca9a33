package ceremony

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// Count is how far the signatures of a proposal go.
type Count struct {
	// Old of OldNeeded signatures of the roots before, New of NewNeeded of its own. Without roots before, Old is not needed.
	Old, OldNeeded, New, NewNeeded int
}

// Enough reports whether cells would take it.
func (c Count) Enough() bool { return c.Old >= c.OldNeeded && c.New >= c.NewNeeded }

func (c Count) String() string {
	if c.OldNeeded == 0 {
		return fmt.Sprintf("%d of %d signatures", c.New, c.NewNeeded)
	}
	return fmt.Sprintf("%d of %d signatures of the roots before, %d of %d of its own keys", c.Old, c.OldNeeded, c.New, c.NewNeeded)
}

// Assemble puts a proposal and its signatures together: the sealed roots, when they are enough for the roots before (nil
// for a first proposal) and for its own. A signature that is not of this proposal, of no root key, or false is an error:
// somebody signed something else.
func Assemble(p *Proposal, before []byte, signatures ...*Signature) (roots []byte, n Count, err error) {
	body, err := p.Body()
	if err != nil {
		return nil, n, err
	}
	oldKeys := map[string]ed25519.PublicKey{}
	var trust *seal.Trust
	if before != nil {
		if trust, oldKeys, err = old(p, before); err != nil {
			return nil, n, err
		}
		n.OldNeeded = trust.Threshold()
	}
	newKeys := rootKeys(body)
	n.NewNeeded = int(p.Threshold)
	var parts []*snapshotv1.Signature
	seen := map[string]bool{}
	for _, s := range signatures {
		part, err := verify(body, s, oldKeys, newKeys)
		if err != nil {
			return nil, n, err
		}
		if seen[s.KeyID] {
			continue
		}
		seen[s.KeyID] = true
		parts = append(parts, part)
		if oldKeys[s.KeyID] != nil {
			n.Old++
		}
		if newKeys[s.KeyID] != nil {
			n.New++
		}
	}
	if !n.Enough() {
		return nil, n, fmt.Errorf("%v: %w", n, seal.ErrSignature)
	}
	env, err := seal.JoinRoots(body, parts...)
	if err != nil {
		return nil, n, err
	}
	// What is handed out is what a cell will take: asked of the very code that a cell runs.
	if trust != nil {
		_, err = trust.OpenRoots(env)
	} else {
		_, err = openFirst(env)
	}
	return env, n, err
}

func openFirst(env []byte) (*seal.Trust, error) {
	pin, err := seal.RootsDigest(env)
	if err != nil {
		return nil, err
	}
	return seal.OpenRoots(env, pin)
}

// old reads the roots before, which are those that the proposal was made from.
func old(p *Proposal, before []byte) (*seal.Trust, map[string]ed25519.PublicKey, error) {
	trust, err := openFirst(before)
	if err != nil {
		return nil, nil, fmt.Errorf("roots before: %w", err)
	}
	if trust.Digest().String() != p.Replaces {
		return nil, nil, fmt.Errorf("the proposal replaces roots %.16s, these are %.16s: %w", p.Replaces, trust.Digest(), ErrOther)
	}
	body, err := seal.RootsBody(before)
	if err != nil {
		return nil, nil, err
	}
	return trust, rootKeys(body), nil
}

func rootKeys(body *snapshotv1.Roots) map[string]ed25519.PublicKey {
	keys := map[string]ed25519.PublicKey{}
	for _, k := range body.GetKeys() {
		if k.GetRole() == snapshotv1.KeyRole_KEY_ROLE_ROOT {
			keys[k.GetKeyId()] = k.GetEd25519()
		}
	}
	return keys
}

func verify(body *snapshotv1.Roots, s *Signature, sets ...map[string]ed25519.PublicKey) (*snapshotv1.Signature, error) {
	digest, err := seal.BodyDigest(body)
	if err != nil {
		return nil, err
	}
	if s.Body != digest.String() {
		return nil, fmt.Errorf("signature of key %.16s is over %.16s, this proposal is %.16s: %w", s.KeyID, s.Body, digest, ErrOther)
	}
	sig, err := base64.StdEncoding.Strict().DecodeString(s.Sig)
	if err != nil {
		return nil, fmt.Errorf("signature of key %.16s: %w", s.KeyID, ErrFormat)
	}
	part := &snapshotv1.Signature{KeyId: s.KeyID, Sig: sig}
	for _, keys := range sets {
		if key := keys[s.KeyID]; key != nil {
			if !seal.SignsRoots(body, part, key) {
				return nil, fmt.Errorf("signature of key %.16s is false: %w", s.KeyID, seal.ErrSignature)
			}
			return part, nil
		}
	}
	return nil, fmt.Errorf("key %.16s is no root key, before or after: %w", s.KeyID, seal.ErrRole)
}

// Changes says in words what a proposal changes, one line each, so that a holder sees what they sign. before is nil for a
// first proposal.
func Changes(before *Proposal, p *Proposal) []string {
	var out []string
	if before == nil {
		before = &Proposal{}
		out = append(out, fmt.Sprintf("roots of a new installation, %d of its root keys sign the next ones", p.Threshold))
	} else {
		out = append(out, fmt.Sprintf("version %d -> %d", before.Version, p.Version))
		if before.Epoch != p.Epoch {
			out = append(out, fmt.Sprintf("epoch %d -> %d: every tenant's generations begin again, nothing older comes back", before.Epoch, p.Epoch))
		}
		if before.Threshold != p.Threshold {
			out = append(out, fmt.Sprintf("threshold %d -> %d root keys", before.Threshold, p.Threshold))
		}
	}
	was, is := byID(before), byID(p)
	for _, k := range before.Keys {
		if _, stays := is[k.ID]; !stays {
			out = append(out, fmt.Sprintf("- %s key %s", k.Role, k.ID))
		}
	}
	for _, k := range p.Keys {
		old, known := was[k.ID]
		switch {
		case !known:
			out = append(out, fmt.Sprintf("+ %s key %s", k.Role, k.ID))
		case old != k:
			out = append(out, fmt.Sprintf("! key %s: %s since %d -> %s since %d", k.ID, old.Role, old.Since, k.Role, k.Since))
		}
	}
	return out
}

func byID(p *Proposal) map[string]Key {
	all := make(map[string]Key, len(p.Keys))
	for _, k := range p.Keys {
		all[k.ID] = k
	}
	return all
}
