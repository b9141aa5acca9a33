package registry

import (
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/kit/problem"
)

func TestE12ToolsWhoseSchemasAreTrapsAreNotRegistered(t *testing.T) {
	t.Parallel()
	for name, schema := range map[string]string{
		"remote":     `{"properties":{"a":{"$ref":"https://evil.example/s.json"}}}`,
		"400 levels": strings.Repeat(`{"items":`, 400) + "{}" + strings.Repeat("}", 400),
		"endless":    `{"allOf":[{"$ref":"#"}]}`,
		"pattern":    `{"properties":{"a":{"pattern":"(a"}}}`,
	} {
		var s Surface
		if err := s.addTool([]byte(`{"name":"t","inputSchema":` + schema + `}`)); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("E12: %s: %v", name, err)
		}
	}
	var s Surface
	if err := s.addTool([]byte(`{"name":"t","inputSchema":{"$ref":"#/$defs/a","$defs":{"a":{"pattern":"^(?!x)"}}}}`)); err != nil {
		t.Error(err)
	}
}
