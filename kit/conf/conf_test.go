package conf_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/kit/conf"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/secret"
)

type config struct {
	Name     string            `yaml:"name"`
	Listen   listen            `yaml:"listen"`
	Database database          `yaml:"database"`
	Peers    []peer            `yaml:"peers"`
	Labels   map[string]string `yaml:"labels"`
	Cells    map[string]listen `yaml:"cells"`
	Grace    time.Duration     `yaml:"grace"`
	Optional *listen           `yaml:"optional"`
	Shared   `yaml:",inline"`
}

type Shared struct {
	Level string `yaml:"level"`
}

type listen struct {
	Address string         `yaml:"address"`
	Port    int            `yaml:"port"`
	Allow   []netip.Prefix `yaml:"allow"`
}

func (l *listen) Defaults() { l.Port = 8080 }

func (l listen) Problems() []string {
	if l.Port < 1 || l.Port > 65535 {
		return []string{fmt.Sprintf("port: must be between 1 and 65535, not %d", l.Port)}
	}
	return nil
}

type database struct {
	URL      string       `yaml:"url"`
	Password secret.Value `yaml:"password"`
}

type peer struct {
	Name string `yaml:"name"`
}

func (p *peer) Problems() []string {
	if p.Name == "" {
		return []string{"name: is missing"}
	}
	return nil
}

func parse(text string, env map[string]string) (config, error) {
	return conf.Parse[config](conf.Source{
		Name: "test.yaml", Data: []byte(text), Prefix: "MCPVAULT",
		Env: func(k string) (string, bool) { v, ok := env[k]; return v, ok },
	})
}

func TestAGoodFileIsTakenWhole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "db"), "hunter2\n")
	path := filepath.Join(dir, "test.yaml")
	write(t, path, `
name: fra-1
level: debug
listen: {address: 127.0.0.1, allow: [10.0.0.0/8, "::1/128"]}
database:
  url: postgres://x
  password_file: db
peers: [{name: a}, {name: b}]
labels: {region: eu}
cells:
  x: {port: 1}
  y:
grace: 90s
optional: {address: here}
`)
	c, err := conf.Load[config](path, "")
	if err != nil {
		t.Fatal(err)
	}
	if c.Name != "fra-1" || c.Level != "debug" || c.Listen.Port != 8080 || len(c.Listen.Allow) != 2 || c.Grace != 90*time.Second {
		t.Errorf("got %+v", c)
	}
	if string(c.Database.Password.Reveal()) != "hunter2" || len(c.Peers) != 2 || c.Labels["region"] != "eu" {
		t.Errorf("got %+v", c)
	}
	if c.Cells["x"].Port != 1 || c.Cells["y"].Port != 8080 || c.Optional.Port != 8080 {
		t.Errorf("defaults belong to every section, also in maps and behind pointers: %+v %+v", c.Cells, c.Optional)
	}
}

func TestAllProblemsAreReportedTogetherWithTheirLines(t *testing.T) {
	t.Parallel()
	_, err := parse(`nmae: x
listen:
  prot: 1
  port: 70000
  allow: [10.0.0.0/99]
grace: 30
peers:
  - name: a
  - nam: b
name: one
name: two
database:
  password: hunter2
port: 5
colour: red
labels: [not, a, map]
`, nil)
	p, ok := problem.As(err)
	if !ok || p.Code != problem.Invalid {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{
		`line 1: nmae: unknown key; did you mean "name"?`,
		`line 3: listen.prot: unknown key; did you mean "port"?`,
		`line 4: listen.port: must be between 1 and 65535, not 70000`,
		`line 5: listen.allow[0]: `,
		`line 6: grace: must be a duration such as "30s" or "24h"`,
		`line 9: peers[1].nam: unknown key; did you mean "name"?`,
		`line 9: peers[1].name: is missing`,
		`line 11: name: is already set on line 10`,
		`line 13: database.password: a secret is never written here; put it in a file and name that with password_file`,
		`line 14: port: unknown key; did you mean "listen.port"?`,
		`line 15: colour: unknown key; known are name, listen`,
		`line 16: labels: must be a section with keys of its own`,
	} {
		if !strings.Contains(p.Fix, want) {
			t.Errorf("missing: %s", want)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Error("the message shows a secret")
	}
	if t.Failed() {
		t.Log(err)
	}
}

func TestTheEnvironmentOverridesTheFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "pw")
	write(t, file, "hunter2")
	c, err := parse("name: file\nlisten: {port: 1}\n", map[string]string{
		"MCPVAULT_NAME": "123", "MCPVAULT_LISTEN_PORT": "9", "MCPVAULT_GRACE": "1m", "MCPVAULT_LEVEL": "info",
		"MCPVAULT_DATABASE_URL": "postgres://env", "MCPVAULT_DATABASE_PASSWORD_FILE": file, "MCPVAULT_OTHER": "ignored",
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.Name != "123" || c.Listen.Port != 9 || c.Grace != time.Minute || c.Level != "info" || c.Database.URL != "postgres://env" ||
		string(c.Database.Password.Reveal()) != "hunter2" {
		t.Fatalf("got %+v", c)
	}
	if _, err := parse("", map[string]string{"MCPVAULT_LISTEN_PORT": "many"}); err == nil || !strings.Contains(err.Error(), "MCPVAULT_LISTEN_PORT: must be a whole number") {
		t.Fatalf("got %v", err)
	}
}

func TestZeroValuesWork(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "# only a comment\n", "---\n", "listen:\n"} {
		if c, err := parse(text, nil); err != nil || c.Listen.Port != 8080 {
			t.Errorf("%q: %+v, %v", text, c, err)
		}
	}
}

func TestFilesThatMeanMoreThanTheyShowAreRefused(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"alias":         "name: &a x\nlevel: *a\n",
		"merge":         "listen: &a {port: 1}\noptional: {<<: *a}\n",
		"two documents": "name: a\n---\nname: b\n",
		"not a mapping": "- a\n",
		"broken":        "name: [",
		"deep":          "name: " + strings.Repeat("[", 100) + strings.Repeat("]", 100),
		"huge":          "name: " + strings.Repeat("x", 2<<20),
		"key not plain": "? [a]\n: b\n",
	} {
		if _, err := parse(text, nil); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestSecretsThatCannotBeReadAreReported(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "empty"), "\n")
	write(t, filepath.Join(dir, "huge"), strings.Repeat("x", 100<<10))
	for _, name := range []string{"absent", "empty", "huge", ""} {
		_, err := conf.Parse[config](conf.Source{Dir: dir, Data: []byte("database: {password_file: '" + name + "'}")})
		if problem.CodeOf(err) != problem.Invalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestAMissingFileIsNotFound(t *testing.T) {
	t.Parallel()
	_, err := conf.Load[config](filepath.Join(t.TempDir(), "absent.yaml"), "")
	if problem.CodeOf(err) != problem.NotFound {
		t.Fatalf("got %v", err)
	}
	if _, err := conf.Load[config](t.TempDir(), ""); problem.CodeOf(err) != problem.Invalid {
		t.Fatalf("a directory: got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"name: x", "listen: {port: 1}", "a: &b [*b]", "? {a: b}\n: c", "peers: [{name: 1}, null]", "\x00", "%YAML 9"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, err := conf.Parse[config](conf.Source{Name: "fuzz", Data: data})
		var p *problem.Problem
		if err != nil && !errors.As(err, &p) {
			t.Fatalf("not a problem: %v", err)
		}
	})
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
