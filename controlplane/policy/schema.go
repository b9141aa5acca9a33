package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mcpvault/mcpvault/snapshot"
)

// Schema is what conditions need to know about one tool's input.
type Schema struct {
	// Tool is the name for messages: "payments/refund".
	Tool string
	Args map[string]Arg
	// Problem says why the schema cannot be used, "" when it can. No argument can be named then.
	Problem string
	// Open is true when nobody knows the arguments: every one may be there, of every type.
	Open  bool
	shape string
}

// Shape is the same for schemas on which every condition lowers to the same; "" for one that ParseSchema did not make.
func (s Schema) Shape() string { return s.shape }

func (s Schema) makeShape() string {
	if s.Problem != "" {
		return "!" + s.Problem
	}
	var b strings.Builder
	writeShape(&b, s.Args)
	return b.String()
}

func writeShape(b *strings.Builder, args map[string]Arg) {
	b.WriteByte('{')
	for _, n := range keys(args) {
		a := args[n]
		b.WriteString(strconv.Quote(n))
		b.WriteByte('0' + byte(a.Type))
		b.WriteByte('0' + byte(a.Items))
		b.WriteString(strconv.FormatBool(a.Required))
		if a.Members != nil {
			writeShape(b, a.Members)
		}
	}
	b.WriteByte('}')
}

// Arg is one top-level property of the input.
type Arg struct {
	// Type is TypeInvalid when the property has no single scalar type.
	Type     snapshot.Type
	Required bool
	// Has says what the schema has, for messages: "string", "an array", "no type".
	Has string
	// Items is the single scalar type of an array's members, Members are those of an object.
	Items   snapshot.Type
	Members map[string]Arg
}

// maxSchemaDepth bounds how deep a tool object may nest before it is taken as unusable.
const maxSchemaDepth = 128

// ParseSchema reads a raw tool object. It takes anything: what it cannot read becomes a Problem, and no reference is ever
// followed, so that reading a schema cannot reach the network.
func ParseSchema(tool string, raw []byte) Schema {
	s := readSchema(tool, raw)
	s.shape = s.makeShape()
	return s
}

func readSchema(tool string, raw []byte) Schema {
	s := Schema{Tool: tool, Args: map[string]Arg{}}
	if err := StrictJSON(raw); err != nil {
		s.Problem = "its description is not strict JSON: " + err.Error()
		return s
	}
	r := reader{jsontext.NewDecoder(bytes.NewBuffer(raw), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))}
	s.Problem = "it has no input schema"
	r.object(func(name string) {
		if name == "inputSchema" {
			s.Problem = ""
			input, ok := r.property(0)
			if !ok {
				s.Problem = "its input schema is not an object"
			}
			if input.Members != nil {
				s.Args = input.Members
			}
		}
	})
	return s
}

// reader reads a document that is known to be well-formed, in one pass.
type reader struct{ dec *jsontext.Decoder }

// object tells the name of each member of the object that comes next; a value that member does not read is skipped. It is
// false, and skips the value, when there is no object.
func (r reader) object(member func(name string)) bool {
	if r.dec.PeekKind() != '{' {
		_ = r.dec.SkipValue()
		return false
	}
	_, _ = r.dec.ReadToken()
	depth := r.dec.StackDepth()
	for k := r.dec.PeekKind(); k == '"'; k = r.dec.PeekKind() {
		name, err := r.dec.ReadToken()
		if err != nil {
			return true
		}
		_, before := r.dec.StackIndex(depth)
		member(name.String())
		if _, after := r.dec.StackIndex(depth); after == before {
			_ = r.dec.SkipValue()
		}
	}
	_, _ = r.dec.ReadToken()
	return true
}

// words are the strings of the array that comes next.
func (r reader) words() (out []string) {
	if r.dec.PeekKind() != '[' {
		_ = r.dec.SkipValue()
		return nil
	}
	_, _ = r.dec.ReadToken()
	for k := r.dec.PeekKind(); k != ']' && k != 0; k = r.dec.PeekKind() {
		if k != '"' {
			_ = r.dec.SkipValue()
			continue
		}
		if t, err := r.dec.ReadToken(); err == nil {
			out = append(out, t.String())
		}
	}
	_, _ = r.dec.ReadToken()
	return out
}

