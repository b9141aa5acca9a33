package output_test

import (
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
)

type row struct {
	Name string   `json:"name"`
	URL  string   `json:"url,omitempty"`
	Tags []string `json:"tags"`
}

func columns() []output.Column[row] {
	return []output.Column[row]{
		{Head: "NAME", Cell: func(r row) string { return r.Name }},
		{Head: "URL", Cell: func(r row) string { return r.URL }},
		{Head: "TAGS", Cell: func(r row) string { return strings.Join(r.Tags, ",") }, Wide: true},
	}
}

func TestAListInEveryFormat(t *testing.T) {
	t.Parallel()
	rows := []row{{"demo", "http://x", []string{"a", "b"}}, {"payments", "", nil}}
	for f, want := range map[output.Format]string{
		output.Table: "NAME       URL\ndemo       http://x\npayments   -\n",
		output.Wide:  "NAME       URL        TAGS\ndemo       http://x   a,b\npayments   -          -\n",
		output.Name:  "demo\npayments\n",
		output.CSV:   "name,url,tags\r\ndemo,http://x,\"a,b\"\r\npayments,,\r\n",
		output.JSON: "[\n  {\n    \"name\": \"demo\",\n    \"url\": \"http://x\",\n    \"tags\": [\n      \"a\",\n      \"b\"\n    ]\n  },\n" +
			"  {\n    \"name\": \"payments\",\n    \"tags\": null\n  }\n]\n",
		output.YAML: "- name: demo\n  url: http://x\n  tags:\n    - a\n    - b\n- name: payments\n  tags: null\n",
	} {
		var b strings.Builder
		if err := output.List(&b, f, rows, columns()...); err != nil || b.String() != want {
			t.Errorf("%s: %v\n%s\nwant\n%s", f, err, b.String(), want)
		}
	}
}

func TestAnEmptyListIsAnAnswer(t *testing.T) {
	t.Parallel()
	for f, want := range map[output.Format]string{output.Table: "NAME   URL\n", output.JSON: "[]\n", output.YAML: "[]\n", output.Name: "", output.CSV: "name,url,tags\r\n"} {
		var b strings.Builder
		if err := output.List[row](&b, f, nil, columns()...); err != nil || b.String() != want {
			t.Errorf("%s: %v %q", f, err, b.String())
		}
	}
}

func TestOneThingIsALineAField(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	if err := output.One(&b, output.Table, row{Name: "demo"}, columns()...); err != nil || b.String() != "name:  demo\nurl:   -\n" {
		t.Fatalf("%v\n%s", err, b.String())
	}
}

func TestAServersTextCannotDriveTheTerminal(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	evil := "ok\x1b[2J\r\n\u202eevil\xff"
	for _, f := range []output.Format{output.Table, output.Name} {
		b.Reset()
		if err := output.List(&b, f, []row{{Name: evil}}, columns()...); err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(strings.ReplaceAll(b.String(), "\n", ""), "\x1b\r\u202e") {
			t.Fatalf("%s: %q", f, b.String())
		}
	}
	if got := output.CleanText("a\tb\nc\x1b"); got != "a\tb\nc\\x1b" {
		t.Fatalf("%q", got)
	}
}

func TestAStringThatLooksLikeANumberStaysAStringInYAML(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	if err := output.Value(&b, output.YAML, map[string]string{"id": "007", "id2": "true"}); err != nil || b.String() != "id: \"007\"\nid2: \"true\"\n" {
		t.Fatalf("%v %q", err, b.String())
	}
}

func TestAnUnknownFormatIsAUsageError(t *testing.T) {
	t.Parallel()
	if _, err := output.Parse("xml"); problem.CodeOf(err) != problem.Invalid {
		t.Fatal(err)
	}
	if f, err := output.Parse(""); f != output.Table || err != nil {
		t.Fatal(f, err)
	}
}

func TestTimesAreUTC(t *testing.T) {
	t.Parallel()
	if got := output.Time(1_700_000_000_123); got != "2023-11-14T22:13:20.123Z" || output.Time(0) != "" {
		t.Fatal(got)
	}
}
