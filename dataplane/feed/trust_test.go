package feed_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/feed"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

// generations are roots whose root keys are all replaced from each version to the next.
func generations(t testing.TB, n int) [][]byte {
	t.Helper()
	a := snapshottest.NewAuthority(t)
	name := func(version, i int) *seal.Signer {
		return snapshottest.Signer(string(rune('a'+version)) + string(rune('0'+i)))
	}
	var all [][]byte
	for v := range n {
		body := a.Body(uint64(v+1), 1)
		body.Keys = slices.DeleteFunc(body.Keys, func(k *snapshotv1.PublicKey) bool { return k.GetRole() == snapshotv1.KeyRole_KEY_ROLE_ROOT })
		var signers []*seal.Signer
		for i := range 3 {
			s := name(v, i)
			body.Keys = append(body.Keys, &snapshotv1.PublicKey{KeyId: s.KeyID(), Role: snapshotv1.KeyRole_KEY_ROLE_ROOT, Ed25519: s.Public()})
			signers = append(signers, s)
		}
		if v > 0 {
			signers = append(signers[:2], name(v-1, 0), name(v-1, 1))
		}
		env, err := seal.SignRoots(body, signers...)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, env)
	}
	return all
}

func TestANodeThatWasAwayWhileTheRootKeysWereReplacedIsTakenAlong(t *testing.T) {
	t.Parallel()
	roots := generations(t, 4)
	var kept int
	trust := feed.NewTrust(roots[0], openRoots(t, roots[0]), func([]byte) error { kept++; return nil })
	if err := trust.Renew(roots[3]); !errors.Is(err, seal.ErrSignature) {
		t.Fatalf("version 4 follows from version 1: %v", err)
	}
	if err := trust.RenewThrough([][]byte{roots[0], roots[2]}, roots[3]); !errors.Is(err, seal.ErrSignature) || trust.Current().Version() != 1 {
		t.Fatalf("a step is missing: %v", err)
	}
	if err := trust.RenewThrough(roots[:3], roots[3]); err != nil || trust.Current().Version() != 4 || kept != 3 {
		t.Fatalf("version %d after %d steps: %v", trust.Current().Version(), kept, err)
	}
	if err := trust.RenewThrough(nil, roots[1]); !errors.Is(err, seal.ErrSignature) && !errors.Is(err, seal.ErrRollback) || trust.Current().Version() != 4 {
		t.Errorf("a rollback: %v", err)
	}
}

// replaceHead makes the next roots, in which one head key stands for the other.
func (a *authority) replaceHead(t testing.TB, next *seal.Signer) {
	t.Helper()
	body, err := seal.RootsBody(a.roots)
	if err != nil {
		t.Fatal(err)
	}
	body.Version++
	for _, k := range body.GetKeys() {
		if k.GetKeyId() == a.head.KeyID() {
			k.KeyId, k.Ed25519, k.Since = next.KeyID(), next.Public(), body.GetVersion()
		}
	}
	if a.roots, err = seal.SignRoots(body, a.root[0], a.root[1]); err != nil {
		t.Fatal(err)
	}
	a.head = next
}

func TestWhatIsLiveStaysWhileItsKeyIsWithdrawnAndNothingNewOfItIsTaken(t *testing.T) {
	t.Parallel()
	a, n, good := serving(t)
	next, err := seal.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	old, first := a.head, a.roots
	a.replaceHead(t, next)
	a.push(with(a.update(t, good.GetHeads()[0]), func(u *cellv1.Update) { u.Heads = nil })) // the new roots, and no head yet
	eventually(t, "the new roots are believed", func() bool { return string(n.store.Roots()) == string(a.roots) })
	if n.generation() != 5 {
		t.Fatal("what was live went away with its key")
	}
	env := a.signed(t, acme, "acme", 6, old, nil)
	a.push(a.update(t, env))
	eventually(t, "a head of the withdrawn key is refused", func() bool { return a.rejected(6, "no valid signature") })
	a.push(a.update(t, a.signed(t, acme, "acme", 7, next, nil)))
	eventually(t, "a head of the new key is live", func() bool { return n.generation() == 7 })
	// A control plane that has not heard of the new roots yet.
	a.push(with(a.update(t, a.signed(t, acme, "acme", 8, next, nil)), func(u *cellv1.Update) { u.Roots = first }))
	eventually(t, "what it brings is judged by the roots that are believed", func() bool { return n.generation() == 8 })
	if p := n.feed.Problem(); p == nil || !strings.Contains(p.Error(), "older than what is trusted") || string(n.store.Roots()) != string(a.roots) {
		t.Errorf("a rollback of the roots: %v", p)
	}
}
