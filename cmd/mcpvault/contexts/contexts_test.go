package contexts_test

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/contexts"
	"github.com/mcpvault/mcpvault/kit/problem"
)

func example() *contexts.File {
	f := &contexts.File{}
	f.Set("dev", &contexts.Context{
		AdminURL: "http://127.0.0.1:18400", AdminToken: "t0p", CAFile: "ca.pem", RootsFile: "roots.pb",
		MCPURLs: []string{"http://127.0.0.1:18410/mcp"}, Tenant: "acme",
		Hosts: map[string]string{"acme": "acme.localhost"}, Tokens: map[string]string{"alice": "a.b.c"}, As: "alice",
	})
	f.Set("prod", &contexts.Context{AdminURL: "https://vault.example.com"})
	return f
}

func TestAFileComesBackAsItWasSavedAndIsPrivate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "deep", "config.yaml")
	want := example()
	if err := contexts.Save(path, want); err != nil {
		t.Fatal(err)
	}
	got, err := contexts.Load(path)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v", got, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Fatalf("left behind: %v, %v", left, err)
	}
}

func TestTheFirstContextIsTheCurrentOneAndAMissingOneIsSaid(t *testing.T) {
	t.Parallel()
	f := example()
	if c, err := f.Get(""); err != nil || c.Tenant != "acme" {
		t.Fatalf("got %v, %v", c, err)
	}
	if _, err := f.Get("staging"); problem.CodeOf(err) != problem.NotFound {
		t.Fatalf("got %v", err)
	}
	if err := f.Remove("dev"); err != nil || f.Current != "" {
		t.Fatalf("current %q, %v", f.Current, err)
	}
	if _, err := f.Get(""); problem.CodeOf(err) != problem.NotFound {
		t.Fatalf("got %v", err)
	}
	if err := f.Remove("dev"); problem.CodeOf(err) != problem.NotFound {
		t.Fatalf("got %v", err)
	}
}

func TestATokenIsNotPrinted(t *testing.T) {
	t.Parallel()
	c, _ := example().Get("dev")
	if s := fmt.Sprintf("%v %+v %#v %s", c, c, c, c); strings.Contains(s, "t0p") || strings.Contains(s, "a.b.c") {
		t.Fatal(s)
	}
}

func TestAWrongFileIsRefusedWithItsName(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"unknown key":   "current: x\nurl: y\n",
		"empty context": "contexts:\n  x:\n",
		"not yaml":      "\t{",
		"too large":     "current: " + strings.Repeat("x", 1<<20),
	} {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := contexts.Load(path)
		if problem.CodeOf(err) != problem.Invalid || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestTheFileIsChosenInOrder(t *testing.T) {
	t.Parallel()
	home, dir := t.TempDir(), t.TempDir()
	env := map[string]string{"HOME": home}
	getenv := func(k string) string { return env[k] }
	own := filepath.Join(home, ".config", "mcpvault", "config.yaml")
	dev := filepath.Join(dir, ".mcpvault", "cli.yaml")

	if got := contexts.Locate(getenv, dir); got != own {
		t.Fatalf("with nothing: %s", got)
	}
	if err := contexts.Save(dev, example()); err != nil {
		t.Fatal(err)
	}
	if got := contexts.Locate(getenv, dir); got != dev {
		t.Fatalf("with a dev directory: %s", got)
	}
	if err := contexts.Save(own, example()); err != nil {
		t.Fatal(err)
	}
	if got := contexts.Locate(getenv, dir); got != own {
		t.Fatalf("with an own file: %s", got)
	}
	env["MCPVAULT_CONFIG"] = "/elsewhere"
	if got := contexts.Locate(getenv, dir); got != "/elsewhere" {
		t.Fatalf("told: %s", got)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte("current: dev\ncontexts:\n  dev:\n    admin_url: http://127.0.0.1\n"))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Skip()
		}
		if file, err := contexts.Load(path); err == nil {
			for _, n := range file.Names() {
				if _, err := file.Get(n); err != nil && n != "" {
					t.Fatal(err)
				}
			}
		}
	})
}
