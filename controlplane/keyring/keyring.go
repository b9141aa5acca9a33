// Package keyring holds the keys that a running control plane signs with, and the roots that say which of them it may.
//
// It promises that a key signs nothing before the roots in force name it, that of the keys of a role the newest one signs
// whose private half is here, and that roots only follow from those before them, by the rules of snapshot/seal. Keys and
// roots are looked at again while the control plane runs: a rotation needs no restart. What cannot be used changes
// nothing: the set before it stays, and Problem says why.
package keyring

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/kit/problem"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// RootsFile is the sealed roots in the keys directory: what every node and every verifier starts to trust from.
const RootsFile = "roots.pb"

// PollEvery is how often the directory is looked at.
const PollEvery = 2 * time.Second

// Set is what signs now. It is read-only.
type Set struct {
	// Roots is the envelope of the roots in force, Trust what they say.
	Roots []byte
	Trust *seal.Trust
	// Head signs heads, deltas and manifests.
	Head, Heartbeat, Kill *seal.Signer

	// Earlier are the envelopes of the roots before, oldest first, as far as they are kept.
	Earlier [][]byte

	before []*seal.Trust
}

// ResignKill seals a kill anew that these roots or earlier ones believe.
func (s *Set) ResignKill(env []byte) ([]byte, error) {
	return s.Trust.ResignKill(env, s.Kill, s.before...)
}

// Ring is the keys of one control plane. It is safe for concurrent use.
type Ring struct {
	dir string
	log *slog.Logger

	mu      sync.Mutex // guards all below
	set     *Set
	changed chan struct{}
	problem error
}

// Open reads the keys directory, and makes everything in it when there are no roots yet: three root keys, two of which
// sign, one key of each role, and the other keys named.
func Open(dir string, log *slog.Logger, others ...string) (*Ring, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the keys directory: %w", err)
	}
	_, err := os.Stat(filepath.Join(dir, RootsFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = create(dir, others)
	}
	if err != nil {
		return nil, fmt.Errorf("make the keys: %w", err)
	}
	set, err := read(dir, nil)
	if err != nil {
		return nil, err
	}
	return &Ring{dir: dir, log: log, set: set, changed: make(chan struct{})}, nil
}

// Fixed is a ring of given keys that never changes.
func Fixed(roots []byte, head, heartbeat, kill *seal.Signer) (*Ring, error) {
	pin, err := seal.RootsDigest(roots)
	if err != nil {
		return nil, err
	}
	trust, err := seal.OpenRoots(roots, pin)
	if err != nil {
		return nil, err
	}
	return &Ring{set: &Set{Roots: roots, Trust: trust, Head: head, Heartbeat: heartbeat, Kill: kill}, changed: make(chan struct{})}, nil
}

// Current is what signs now.
func (r *Ring) Current() *Set {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.set
}

// Changed is closed when Current is another set.
func (r *Ring) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// Problem is why what the directory holds now is not what signs; nil when it is.
func (r *Ring) Problem() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.problem
}

// Run looks at the directory until ctx ends, every few seconds and whenever again says so.
func (r *Ring) Run(ctx context.Context, again <-chan os.Signal) error {
	tick := time.NewTicker(PollEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-again:
		}
		r.Reload(ctx)
	}
}

// Reload looks at the directory now. What it holds is used when it can be; see Problem when it cannot.
func (r *Ring) Reload(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reload(ctx)
}

// reload needs mu.
func (r *Ring) reload(ctx context.Context) {
	next, err := read(r.dir, r.set)
	if err != nil {
		if r.problem == nil || r.problem.Error() != err.Error() {
			r.log.ErrorContext(ctx, "the keys directory cannot be used as it is, the keys before go on signing", "error", err)
		}
		r.problem = err
		return
	}
	r.problem = nil
	if next.same(r.set) {
		return
	}
	r.set = next
	close(r.changed)
	r.changed = make(chan struct{})
	r.log.InfoContext(ctx, "keys in force", "roots", next.Trust.Version(), "epoch", next.Trust.Epoch(),
		"head", next.Head.KeyID(), "heartbeat", next.Heartbeat.KeyID(), "kill", next.Kill.KeyID())
}

