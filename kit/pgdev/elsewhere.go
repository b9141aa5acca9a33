package pgdev

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// placeElsewhere finds the same place again for the same directory. The directory keeps an identity of its own: when
// somebody has removed it to start afresh, what the old one left elsewhere is not brought back.
func placeElsewhere(dir string, who owner) (home, error) {
	root := "/var/tmp"
	if _, err := os.Stat(root); err != nil {
		root = "/tmp"
	}
	base := filepath.Join(root, "mcpvault-pg-"+shortHash(dir))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return home{}, fmt.Errorf("make %s: %w", dir, err)
	}
	if err := who.ownDir(base); err != nil {
		return home{}, err
	}
	h := home{asked: dir, base: base, owner: who}
	sweep(root, h)
	ours, err := os.ReadFile(h.note())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return home{}, fmt.Errorf("read where postgresql's data is: %w", err)
	}
	theirs, err := os.ReadFile(filepath.Join(base, "identity"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return home{}, fmt.Errorf("read the identity of %s: %w", base, err)
	}
	id, isNote := strings.CutPrefix(strings.TrimSpace(string(ours)), h.noteText())
	if isNote && id != "" && id == string(theirs) {
		return h, nil
	}
	return h, h.renew()
}

func (h home) note() string { return filepath.Join(h.asked, "DATA_IS_ELSEWHERE") }

func (h home) noteText() string {
	return "PostgreSQL's user cannot pass through the directories above this one; its data is in " + h.base + "\nidentity "
}

// renew empties base and gives both directories a new common identity.
func (h home) renew() error {
	lock, err := h.lock()
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	for _, dir := range []string{"data", "data.new"} {
		if err := os.RemoveAll(filepath.Join(h.base, dir)); err != nil {
			return fmt.Errorf("remove the data of a directory that is gone: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(h.base, "asked"), []byte(h.asked), 0o600); err != nil {
		return fmt.Errorf("mark %s: %w", h.base, err)
	}
	id := rand.Text()
	if err := os.WriteFile(filepath.Join(h.base, "identity"), []byte(id), 0o600); err != nil {
		return fmt.Errorf("mark %s: %w", h.base, err)
	}
	if err := os.WriteFile(h.note(), []byte(h.noteText()+id+"\n"), 0o600); err != nil {
		return fmt.Errorf("note where postgresql's data is: %w", err)
	}
	return nil
}

// sweep removes what temporary directories have left elsewhere: tests throw their directory away and cannot know that
// the data is not in it. Other directories may only be away for a while, on a disk that is not mounted; theirs stays. It
// is a courtesy, so what cannot be removed is left.
func sweep(root string, mine home) {
	// The pattern is constant and well formed.
	found, _ := filepath.Glob(filepath.Join(root, "mcpvault-pg-*"))
	for _, base := range found {
		asked, err := os.ReadFile(filepath.Join(base, "asked"))
		h := home{asked: string(asked), base: base, owner: mine.owner}
		if err != nil || base == mine.base || !h.isAbandoned() {
			continue
		}
		lock, err := h.lock()
		if err != nil {
			continue
		}
		_ = os.RemoveAll(base)
		_ = lock.Close()
	}
}

func (h home) isAbandoned() bool {
	if !filepath.IsAbs(h.asked) || !strings.HasPrefix(h.asked, filepath.Clean(os.TempDir())+string(filepath.Separator)) {
		return false
	}
	if _, err := os.Lstat(h.asked); !errors.Is(err, os.ErrNotExist) {
		return false
	}
	info, err := os.Lstat(h.base)
	if err != nil || !info.IsDir() {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Uid == h.owner.uid
}
