package mcpvault_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// hostileRows are how many rows each section of hostile inputs has.
func hostileRows() map[string]int {
	return map[string]int{"A": 34, "B": 27, "C": 28, "D": 25, "E": 17, "F": 8}
}

// tests are the test functions of a folder, and the text of all its tests.
type tests struct {
	names map[string]bool
	text  []byte
}

func testsIn(t *testing.T, dir string) tests {
	t.Helper()
	out := tests{names: map[string]bool{}}
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, src, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				out.names[fn.Name.Name] = true
			}
		}
		out.text = append(out.text, src...)
	}
	return out
}

// TestEveryHostileRowIsTested: a row without a test, or with one that is gone, is a row that nobody holds us to.
func TestEveryHostileRowIsTested(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("testdata/hostile.txt")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`^([A-F][0-9]{2}) ([^|]+) \| ([^|]+) \| (.+)$`)
	folders, seen := map[string]tests{}, map[string]bool{}
	for line := range strings.Lines(string(page)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		m := row.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("not a row: %s", line)
			continue
		}
		if seen[m[1]] {
			t.Errorf("%s is there twice", m[1])
		}
		seen[m[1]] = true
		for _, where := range strings.Fields(m[4]) {
			dir, test, _ := strings.Cut(where, ".")
			name, label, labelled := strings.Cut(test, "/")
			if _, read := folders[dir]; !read {
				folders[dir] = testsIn(t, dir)
			}
			in := folders[dir]
			if !strings.HasPrefix(name, "Test") || !in.names[name] {
				t.Errorf("%s: there is no test %s in %s", m[1], name, dir)
			}
			if labelled && !bytes.Contains(in.text, []byte(label)) {
				t.Errorf("%s: no test in %s speaks of %s", m[1], dir, label)
			}
		}
	}
	total := 0
	for section, n := range hostileRows() {
		for i := 1; i <= n; i++ {
			if id := fmt.Sprintf("%s%02d", section, i); !seen[id] {
				t.Errorf("%s is tested nowhere", id)
			}
			total++
		}
	}
	if len(seen) != total {
		t.Errorf("%d rows of %d", len(seen), total)
	}
}