// Install puts roots into force that follow from the present ones, and for whose roles a key is here. Nothing changes when
// that is not so. The error is a problem.
func (r *Ring) Install(ctx context.Context, env []byte) (version uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	trust, err := follow(r.set.Trust, env)
	if err != nil {
		return 0, err
	}
	if _, err := choose(r.dir, env, trust); err != nil {
		return 0, err
	}
	if err := keep(r.dir, env, trust.Version()); err != nil {
		return 0, err
	}
	r.reload(ctx)
	return trust.Version(), r.problem
}

func (s *Set) same(o *Set) bool {
	return s.Trust.Digest() == o.Trust.Digest() && s.Head.KeyID() == o.Head.KeyID() &&
		s.Heartbeat.KeyID() == o.Heartbeat.KeyID() && s.Kill.KeyID() == o.Kill.KeyID()
}

// follow opens roots that shall replace the present ones.
func follow(have *seal.Trust, env []byte) (*seal.Trust, error) {
	next, err := have.OpenRoots(env)
	switch {
	case err == nil:
		return next, nil
	case errors.Is(err, seal.ErrRollback):
		return nil, problem.Newf(problem.Conflict, "make a proposal from the roots in force: `mcpvault trust show` prints their version",
			"these roots do not follow from version %d, which is in force", have.Version()).Because(err)
	case errors.Is(err, seal.ErrSignature), errors.Is(err, seal.ErrRole):
		return nil, problem.Newf(problem.Denied, "have more root holders sign, and put their signatures together with `mcpvault trust assemble`",
			"these roots are not signed by enough root keys: %d of version %d are needed, and the threshold of their own", have.Threshold(), have.Version()).Because(err)
	}
	return nil, problem.New(problem.Invalid, "these are no roots", "install what `mcpvault trust assemble` wrote").Because(err)
}

// roles are the keys that a control plane signs with.
func roles(s *Set) []role {
	return []role{
		{snapshotv1.KeyRole_KEY_ROLE_HEAD, "heads", &s.Head},
		{snapshotv1.KeyRole_KEY_ROLE_HEARTBEAT, "heartbeats", &s.Heartbeat},
		{snapshotv1.KeyRole_KEY_ROLE_KILL, "kills", &s.Kill},
	}
}

type role struct {
	role  snapshotv1.KeyRole
	signs string
	key   **seal.Signer
}

// Outdated reports whether a thing of a role is signed by older keys only than the one that signs now. A key that nobody
// here has ever known is not older: another control plane may have newer roots.
func (s *Set) Outdated(r snapshotv1.KeyRole, signers []string) bool {
	newest := s.Trust.Newest(r)
	for _, own := range roles(s) {
		if own.role == r {
			newest = newest[:max(0, slices.Index(newest, (*own.key).KeyID())+1)]
		}
	}
	for _, id := range signers {
		if slices.Contains(newest, id) || !s.knew(r, id) {
			return false
		}
	}
	return true
}

// knew reports whether these roots or earlier ones name a key.
func (s *Set) knew(r snapshotv1.KeyRole, id string) bool {
	return slices.ContainsFunc(append([]*seal.Trust{s.Trust}, s.before...), func(t *seal.Trust) bool {
		return slices.Contains(t.KeyIDs(r), id)
	})
}

// Place puts roots into a keys directory from outside of the control plane, which takes them within seconds. Into a
// directory without any it puts the first ones, for whose roles a key has to be there, and makes the other keys named.
func Place(ctx context.Context, dir string, env []byte, others ...string) (version uint64, err error) {
	_, err = os.Stat(filepath.Join(dir, RootsFile))
	if err == nil {
		r, err := Open(dir, slog.New(slog.DiscardHandler))
		if err != nil {
			return 0, err
		}
		return r.Install(ctx, env)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("look for roots: %w", err)
	}
	trust, err := first(dir, env)
	if err != nil {
		return 0, err
	}
	if _, err := choose(dir, env, trust); err != nil {
		return 0, err
	}
	for _, name := range others {
		if _, err := OpenKey(dir, name, true); err != nil {
			return 0, err
		}
	}
	return trust.Version(), keep(dir, env, trust.Version())
}
