package schema

import (
	"encoding/json"
	"errors"
	"net/url"
	"reflect"
	"regexp/syntax"
	"strconv"
	"strings"
)

// document is a schema as it was read, with what its references mean.
type document struct {
	root     any
	id       string
	anchors  map[string]any
	patterns map[string]int // size of each pattern's program
	// unclear: it has parts of which it is not known what their references refer to, or patterns that choose properties and
	// cannot be run.
	unclear bool
	// remote: it refers to something outside of itself.
	remote bool
}

// The keywords whose subschemas are applied to the same value, and to what is in it.
func sameOne() []string    { return []string{"not", "if", "then", "else"} }
func sameList() []string   { return []string{"allOf", "anyOf", "oneOf"} }
func sameByName() []string { return []string{"dependentSchemas", "dependencies"} }
func inByName() []string   { return []string{"properties", "patternProperties"} }
func inside() []string {
	return []string{
		"additionalProperties", "additionalItems", "unevaluatedProperties", "unevaluatedItems", "contains", "propertyNames", "items", "prefixItems",
	}
}

// collect finds anchors and patterns in everything that may be a schema. Data that looks like one costs no more than that.
func (d *document) collect(v any, top bool) error {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			if err := d.collect(e, false); err != nil {
				return err
			}
		}
	case map[string]any:
		if id, ok := v["$id"].(string); ok && !top {
			if name, local := strings.CutPrefix(id, "#"); local {
				d.anchors[name] = v // draft 7
			} else {
				d.unclear = true
			}
		}
		for _, key := range []string{"$anchor", "$dynamicAnchor"} {
			if name, ok := v[key].(string); ok {
				d.anchors[name] = v
			}
		}
		if p, ok := v["pattern"].(string); ok {
			if err := d.pattern(p, false); err != nil {
				return err
			}
		}
		if byPattern, ok := v["patternProperties"].(map[string]any); ok {
			for p := range byPattern {
				if err := d.pattern(p, true); err != nil {
					return err
				}
			}
		}
		for key, e := range v {
			if key == "enum" || key == "const" || key == "default" || key == "examples" {
				continue
			}
			if err := d.collect(e, false); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *document) pattern(p string, chooses bool) error {
	if _, known := d.patterns[p]; known {
		return nil
	}
	re, err := syntax.Parse(p, syntax.Perl)
	if err != nil {
		if !beyondRE2(err) {
			return ErrPattern
		}
		d.patterns[p] = 1
		d.unclear = d.unclear || chooses
		return nil
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return ErrPattern
	}
	d.patterns[p] = len(prog.Inst)
	return nil
}

// target is what a reference refers to.
func (d *document) target(ref string) (any, error) {
	if d.id != "" {
		ref = strings.TrimPrefix(ref, d.id)
	}
	fragment, local := strings.CutPrefix(ref, "#")
	if !local {
		if ref != "" {
			return nil, ErrRemote
		}
		return d.root, nil
	}
	fragment, err := url.PathUnescape(fragment)
	if err != nil {
		return nil, ErrUnsupported
	}
	if fragment == "" {
		return d.root, nil
	}
	if !strings.HasPrefix(fragment, "/") {
		v, known := d.anchors[fragment]
		if !known {
			return nil, ErrUnsupported
		}
		return v, nil
	}
	v := d.root
	for _, word := range strings.Split(fragment[1:], "/") {
		word = strings.ReplaceAll(strings.ReplaceAll(word, "~1", "/"), "~0", "~")
		switch at := v.(type) {
		case map[string]any:
			next, ok := at[word]
			if !ok {
				return nil, ErrUnsupported
			}
			v = next
		case []any:
			n, err := strconv.Atoi(word)
			if err != nil || n < 0 || n >= len(at) {
				return nil, ErrUnsupported
			}
			v = at[n]
		default:
			return nil, ErrUnsupported
		}
	}
	return v, nil
}

// identity tells decoded objects apart: one is itself wherever a reference leads to it. It is 0 for anything else.
func identity(v any) uintptr {
	if m, ok := v.(map[string]any); ok {
		return reflect.ValueOf(m).Pointer()
	}
	return 0
}

// refs are the references of a schema.
func refs(s map[string]any) []string {
	var out []string
	for _, key := range []string{"$ref", "$dynamicRef", "$recursiveRef"} {
		if r, ok := s[key].(string); ok {
			out = append(out, r)
		}
	}
	return out
}

// children calls same with each subschema for the same value, and in with each for what is in it, the keyword it is under
// and the name it has there.
func children(s map[string]any, same func(any) error, in func(keyword, name string, child any) error) error {
	for _, key := range append(sameOne(), sameList()...) {
		if err := each(s[key], same); err != nil {
			return err
		}
	}
	for _, key := range sameByName() {
		if err := members(s[key], func(_ string, child any) error { return same(child) }); err != nil {
			return err
		}
	}
	for _, key := range inByName() {
		if err := members(s[key], func(name string, child any) error { return in(key, name, child) }); err != nil {
			return err
		}
	}
	for _, key := range inside() {
		if err := each(s[key], func(child any) error { return in(key, "", child) }); err != nil {
			return err
		}
	}
	return nil
}

// each calls f with the subschema that v is, or with the elements of v.
func each(v any, f func(child any) error) error {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			if err := f(e); err != nil {
				return err
			}
		}
	case map[string]any:
		return f(v)
	}
	return nil
}

