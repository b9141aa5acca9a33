package pgdev

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/mcpvault/mcpvault/kit/flock"
	"github.com/mcpvault/mcpvault/kit/problem"
)

const (
	superuser = "postgres"
	port      = "5432"
	// maxSocketDir keeps a socket's full path below the 104 bytes that the smallest system allows.
	maxSocketDir = 85
)

// home is the directory tree of one server:
//
//	base/            of the owner, 0700
//	base/data        PostgreSQL's own
//	base/lock        held by the process that started the server
//	base/postgres.log
//	base/run         the socket, unless its path would be too long
type home struct {
	// asked is what the caller named; base is where the data is.
	asked, base, run string
	owner            owner
}

func (h home) data() string    { return filepath.Join(h.base, "data") }
func (h home) logFile() string { return filepath.Join(h.base, "postgres.log") }

func openHome(dir string, who owner) (home, error) {
	h, err := place(dir, who)
	if err != nil {
		return home{}, err
	}
	if err := who.ownDir(h.base); err != nil {
		return home{}, err
	}
	h.run = filepath.Join(h.base, "run")
	if len(h.run) > maxSocketDir {
		h.run = filepath.Join(os.TempDir(), "mcpvault-run-"+shortHash(h.base))
		if len(h.run) > maxSocketDir {
			h.run = filepath.Join("/tmp", "mcpvault-run-"+shortHash(h.base))
		}
	}
	return h, who.ownDir(h.run)
}

// place decides where the data lives.
func place(dir string, who owner) (home, error) {
	if dir == "" {
		tmp, err := os.MkdirTemp("", "mcpvault-pg-")
		if err != nil {
			return home{}, fmt.Errorf("make a directory for postgresql: %w", err)
		}
		dir = tmp
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return home{}, fmt.Errorf("resolve %s: %w", dir, err)
	}
	// Passable, not readable: the unprivileged user must get through.
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil { //nolint:gosec // others pass through, they list nothing
		return home{}, fmt.Errorf("make the directory above %s: %w", dir, err)
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return home{}, fmt.Errorf("resolve %s: %w", dir, err)
	}
	dir = filepath.Join(parent, filepath.Base(dir))
	ok, err := who.canReach(parent)
	if err != nil {
		return home{}, err
	}
	here := home{asked: dir, base: dir, owner: who}
	// Data that once went elsewhere stays there, also when the way has been opened since.
	if _, err := os.Lstat(here.note()); err == nil || !ok {
		return placeElsewhere(dir, who)
	}
	return here, nil
}

// lock takes the directory for this process; the kernel releases it however the process ends.
func (h home) lock() (*flock.Lock, error) {
	l, err := flock.Open(filepath.Join(h.base, "lock"))
	if errors.Is(err, flock.ErrHeld) {
		return nil, conflict(h.asked)
	}
	return l, err
}

// initialise makes the cluster beside its place and moves it there when it is whole, so that an initdb that was
// interrupted leaves nothing that looks like a cluster.
func (h home) initialise(ctx context.Context, bin string) error {
	if _, err := os.Stat(filepath.Join(h.data(), "PG_VERSION")); err == nil {
		return nil
	}
	fresh := h.data() + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return fmt.Errorf("remove an unfinished cluster: %w", err)
	}
	// Trust is what the socket's directory earns: 0700, and no other way in.
	cmd := h.command(ctx, bin, "initdb", "-D", fresh, "-U", superuser, "-A", "trust", "-E", "UTF8",
		"--locale=C.UTF-8", "--no-sync", "--no-instructions")
	out, err := runLocked(cmd)
	if err != nil {
		return problem.Newf(problem.Unavailable, "see the cause; a full disk and a read-only directory are the usual ones",
			"initdb could not make a database in %s", h.base).Because(fmt.Errorf("%w: %s", err, lastLines(out, 3)))
	}
	if err := os.Rename(fresh, h.data()); err != nil {
		return fmt.Errorf("move the new cluster to its place: %w", err)
	}
	return nil
}

// remove deletes what an ephemeral server leaves, and the directories themselves when nothing else is in them.
func (h home) remove() error {
	var errs []error
	for _, path := range []string{
		h.data(), h.data() + ".new", h.run, h.logFile(), h.note(),
		filepath.Join(h.base, "identity"), filepath.Join(h.base, "asked"), filepath.Join(h.base, "lock"),
	} {
		if err := os.RemoveAll(path); err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", path, err))
		}
	}
	for _, dir := range []string{h.base, h.asked} {
		// A directory that the caller keeps other things in stays.
		_ = os.Remove(dir)
	}
	return errors.Join(errs...)
}

func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}

func lastLines(out []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}
