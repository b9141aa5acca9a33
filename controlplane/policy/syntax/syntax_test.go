package syntax

import (
	"strings"
	"testing"

	cedar "github.com/cedar-policy/cedar-go"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"
)

// where lists the word and the place of every part of an expression.
func where(t testing.TB, text string) string {
	t.Helper()
	const before = "permit (principal, action, resource) when {\n"
	var p cedar.Policy
	if err := p.UnmarshalCedar([]byte(before + text + "\n};")); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	e := NewLocator(text, Place{1, 1}).Locate(p.AST().Conditions[0].Body)
	var out []string
	var walk func(*Expr)
	walk = func(e *Expr) {
		word, _, _ := Binary(e.N)
		switch v := e.N.(type) {
		case xast.NodeTypeVariable:
			word = string(v.Name)
		case xast.NodeTypeAccess, xast.NodeTypeHas:
			word = "." + e.Attr()
		case xast.NodeValue:
			word = string(v.Value.MarshalCedar())
		case xast.NodeTypeExtensionCall:
			word = string(v.Name)
		}
		out = append(out, word+"@"+strings.TrimSuffix(e.At.String(), ": "))
		for _, k := range e.Kids {
			walk(k)
		}
	}
	walk(e)
	return strings.Join(out, " ")
}

func TestLocatorFindsEachWordWhereItStands(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`context.args.a == context.args.a`:                        `==@1:16 .a@1:14 .args@1:9 context@1:1 .a@1:32 .args@1:27 context@1:19`,
		"true && // a comment with true\n  false":                 `&&@1:6 true@1:1 false@2:3`,
		`context.args["a b"] < -5`:                                `<@1:21 .a b@1:14 .args@1:9 context@1:1 -5@1:24`,
		`context.args has a.b && true`:                            `&&@1:22 &&@1:1 .a@1:18 .args@1:9 context@1:1 .b@1:20 .a@ .args@ context@ true@1:25`,
		`context.ip.isInRange(ip("10.0.0.0/8"))`:                  `isInRange@1:12 .ip@1:9 context@1:1 ip@1:22 "10.0.0.0/8"@1:25`,
		`["a", "\u{62}"].contains("é") || principal in Team::"x"`: `||@1:31 contains@1:17 @1:1 "a"@1:2 "b"@1:7 "é"@1:26 in@1:44 principal@1:34 Team::"x"@1:47`,
	} {
		got := where(t, text)
		if got != want {
			t.Errorf("%s\n got %s\nwant %s", text, got, want)
		}
	}
}

func TestCommentAndInvisible(t *testing.T) {
	t.Parallel()
	if at, ok := Comment("\"//\"\n  // x"); !ok || at != (Place{2, 3}) {
		t.Errorf("%v %v", at, ok)
	}
	if _, ok := Comment(`"// no"`); ok {
		t.Error("a string is no comment")
	}
	if at, r, ok := Invisible("a\n\u200bb"); !ok || at != (Place{2, 1}) || r != 0x200b {
		t.Errorf("%v %x %v", at, r, ok)
	}
}

func FuzzLocator(f *testing.F) {
	for _, s := range []string{`context.args has a.b && context.args.a.b like "x*"`, `if a then b else c`, "\"\\u{1F600}\" // x", `!!(-1 < 2)`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if Deepest(text) > 64 {
			return
		}
		list, err := cedar.NewPolicyListFromBytes("f", []byte("permit(principal,action,resource) when {\n"+text+"\n};"))
		if err != nil || len(list) != 1 || len(list[0].AST().Conditions) != 1 {
			return
		}
		e := NewLocator(text, Place{1, 1}).Locate(list[0].AST().Conditions[0].Body)
		lines := strings.Split(text, "\n")
		var walk func(*Expr)
		walk = func(e *Expr) {
			if e.At.Line > len(lines) || e.At.Line > 0 && e.At.Column > len([]rune(lines[e.At.Line-1])) {
				t.Fatalf("%q: %+v is outside the text", text, e.At)
			}
			for _, k := range e.Kids {
				walk(k)
			}
		}
		walk(e)
	})
}
