package ceremony_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/ceremony"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// carry takes a proposal to another machine and back, as the files do.
func carry(t testing.TB, p *ceremony.Proposal) *ceremony.Proposal {
	t.Helper()
	return must[*ceremony.Proposal](t)(ceremony.ParseProposal(must[[]byte](t)(p.Encode())))
}

func sign(t testing.TB, p *ceremony.Proposal, names ...string) (all []*ceremony.Signature) {
	t.Helper()
	for _, name := range names {
		s := must[*ceremony.Signature](t)(carry(t, p).Sign(snapshottest.Signer(name)))
		all = append(all, must[*ceremony.Signature](t)(ceremony.ParseSignature(must[[]byte](t)(s.Encode()))))
	}
	return all
}

func TestAHeadKeyIsRotatedByHoldersWhoDoNotMeet(t *testing.T) {
	t.Parallel()
	a, next := snapshottest.NewAuthority(t), snapshottest.Signer("head-2")
	p := must[*ceremony.Proposal](t)(ceremony.After(a.Roots))
	if err := p.Add("head", next.Public()); err != nil {
		t.Fatal(err)
	}
	_, n, err := ceremony.Assemble(p, a.Roots, sign(t, p, "root-1")...)
	if !errors.Is(err, seal.ErrSignature) || n.Old != 1 || n.OldNeeded != 2 || !strings.Contains(err.Error(), "1 of 2") {
		t.Errorf("one of three holders: %v", err)
	}
	twice := sign(t, p, "root-1", "root-1")
	if _, _, err := ceremony.Assemble(p, a.Roots, twice...); !errors.Is(err, seal.ErrSignature) {
		t.Errorf("one holder twice: %v", err)
	}
	second, n, err := ceremony.Assemble(p, a.Roots, sign(t, p, "root-1", "root-3")...)
	if err != nil || !n.Enough() {
		t.Fatal(err)
	}
	trust := must[*seal.Trust](t)(a.Trust.OpenRoots(second))
	if got := trust.Newest(snapshotv1.KeyRole_KEY_ROLE_HEAD); len(got) != 2 || got[0] != next.KeyID() || trust.Version() != 2 {
		t.Errorf("version %d signs with %v", trust.Version(), got)
	}
	drop := must[*ceremony.Proposal](t)(ceremony.After(second))
	if err := drop.Remove(a.Head.KeyID()); err != nil {
		t.Fatal(err)
	}
	drop.RaiseEpoch()
	before := must[*snapshotv1.Roots](t)(seal.RootsBody(second))
	changes := ceremony.Changes(ceremony.FromBody(before), drop)
	if !slices.Contains(changes, "- head key "+a.Head.KeyID()) || !strings.Contains(strings.Join(changes, "\n"), "epoch 1 -> 2") || len(changes) != 3 {
		t.Errorf("a holder is shown %q", changes)
	}
	third, _, err := ceremony.Assemble(drop, second, sign(t, drop, "root-2", "root-3")...)
	if err != nil {
		t.Fatal(err)
	}
	if last := must[*seal.Trust](t)(trust.OpenRoots(third)); last.Epoch() != 2 || len(last.KeyIDs(snapshotv1.KeyRole_KEY_ROLE_HEAD)) != 1 {
		t.Error("the old key is still there")
	}
	if _, err := trust.OpenRoots(a.Roots); !errors.Is(err, seal.ErrRollback) {
		t.Errorf("a rollback: %v", err)
	}
}

