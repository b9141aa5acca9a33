package schema_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/kit/schema"
)

func TestValuesAreHeldToTheirSchema(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, schema string
		good, bad    []string
	}{
		{
			"types", `{"type":"object","properties":{"n":{"type":"integer","minimum":1},"s":{"type":"string","maxLength":3}},"required":["n"],"additionalProperties":false}`,
			[]string{`{"n":1}`, `{"n":9007199254740993,"s":"abc"}`, `{"n":1.0}`},
			[]string{`{}`, `{"n":"1"}`, `{"n":0}`, `{"n":1,"s":"abcd"}`, `{"n":1,"x":1}`, `[]`},
		},
		{
			"references", `{"$defs":{"id":{"type":"string","pattern":"^[a-z]+$"}},"properties":{"a":{"$ref":"#/$defs/id"},"b":{"$ref":"#w"}},"definitions":{"w":{"$anchor":"w","type":"number"}}}`,
			[]string{`{"a":"x","b":1}`, `{}`},
			[]string{`{"a":"X"}`, `{"a":1}`, `{"b":"1"}`},
		},
		{
			"a tree", `{"$ref":"#/$defs/node","$defs":{"node":{"type":"object","properties":{"kids":{"type":"array","items":{"$ref":"#/$defs/node"}}},"required":["v"],"allOf":[{"properties":{"more":{"$ref":"#"}}}]}}}`,
			[]string{`{"v":1,"kids":[{"v":2,"kids":[]}],"more":{"v":1}}`},
			[]string{`{"v":1,"kids":[{"kids":[]}]}`, `{"v":1,"more":{}}`},
		},
		{"one of", `{"oneOf":[{"required":["a"]},{"required":["b"]}]}`, []string{`{"a":1}`}, []string{`{}`, `{"a":1,"b":1}`}},
		{
			"draft 7", `{"$schema":"http://json-schema.org/draft-07/schema#","type":"object","properties":{"t":{"items":[{"type":"string"}]}},"dependencies":{"a":["b"]}}`,
			[]string{`{"t":["x",1]}`, `{"a":1,"b":1}`},
			[]string{`{"t":[1]}`, `{"a":1}`},
		},
		{"a pattern of another engine is left out", `{"properties":{"mail":{"type":"string","pattern":"^(?!\\.)[^@]+@x$"}}}`, []string{`{"mail":".@y"}`}, []string{`{"mail":1}`}},
		{"unevaluated", `{"allOf":[{"properties":{"a":true}}],"unevaluatedProperties":false}`, []string{`{"a":1}`}, []string{`{"b":1}`}},
		{
			"patterns of names", `{"patternProperties":{"^x-":{"type":"string"}},"additionalProperties":false,"propertyNames":{"maxLength":4}}`,
			[]string{`{"x-a":"1"}`},
			[]string{`{"x-a":1}`, `{"y":"1"}`, `{"x-abc":"1"}`},
		},
		{"everything", `true`, []string{`1`, `{}`}, nil},
		{"nothing", `false`, nil, []string{`1`, `{}`}},
	} {
		s, err := schema.Compile([]byte(tc.schema))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		for _, v := range tc.good {
			if err := s.Check([]byte(v)); err != nil {
				t.Errorf("%s: %s: %v", tc.name, v, err)
			}
		}
		for _, v := range tc.bad {
			var m *schema.Mismatch
			if err := s.Check([]byte(v)); !errors.As(err, &m) {
				t.Errorf("%s: %s: %v", tc.name, v, err)
			}
		}
	}
}

