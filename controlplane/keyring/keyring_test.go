package keyring_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/controlplane/keyring"
	"github.com/mcpvault/mcpvault/controlplane/keyring/keyringtest"
	"github.com/mcpvault/mcpvault/kit/problem"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

const (
	head      = snapshotv1.KeyRole_KEY_ROLE_HEAD
	heartbeat = snapshotv1.KeyRole_KEY_ROLE_HEARTBEAT
	kill      = snapshotv1.KeyRole_KEY_ROLE_KILL
)

func open(t *testing.T, dir string) *keyring.Ring {
	t.Helper()
	r, err := keyring.Open(dir, slog.New(slog.DiscardHandler), "token")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func sign(t *testing.T, dir string, have *keyring.Set, by int, change ...func(*snapshotv1.Roots)) []byte {
	t.Helper()
	return keyringtest.Next(t, dir, have, by, change...)
}

func TestAKeySignsOnlyOnceTheRootsNameItAndTheNewestOneDoes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := open(t, dir)
	first, changed := r.Current(), r.Changed()
	next := keyringtest.Key(t, keyring.Path(dir, "head-2"))
	r.Reload(t.Context())
	if r.Current() != first || r.Problem() != nil {
		t.Fatalf("a key that no roots name is used: %v", r.Problem())
	}
	write(t, filepath.Join(dir, keyring.RootsFile), sign(t, dir, first, 2, keyringtest.Name(next, head)))
	r.Reload(t.Context())
	second := r.Current()
	if second.Head.KeyID() != next.KeyID() || second.Trust.Version() != 2 || r.Problem() != nil {
		t.Fatalf("the named key does not sign: %v", r.Problem())
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told")
	}
	if !second.Outdated(head, []string{first.Head.KeyID()}) || second.Outdated(head, []string{next.KeyID()}) {
		t.Error("what the older key signed is to be signed anew, and nothing else")
	}
	if second.Outdated(head, []string{"0123456789abcdef"}) {
		t.Error("a key that nobody here knows may be a newer one")
	}
	// Roots without the old key; its file may go.
	write(t, filepath.Join(dir, keyring.RootsFile), sign(t, dir, second, 2, keyringtest.Unname(first.Head.KeyID())))
	if err := os.Remove(keyring.Path(dir, "head")); err != nil {
		t.Fatal(err)
	}
	r.Reload(t.Context())
	if third := r.Current(); third.Trust.Version() != 3 || !third.Outdated(head, []string{first.Head.KeyID()}) {
		t.Errorf("version %d: %v", third.Trust.Version(), r.Problem())
	}
}

func TestAnOlderKeySignsWhenTheNewestIsNotHere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := open(t, dir)
	first := r.Current()
	elsewhere := keyringtest.Key(t, filepath.Join(t.TempDir(), "breakglass.key"))
	if _, err := r.Install(t.Context(), sign(t, dir, first, 2, keyringtest.Name(elsewhere, kill))); err != nil {
		t.Fatal(err)
	}
	if got := r.Current(); got.Kill.KeyID() != first.Kill.KeyID() {
		t.Errorf("kills are signed by %s", got.Kill.KeyID())
	}
	if r.Current().Outdated(kill, []string{elsewhere.KeyID()}) {
		t.Error("a kill of a newer key, the break-glass one, needs no other signature")
	}
}

func TestRootsThatDoNotFollowAreRefusedAndTheKeysBeforeGoOn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := open(t, dir)
	first := r.Current()
	next := keyringtest.Key(t, keyring.Path(dir, "heartbeat-2"))
	if _, err := r.Install(t.Context(), sign(t, dir, first, 1, keyringtest.Name(next, heartbeat))); problem.CodeOf(err) != problem.Denied || !strings.Contains(err.Error(), "not signed by enough") {
		t.Errorf("one signature of two: %v", err)
	}
	if _, err := r.Install(t.Context(), sign(t, dir, first, 2, keyringtest.Unname(first.Heartbeat.KeyID()))); problem.CodeOf(err) != problem.NotFound {
		t.Errorf("no key is left to sign heartbeats: %v", err)
	}
	second := sign(t, dir, first, 2, keyringtest.Name(next, heartbeat))
	if v, err := r.Install(t.Context(), second); err != nil || v != 2 {
		t.Fatalf("version %d: %v", v, err)
	}
	if _, err := r.Install(t.Context(), first.Roots); problem.CodeOf(err) != problem.Conflict {
		t.Errorf("a rollback: %v", err)
	}
	other := sign(t, dir, first, 2, func(r *snapshotv1.Roots) { r.Epoch = 7 })
	if _, err := r.Install(t.Context(), other); problem.CodeOf(err) != problem.Conflict {
		t.Errorf("another version 2: %v", err)
	}
	write(t, filepath.Join(dir, keyring.RootsFile), first.Roots)
	r.Reload(t.Context())
	if r.Current().Trust.Version() != 2 || problem.CodeOf(r.Problem()) != problem.Conflict {
		t.Errorf("an older file: version %d, %v", r.Current().Trust.Version(), r.Problem())
	}
	if _, err := keyring.Open(dir, slog.New(slog.DiscardHandler)); problem.CodeOf(err) != problem.Conflict {
		t.Errorf("a start on an older file: %v", err)
	}
	write(t, filepath.Join(dir, keyring.RootsFile), second)
	r.Reload(t.Context())
	if r.Problem() != nil {
		t.Error(r.Problem())
	}
}

