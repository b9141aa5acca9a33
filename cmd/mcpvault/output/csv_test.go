package output_test

import (
	"encoding/csv"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
)

func TestCSVIsReadBackAsItWas(t *testing.T) {
	t.Parallel()
	rows := []row{{`say "hi", all`, "a;b", []string{"x"}}, {" spaced ", "naïve", nil}}
	var b strings.Builder
	if err := output.List(&b, output.CSV, rows, columns()...); err != nil {
		t.Fatal(err)
	}
	got, err := csv.NewReader(strings.NewReader(b.String())).ReadAll()
	if err != nil || len(got) != 3 || got[1][0] != rows[0].Name || got[1][1] != rows[0].URL || got[2][0] != rows[1].Name || got[2][1] != rows[1].URL {
		t.Errorf("%v\n%q", err, got)
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(b.String(), "\r\n"), "\r\n") {
		if strings.ContainsAny(line, "\r\n") {
			t.Errorf("%q: a row is a line that ends with CR LF", line)
		}
	}
}

func TestNoValueOfCSVIsAFormula(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"=HYPERLINK(\"http://evil\")": "'=HYPERLINK(\"http://evil\")", "+1+cmd|' /C calc'!A0": "'+1+cmd|' /C calc'!A0",
		"-2+3": "'-2+3", "@SUM(A1)": "'@SUM(A1)", "\uff1d1+1": "'\uff1d1+1", "  =1": "'  =1", "\t=1": `\t=1`, "\r=1": `\r=1`,
		"-5": "-5", "+49.5": "+49.5", "--5": "'--5", "-": "'-", "-.": "'-.", "user:alice > role:analyst": "user:alice > role:analyst", "a=b": "a=b",
	} {
		var b strings.Builder
		if err := output.List(&b, output.CSV, []row{{Name: in}}, columns()...); err != nil {
			t.Fatal(err)
		}
		got, err := csv.NewReader(strings.NewReader(b.String())).ReadAll()
		if err != nil || got[1][0] != want {
			t.Errorf("%q: %v %q, want %q", in, err, got, want)
		}
	}
}

func TestAListInPartsHasOneHeader(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	rest := columns()
	for i := range rest {
		rest[i].Head = ""
	}
	for _, part := range [][]output.Column[row]{columns(), rest} {
		if err := output.List(&b, output.CSV, []row{{Name: "a"}}, part...); err != nil {
			t.Fatal(err)
		}
	}
	if b.String() != "name,url,tags\r\na,,\r\na,,\r\n" {
		t.Errorf("%q", b.String())
	}
}
