package registry

import (
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/kit/problem"
)

func TestE12ToolsWhoseSchemasAreTrapsAreNotRegistered(t *testing.T) {
	t.Parallel()
	for name, schema := range map[string]string{
		"remote, and endless": `{"allOf":[{"$ref":"#"},{"$ref":"https://evil.example/s.json"}]}`,
		"400 levels":          strings.Repeat(`{"items":`, 400) + "{}" + strings.Repeat("}", 400),
		"endless":             `{"allOf":[{"$ref":"#"}]}`,
		"pattern":             `{"properties":{"a":{"pattern":"(a"}}}`,
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

func TestE12ASchemaThatRefersElsewhereIsTakenOnlyWhenSomebodySaysSo(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(&upstream{modern: true, pages: []string{`[{"name":"far","inputSchema":{"type":"object","properties":{"a":{"$ref":"https://elsewhere.example/s.json"}}}}]`}})
	t.Cleanup(srv.Close)
	s := New(nil, newScanner(), slog.New(slog.DiscardHandler))
	if _, err := s.read(t.Context(), srv.URL, nil, false); problem.CodeOf(err) != problem.Invalid || !strings.Contains(err.Error(), `"far"`) || !strings.Contains(err.Error(), "--remote-refs") {
		t.Errorf("E12: %v", err)
	}
	got, err := s.read(t.Context(), srv.URL, nil, true)
	if err != nil || len(got.Tools) != 1 {
		t.Errorf("%v %v", got, err)
	}
}
