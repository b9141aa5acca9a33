//go:build unix

package flock_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/mcpvault/mcpvault/kit/flock"
)

func TestAFileIsHeldOnceAndAgainAfterClose(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "lock")
	l, err := flock.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := flock.Open(name); !errors.Is(err, flock.ErrHeld) {
		t.Fatalf("a second holder: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := flock.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestACopyInAChildDoesNotOutliveClose(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := flock.Hold(f)
	if err != nil {
		t.Fatal(err)
	}
	// What fork gives to a child: another descriptor of the same open file.
	inherited, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(inherited)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := flock.Open(f.Name())
	if err != nil {
		t.Fatalf("the lock lives on in the child: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestASymbolicLinkIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), filepath.Join(dir, "lock")); err != nil {
		t.Fatal(err)
	}
	if _, err := flock.Open(filepath.Join(dir, "lock")); err == nil {
		t.Fatal("a link was followed")
	}
}
