package mcp

import (
	"bytes"
	"encoding/json"
	"math/big"
	"net/http"
	"slices"
	"strings"
)

// Param is an argument of a tool that a modern client repeats in a header, so that what stands between can route by it
// (revision 2026-07-28, streamable HTTP, custom headers from tool parameters).
type Param struct {
	// Header is the field in canonical form: Mcp-Param-Region.
	Header string
	// Path leads to the argument through the objects that hold it.
	Path []string
	// Number says that values are compared as numbers.
	Number bool
}

// paramDepth bounds how deep an annotation may lie.
const paramDepth = 16

// schema is as much of an input schema as matters here.
type schema struct {
	Type       json.RawMessage   `json:"type"`
	Header     json.RawMessage   `json:"x-mcp-header"`
	Properties map[string]schema `json:"properties"`
}

// Params lists what the tool object wants repeated, in the order of the headers. An annotation that the revision does not
// allow counts as none: on a value that is not primitive, without a name, or of a name that is there twice.
func Params(tool []byte) []Param {
	if !bytes.Contains(tool, []byte(`x-mcp-header`)) {
		return nil
	}
	var t struct {
		InputSchema schema `json:"inputSchema"`
	}
	if json.Unmarshal(tool, &t) != nil {
		return nil
	}
	all := t.InputSchema.params(nil, nil)
	slices.SortFunc(all, func(a, b Param) int { return strings.Compare(a.Header, b.Header) })
	once := all[:0]
	for i, p := range all {
		if (i == 0 || all[i-1].Header != p.Header) && (i+1 == len(all) || all[i+1].Header != p.Header) {
			once = append(once, p)
		}
	}
	return once
}

func (s schema) params(path []string, all []Param) []Param {
	if len(path) >= paramDepth {
		return all
	}
	for name, p := range s.Properties {
		at := append(slices.Clone(path), name)
		var header, kind string
		if json.Unmarshal(p.Header, &header) == nil && json.Unmarshal(p.Type, &kind) == nil && isToken(header) {
			switch kind {
			case "string", "boolean", "integer", "number":
				all = append(all, Param{
					Header: http.CanonicalHeaderKey(HeaderParamPrefix + header), Path: at, Number: kind == "integer" || kind == "number",
				})
			}
		}
		all = p.params(at, all)
	}
	return all
}

// isToken is RFC 9110's token, 5.6.2.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return s != ""
}

// value finds the argument; "" and false when it is not there or null. An argument that is no primitive value has its text.
func (p Param) value(args []byte) (string, bool) {
	for _, name := range p.Path {
		if len(args) == 0 || args[0] != '{' {
			return "", false
		}
		at := Member(args, name)
		if !at.Present() {
			return "", false
		}
		args = args[at.Start:at.End]
	}
	switch {
	case string(args) == "null":
		return "", false
	case args[0] == '"':
		m := Message{Body: args}
		return m.Text(Span{End: len(args)})
	}
	return string(args), true
}

// CheckParams holds the headers of a call against its arguments, which are raw JSON or nil. What is not an argument of the tool
// is ignored; what is one must say the same in both places.
func CheckParams(params []Param, h http.Header, args []byte) *Refusal {
	for _, p := range params {
		want, there := p.value(args)
		values := h[p.Header]
		switch {
		case !there && len(values) == 0:
		case !there:
			return mismatch("the " + p.Header + " header names an argument that the body does not have")
		case len(values) != 1:
			return mismatch("the " + p.Header + " header must be there once")
		default:
			if got, ok := DecodeHeader(values[0]); !ok || got != want && (!p.Number || !sameNumber(got, want)) {
				return mismatch("the " + p.Header + " header must equal the argument in the body")
			}
		}
	}
	return nil
}

// Mirror are the headers that a call with these arguments must have.
func Mirror(params []Param, args []byte) http.Header {
	h := http.Header{}
	for _, p := range params {
		if v, there := p.value(args); there {
			h[p.Header] = []string{EncodeHeader(v)}
		}
	}
	return h
}

// sameNumber compares exactly. Numbers of a size that nobody counts with differ when their texts do.
func sameNumber(a, b string) bool {
	x, y := number(a), number(b)
	return x != nil && y != nil && x.Cmp(y) == 0
}

func number(s string) *big.Rat {
	digits, exp, _ := strings.Cut(strings.ToLower(s), "e")
	if len(digits) > 64 || len(exp) > 3 || strings.Trim(digits, "-.0123456789") != "" || strings.Trim(exp, "+-0123456789") != "" {
		return nil
	}
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		return nil
	}
	return r
}
