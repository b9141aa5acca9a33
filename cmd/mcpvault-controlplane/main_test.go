package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/kit/problem"
)

const good = `
database_url: postgres://db.internal/mcpvault
keys_dir: /var/lib/mcpvault/keys
identity_dir: /var/lib/mcpvault/identity
trust_domain: mcpvault.example
cells: {local: ["*"]}
`

func TestCheckTellsWhetherTheConfigurationIsGood(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		text, want string
		exit       int
	}{
		"good":    {good, "ok", 0},
		"typo":    {good + "cel_listen: 127.0.0.1:1\n", `did you mean "cell_listen"?`, 2},
		"public":  {good + "listen: 0.0.0.0:80\n", "plain HTTP is refused", 2},
		"nothing": {"", "database_url", 2},
	} {
		path := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err := program().Start(t.Context(), []string{"-config", path, "-check"}, &out, &out)
		exit := 0
		if err != nil {
			out.WriteString(err.Error())
			exit = problem.CodeOf(err).Exit()
		}
		if exit != c.exit || !strings.Contains(out.String(), c.want) {
			t.Errorf("%s: exit %d, %s", name, exit, out.String())
		}
	}
	err := program().Start(t.Context(), []string{"-config", filepath.Join(t.TempDir(), "none"), "-check"}, &bytes.Buffer{}, &bytes.Buffer{})
	if problem.CodeOf(err).Exit() != 2 {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestHelpHasAnExample(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := program().Start(t.Context(), []string{"-help"}, &out, &out); err != nil || !strings.Contains(out.String(), "Example:") {
		t.Errorf("got %v %s", err, out.String())
	}
	if err := program().Start(t.Context(), nil, &out, &out); problem.CodeOf(err) != problem.Invalid {
		t.Errorf("got %v", err)
	}
}
