package snapshot_test

import (
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/snapshot"
)

func surface(raw ...string) snapshot.Surface {
	s := snapshot.Surface{Instructions: "be kind"}
	for i, r := range raw {
		s.Tools = append(s.Tools, snapshot.SurfaceTool{Name: string(rune('a' + i)), Raw: []byte(r)})
	}
	return s
}

func digest(t *testing.T, s snapshot.Surface) snapshot.Digest {
	t.Helper()
	d, err := s.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestSurfaceDigestIgnoresForm(t *testing.T) {
	t.Parallel()
	s := surface(`{"name":"a","n":1}`, `{"name":"b"}`)
	want := digest(t, s)
	if got := digest(t, surface(" { \"n\" :1,\n\"na\\u006de\": \"\\u0061\" }", `{"name":"b"}`)); got != want {
		t.Error("white space, order of members or escapes count")
	}
	s.Tools[0], s.Tools[1] = s.Tools[1], s.Tools[0]
	if digest(t, s) != want {
		t.Error("the order of tools counts")
	}
}

func TestSurfaceDigestSeesEveryChange(t *testing.T) {
	t.Parallel()
	seen := map[snapshot.Digest]string{}
	other := surface(`{"name":"a"}`)
	other.Instructions = "be rude"
	renamed := surface(`{"name":"a"}`)
	renamed.Tools[0].Name = "z"
	for name, s := range map[string]snapshot.Surface{
		"none": surface(), "one": surface(`{"name":"a"}`), "two": surface(`{"name":"a"}`, `{"name":"a"}`),
		"other instructions": other, "renamed": renamed, "more": surface(`{"name":"a","description":"x"}`),
		"large number":      surface(`{"maximum":9007199254740992}`),
		"one larger":        surface(`{"maximum":9007199254740993}`),
		"number as written": surface(`{"maximum":1.0}`), "another": surface(`{"maximum":1}`),
		"array": surface(`{"enum":[1,2]}`), "other order": surface(`{"enum":[2,1]}`),
		"composed": surface("{\"d\":\"\u00e9\"}"), "decomposed": surface("{\"d\":\"e\u0301\"}"),
	} {
		d := digest(t, s)
		if twin, ok := seen[d]; ok {
			t.Errorf("%s is the same as %s", name, twin)
		}
		seen[d] = name
	}
}

// A version is found again by its digest: those that were approved before prompts were pinned must keep theirs.
func TestSurfaceDigestOfToolsAloneStaysWhatItWas(t *testing.T) {
	t.Parallel()
	const before = "3db4f7746dbeb8511d92301ac1d95dcaea4c3676e211037f9e90e8fcc667281d"
	if got := digest(t, surface(`{"name":"a","n":1}`, `{"name":"b"}`)).String(); got != before {
		t.Errorf("got %s", got)
	}
}

func TestSurfaceDigestSeesPromptsAndResources(t *testing.T) {
	t.Parallel()
	entry := func(name string) []snapshot.SurfaceTool {
		return []snapshot.SurfaceTool{{Name: name, Raw: []byte(`{"name":"` + name + `"}`)}}
	}
	seen := map[snapshot.Digest]string{digest(t, surface()): "nothing"}
	for name, s := range map[string]snapshot.Surface{
		"tool": {Tools: entry("a")}, "prompt": {Prompts: entry("a")}, "resource": {Resources: entry("a")}, "template": {Templates: entry("a")},
		"another prompt": {Prompts: entry("b")}, "two lists": {Prompts: entry("a"), Resources: entry("a")},
		"tool and prompt": {Tools: entry("a"), Prompts: entry("a")}, "two prompts": {Prompts: append(entry("a"), entry("b")...)},
	} {
		s.Instructions = "be kind"
		d := digest(t, s)
		if twin, ok := seen[d]; ok {
			t.Errorf("%s is the same as %s", name, twin)
		}
		seen[d] = name
	}
	twice := snapshot.Surface{Prompts: append(entry("a"), entry("a")...)}
	if _, err := twice.Digest(); err == nil {
		t.Error("a prompt twice accepted")
	}
	star := snapshot.Surface{Tools: entry("*prompt 1")}
	if _, err := star.Digest(); err == nil {
		t.Error("a tool that looks like the beginning of another list accepted")
	}
}

func TestSurfaceDigestRefusesAmbiguousTools(t *testing.T) {
	t.Parallel()
	for name, raw := range map[string]string{
		"empty": ``, "array": `[]`, "null": `null`, "name twice": `{"name":"a","name":"b"}`, "inner name twice": `{"x":{"a":1,"a":2}}`,
		"invalid UTF-8": "{\"a\":\"\xff\"}", "lone surrogate": `{"a":"\ud800"}`, "two objects": `{}{}`, "cut": `{"a":`,
		"deep":  `{"a":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`,
		"large": `{"a":"` + strings.Repeat("x", snapshot.MaxSurfaceTool) + `"}`,
	} {
		if _, err := surface(raw).Digest(); err == nil {
			t.Errorf("%s accepted", name)
		}
		if _, err := snapshot.ToolDigest([]byte(raw)); err == nil {
			t.Errorf("%s accepted as a tool", name)
		}
	}
	s := surface(`{}`, `{}`)
	s.Tools[1].Name = s.Tools[0].Name
	if _, err := s.Digest(); err == nil {
		t.Error("a tool twice accepted")
	}
}

func FuzzToolDigest(f *testing.F) {
	f.Add([]byte(`{"name":"a","inputSchema":{"type":"object"}}`))
	f.Fuzz(func(_ *testing.T, raw []byte) { _, _ = snapshot.ToolDigest(raw) })
}

func TestConditionIsBounded(t *testing.T) {
	t.Parallel()
	deep := &snapshot.Cond{Op: snapshot.OpTrue}
	for range snapshot.MaxCondDepth + 1 {
		deep = &snapshot.Cond{Op: snapshot.OpNot, Kids: []*snapshot.Cond{deep}}
	}
	number := snapshot.Value{Type: snapshot.TypeNumber}
	for name, c := range map[string]*snapshot.Cond{
		"deep":             deep,
		"no operands":      {Op: snapshot.OpAnd},
		"not of two":       {Op: snapshot.OpNot, Kids: []*snapshot.Cond{{Op: snapshot.OpTrue}, {Op: snapshot.OpTrue}}},
		"nil operand":      {Op: snapshot.OpOr, Kids: []*snapshot.Cond{nil}},
		"no argument":      {Op: snapshot.OpEq, Value: number},
		"no type":          {Op: snapshot.OpEq, Arg: "a"},
		"empty set":        {Op: snapshot.OpIn, Arg: "a"},
		"mixed set":        {Op: snapshot.OpIn, Arg: "a", Values: []snapshot.Value{number, {Type: snapshot.TypeBool}}},
		"order of bools":   {Op: snapshot.OpLt, Arg: "a", Value: snapshot.Value{Type: snapshot.TypeBool}},
		"time as text":     {Op: snapshot.OpBefore, Value: snapshot.Value{Type: snapshot.TypeString}},
		"invalid UTF-8":    {Op: snapshot.OpEq, Arg: "a", Value: snapshot.Value{Type: snapshot.TypeString, Str: "\xff"}},
		"unknown operator": {Op: 99},
	} {
		if c.Validate() == nil {
			t.Errorf("%s accepted", name)
		}
	}
	var none *snapshot.Cond
	if err := none.Validate(); err != nil {
		t.Error(err)
	}
}