func TestReplacedRootKeysNeedTheOldThresholdAndTheNew(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	p := must[*ceremony.Proposal](t)(ceremony.After(a.Roots))
	for _, name := range []string{"root-1", "root-2"} {
		if err := p.Remove(snapshottest.Signer(name).KeyID()); err != nil {
			t.Fatal(err)
		}
		if err := p.Add("root", snapshottest.Signer("new "+name).Public()); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string][]string{
		"the old ones alone": {"root-1", "root-2"},
		"the new ones alone": {"new root-1", "new root-2", "root-3"},
	} {
		if _, n, err := ceremony.Assemble(p, a.Roots, sign(t, p, c...)...); !errors.Is(err, seal.ErrSignature) {
			t.Errorf("%s: %v %v", name, n, err)
		}
	}
	env, _, err := ceremony.Assemble(p, a.Roots, sign(t, p, "root-1", "root-2", "new root-1", "new root-2")...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Trust.OpenRoots(env); err != nil {
		t.Error(err)
	}
}

func TestANewInstallationBeginsWithACeremony(t *testing.T) {
	t.Parallel()
	p := ceremony.First(2)
	for role, names := range map[string][]string{"root": {"root-1", "root-2", "root-3"}, "head": {"head"}, "heartbeat": {"heartbeat"}} {
		for _, name := range names {
			if err := p.Add(role, snapshottest.Signer(name).Public()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := p.Body(); !errors.Is(err, ceremony.ErrKey) || !strings.Contains(err.Error(), "no kill key") {
		t.Errorf("without a kill key: %v", err)
	}
	if err := p.Add("kill", snapshottest.Signer("kill").Public()); err != nil {
		t.Fatal(err)
	}
	env, n, err := ceremony.Assemble(p, nil, sign(t, p, "root-2", "root-3")...)
	if err != nil || n.OldNeeded != 0 {
		t.Fatalf("%v %v", n, err)
	}
	if trust := must[*seal.Trust](t)(seal.OpenRoots(env, must[[32]byte](t)(digestOf(p)))); trust.Version() != 1 {
		t.Error("not the first version")
	}
}

func digestOf(p *ceremony.Proposal) ([32]byte, error) {
	d, err := p.Digest()
	return d, err
}

func TestWhatDoesNotFitIsRefused(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	p, other := must[*ceremony.Proposal](t)(ceremony.After(a.Roots)), must[*ceremony.Proposal](t)(ceremony.After(a.Roots))
	other.RaiseEpoch()
	if _, _, err := ceremony.Assemble(p, a.Roots, sign(t, other, "root-1", "root-2")...); !errors.Is(err, ceremony.ErrOther) {
		t.Errorf("signatures of another proposal: %v", err)
	}
	false1 := sign(t, p, "root-1", "root-2")
	false1[0].Sig = false1[1].Sig
	if _, _, err := ceremony.Assemble(p, a.Roots, false1...); !errors.Is(err, seal.ErrSignature) || !strings.Contains(err.Error(), "false") {
		t.Errorf("a false signature: %v", err)
	}
	if _, _, err := ceremony.Assemble(p, a.Roots, sign(t, p, "root-1", "root-2", "head")...); !errors.Is(err, seal.ErrRole) {
		t.Errorf("a key that is no root key: %v", err)
	}
	second, _, err := ceremony.Assemble(p, a.Roots, sign(t, p, "root-1", "root-2")...)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := ceremony.Assemble(other, second, sign(t, other, "root-1", "root-2")...); !errors.Is(err, ceremony.ErrOther) {
		t.Errorf("a proposal made from older roots: %v", err)
	}
	if err := p.Add("head", a.Kill.Public()); !errors.Is(err, ceremony.ErrKey) {
		t.Errorf("a key has one role: %v", err)
	}
	if err := p.Add("king", snapshottest.Signer("x").Public()); !errors.Is(err, ceremony.ErrFormat) {
		t.Errorf("a role that nobody knows: %v", err)
	}
	p.Keys[0].ID = "0123456789abcdef"
	if _, err := p.Sign(a.Root[0]); !errors.Is(err, ceremony.ErrFormat) {
		t.Errorf("an id that is not the key's: %v", err)
	}
	for name, text := range map[string]string{
		"an unknown member": `{"kind":"mcpvault roots proposal","version":1,"hidden":true}`,
		"something behind":  `{"kind":"mcpvault roots proposal","version":1} {}`,
		"another kind":      `{"kind":"mcpvault roots signature","version":1}`,
		"no JSON":           `version: 1`,
	} {
		if _, err := ceremony.ParseProposal([]byte(text)); !errors.Is(err, ceremony.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ceremony.ParseProposal(make([]byte, ceremony.MaxProposal+1)); !errors.Is(err, seal.ErrSize) {
		t.Error("a proposal without bound")
	}
}

func FuzzParseProposal(f *testing.F) {
	a := snapshottest.NewAuthority(f)
	p := must[*ceremony.Proposal](f)(ceremony.After(a.Roots))
	f.Add(must[[]byte](f)(p.Encode()))
	f.Add([]byte(`{"kind":"mcpvault roots proposal","keys":[{"role":"root","id":"x","ed25519":"AA=="}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ceremony.ParseProposal(b)
		if err != nil {
			return
		}
		if _, err := p.Body(); err != nil {
			return
		}
		again := carry(t, p)
		one, two := must[[32]byte](t)(digestOf(p)), must[[32]byte](t)(digestOf(again))
		if one != two {
			t.Fatal("written again, something else is signed")
		}
	})
}

func FuzzParseSignature(f *testing.F) {
	a := snapshottest.NewAuthority(f)
	p := must[*ceremony.Proposal](f)(ceremony.After(a.Roots))
	good := must[*ceremony.Signature](f)(p.Sign(a.Root[0]))
	f.Add(must[[]byte](f)(good.Encode()))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ceremony.ParseSignature(b)
		if err != nil {
			return
		}
		if _, _, err := ceremony.Assemble(p, a.Roots, s); err == nil {
			t.Fatal("one signature is enough")
		}
	})
}
