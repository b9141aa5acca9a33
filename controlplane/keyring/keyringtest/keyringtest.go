// Package keyringtest makes rings of keys, and the ceremonies that change them, for tests of what signs.
package keyringtest

import (
	"fmt"
	"slices"
	"testing"

	"github.com/mcpvault/mcpvault/controlplane/keyring"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

// Of is a ring of the authority's keys; it never changes.
func Of(tb testing.TB, a *snapshottest.Authority) *keyring.Ring {
	tb.Helper()
	r, err := keyring.Fixed(a.Roots, a.Head, a.Heartbeat, a.Kill)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// Next makes the roots after those of a set, signed by so many of the root keys in a directory.
func Next(tb testing.TB, dir string, have *keyring.Set, by int, change ...func(*snapshotv1.Roots)) []byte {
	tb.Helper()
	body, err := seal.RootsBody(have.Roots)
	if err != nil {
		tb.Fatal(err)
	}
	body.Version++
	for _, c := range change {
		c(body)
	}
	var signers []*seal.Signer
	for i := range by {
		s, err := seal.ReadKey(keyring.Path(dir, fmt.Sprintf("root-%d", i+1)))
		if err != nil {
			tb.Fatal(err)
		}
		signers = append(signers, s)
	}
	env, err := seal.SignRoots(body, signers...)
	if err != nil {
		tb.Fatal(err)
	}
	return env
}

// Name gives a role to a key.
func Name(s *seal.Signer, role snapshotv1.KeyRole) func(*snapshotv1.Roots) {
	return func(r *snapshotv1.Roots) {
		r.Keys = append(r.Keys, &snapshotv1.PublicKey{KeyId: s.KeyID(), Role: role, Ed25519: s.Public(), Since: r.GetVersion()})
	}
}

// Unname withdraws a key.
func Unname(id string) func(*snapshotv1.Roots) {
	return func(r *snapshotv1.Roots) {
		r.Keys = slices.DeleteFunc(r.Keys, func(k *snapshotv1.PublicKey) bool { return k.GetKeyId() == id })
	}
}

// Key makes a key in a file.
func Key(tb testing.TB, path string) *seal.Signer {
	tb.Helper()
	s, err := seal.GenerateKey()
	if err == nil {
		err = seal.WriteKey(path, s)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return s
}
