package pgdev

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mcpvault/mcpvault/kit/problem"
)

func TestTheNewestVersionComesFirst(t *testing.T) {
	t.Parallel()
	got := []string{"/usr/lib/postgresql/9.6/bin", "/usr/lib/postgresql/15/bin", "/usr/lib/postgresql/17/bin"}
	newestFirst(got)
	want := []string{"/usr/lib/postgresql/17/bin", "/usr/lib/postgresql/15/bin", "/usr/lib/postgresql/9.6/bin"}
	if !slices.Equal(got, want) {
		t.Fatal(got)
	}
}

func TestALinkToPostgresLeadsToItsNeighbours(t *testing.T) {
	t.Parallel()
	bin, links := t.TempDir(), t.TempDir()
	for _, name := range needed {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(bin, "postgres"), filepath.Join(links, "postgres")); err != nil {
		t.Fatal(err)
	}
	if got := firstWithBinaries([]string{t.TempDir(), links}); got != bin {
		t.Fatalf("got %q", got)
	}
}

func TestFindBinariesFindsTheInstalledOnesOrSaysHowToInstall(t *testing.T) {
	t.Parallel()
	dir, err := FindBinaries()
	if err != nil {
		p, ok := problem.As(err)
		if !ok || p.Fix == "" {
			t.Fatalf("got %v", err)
		}
		return
	}
	if !hasAll(dir) {
		t.Fatalf("%s lacks programs", dir)
	}
}

func TestADirectoryOfSomebodyElseIsRefused(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	if err := os.Chown(dir, 4242, 4242); err != nil {
		t.Fatal(err)
	}
	who := owner{uid: 65534, gid: 65534, drop: true}
	if err := who.ownDir(dir); problem.CodeOf(err) != problem.Conflict {
		t.Fatalf("got %v", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	if err := who.ownDir(link); problem.CodeOf(err) != problem.Conflict {
		t.Fatalf("got %v", err)
	}
}

func TestOnlyWhatTemporaryDirectoriesLeftIsSweptAway(t *testing.T) {
	t.Parallel()
	root, stays := t.TempDir(), t.TempDir()
	who := owner{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}
	gone := filepath.Join(os.TempDir(), "pgdev-that-never-was")
	bases := map[string]bool{}
	for i, c := range []struct {
		asked string
		kept  bool
	}{{gone, false}, {stays, true}, {"/mnt/not-mounted/pg", true}, {"", true}, {"pgdev", true}, {gone + "-locked", true}} {
		base := filepath.Join(root, "mcpvault-pg-"+string(rune('a'+i)))
		bases[base] = c.kept
		if err := os.Mkdir(base, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(base, "asked"), []byte(c.asked), 0o600); err != nil {
			t.Fatal(err)
		}
		if c.asked == gone+"-locked" {
			lock, err := home{base: base}.lock()
			if err != nil {
				t.Fatal(err)
			}
			defer lock.Close()
		}
	}
	sweep(root, home{base: filepath.Join(root, "mcpvault-pg-mine"), owner: who})
	for base, kept := range bases {
		if _, err := os.Stat(base); (err == nil) != kept {
			t.Errorf("%s: kept is not %v", base, kept)
		}
	}
}
