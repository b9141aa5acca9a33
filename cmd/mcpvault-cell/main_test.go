package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/kit/problem"
)

func TestCheckTellsWhetherTheConfigurationIsGood(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := program().Start(t.Context(), []string{"-config", "../../deploy/config/cell.yaml", "-check"}, &out, &out); err != nil || !strings.Contains(out.String(), "ok") {
		t.Errorf("the configuration that is shipped as an example: %v %s", err, out.String())
	}
	err := program().Start(t.Context(), []string{"-config", filepath.Join(t.TempDir(), "none"), "-check"}, &out, &out)
	if problem.CodeOf(err).Exit() != 2 {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestHelpHasAnExample(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := program().Start(t.Context(), []string{"-help"}, &out, &out); err != nil || !strings.HasPrefix(out.String(), "Example:") {
		t.Errorf("got %v %s", err, out.String())
	}
}