func TestAMismatchRepeatsNothingOfTheValue(t *testing.T) {
	t.Parallel()
	s, err := schema.Compile([]byte(`{"properties":{"a":{"items":{"enum":["x"]}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check([]byte(`{"a":["x","hunter2"]}`)); err == nil || err.Error() != `/a/1 does not meet "enum"` {
		t.Error(err)
	}
}

// doubling is a schema whose parts come to 2^n.
func doubling(n int) string {
	var b strings.Builder
	b.WriteString(`{"$ref":"#/$defs/a0","$defs":{`)
	for i := range n {
		fmt.Fprintf(&b, `"a%d":{"allOf":[{"$ref":"#/$defs/a%d"},{"$ref":"#/$defs/a%d"}]},`, i, i+1, i+1)
	}
	fmt.Fprintf(&b, `"a%d":{"type":"object"}}}`, n)
	return b.String()
}

func TestE12SchemasThatAreTrapsAreRefused(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		schema string
		want   error
	}{
		"remote reference":          {`{"properties":{"a":{"$ref":"https://evil.example/s.json"}}}`, schema.ErrRemote},
		"file":                      {`{"$ref":"file:///etc/passwd"}`, schema.ErrRemote},
		"relative":                  {`{"$defs":{"unused":{"$ref":"other.json#/a"}}}`, schema.ErrRemote},
		"remote by dynamic":         {`{"$dynamicRef":"//evil.example/s#x"}`, schema.ErrRemote},
		"400 levels":                {strings.Repeat(`{"properties":{"a":`, 200) + "{}" + strings.Repeat("}}", 200), schema.ErrTooDeep},
		"2^30":                      {doubling(30), schema.ErrExpansion},
		"2^30 below a property":     {`{"properties":{"x":` + doubling(30) + `}}`, nil}, // its references lead nowhere
		"itself":                    {`{"$ref":"#"}`, schema.ErrExpansion},
		"itself by way of another":  {`{"allOf":[{"$ref":"#/$defs/a"}],"$defs":{"a":{"anyOf":[{"$ref":"#"}]}}}`, schema.ErrExpansion},
		"no regular expression":     {`{"properties":{"a":{"pattern":"(a"}}}`, schema.ErrPattern},
		"nor for names":             {`{"patternProperties":{"a**":{}}}`, schema.ErrPattern},
		"plain":                     {`{"type":"object","properties":{"a":{"$ref":"#/$defs/a"}},"$defs":{"a":{"type":"string","pattern":"^a+$"}}}`, nil},
		"a pattern with look-ahead": {`{"pattern":"^(?!x)"}`, nil},
	} {
		if err := schema.Vet([]byte(tc.schema)); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
		if _, err := schema.Compile([]byte(tc.schema)); tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("%s is compiled: %v", name, err)
		}
	}
	for _, unclear := range []string{
		`{"properties":{"x":` + doubling(3) + `}}`, `{"properties":{"a":{"$id":"https://x.example/a","$ref":"#/b"}}}`, `{"patternProperties":{"^(?!a)":{}}}`, `{"type":"strang"}`, `{`, ``,
	} {
		if _, err := schema.Compile([]byte(unclear)); !errors.Is(err, schema.ErrUnsupported) {
			t.Errorf("%.80s: %v", unclear, err)
		}
	}
}

func TestE12TheWorkOfACheckIsBounded(t *testing.T) {
	t.Parallel()
	list := func(n int, e string) string { return "[" + strings.Repeat(e+",", n-1) + e + "]" }
	for name, tc := range map[string]struct{ schema, value string }{
		// Small as a schema, and twice the work with each level of the value.
		"2^60 by the value":  {`{"properties":{"a":{"allOf":[{"$ref":"#"},{"$ref":"#"}]}}}`, strings.Repeat(`{"a":`, 60) + "1" + strings.Repeat("}", 60)},
		"many alternatives":  {`{"items":{"anyOf":` + list(200, `{"type":"string","minLength":3}`) + `}}`, list(10_000, "1")},
		"unique by the pair": {`{"uniqueItems":true}`, list(50_000, `{"a":[1]}`)},
		"a slow pattern":     {`{"pattern":"(a?){500}(b|c|d){300}x"}`, `"` + strings.Repeat("a", 1<<20) + `"`},
		"a huge exponent":    {`{"multipleOf":3}`, "1e999999"},
		"a huge number":      {`{"minimum":3}`, strings.Repeat("9", 10_000)},
		"a wide enumeration": {`{"items":{"enum":` + list(5000, `"xxxxxxxx"`) + `}}`, list(5000, `"y"`)},
	} {
		s, err := schema.Compile([]byte(tc.schema))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		began := time.Now()
		if err := s.Check([]byte(tc.value)); !errors.Is(err, schema.ErrTooCostly) {
			t.Errorf("%s: %v after %s", name, err, time.Since(began))
		}
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(`{"type":"object","properties":{"a":{"type":"string"}}}`, `{"a":"b"}`)
	f.Add(doubling(4), `{}`)
	f.Add(`{"$ref":"#/$defs/a","$defs":{"a":{"items":{"$ref":"#"}}}}`, `[[[]]]`)
	f.Add(`{"pattern":"a+","patternProperties":{"b":{}},"if":{},"then":{"not":{}},"$dynamicRef":"#"}`, `"aa"`)
	f.Fuzz(func(t *testing.T, raw, value string) {
		if len(raw) > 4096 || len(value) > 4096 {
			return
		}
		s, err := schema.Compile([]byte(raw))
		if err != nil {
			return
		}
		if err := schema.Vet([]byte(raw)); err != nil {
			t.Fatalf("%s is used and should not be: %v", raw, err)
		}
		if err := s.Check([]byte(value)); err == nil && !json.Valid([]byte(value)) {
			t.Fatalf("%q fits", value)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	s, err := schema.Compile([]byte(`{"type":"object","properties":{"amount":{"type":"number","minimum":0},"currency":{"enum":["EUR","USD"]},"note":{"type":"string","maxLength":200}},"required":["amount"]}`))
	if err != nil {
		b.Fatal(err)
	}
	args := []byte(`{"amount":12.5,"currency":"EUR","note":"for the books"}`)
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Check(args); err != nil {
			b.Fatal(err)
		}
	}
}