// members calls f with the subschemas that v holds by name.
func members(v any, f func(name string, child any) error) error {
	m, _ := v.(map[string]any)
	for name, child := range m {
		if _, list := child.([]any); list {
			continue // names of properties (draft 7, dependencies)
		}
		if err := f(name, child); err != nil {
			return err
		}
	}
	return nil
}

// vet follows the references of every schema in the document and sums up what they come to. A schema that is applied to its
// own value again has no end; one that is applied to what is in its value ends with the value.
func (d *document) vet() error {
	type state struct {
		cost, descents int
		done           bool
	}
	seen := map[uintptr]*state{}
	var cost func(v any, descents int) (int, error)
	cost = func(v any, descents int) (int, error) {
		s, ok := v.(map[string]any)
		if !ok {
			return 1, nil
		}
		if st := seen[identity(s)]; st != nil {
			switch {
			case st.done:
				return st.cost, nil
			case st.descents == descents:
				return 0, ErrExpansion
			}
			return 1, nil
		}
		st := &state{descents: descents}
		seen[identity(s)] = st
		sum := 1
		add := func(child any, descents int) error {
			n, err := cost(child, descents)
			if sum += n; sum > maxExpansion && err == nil {
				err = ErrExpansion
			}
			return err
		}
		for _, ref := range refs(s) {
			to, err := d.target(ref)
			switch {
			case errors.Is(err, ErrUnsupported):
				d.unclear = true
				continue
			case errors.Is(err, ErrRemote):
				d.remote = true // told when there is nothing worse
				continue
			case err != nil:
				return 0, err
			}
			if err := add(to, descents); err != nil {
				return 0, err
			}
		}
		err := children(s, func(child any) error { return add(child, descents) },
			func(_, _ string, child any) error { return add(child, descents+1) })
		if err != nil {
			return 0, err
		}
		st.cost, st.done = sum, true
		return sum, nil
	}
	// References in definitions that nothing uses are vetted too.
	var all func(v any) error
	all = func(v any) error {
		switch v := v.(type) {
		case map[string]any:
			if _, err := cost(v, 0); err != nil {
				return err
			}
			for key, e := range v {
				if key == "enum" || key == "const" || key == "default" || key == "examples" {
					continue
				}
				if err := all(e); err != nil {
					return err
				}
			}
		case []any:
			for _, e := range v {
				if err := all(e); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := all(d.root); err != nil {
		return err
	}
	if d.remote {
		return ErrRemote
	}
	return nil
}

// walk counts the work of one check without doing it: each subschema on each value that it would be applied to, as if no
// check ended early.
type walk struct {
	doc  *document
	left int
}

// apply reports whether the work fits.
func (w *walk) apply(schema, value any, depth int) bool {
	if w.left--; w.left < 0 || depth > maxNesting {
		return false
	}
	s, ok := schema.(map[string]any)
	if !ok {
		return true
	}
	for _, ref := range refs(s) {
		to, err := w.doc.target(ref)
		if err != nil || !w.apply(to, value, depth+1) {
			return false
		}
	}
	if list, ok := s["enum"].([]any); ok {
		w.left -= len(list)
	}
	switch v := value.(type) {
	case string:
		if p, ok := s["pattern"].(string); ok && !w.match(p, v) {
			return false
		}
	case json.Number:
		if !plain(string(v)) {
			return false
		}
	case []any:
		w.left -= len(v)
		if unique, _ := s["uniqueItems"].(bool); unique {
			w.left -= 20 * len(v)
		}
	case map[string]any:
		w.left -= len(v)
	}
	fit := children(s,
		func(child any) error { return w.fits(child, value, depth) },
		func(keyword, name string, child any) error { return w.inside(keyword, name, child, value, depth) })
	return fit == nil && w.left >= 0
}

func (w *walk) fits(schema, value any, depth int) error {
	if !w.apply(schema, value, depth+1) {
		return ErrTooCostly
	}
	return nil
}

// inside applies what is for the elements of a list or the members of an object.
func (w *walk) inside(keyword, name string, child, value any, depth int) error {
	switch v := value.(type) {
	case []any:
		if keyword == "properties" || keyword == "patternProperties" || keyword == "propertyNames" {
			return nil
		}
		for _, e := range v {
			if err := w.fits(child, e, depth); err != nil {
				return err
			}
		}
	case map[string]any:
		if keyword == "properties" {
			e, there := v[name]
			if w.left--; !there {
				return nil
			}
			return w.fits(child, e, depth)
		}
		for member, e := range v {
			switch keyword {
			case "patternProperties":
				if !w.match(name, member) {
					return ErrTooCostly
				}
			case "propertyNames":
				e = member
			}
			if err := w.fits(child, e, depth); err != nil {
				return err
			}
		}
	}
	return nil
}

// match takes a pattern's time, which is that of its program for each byte.
func (w *walk) match(p, text string) bool {
	w.left -= 1 + len(text)*w.doc.patterns[p]/10
	return w.left >= 0
}

// plain reports whether a number is of a size that arithmetic with exact fractions can take.
func plain(n string) bool {
	const most = 400
	if len(n) > most {
		return false
	}
	_, exp, has := strings.Cut(strings.ToLower(n), "e")
	if !has {
		return true
	}
	e, err := strconv.Atoi(exp)
	return err == nil && e >= -most && e <= most
}
