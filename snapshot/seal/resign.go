package seal

import (
	"crypto/ed25519"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// Signers lists the ids of the keys that an envelope says it is signed by. It checks nothing: it tells which key has to be
// replaced, and never what is to be believed.
func Signers(env []byte) []string {
	var e snapshotv1.Envelope
	if proto.Unmarshal(env, &e) != nil {
		return nil
	}
	ids := make([]string, 0, len(e.GetSignatures()))
	for _, s := range e.GetSignatures() {
		ids = append(ids, s.GetKeyId())
	}
	return ids
}

// ResignKill seals the same kill, byte for byte, with another key, when t or one of the roots before it believes it. A kill
// is never taken back: that its key is retired must not undo it.
func (t *Trust) ResignKill(env []byte, by *Signer, before ...*Trust) ([]byte, error) {
	var err error
	for _, trust := range append([]*Trust{t}, before...) {
		if _, err = trust.OpenKill(env); err == nil {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("sign kill anew: %w", err)
	}
	o, err := open(env, TypeKill, MaxKill)
	if err != nil {
		return nil, fmt.Errorf("sign kill anew: %w", err)
	}
	return envelope(TypeKill, MaxKill, o.payload, []*snapshotv1.Signature{{KeyId: by.id, Sig: ed25519.Sign(by.key, o.msg)}})
}

// NewerKill reports whether the same kill is offered under the signature of a newer key than the one that is held.
func (t *Trust) NewerKill(held, offered []byte) bool { return t.killRank(offered) > t.killRank(held) }

// killRank is how new the newest kill key is that has signed; 0 when none has.
func (t *Trust) killRank(env []byte) int {
	o, err := open(env, TypeKill, MaxKill)
	if err != nil {
		return 0
	}
	newest := t.Newest(snapshotv1.KeyRole_KEY_ROLE_KILL)
	rank := 0
	for _, s := range o.sigs {
		at := slices.Index(newest, s.GetKeyId())
		if at >= 0 && len(newest)-at > rank && ed25519.Verify(t.keys[s.GetKeyId()].pub, o.msg, s.GetSig()) {
			rank = len(newest) - at
		}
	}
	return rank
}
