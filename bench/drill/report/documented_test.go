package report_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/bench/drill/report"
)

var update = flag.Bool("update", false, "write the degradation table into the documentation")

// TestTheDocumentedTable holds the degradation table in the documentation to the report that it is made of.
func TestTheDocumentedTable(t *testing.T) {
	t.Parallel()
	r, err := report.Read(filepath.Join("..", "..", "results", "drills", report.JSONFile))
	if err != nil {
		t.Fatal(err)
	}
	doc := filepath.Join("..", "..", "..", "docs", "operations.md")
	raw, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(raw), "bench/results/drills/report.json -->\n")
	old, after, closed := strings.Cut(rest, "<!-- end of drills -->")
	if !ok || !closed {
		t.Fatalf("%s has no place for the table", doc)
	}
	table := "\n" + string(r.Table()) + "\n"
	if old == table {
		return
	}
	if !*update {
		t.Fatalf("the table in %s is not that of the report: run `make drill-table`", doc)
	}
	if err := os.WriteFile(doc, []byte(before+"bench/results/drills/report.json -->\n"+table+"<!-- end of drills -->"+after), 0o600); err != nil {
		t.Fatal(err)
	}
}
