package residual

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/go-json-experiment/json/jsontext"
)

// The bounds of the arguments that an expression may look into; maxArgs and maxLevel are those of package authz.
const (
	maxArgs  = 16 << 20 // bytes of the whole object
	maxLevel = 64       // levels of nesting, the object itself included
	// What becomes a value of Cedar costs memory and time, so it is bounded for itself.
	maxRead   = 1 << 20 // bytes of one argument
	maxValues = 4096    // members of one list
)

// What is wrong with an argument. Each makes whatever reads it an error.
var (
	errTwice     = errors.New("the argument is there twice")
	errCase      = errors.New("the argument is there under a name that differs in case")
	errNull      = errors.New("the argument is null")
	errMalformed = errors.New("the arguments are not a well-formed JSON object")
	errLarge     = errors.New("too many arguments or bytes")
	errNumber    = errors.New("the number is not an integer of 64 bits")
	errObject    = errors.New("the argument is not an object")
	errKind      = errors.New("the argument is of another type")
	errMixed     = errors.New("the argument is a list of several types")

	errAbsent = errors.New("the argument is absent")
)

// arguments puts what the expression reads into the context, each path as one member. What is in error is left out, so
// that reading it is an error.
func (r *reads) arguments(raw []byte, ctx types.RecordMap) faults {
	f := faults{}
	values, present := types.RecordMap{}, types.RecordMap{}
	err := check(raw)
	var top object
	if err == nil && raw != nil {
		top, err = open(raw, r.tops)
	}
	kinds := map[string]kind{}
	for _, p := range r.values {
		at := p.String()
		v, k, e := r.value(top, p, err)
		if e != nil {
			f[at] = e
			continue
		}
		values[types.String(at)], kinds[at] = v, k
	}
	for _, p := range r.pairs {
		l, ok1 := kinds[p.left]
		k, ok2 := kinds[p.right]
		if p.inside {
			k = k.set()
		}
		if ok1 && ok2 && !l.fits(k) {
			f[p.left], f[p.right] = errKind, errKind
			delete(values, types.String(p.left))
			delete(values, types.String(p.right))
		}
	}
	for _, p := range r.has {
		_, e := find(top, p, err)
		if e != nil && !errors.Is(e, errAbsent) {
			f[p.String()] = e
			continue
		}
		present[types.String(p.String())] = types.Boolean(e == nil)
	}
	ctx[valuesKey], ctx[hasKey] = types.NewRecord(values), types.NewRecord(present)
	return f
}

// value converts one argument, which must be of the kind that it is compared with.
func (r *reads) value(top object, p path, err error) (types.Value, kind, error) {
	raw, err := find(top, p, err)
	if err != nil {
		return nil, unknownKind, err
	}
	v, k, err := convert(raw)
	if want := r.kinds[p.String()]; err == nil && want != unknownKind && !k.fits(want) {
		err = errKind
	}
	return v, k, err
}

// check refuses what no argument can be read from.
func check(raw []byte) error {
	switch {
	case raw == nil:
		return nil
	case len(raw) > maxArgs:
		return errLarge
	case deeper(raw, maxLevel):
		return errMalformed
	}
	return nil
}

// deeper reports whether brackets nest deeper than most. What is not JSON is found out later.
func deeper(b []byte, most int) bool {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			if depth++; depth > most {
				return true
			}
		case '}', ']':
			depth--
		}
	}
	return false
}

// object is what was looked for in a raw JSON object: the members of those names, in whatever case they are written.
type object struct{ found []field }

type field struct {
	name  string
	value []byte // part of the raw object
}

// open reads a whole object once.
func open(raw []byte, names []string) (object, error) {
	var o object
	err := walk(raw, func(name string, value []byte) {
		if slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, name) }) {
			o.found = append(o.found, field{name, value})
		}
	})
	return o, err
}

// find gives the raw value at a path.
func find(in object, p path, err error) ([]byte, error) {
	for i, name := range p.names {
		if err != nil {
			return nil, err
		}
		raw, err := in.member(name)
		switch {
		case errors.Is(err, errAbsent) && i < len(p.names)-1:
			// Only the last member can be asked for with has; that an outer one is absent is an error for the inner.
			return nil, fmt.Errorf("%q: %w", name, errObject)
		case err != nil || i == len(p.names)-1:
			return raw, err
		case raw[0] != '{':
			return nil, fmt.Errorf("%q: %w", name, errObject)
		}
		if in, err = open(raw, p.names[i+1:i+2]); err != nil {
			return nil, err
		}
	}
	return nil, errAbsent
}

