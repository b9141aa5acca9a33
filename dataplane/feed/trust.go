package feed

import (
	"errors"
	"fmt"
	"sync/atomic"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// Trust holds the roots that this node believes. It only moves forward, by the rules of seal.
type Trust struct {
	cur atomic.Pointer[roots]
	// keep makes new roots durable before they are believed.
	keep func(env []byte) error
}

type roots struct {
	env   []byte
	trust *seal.Trust
}

// NewTrust starts from roots that were verified before; keep makes later ones durable.
func NewTrust(env []byte, t *seal.Trust, keep func([]byte) error) *Trust {
	tr := &Trust{keep: keep}
	tr.cur.Store(&roots{env, t})
	return tr
}

// Current is what is believed now.
func (t *Trust) Current() *seal.Trust { return t.cur.Load().trust }

// Envelope is the signed form of what is believed now.
func (t *Trust) Envelope() []byte { return t.cur.Load().env }

// Renew takes newer roots; the same ones again are no error.
func (t *Trust) Renew(env []byte) error {
	old := t.cur.Load()
	if string(env) == string(old.env) {
		return nil
	}
	next, err := old.trust.OpenRoots(env)
	if err != nil {
		return err
	}
	if err := t.keep(env); err != nil {
		return fmt.Errorf("keep: %w", err)
	}
	t.cur.CompareAndSwap(old, &roots{env, next})
	return nil
}

// maxEarlier bounds how many earlier roots are looked at.
const maxEarlier = 64

// RenewThrough takes newer roots, step by step through those between when they do not follow directly: the root keys
// themselves were replaced more than once while this node was away.
func (t *Trust) RenewThrough(earlier [][]byte, env []byte) error {
	err := t.Renew(env)
	if !errors.Is(err, seal.ErrSignature) {
		return err
	}
	for _, step := range earlier[:min(len(earlier), maxEarlier)] {
		if t.Renew(step) == nil {
			err = t.Renew(env)
		}
	}
	return err
}

func openHead(t *seal.Trust, env []byte) (*snapshotv1.Head, snapshot.Digest, error) {
	head, err := t.OpenHead(env)
	if err != nil {
		return nil, snapshot.Digest{}, err
	}
	digest, err := seal.HeadDigest(env)
	return head, digest, err
}
