package mcp

// Member returns the span of a member's value in a raw JSON object, the first of that name; an absent span when raw is
// no object or has no such member. It trusts raw to be valid JSON, as approved tool objects are, and never reads beyond.
func Member(raw []byte, key string) Span {
	s := scanner{b: raw, limits: Limits{Depth: 512, Tokens: len(raw) + 1, Keys: len(raw) + 1, String: len(raw)}}
	s.space()
	if s.i >= len(raw) || raw[s.i] != '{' {
		return Span{}
	}
	s.i++
	for {
		s.space()
		if s.i >= len(raw) || raw[s.i] != '"' {
			return Span{}
		}
		from := s.i + 1
		escaped, ok := s.str()
		if !ok {
			return Span{}
		}
		name := raw[from : s.i-1]
		if escaped {
			name = unescape(nil, name)
		}
		s.space()
		if s.i >= len(raw) || raw[s.i] != ':' {
			return Span{}
		}
		s.i++
		s.space()
		start := s.i
		if !s.value(inOther) {
			return Span{}
		}
		if string(name) == key {
			return Span{start, s.i}
		}
		s.space()
		if s.i >= len(raw) || raw[s.i] != ',' {
			return Span{}
		}
		s.i++
	}
}
