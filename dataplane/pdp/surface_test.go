package pdp

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/mcpvault/mcpvault/snapshot/index"
)

func TestATemplateIsJudgedByAddressesThatItMakes(t *testing.T) {
	t.Parallel()
	patterns := []string{"file:///docs/*", "file:///docs/secret/*", "https://*", "file:///docs/*.md", "*"}
	for template, want := range map[string]string{
		"file:///docs/{name}":       "file:///docs/x file:///docs/secret/x file:///docs/.md",
		"file:///{+path}":           "file:///x file:///docs/x file:///docs/secret/x file:///docs/.md",
		"https://h/{a}/b{?q,r}":     "https://h/x/bx",
		"db://rows":                 "db://rows",
		"db://{unclosed":            "db://{unclosed",
		"file:///docs/{name}.{ext}": "file:///docs/x.x file:///docs/secret/x.x file:///docs/x..md",
	} {
		if got := strings.Join(samples(template, patterns), " "); !subset(want, got) {
			t.Errorf("%s: %s, want %s among them", template, got, want)
		}
	}
}

func subset(want, got string) bool {
	for w := range strings.FieldsSeq(want) {
		if !strings.Contains(" "+got+" ", " "+w+" ") {
			return false
		}
	}
	return true
}

// TestACommonAddressIsFoundWhereverThereIsOne compares with trying every short text.
func TestACommonAddressIsFoundWhereverThereIsOne(t *testing.T) {
	t.Parallel()
	var texts []string
	for n, level := 0, []string{""}; n <= 5; n++ {
		texts = append(texts, level...)
		var next []string
		for _, s := range level {
			next = append(next, s+"a", s+"b")
		}
		level = next
	}
	glob := rapid.StringMatching(`[ab*]{0,5}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b := glob.Draw(t, "a"), glob.Draw(t, "b")
		got, ok := common(a, b)
		if ok && (!index.Match(a, got) || !index.Match(b, got)) {
			t.Fatalf("%q is not in both %q and %q", got, a, b)
		}
		for _, s := range texts {
			if !ok && index.Match(a, s) && index.Match(b, s) {
				t.Fatalf("%q is in both %q and %q, and was not found", s, a, b)
			}
		}
	})
}
