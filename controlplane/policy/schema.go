package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"

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
		a := s.Args[n]
		fmt.Fprintf(&b, "%q%d%t", n, a.Type, a.Required)
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
	input, ok := member(raw, "inputSchema")
	if !ok {
		s.Problem = "it has no input schema"
		return s
	}
	var top map[string]json.RawMessage
	if json.Unmarshal(input, &top) != nil || top == nil {
		s.Problem = "its input schema is not an object"
		return s
	}
	required := map[string]bool{}
	var names []json.RawMessage
	if json.Unmarshal(top["required"], &names) == nil {
		for _, n := range names {
			var name string
			if json.Unmarshal(n, &name) == nil {
				required[name] = true
			}
		}
	}
	var props map[string]json.RawMessage
	if json.Unmarshal(top["properties"], &props) != nil {
		return s
	}
	for name, p := range props {
		typ, has := scalar(p)
		s.Args[name] = Arg{Type: typ, Required: required[name], Has: has}
	}
	return s
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

// scalar is the single scalar type of a property, and in any case a word for what is there.
func scalar(raw json.RawMessage) (snapshot.Type, string) {
	var p map[string]json.RawMessage
	if json.Unmarshal(raw, &p) != nil || p == nil {
		return snapshot.TypeInvalid, "no type"
	}
	t, ok := p["type"]
	if !ok {
		if _, ref := p["$ref"]; ref {
			return snapshot.TypeInvalid, "a $ref, which is not followed"
		}
		return snapshot.TypeInvalid, "no type"
	}
	var one string
	if json.Unmarshal(t, &one) == nil {
		return scalarWord(one)
	}
	var many []string
	if json.Unmarshal(t, &many) != nil {
		return snapshot.TypeInvalid, "a type that is not a word"
	}
	if len(many) == 1 {
		return scalarWord(many[0])
	}
	return snapshot.TypeInvalid, "several types (" + strings.Join(many, ", ") + ")"
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

// member reads one member by its exact name; encoding/json's struct fields would match other cases too.
func member(raw []byte, name string) (json.RawMessage, bool) {
	var m map[string]json.RawMessage
	if json.Unmarshal(raw, &m) != nil {
		return nil, false
	}
	v, ok := m[name]
	return v, ok
}

// StrictJSON refuses what two parsers would read differently: a repeated member name at any depth.
func StrictJSON(raw []byte) error {
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
