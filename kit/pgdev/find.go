package pgdev

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/mcpvault/mcpvault/kit/problem"
)

// needed are the programs that a directory of binaries must have.
var needed = [...]string{"initdb", "postgres"}

// FindBinaries returns the directory that holds initdb and postgres: of the PATH, of the distribution's versions the
// newest, of a build from source, of Homebrew, or what pg_config says. When there is none the problem's Fix is one line
// that installs them.
func FindBinaries() (string, error) {
	var dirs []string
	if p, err := exec.LookPath("postgres"); err == nil {
		dirs = append(dirs, filepath.Dir(p))
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql*/bin", "/usr/local/bin",
		"/opt/homebrew/opt/postgresql*/bin", "/usr/local/opt/postgresql*/bin",
	} {
		// The patterns are constant and well formed.
		found, _ := filepath.Glob(pattern)
		newestFirst(found)
		dirs = append(dirs, found...)
	}
	if dir := firstWithBinaries(dirs); dir != "" {
		return dir, nil
	}
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil { //nolint:noctx // it prints a line and ends
		if dir := firstWithBinaries([]string{strings.TrimSpace(string(out))}); dir != "" {
			return dir, nil
		}
	}
	return "", problem.New(problem.Unavailable, "no PostgreSQL server programs (initdb, postgres) were found", "apt-get install -y postgresql")
}

// firstWithBinaries returns the first directory in which all programs are. Links are followed as a whole: a link to
// postgres alone may stand in a directory where its neighbours are missing.
func firstWithBinaries(dirs []string) string {
	for _, dir := range dirs {
		target, err := filepath.EvalSymlinks(filepath.Join(dir, needed[1]))
		if err != nil {
			continue
		}
		for _, d := range []string{filepath.Dir(target), dir} {
			if hasAll(d) {
				return d
			}
		}
	}
	return ""
}

func hasAll(dir string) bool {
	for _, name := range needed {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			return false
		}
	}
	return true
}

// newestFirst sorts by the version number in the path, as a number: 15 before 9.6.
func newestFirst(dirs []string) {
	slices.SortStableFunc(dirs, func(a, b string) int {
		switch x, y := versionIn(a), versionIn(b); {
		case x > y:
			return -1
		case x < y:
			return 1
		}
		return 0
	})
}

func versionIn(dir string) float64 {
	name := filepath.Base(filepath.Dir(dir))
	v, err := strconv.ParseFloat(strings.TrimLeft(name, "abcdefghijklmnopqrstuvwxyz-@"), 64)
	if err != nil {
		return 0
	}
	return v
}
