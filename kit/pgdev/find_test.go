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
