package conf

import (
	"bytes"
	"encoding"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/mcpvault/mcpvault/kit/secret"
)

// maxSecret bounds a secret's file.
const maxSecret = 64 << 10

var (
	secretType   = reflect.TypeFor[secret.Value]()
	durationType = reflect.TypeFor[time.Duration]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
	yamlType     = reflect.TypeFor[yaml.Unmarshaler]()
)

// decoder collects what is wrong on its way through a file.
type decoder struct {
	src    Source
	issues []string
	// lines remembers where a path was set, for those who judge it later.
	lines map[string]int
}

// field is one key of a section.
type field struct {
	key   string
	index []int
	typ   reflect.Type
}

// isSecret fields are given by the name of a file.
func (f field) isSecret() bool { return f.typ == secretType }

func (f field) yamlKey() string {
	if f.isSecret() {
		return f.key + "_file"
	}
	return f.key
}

// fieldsOf lists the keys of a section in the order of the struct, those of inlined sections among them.
func fieldsOf(t reflect.Type) []field {
	var out []field
	for i := range t.NumField() {
		sf := t.Field(i)
		name, opts, _ := strings.Cut(sf.Tag.Get("yaml"), ",")
		if !sf.IsExported() || name == "-" {
			continue
		}
		if opts == "inline" && sf.Type.Kind() == reflect.Struct {
			for _, f := range fieldsOf(sf.Type) {
				f.index = append([]int{i}, f.index...)
				out = append(out, f)
			}
			continue
		}
		if name == "" {
			name = strings.ToLower(sf.Name)
		}
		out = append(out, field{key: name, index: []int{i}, typ: sf.Type})
	}
	return out
}

// isSection reports whether t has keys of its own, as opposed to being one value.
func isSection(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return t.Kind() == reflect.Struct && t != secretType && !p.Implements(textType) && !p.Implements(yamlType)
}

func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	if path != "" {
		d.lines[path] = n.Line
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return
	}
	t := v.Type()
	switch {
	case t.Kind() == reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(t.Elem()))
			defaults(v.Elem())
		}
		d.value(n, v.Elem(), path)
	case isSection(t):
		d.section(n, v, path)
	case t.Kind() == reflect.Map && t.Key().Kind() == reflect.String && !reflect.PointerTo(t).Implements(yamlType):
		d.mapping(n, v, path)
	case t.Kind() == reflect.Slice && !reflect.PointerTo(t).Implements(textType) && !reflect.PointerTo(t).Implements(yamlType):
		d.list(n, v, path)
	default:
		d.leaf(n, v, path)
	}
}

func (d *decoder) section(n *yaml.Node, v reflect.Value, path string) {
	fields := fieldsOf(v.Type())
	d.pairs(n, path, func(key, val *yaml.Node) {
		for _, f := range fields {
			if f.yamlKey() != key.Value {
				continue
			}
			fv, at := v.FieldByIndex(f.index), join(path, key.Value)
			if f.isSecret() {
				d.lines[at] = key.Line
				d.secret(val.Value, fv, key.Line, at)
			} else {
				d.value(val, fv, at)
			}
			return
		}
		d.unknown(key, fields, v.Type(), path)
	})
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string) {
	t := v.Type()
	if v.IsNil() {
		v.Set(reflect.MakeMap(t))
	}
	d.pairs(n, path, func(key, val *yaml.Node) {
		elem := reflect.New(t.Elem()).Elem()
		defaults(elem)
		d.value(val, elem, join(path, key.Value))
		v.SetMapIndex(reflect.ValueOf(key.Value).Convert(t.Key()), elem)
	})
}

// pairs calls each for every key once; a second time is an issue, since the reader of a file sees only one of them.
func (d *decoder) pairs(n *yaml.Node, path string, each func(key, val *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		d.report(n.Line, path, "must be a section with keys of its own")
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		switch first, twice := seen[key.Value]; {
		case key.Kind != yaml.ScalarNode || key.Tag == "!!merge":
			d.report(key.Line, path, "a key must be a plain word")
		case twice:
			d.report(key.Line, join(path, key.Value), "is already set on line %d", first)
		default:
			seen[key.Value] = key.Line
			each(key, val)
		}
	}
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.SequenceNode {
		d.report(n.Line, path, "must be a list")
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, c := range n.Content {
		defaults(out.Index(i))
		d.value(c, out.Index(i), at(path, i))
	}
	v.Set(out)
}

func (d *decoder) leaf(n *yaml.Node, v reflect.Value, path string) {
	if v.Type() == secretType {
		d.report(n.Line, path, "a secret cannot stand here; give it a key of its own that ends in _file")
		return
	}
	if n.Kind != yaml.ScalarNode && v.Kind() != reflect.Interface && !v.Addr().Type().Implements(yamlType) {
		d.report(n.Line, path, "must be %s", wanted(v.Type()))
		return
	}
	err := n.Decode(v.Addr().Interface())
	switch {
	case err == nil:
	case v.Addr().Type().Implements(textType) || v.Addr().Type().Implements(yamlType):
		d.report(n.Line, path, "%v", err)
	default:
		d.report(n.Line, path, "must be %s", wanted(v.Type()))
	}
}

// wanted is how a person would describe the type.
func wanted(t reflect.Type) string {
	if t == durationType {
		return `a duration such as "30s" or "24h"`
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "a whole number that fits"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number that fits, not negative"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.String:
		return "text"
	default:
		return "a value of type " + t.String()
	}
}

// secret reads the file that holds a value. The line break that editors add is not part of it.
func (d *decoder) secret(name string, v reflect.Value, line int, path string) {
	if name == "" {
		d.report(line, path, "must name a file")
		return
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(d.src.Dir, name)
	}
	b, err := readBounded(name, maxSecret)
	b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	switch {
	case err != nil:
		d.report(line, path, "the secret cannot be read: %v", err)
	case len(b) == 0:
		d.report(line, path, "the file %s is empty", name)
	case len(b) > maxSecret:
		d.report(line, path, "the file %s is larger than 64 KiB", name)
	default:
		v.Set(reflect.ValueOf(secret.New(b)))
	}
}

// environment lets variables override the scalar keys of sections.
func (d *decoder) environment(v reflect.Value, path, prefix string) {
	if !isSection(v.Type()) {
		return
	}
	for _, f := range fieldsOf(v.Type()) {
		fv, at := v.FieldByIndex(f.index), join(path, f.yamlKey())
		name := prefix + "_" + strings.ToUpper(strings.ReplaceAll(f.yamlKey(), "-", "_"))
		if isSection(f.typ) {
			d.environment(fv, at, name)
			continue
		}
		text, ok := d.src.Env(name)
		switch {
		case !ok || f.typ.Kind() == reflect.Slice || f.typ.Kind() == reflect.Map:
		case f.isSecret():
			d.secret(text, fv, 0, name)
		default:
			n := yaml.Node{Kind: yaml.ScalarNode, Value: text}
			if f.typ.Kind() == reflect.String {
				n.Tag = "!!str"
			}
			d.leaf(&n, fv, name)
		}
	}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
