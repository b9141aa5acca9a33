package policy

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/snapshot"
)

var update = flag.Bool("update", false, "rewrite testdata")

// shop is a small company with a payments server.
func shop() *World {
	tool := func(name, schema string) Schema {
		return ParseSchema("payments/"+name, []byte(`{"name":"`+name+`","inputSchema":`+schema+`}`))
	}
	return &World{
		Nodes: map[snapshot.Ref]bool{
			"user:alice": true, "user:ci-bot": true, "user:spiffe://acme/agent": true, "team:analysts": true, "group:eng": true,
			"unit:emea": true, "role:analyst": true,
		},
		Kinds: map[string]snapshot.PrincipalKind{"alice": snapshot.KindPerson, "ci-bot": snapshot.KindServiceAccount, "spiffe://acme/agent": snapshot.KindWorkload},
		Servers: map[string]Surface{
			"payments": {Prompts: []string{"dunning"}, Tools: map[string]Schema{
				"refund": tool("refund", `{"type":"object","required":["amount","currency"],"properties":{
					"amount":{"type":"integer"},"currency":{"type":"string"},"price":{"type":"string"},"note":{"type":"string"},
					"tags":{"type":"array","items":{"type":"string"}},
					"filter":{"type":"object","required":["owner"],"properties":{"owner":{"type":"string"},"depth":{"type":"integer"}}}}}`),
				"charge": tool("charge", `{"type":"object","required":["amount","currency","customer"],"properties":{
					"amount":{"type":"integer"},"currency":{"type":"string"},"customer":{"type":"string"}}}`),
			}},
			"crm": {Tools: map[string]Schema{"find": tool("find", `{"type":"object"}`)}},
		},
		Endpoints: map[string]bool{"ledger": true},
	}
}

func showGrant(g snapshot.Grant) string {
	effect := "allow"
	if g.Deny {
		effect = "deny"
	}
	return fmt.Sprintf("%s %s %s on %s/%s when %s\n", g.ID, effect, g.Subject, g.Server, g.Tool, show(g.When))
}