func TestKillsOfARetiredKeyAreSignedAnew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := open(t, dir)
	first := r.Current()
	env, err := seal.SignKill(&snapshotv1.Kill{Id: "k1", Kind: snapshotv1.KillKind_KILL_KIND_USER, Subject: "mallory", IssuedMs: 1}, first.Kill)
	if err != nil {
		t.Fatal(err)
	}
	next := keyringtest.Key(t, keyring.Path(dir, "kill-2"))
	// Without an overlap: the key was stolen.
	_, err = r.Install(t.Context(), sign(t, dir, first, 2, func(r *snapshotv1.Roots) {
		keyringtest.Unname(first.Kill.KeyID())(r)
		keyringtest.Name(next, kill)(r)
	}))
	if err != nil {
		t.Fatal(err)
	}
	now := r.Current()
	if _, err := now.Trust.OpenKill(env); err == nil {
		t.Fatal("the retired key still counts")
	}
	again, err := now.ResignKill(env)
	if err != nil {
		t.Fatal(err)
	}
	if k, err := now.Trust.OpenKill(again); err != nil || k.GetSubject() != "mallory" || !seal.SamePayload(env, again) {
		t.Errorf("%v %v", k, err)
	}
	forged, err := seal.SignKill(&snapshotv1.Kill{Id: "k2", Kind: snapshotv1.KillKind_KILL_KIND_USER, Subject: "alice", IssuedMs: 1}, first.Heartbeat)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := now.ResignKill(forged); err == nil {
		t.Error("a kill that was never good is signed anew")
	}
}

func TestALostKeyIsNotReplacedInSilence(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open(t, dir)
	for _, name := range []string{"root-1", "root-2", "root-3"} {
		if err := os.Remove(keyring.Path(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dir) // the root keys are not needed any more
	again := func() error {
		_, err := keyring.Open(dir, slog.New(slog.DiscardHandler))
		return err
	}
	saved, err := os.ReadFile(keyring.Path(dir, "head"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(keyring.Path(dir, "head")); err != nil {
		t.Fatal(err)
	}
	if err := again(); problem.CodeOf(err) != problem.NotFound || !strings.Contains(err.Error(), "may sign heads") {
		t.Errorf("got %v", err)
	}
	write(t, keyring.Path(dir, "head"), saved)
	if err := again(); problem.CodeOf(err) != problem.Invalid {
		t.Errorf("a key that others may read: %v", err)
	}
	if err := os.Remove(keyring.Path(dir, "head")); err != nil {
		t.Fatal(err)
	}
	keyringtest.Key(t, keyring.Path(dir, "head"))
	if err := again(); problem.CodeOf(err) != problem.NotFound {
		t.Errorf("a key of another installation: %v", err)
	}
	if _, err := keyring.OpenKey(dir, "nothing", false); problem.CodeOf(err) != problem.NotFound || !strings.Contains(problemFix(err), "backup") {
		t.Errorf("got %v", err)
	}
}

func problemFix(err error) string {
	p, _ := problem.As(err)
	return p.Fix
}

func TestAFirstStartThatWasCutShortGoesOn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	k := open(t, dir).Current()
	for _, name := range []string{keyring.RootsFile, "roots-1.pb", "root-3.key", "token.key"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if again := open(t, dir).Current(); again.Head.KeyID() != k.Head.KeyID() {
		t.Error("the keys that were there are not used")
	}
}

func TestASignalIsEnoughToLookAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := open(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	again, ended := make(chan os.Signal, 1), make(chan error, 1)
	go func() { ended <- r.Run(ctx, again) }()
	changed := r.Changed()
	next := keyringtest.Key(t, keyring.Path(dir, "head-2"))
	write(t, filepath.Join(dir, keyring.RootsFile), sign(t, dir, r.Current(), 2, keyringtest.Name(next, head)))
	begun := time.Now()
	again <- syscall.SIGHUP
	<-changed
	if took := time.Since(begun); took > keyring.PollEvery || r.Current().Head.KeyID() != next.KeyID() {
		t.Errorf("after %s %s signs", took, r.Current().Head.KeyID())
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
