// Package keyringtest makes rings of keys for tests of what signs with them.
package keyringtest

import (
	"testing"

	"github.com/mcpvault/mcpvault/controlplane/keyring"
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
