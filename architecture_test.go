package mcpvault_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/semver"
)

const module = "github.com/mcpvault/mcpvault"

// imports maps each package's folder, relative to the root, to what its files import. It parses: a cached build would
// hide a violation that is an hour old.
func imports(t *testing.T, tests bool) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != "." && (strings.HasPrefix(name, ".") || name == "node_modules" || name == "testdata") {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); path != "." && err == nil {
				return filepath.SkipDir // a module of its own: the product does not link it
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || !tests && strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if !slices.Contains(all[dir], imp) {
				all[dir] = append(all[dir], imp)
			}
		}
		if _, ok := all[dir]; !ok {
			all[dir] = nil
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("found only %d packages: the walk is broken", len(all))
	}
	return all
}

func under(dir string, roots ...string) bool {
	for _, r := range roots {
		if dir == r || strings.HasPrefix(dir, r+"/") {
			return true
		}
	}
	return false
}

func TestEachFloorImportsOnlyTheFloorsBelow(t *testing.T) {
	t.Parallel()
	allowed := map[string][]string{
		"proto":        {"proto"},
		"kit":          {"kit", "proto"},
		"snapshot":     {"snapshot", "kit", "proto"},
		"migrations":   {},
		"controlplane": {"controlplane", "migrations", "snapshot", "kit", "proto"},
		"dataplane":    {"dataplane", "snapshot", "kit", "proto"},
	}
	for dir, imps := range imports(t, true) {
		floor, _, _ := strings.Cut(dir, "/")
		roots, ruled := allowed[floor]
		if !ruled {
			continue
		}
		for _, imp := range imps {
			rel, ours := strings.CutPrefix(imp, module+"/")
			if ours && !under(rel, roots...) {
				t.Errorf("%s imports %s: %s may use only %v", dir, rel, floor, roots)
			}
		}
	}
}

func TestTheCellLinksNoControlPlane(t *testing.T) {
	t.Parallel()
	all := imports(t, false)
	seen := map[string]string{}
	var walk func(dir, from string)
	walk = func(dir, from string) {
		if _, ok := seen[dir]; ok {
			return
		}
		seen[dir] = from
		for _, imp := range all[dir] {
			if rel, ours := strings.CutPrefix(imp, module+"/"); ours {
				walk(rel, dir)
			}
			if strings.HasPrefix(imp, "github.com/jackc/pgx") {
				t.Errorf("the cell links PostgreSQL's driver through %s", dir)
			}
		}
	}
	walk("cmd/mcpvault-cell", "")
	if len(seen) < 10 {
		t.Fatalf("reached only %d packages from cmd/mcpvault-cell", len(seen))
	}
	for dir, from := range seen {
		if under(dir, "controlplane", "migrations", "cmd/mcpvault", "cmd/mcpvault-controlplane") {
			t.Errorf("the cell links %s, imported by %s", dir, from)
		}
		// What breaks a node on purpose is for development only: cmd/mcpvault/fault, and what it is made of.
		if strings.HasSuffix(dir, "test") || strings.HasSuffix(dir, "/fault") {
			t.Errorf("the cell links %s, which breaks things, imported by %s", dir, from)
		}
	}
}

func TestEachHeavyLibraryHasOneDoor(t *testing.T) {
	t.Parallel()
	doors := map[string][]string{
		"github.com/jackc/pgx":             {"controlplane/store"},
		"github.com/pressly/goose":         {"controlplane/store"},
		"github.com/hashicorp/raft":        {"dataplane/consensus"},
		"github.com/santhosh-tekuri":       {"kit/schema"},
		"go.etcd.io/bbolt":                 {"dataplane/store", "dataplane/consensus"},
		"github.com/dgraph-io/ristretto":   {"dataplane/authn", "dataplane/inject"},
		"github.com/mark3labs/mcp-go":      {"dataplane/mcp", "controlplane/registry", "cmd/mcpvault"},
		"github.com/spiffe/go-spiffe":      {"kit/svid"},
		"github.com/quic-go/quic-go":       {"dataplane/edge", "dataplane/consensus/quicwire"},
		"github.com/go-jose/go-jose":       {"kit/jose"},
		"github.com/cedar-policy/cedar-go": {"controlplane/policy", "snapshot/residual"},
		"go.opentelemetry.io/otel/sdk":     {"kit/tele"},
		"github.com/spf13/cobra":           {"cmd/mcpvault"},
		"gopkg.in/yaml.v3":                 {"kit/conf", "cmd/mcpvault", "bench/outside"},
	}
	for dir, imps := range imports(t, false) {
		for _, imp := range imps {
			for lib, rooms := range doors {
				if under(imp, lib) && !under(dir, rooms...) {
					t.Errorf("%s imports %s: its door is %v", dir, imp, rooms)
				}
			}
		}
	}
}

func TestTheJudgeOfDrillsSharesNothingWithTheProduct(t *testing.T) {
	t.Parallel()
	all := imports(t, false)
	for _, dir := range []string{"bench/drill/judge", "bench/drill/load", "bench/drill/canary"} {
		imps, ok := all[dir]
		if !ok {
			t.Fatalf("%s is not there", dir)
		}
		for _, imp := range imps {
			if rel, ours := strings.CutPrefix(imp, module+"/"); ours && !under(rel, "bench/drill") {
				t.Errorf("%s imports %s: a mistake there would be made by the judge as well", dir, imp)
			}
		}
	}
}

func TestTheProductLinksNoPeerItIsMeasuredBeside(t *testing.T) {
	t.Parallel()
	for _, r := range requires(t, "go.mod") {
		if under(r.Mod.Path, "github.com/open-policy-agent/opa") {
			t.Errorf("go.mod requires %s: it belongs into bench/peers/go.mod", r.Mod)
		}
	}
}

func TestThePeersAreMeasuredOnTheProductsOwnModules(t *testing.T) {
	t.Parallel()
	peers := map[string]string{}
	for _, r := range requires(t, "bench/peers/go.mod") {
		peers[r.Mod.Path] = r.Mod.Version
	}
	for _, r := range requires(t, "go.mod") {
		if v, ok := peers[r.Mod.Path]; ok && semver.Compare(v, r.Mod.Version) < 0 {
			t.Errorf("bench/peers/go.mod has %s %s, go.mod %s: run `go mod tidy` in bench/peers", r.Mod.Path, v, r.Mod.Version)
		}
	}
}

func requires(t *testing.T, path string) []*modfile.Require {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := modfile.Parse(path, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return f.Require
}
