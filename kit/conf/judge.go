package conf

import (
	"reflect"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// unknown reports a key that the section lacks, with the one that was probably meant: a neighbour of nearly the same
// name, or the same name in another section.
func (d *decoder) unknown(key *yaml.Node, fields []field, section reflect.Type, path string) {
	full := join(path, key.Value)
	for _, f := range fields {
		if f.isSecret() && f.key == key.Value {
			d.report(key.Line, full, "a secret is never written here; put it in a file and name that with %s", f.yamlKey())
			return
		}
	}
	if near := nearest(key.Value, fields); near != "" {
		d.report(key.Line, full, "unknown key; did you mean %q?", near)
		return
	}
	known := make([]string, len(fields))
	for i, f := range fields {
		known[i] = f.yamlKey()
		for _, below := range sectionsBelow(f.typ) {
			if below == key.Value {
				d.report(key.Line, full, "unknown key; did you mean %q?", join(f.key, key.Value))
				return
			}
		}
	}
	if len(known) == 0 {
		d.report(key.Line, full, "unknown key; %s has none", section)
		return
	}
	d.report(key.Line, full, "unknown key; known are %s", strings.Join(known, ", "))
}

// sectionsBelow lists the keys of a section, none for any other value.
func sectionsBelow(t reflect.Type) []string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if !isSection(t) {
		return nil
	}
	var out []string
	for _, f := range fieldsOf(t) {
		out = append(out, f.yamlKey())
	}
	return out
}

// nearest finds the key within a third of the word's length, at least one change away.
func nearest(word string, fields []field) string {
	best, limit := "", max(1, len(word)/3)+1
	for _, f := range fields {
		if n := distance(strings.ToLower(word), f.yamlKey()); n < limit {
			best, limit = f.yamlKey(), n
		}
	}
	return best
}

// distance counts the insertions, deletions, replacements and swaps of neighbours between two words.
func distance(a, b string) int {
	const tooLong = 64
	if len(a) > tooLong || len(b) > tooLong {
		return tooLong
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// defaults lets every section set its values, the inner ones first so that the outer one has the last word.
func defaults(v reflect.Value) {
	if !isSection(v.Type()) {
		return
	}
	for i := range v.NumField() {
		if v.Type().Field(i).IsExported() {
			defaults(v.Field(i))
		}
	}
	if s, ok := v.Addr().Interface().(Defaulter); ok {
		s.Defaults()
	}
}

// validate asks every section for its problems and says where they are.
func (d *decoder) validate(v reflect.Value, path string) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			d.validate(v.Elem(), path)
		}
	case reflect.Struct:
		if isSection(v.Type()) {
			for _, f := range fieldsOf(v.Type()) {
				d.validate(v.FieldByIndex(f.index), join(path, f.key))
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			d.validate(v.Index(i), at(path, i))
		}
	case reflect.Map:
		d.validateMap(v, path)
	}
	d.ask(v, path)
}

func (d *decoder) validateMap(v reflect.Value, path string) {
	if v.Type().Key().Kind() != reflect.String {
		return
	}
	keys := v.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
	for _, k := range keys {
		// The values of a map have no address, and Problems may have a pointer receiver.
		elem := reflect.New(v.Type().Elem()).Elem()
		elem.Set(v.MapIndex(k))
		d.validate(elem, join(path, k.String()))
	}
}

func (d *decoder) ask(v reflect.Value, path string) {
	if !v.CanAddr() || v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		return
	}
	s, ok := v.Addr().Interface().(Validator)
	if !ok {
		return
	}
	for _, text := range s.Problems() {
		key, _, _ := strings.Cut(text, ":")
		line, ok := d.lines[join(path, key)]
		if !ok {
			line = d.lines[path]
		}
		d.report(line, "", "%s", join(path, text))
	}
}

func at(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }
