package mcp

import (
	"iter"
	"slices"
)

// Span of a whole member, from its key's quote to the end of its value, and of the value alone.
type memberSpan struct{ whole, value Span }

// members yields the members of a raw JSON object by their decoded keys. It trusts raw to be valid JSON, stops where it
// is not and never reads beyond.
func members(raw []byte) iter.Seq2[string, memberSpan] {
	return func(yield func(string, memberSpan) bool) {
		s := scanner{b: raw, limits: Limits{Depth: 512, Tokens: len(raw) + 1, Keys: len(raw) + 1, String: len(raw)}}
		s.space()
		if s.i >= len(raw) || raw[s.i] != '{' {
			return
		}
		for {
			s.i++
			s.space()
			if s.i >= len(raw) || raw[s.i] != '"' {
				return
			}
			from := s.i
			escaped, ok := s.str()
			if !ok {
				return
			}
			key := raw[from+1 : s.i-1]
			if escaped {
				key = unescape(nil, key)
			}
			s.space()
			if s.i >= len(raw) || raw[s.i] != ':' {
				return
			}
			s.i++
			s.space()
			start := s.i
			if !s.value(inOther) || !yield(string(key), memberSpan{Span{from, s.i}, Span{start, s.i}}) {
				return
			}
			s.space()
			if s.i >= len(raw) || raw[s.i] != ',' {
				return
			}
		}
	}
}

// Member returns the span of a member's value in a raw JSON object, the first of that name; an absent span when raw is
// no object or has no such member. It trusts raw to be valid JSON, as approved tool objects are.
func Member(raw []byte, key string) Span {
	for k, m := range members(raw) {
		if k == key {
			return m.value
		}
	}
	return Span{}
}

// RawMembers yields the values of a raw JSON object by their decoded keys. It trusts raw to be valid JSON.
func RawMembers(raw []byte) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		for k, m := range members(raw) {
			if !yield(k, raw[m.value.Start:m.value.End]) {
				return
			}
		}
	}
}

// Cuts returns the spans to take out of a raw JSON object for it to lose the members named, in order and with the commas
// that would be left over. It trusts raw to be valid JSON.
func Cuts(raw []byte, keys ...string) []Span {
	var all []Span
	var gone []bool
	for k, m := range members(raw) {
		all, gone = append(all, m.whole), append(gone, slices.Contains(keys, k))
	}
	var cuts []Span
	kept := false
	for i, whole := range all {
		switch {
		case !gone[i]:
			kept = true
		case kept:
			cuts = append(cuts, Span{all[i-1].End, whole.End})
		case i+1 < len(all):
			cuts = append(cuts, Span{whole.Start, all[i+1].Start})
		default:
			cuts = append(cuts, whole)
		}
	}
	return cuts
}

// WithoutModernMeta returns a raw _meta object without what only the modern revision says there; the other members keep
// their bytes.
func WithoutModernMeta(raw []byte) []byte {
	gone := []string{MetaVersion, MetaCapabilities, MetaClientInfo, MetaLogLevel}
	out := []byte{'{'}
	for k, m := range members(raw) {
		if slices.Contains(gone, k) {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(out, raw[m.whole.Start:m.whole.End]...)
	}
	return append(out, '}')
}
