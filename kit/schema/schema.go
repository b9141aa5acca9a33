// Package schema holds values to JSON Schemas that strangers wrote, of the drafts from 4 to 2020-12.
//
// It promises that nothing is fetched, that patterns run in time that is linear in their input (RE2), and that the work of
// one check is bounded before it begins: a schema whose parts refer to each other can ask for exponentially much of it.
package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// The bounds of a schema and of one check.
const (
	// MaxDepth is how deeply a schema may be nested.
	MaxDepth = 64
	// maxExpansion is how many subschemas a schema may come to when its references are followed.
	maxExpansion = 100_000
	// maxSteps bounds one check, a step being one subschema applied to one value, some 50 ns.
	maxSteps = 200_000
	// maxNesting bounds subschemas within subschemas in one check, references followed.
	maxNesting = 1_000
)

// The reasons why a schema is not used.
var (
	// ErrRemote: it refers to something outside of itself.
	ErrRemote = errors.New("it refers to something outside of itself")
	// ErrExpansion: following its references never ends, or comes to too much.
	ErrExpansion = errors.New("its parts refer to each other so that checking them comes to too much")
	// ErrTooDeep: it is nested too deeply.
	ErrTooDeep = fmt.Errorf("it is nested over %d levels deep", MaxDepth)
	// ErrPattern: a regular expression in it is none.
	ErrPattern = errors.New("a pattern in it is no regular expression")
	// ErrUnsupported: it uses something that cannot be checked here.
	ErrUnsupported = errors.New("it uses something that cannot be checked here")
)

// ErrTooCostly means that a check would take more work than is spent on one.
var ErrTooCostly = errors.New("checking it against the schema would take too much work")

// Schema is a compiled schema. It is safe for concurrent use.
type Schema struct {
	doc      *document
	compiled *jsonschema.Schema
}

// Vet finds what no schema may hold, however it is used: ErrExpansion, ErrTooDeep or ErrPattern, and ErrRemote when there is
// nothing worse. It does not say that the schema can be used.
func Vet(raw []byte) error {
	d, err := read(raw)
	if err != nil {
		return err
	}
	return d.vet()
}

// Compile reads a schema. Patterns that only backtracking engines run, with look-around or references back, are left out
// of the check: whoever wrote them checks them too.
func Compile(raw []byte) (*Schema, error) {
	d, err := read(raw)
	if err != nil {
		return nil, err
	}
	if err := d.vet(); err != nil {
		return nil, err
	}
	if d.unclear {
		return nil, ErrUnsupported
	}
	c := jsonschema.NewCompiler()
	c.UseLoader(nothing{})
	c.UseRegexpEngine(engine)
	const name = "schema:///input"
	if err := c.AddResource(name, d.root); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	compiled, err := c.Compile(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return &Schema{doc: d, compiled: compiled}, nil
}

// Check holds a JSON value to the schema. An error is ErrTooCostly or says what does not fit, in words for whoever sent the
// value.
func (s *Schema) Check(value []byte) error {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(value))
	if err != nil {
		return errors.New("is no JSON")
	}
	w := walk{doc: s.doc, left: maxSteps}
	if !w.apply(s.doc.root, v, 0) {
		return ErrTooCostly
	}
	err = s.compiled.Validate(v)
	var invalid *jsonschema.ValidationError
	if errors.As(err, &invalid) {
		return &Mismatch{text: firstOf(invalid)}
	}
	return err
}

// Mismatch is a value that does not fit its schema.
type Mismatch struct{ text string }

// Error says where, as a JSON pointer, and which keyword of the schema is not met; it repeats nothing of the value.
func (m *Mismatch) Error() string { return m.text }

// firstOf is the first of the innermost reasons.
func firstOf(e *jsonschema.ValidationError) string {
	for len(e.Causes) > 0 {
		e = e.Causes[0]
	}
	at := "/" + strings.Join(e.InstanceLocation, "/")
	return fmt.Sprintf("%s does not meet %q", at, strings.Join(e.ErrorKind.KeywordPath(), "/"))
}

// nothing fetches nothing.
type nothing struct{}

// Load refuses.
func (nothing) Load(string) (any, error) { return nil, ErrRemote }

// anything is a pattern that is left out.
type anything string

// MatchString is true.
func (anything) MatchString(string) bool { return true }

// String is the pattern.
func (a anything) String() string { return string(a) }

func engine(pattern string) (jsonschema.Regexp, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		if beyondRE2(err) {
			return anything(pattern), nil
		}
		return nil, err
	}
	return re, nil
}

// beyondRE2 tells a pattern that other engines run from one that is broken.
func beyondRE2(err error) bool {
	var e *syntax.Error
	if !errors.As(err, &e) {
		return false
	}
	return slices.Contains([]syntax.ErrorCode{
		syntax.ErrInvalidPerlOp, syntax.ErrInvalidEscape, syntax.ErrInvalidRepeatSize, syntax.ErrInvalidCharRange, syntax.ErrInvalidNamedCapture,
		syntax.ErrLarge, syntax.ErrNestingDepth,
	}, e.Code)
}

func read(raw []byte) (*document, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	depth := 0
	for {
		tok, err := dec.Token()
		if err != nil {
			break // the end, or what is no JSON, which the next reader says
		}
		switch tok {
		case json.Delim('{'), json.Delim('['):
			if depth++; depth > MaxDepth {
				return nil, ErrTooDeep
			}
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
	}
	root, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("%w: it is no JSON", ErrUnsupported)
	}
	d := &document{root: root, anchors: map[string]any{}, patterns: map[string]int{}}
	if m, ok := root.(map[string]any); ok {
		d.id, _ = m["$id"].(string)
		d.id = strings.TrimSuffix(d.id, "#")
	}
	return d, d.collect(root, true)
}