// maxMembers bounds how deep conditions can reach into an argument.
const maxMembers = 8

// property reads the schema that comes next: its single type, the members of an object, and in any case a word for what is
// there. It is false for what is no object.
func (r reader) property(depth int) (Arg, bool) {
	a := Arg{Has: "no type"}
	typed := false
	required := map[string]bool{}
	inner := Arg{}
	ok := r.object(func(name string) {
		switch {
		case name == "type":
			typed = true
			a.Type, a.Has = r.types()
		case name == "$ref" && !typed:
			a.Has = "a $ref, which is not followed"
		case name == "items" && depth < maxMembers:
			inner, _ = r.property(depth + 1)
		case name == "required":
			for _, n := range r.words() {
				required[n] = true
			}
		case name == "properties" && depth < maxMembers:
			a.Members = map[string]Arg{}
			r.object(func(prop string) { a.Members[prop], _ = r.property(depth + 1) })
		}
	})
	for n, m := range a.Members {
		m.Required = required[n]
		a.Members[n] = m
	}
	if depth > 0 && a.Has != `type "object"` {
		a.Members = nil
	}
	if a.Has == `type "array"` {
		a.Items = inner.Type
	}
	return a, ok
}

// types reads what stands behind "type".
func (r reader) types() (snapshot.Type, string) {
	if r.dec.PeekKind() == '"' {
		word, err := r.dec.ReadToken()
		if err != nil {
			return snapshot.TypeInvalid, "a type that is not a word"
		}
		return scalarWord(word.String())
	}
	raw, err := r.dec.ReadValue()
	if err != nil {
		return snapshot.TypeInvalid, "a type that is not a word"
	}
	var many []string
	if json.Unmarshal(raw, &many) != nil {
		return snapshot.TypeInvalid, "a type that is not a word"
	}
	if len(many) == 1 {
		return scalarWord(many[0])
	}
	return snapshot.TypeInvalid, "several types (" + strings.Join(many, ", ") + ")"
}

// Names lists the arguments, sorted.
func (s Schema) Names() []string {
	names := make([]string, 0, len(s.Args))
	for n := range s.Args {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

func scalarWord(w string) (snapshot.Type, string) {
	switch w {
	case "string":
		return snapshot.TypeString, w
	case "boolean":
		return snapshot.TypeBool, w
	case "integer", "number":
		return snapshot.TypeNumber, w
	}
	return snapshot.TypeInvalid, fmt.Sprintf("type %q", w)
}

// StrictJSON refuses what two parsers would read differently: a repeated member name at any depth.
func StrictJSON(raw []byte) error {
	// The fast check accepts less; the slow one knows what is wrong.
	if deepest := nesting(raw); deepest <= maxSchemaDepth && jsontext.Value(raw).IsValid() {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := walk(dec, 0); err != nil {
		return err
	}
	if dec.More() {
		return errors.New("something follows the object")
	}
	return nil
}

// nesting is at least how deep the objects and arrays of a document nest.
func nesting(raw []byte) (most int) {
	if n := bytes.Count(raw, []byte{'{'}) + bytes.Count(raw, []byte{'['}); n <= maxSchemaDepth {
		return n
	}
	depth := 0
	for _, c := range raw {
		switch c {
		case '{', '[':
			depth++
			most = max(most, depth)
		case '}', ']':
			depth--
		}
	}
	return most
}

func walk(dec *json.Decoder, depth int) error {
	if depth > maxSchemaDepth {
		return errors.New("it nests too deep")
	}
	t, err := dec.Token()
	if err != nil {
		return errors.New("it does not parse")
	}
	d, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	seen := map[string]bool{}
	for dec.More() {
		if d == '{' {
			k, err := dec.Token()
			if err != nil {
				return errors.New("it does not parse")
			}
			name, _ := k.(string)
			if seen[name] {
				return fmt.Errorf("member %q appears twice", name)
			}
			seen[name] = true
		}
		if err := walk(dec, depth+1); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return errors.New("it does not parse")
	}
	return nil
}
