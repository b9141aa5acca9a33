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
	shape   string
}

// Shape is the same for schemas on which every condition lowers to the same; "" for one that ParseSchema did not make.
func (s Schema) Shape() string { return s.shape }

func (s Schema) makeShape() string {
	if s.Problem != "" {
		return "!" + s.Problem
	}
	var b strings.Builder
	b.WriteByte('{')
	for _, n := range s.Names() {
		b.WriteString(strconv.Quote(n))
		b.WriteByte('0' + byte(s.Args[n].Type))
		b.WriteString(strconv.FormatBool(s.Args[n].Required))
	}
	return b.String()
}

// Arg is one top-level property of the input.
type Arg struct {
	// Type is TypeInvalid when the property has no single scalar type.
	Type     snapshot.Type
	Required bool
	// Has says what the schema has, for messages: "string", "an array", "no type".
	Has string
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
	r := reader{jsontext.NewDecoder(bytes.NewReader(raw), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))}
	s.Problem = "it has no input schema"
	r.object(func(name string) {
		if name == "inputSchema" {
			s.Problem = ""
			if !r.input(s.Args) {
				s.Problem = "its input schema is not an object"
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

// input reads an input schema's properties into args.
func (r reader) input(args map[string]Arg) bool {
	required := map[string]bool{}
	ok := r.object(func(name string) {
		switch name {
		case "required":
			for _, n := range r.words() {
				required[n] = true
			}
		case "properties":
			r.object(func(prop string) {
				typ, has := r.scalar()
				args[prop] = Arg{Type: typ, Has: has}
			})
		}
	})
	for n, a := range args {
		a.Required = required[n]
		args[n] = a
	}
	return ok
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

// scalar is the single scalar type of the property that comes next, and in any case a word for what is there.
func (r reader) scalar() (typ snapshot.Type, has string) {
	typ, has = snapshot.TypeInvalid, "no type"
	typed := false
	r.object(func(name string) {
		switch name {
		case "type":
			typed = true
			typ, has = r.types()
		case "$ref":
			if !typed {
				has = "a $ref, which is not followed"
			}
		}
	})
	return typ, has
}

// types reads what stands behind "type".
func (r reader) types() (snapshot.Type, string) {
	raw, err := r.dec.ReadValue()
	if err != nil {
		return snapshot.TypeInvalid, "a type that is not a word"
	}
	var one string
	if raw.Kind() == '"' && json.Unmarshal(raw, &one) == nil {
		return scalarWord(one)
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