// TestDocuments lowers each .cedar file of testdata and compares with what stands behind it: the rules, or the refusals.
func TestDocuments(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"testdata/lowered.txtar", "testdata/refused.txtar"} {
		ar, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var out []txtar.File
		want := map[string]string{}
		for _, f := range ar.Files {
			want[f.Name] = string(f.Data)
		}
		for _, f := range ar.Files {
			name, ok := strings.CutSuffix(f.Name, ".cedar")
			if !ok {
				continue
			}
			got := lowered(name, string(f.Data))
			out = append(out, f, txtar.File{Name: name + ".out", Data: []byte(got)})
			if w := want[name+".out"]; w != got && !*update {
				t.Errorf("%s: %s\ngot:\n%swant:\n%s", path, name, got, w)
			}
			if refused := strings.Contains(path, "refused"); refused != strings.HasPrefix(got, "refused") {
				t.Errorf("%s: %s is in the wrong file:\n%s", path, name, got)
			}
		}
		if *update {
			ar.Files = out
			if err := os.WriteFile(path, txtar.Format(ar), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func lowered(name, text string) string {
	d, err := Parse(name, text)
	if err != nil {
		return fmt.Sprintf("refused %v\n", err)
	}
	grants, refusals := d.Lower(shop())
	var b strings.Builder
	for _, r := range refusals {
		fmt.Fprintf(&b, "refused %v\n", r)
	}
	for _, g := range grants {
		b.WriteString(showGrant(g))
	}
	return b.String()
}

func TestARefusalIsAProblem(t *testing.T) {
	t.Parallel()
	_, err := Parse("x", "permit (principal, action, resource) when { true ")
	p, ok := problem.As(err)
	if !ok || p.Code != problem.Invalid || p.What == "" || p.Fix == "" {
		t.Fatalf("%v", err)
	}
}

func TestFormatKeepsTheMeaningAndRefusesToLoseAComment(t *testing.T) {
	t.Parallel()
	text := `@id("a") permit(principal in Team::"analysts",action==Action::"call",resource==Tool::"payments/refund")when{context.args.amount<5&&context.args.currency=="EUR"};forbid(principal,action,resource) unless { context.ip.isInRange(ip("10.0.0.0/8")) };`
	once, err := Format(text)
	if err != nil {
		t.Fatal(err)
	}
	twice, err := Format(once)
	if err != nil || twice != once {
		t.Fatalf("formatting is not stable: %v\n%s\n%s", err, once, twice)
	}
	if lowered("x", text) != lowered("x", once) {
		t.Fatalf("the meaning changed:\n%s\n%s", lowered("x", text), lowered("x", once))
	}
	_, err = Format("permit (principal, action,\n  resource); // all\n")
	if err == nil || !strings.Contains(err.Error(), "2:14: a comment would be lost") {
		t.Fatalf("%v", err)
	}
	if _, err := Format(`@id("//") permit (principal, action, resource);`); err != nil {
		t.Fatalf("a string is no comment: %v", err)
	}
}

func TestATextThatLooksLikeAnotherIsRefused(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"permit (principal, action, resource)\nwhen { \u202etrue };": "2:8: the character U+202E cannot be seen: in a string, write \\u{202e}",
		"permit (principal, action, resource); \x1b[2J":              "1:39: the character U+001B",
		"permit (principal, action, resource); \xff":                 "1:39: the character U+FFFD",
	} {
		if _, err := Parse("x", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, err := Parse("x", "permit (principal, action, resource)\r\n\twhen { \"\\u{202e}\" == \"Straße\" };"); err != nil {
		t.Errorf("an escape can be seen: %v", err)
	}
}

// TestWithoutAWorldNamesAndArgumentsAreNotRefused: what a client can check without asking the control plane.
func TestWithoutAWorldNamesAndArgumentsAreNotRefused(t *testing.T) {
	t.Parallel()
	d, err := Parse("x", `forbid (principal in Team::"whoever", action == Action::"call", resource == Tool::"any/tool")
		when { context.args.a.b > 3 || context.args.c == "x" && context.args.d || ["x"].containsAll(context.args.list) };`)
	if err != nil {
		t.Fatal(err)
	}
	if _, refusals := d.Lower(&World{}); len(refusals) > 0 {
		t.Fatal(refusals)
	}
	d, err = Parse("x", `forbid (principal, action, resource) when { context.args.a > 3 };`)
	if err != nil {
		t.Fatal(err)
	}
	if _, refusals := d.Lower(&World{}); len(refusals) != 1 || refusals[0].Line != 1 || refusals[0].Column != 58 {
		t.Fatal(refusals)
	}
}

func FuzzParse(f *testing.F) {
	for _, path := range []string{"testdata/lowered.txtar", "testdata/refused.txtar"} {
		ar, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range ar.Files {
			if strings.HasSuffix(file.Name, ".cedar") {
				f.Add(string(file.Data))
			}
		}
	}
	w := shop()
	f.Fuzz(func(t *testing.T, text string) {
		d, err := Parse("fuzz", text)
		if err != nil {
			if problem.CodeOf(err) != problem.Invalid {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		grants, refusals := d.Lower(w)
		if len(grants)+len(refusals) != len(d.Policies) {
			t.Fatalf("%q: %d policies gave %d rules and %d refusals", text, len(d.Policies), len(grants), len(refusals))
		}
		for _, g := range grants {
			if err := g.When.Validate(); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
		}
		if once, err := Format(text); err == nil {
			if twice, err := Format(once); err != nil || twice != once {
				t.Fatalf("%q: formatted %q, again %q %v", text, once, twice, err)
			}
			if a, b := lowered("fuzz", text), lowered("fuzz", once); len(refusals) == 0 && a != b {
				t.Fatalf("%q: means %s, formatted %s", text, a, b)
			}
		}
		for _, r := range refusals {
			if r.Line == 0 || r.What == "" || r.Fix == "" {
				t.Fatalf("%q: %+v", text, r)
			}
		}
	})
}