// member finds the one member of that name. A name twice, in any case, or a null is an error.
func (o object) member(name string) ([]byte, error) {
	hit, n := field{}, 0
	for _, f := range o.found {
		if strings.EqualFold(f.name, name) {
			hit = f
			n++
		}
	}
	switch {
	case n == 0:
		return nil, errAbsent
	case n > 1:
		return nil, errTwice
	case hit.name != name:
		return nil, errCase
	case hit.value[0] == 'n':
		return nil, errNull
	}
	return hit.value, nil
}

// walk tells f each member of an object, of which it reads everything.
func walk(raw []byte, f func(name string, value []byte)) error {
	dec := jsontext.NewDecoder(bytes.NewBuffer(raw), jsontext.AllowDuplicateNames(true))
	if t, err := dec.ReadToken(); err != nil || t.Kind() != '{' {
		return errMalformed
	}
	for dec.PeekKind() == '"' {
		t, err := dec.ReadToken()
		if err != nil {
			return errMalformed
		}
		name := t.String()
		v, err := dec.ReadValue()
		if err != nil {
			return errMalformed
		}
		end := int(dec.InputOffset())
		f(name, raw[end-len(v):end])
	}
	if t, err := dec.ReadToken(); err != nil || t.Kind() != '}' {
		return errMalformed
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return errMalformed
	}
	return nil
}

// convert makes a value of Cedar of a single value or a list of such.
func convert(raw []byte) (types.Value, kind, error) {
	if len(raw) > maxRead {
		return nil, unknownKind, errLarge
	}
	switch raw[0] {
	case 'n':
		return nil, unknownKind, errNull
	case 't', 'f':
		return types.Boolean(raw[0] == 't'), boolKind, nil
	case '"':
		s, err := jsontext.AppendUnquote(nil, raw)
		if err != nil {
			return nil, unknownKind, errMalformed
		}
		return types.String(s), stringKind, nil
	case '{':
		return nil, unknownKind, errKind
	case '[':
		return list(raw)
	}
	n, ok := integer(string(raw))
	if !ok {
		return nil, unknownKind, errNumber
	}
	return types.Long(n), longKind, nil
}

func list(raw []byte) (types.Value, kind, error) {
	dec := jsontext.NewDecoder(bytes.NewBuffer(raw), jsontext.AllowDuplicateNames(true))
	if _, err := dec.ReadToken(); err != nil {
		return nil, unknownKind, errMalformed
	}
	var out []types.Value
	of := unknownKind
	for dec.PeekKind() != ']' {
		v, err := dec.ReadValue()
		if err != nil {
			return nil, unknownKind, errMalformed
		}
		if len(out) == maxValues {
			return nil, unknownKind, errLarge
		}
		if v.Kind() == '[' {
			return nil, unknownKind, errKind
		}
		c, k, err := convert(v)
		switch {
		case err != nil:
			return nil, unknownKind, err
		case of != unknownKind && k != of:
			return nil, unknownKind, errMixed
		}
		of = k
		out = append(out, c)
	}
	if of == unknownKind {
		return types.NewSet(), emptyKind, nil
	}
	return types.NewSet(out...), of.set(), nil
}

// integer reads a JSON number that has no fraction, however it is written: 100, 1e2 and 100.0 are one number.
func integer(s string) (int64, bool) {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n, true
	}
	sign := ""
	if strings.HasPrefix(s, "-") {
		sign, s = "-", s[1:]
	}
	mantissa, exp := s, 0
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		var err error
		if exp, err = strconv.Atoi(strings.TrimPrefix(s[i+1:], "+")); err != nil {
			return 0, strings.Trim(s[:i], "0.") == ""
		}
		mantissa = s[:i]
	}
	whole, frac, _ := strings.Cut(mantissa, ".")
	digits := strings.TrimRight(whole+frac, "0")
	point := len(whole) + exp
	stripped := strings.TrimLeft(digits, "0")
	if stripped == "" {
		return 0, true
	}
	point -= len(digits) - len(stripped)
	if point < len(stripped) || point > 19 {
		return 0, false
	}
	n, err := strconv.ParseInt(sign+stripped+strings.Repeat("0", point-len(stripped)), 10, 64)
	return n, err == nil
}
