package mcp

import (
	"hash/maphash"
	"sync"
	"unicode/utf16"
	"unicode/utf8"
)

// Limits bound one message.
type Limits struct {
	Depth  int // containers inside each other
	Tokens int // keys and values together
	Keys   int // in one object
	String int // bytes of one string as written
	ID     int // bytes of an id
}

// DefaultLimits are the gate's: deep and wide enough for every client seen, small enough that a body cannot cost more
// than its bytes.
func DefaultLimits() Limits {
	return Limits{Depth: 64, Tokens: 100_000, Keys: 2048, String: 1 << 20, ID: 4096}
}

// Framer reads messages. It is safe for concurrent use.
type Framer struct {
	limits Limits
	pool   sync.Pool
}

// NewFramer makes a framer.
func NewFramer(l Limits) *Framer {
	f := &Framer{limits: l}
	seed := maphash.MakeSeed()
	f.pool.New = func() any { return &scanner{seed: seed} }
	return f
}

// Frame reads one message of a client. The message keeps body; on a refusal it holds what was read, and its ID is set
// only when the whole body was well-formed.
func (f *Framer) Frame(body []byte) (Message, *Refusal) {
	return f.run(body, f.limits, true)
}

// FrameAnswer reads one message of an upstream: JSON-RPC and valid JSON, but duplicates below the top level, wide
// objects and lone surrogates are the upstream's own business, for nothing is decided by them.
func (f *Framer) FrameAnswer(body []byte) (Message, *Refusal) {
	const deep = 512
	n := len(body) + 1
	return f.run(body, Limits{Depth: deep, Tokens: n, Keys: n, String: n, ID: f.limits.ID}, false)
}

func (f *Framer) run(body []byte, l Limits, strict bool) (Message, *Refusal) {
	s := f.pool.Get().(*scanner)
	s.b, s.i, s.depth, s.tokens, s.limits, s.strict, s.fault, s.fatal = body, 0, 0, 0, l, strict, nil, false
	s.hashes = s.hashes[:0]
	s.m = Message{Body: body}
	s.document()
	if !s.fatal {
		s.conclude()
	}
	m, fault := s.m, s.fault
	s.b, s.m, s.fault = nil, Message{}, nil
	f.pool.Put(s)
	return m, fault
}

type scanner struct {
	b       []byte
	i       int
	depth   int
	tokens  int
	limits  Limits
	strict  bool
	fatal   bool // the rest of the body was not read
	fault   *Refusal
	m       Message
	seed    maphash.Seed
	hashes  []uint64 // of the keys of the objects that are open
	scratch []byte
}

// stop ends the scan: what follows was not read.
func (s *scanner) stop(code int, reason, message string) bool {
	if !s.fatal {
		s.fatal, s.fault = true, refuse(code, reason, message)
	}
	return false
}

// note keeps the first fault and goes on, so that the answer can carry the id.
func (s *scanner) note(code int, reason, message string) {
	if s.fault == nil {
		s.fault = refuse(code, reason, message)
	}
}

func (s *scanner) bad() bool {
	return s.stop(CodeParse, "bad_json", "the body is not valid JSON")
}

func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\n', '\r':
			s.i++
		default:
			return
		}
	}
}

func (s *scanner) document() {
	s.space()
	if s.i >= len(s.b) {
		s.stop(CodeParse, "bad_json", "the body is empty")
		return
	}
	first := s.b[s.i]
	if !s.value(inTop) {
		return
	}
	s.space()
	if s.i != len(s.b) {
		s.stop(CodeParse, "bad_json", "the body goes on after its value")
		return
	}
	switch first {
	case '{':
	case '[':
		s.stop(CodeInvalidRequest, "batch", "batches are not part of this protocol: send one message per request")
	default:
		s.stop(CodeInvalidRequest, "not_object", "the body must be one JSON-RPC object")
	}
}

func (s *scanner) value(w where) bool {
	if s.i >= len(s.b) {
		return s.bad()
	}
	if s.tokens++; s.tokens > s.limits.Tokens {
		return s.stop(CodeInvalidRequest, "too_many_tokens", "the body holds too many values")
	}
	switch c := s.b[s.i]; c {
	case '{':
		return s.object(w)
	case '[':
		return s.array()
	case '"':
		_, ok := s.str()
		return ok
	case 't':
		return s.literal("true")
	case 'f':
		return s.literal("false")
	case 'n':
		return s.literal("null")
	default:
		return s.number()
	}
}

func (s *scanner) literal(word string) bool {
	if len(s.b)-s.i < len(word) || string(s.b[s.i:s.i+len(word)]) != word {
		return s.bad()
	}
	s.i += len(word)
	return true
}

func (s *scanner) digits() bool {
	from := s.i
	for s.i < len(s.b) && s.b[s.i] >= '0' && s.b[s.i] <= '9' {
		s.i++
	}
	return s.i > from
}

func (s *scanner) number() bool {
	if s.b[s.i] == '-' {
		s.i++
	}
	if s.i < len(s.b) && s.b[s.i] == '0' {
		s.i++
	} else if !s.digits() {
		return s.bad()
	}
	if s.i < len(s.b) && s.b[s.i] == '.' {
		s.i++
		if !s.digits() {
			return s.bad()
		}
	}
	if s.i < len(s.b) && (s.b[s.i] == 'e' || s.b[s.i] == 'E') {
		s.i++
		if s.i < len(s.b) && (s.b[s.i] == '+' || s.b[s.i] == '-') {
			s.i++
		}
		if !s.digits() {
			return s.bad()
		}
	}
	return true
}

// str reads a string; it reports whether it holds an escape.
func (s *scanner) str() (escaped, ok bool) {
	s.i++
	from := s.i
	for {
		s.i = plain(s.b, s.i)
		if s.i >= len(s.b) {
			return escaped, s.bad()
		}
		switch c := s.b[s.i]; {
		case c == '"':
			if s.i-from > s.limits.String {
				return escaped, s.stop(CodeInvalidParams, "string_too_long", "a string of the body is too long")
			}
			s.i++
			return escaped, true
		case c == '\\':
			escaped = true
			if !s.escape() {
				return escaped, false
			}
		case c < 0x20:
			return escaped, s.bad()
		default:
			r, n := utf8.DecodeRune(s.b[s.i:])
			if r == utf8.RuneError && n <= 1 {
				return escaped, s.stop(CodeParse, "invalid_utf8", "the body is not valid UTF-8")
			}
			s.i += n
		}
	}
}

func (s *scanner) escape() bool {
	if s.i+1 >= len(s.b) {
		return s.bad()
	}
	switch s.b[s.i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.i += 2
		return true
	case 'u':
	default:
		return s.bad()
	}
	r, ok := hex4(s.b[s.i+2:])
	if !ok {
		return s.bad()
	}
	s.i += 6
	if !utf16.IsSurrogate(r) {
		return true
	}
	low := rune(0)
	if s.i+6 <= len(s.b) && s.b[s.i] == '\\' && s.b[s.i+1] == 'u' {
		low, _ = hex4(s.b[s.i+2:])
	}
	if utf16.DecodeRune(r, low) != utf8.RuneError {
		s.i += 6
		return true
	}
	if s.strict {
		return s.stop(CodeParse, "lone_surrogate", "the body holds half of a surrogate pair")
	}
	return true
}

func (s *scanner) enter() bool {
	if s.depth++; s.depth > s.limits.Depth {
		return s.stop(CodeInvalidRequest, "too_deep", "the body is nested too deep")
	}
	s.i++
	s.space()
	return true
}

func (s *scanner) array() bool {
	if !s.enter() {
		return false
	}
	if s.i < len(s.b) && s.b[s.i] == ']' {
		s.i++
		s.depth--
		return true
	}
	for {
		if !s.value(inOther) {
			return false
		}
		s.space()
		if s.i >= len(s.b) {
			return s.bad()
		}
		c := s.b[s.i]
		s.i++
		if c == ']' {
			s.depth--
			return true
		}
		if c != ',' {
			return s.bad()
		}
		s.space()
	}
}

func (s *scanner) object(w where) bool {
	if !s.enter() {
		return false
	}
	seen := keySet{base: len(s.hashes)}
	if s.i < len(s.b) && s.b[s.i] == '}' {
		s.i++
		s.depth--
		return true
	}
	for {
		if !s.member(w, &seen) {
			return false
		}
		s.space()
		if s.i >= len(s.b) {
			return s.bad()
		}
		c := s.b[s.i]
		s.i++
		if c == '}' {
			s.hashes = s.hashes[:seen.base]
			s.depth--
			return true
		}
		if c != ',' {
			return s.bad()
		}
		s.space()
	}
}

func (s *scanner) member(w where, seen *keySet) bool {
	if s.i >= len(s.b) || s.b[s.i] != '"' {
		return s.bad()
	}
	from := s.i + 1
	if s.tokens++; s.tokens > s.limits.Tokens {
		return s.stop(CodeInvalidRequest, "too_many_tokens", "the body holds too many values")
	}
	escaped, ok := s.str()
	if !ok {
		return false
	}
	key := s.b[from : s.i-1]
	if escaped {
		s.scratch = unescape(s.scratch[:0], key)
		key = s.scratch
	}
	if s.strict || w != inOther {
		if seen.n++; seen.n > s.limits.Keys {
			return s.stop(CodeInvalidRequest, "too_many_keys", "an object of the body has too many keys")
		}
		if seen.repeats(s, maphash.Bytes(s.seed, key)) {
			s.note(CodeInvalidRequest, "duplicate_key", "the body repeats a key of an object")
			if w == inTop {
				s.fatal = true // which of the two ids would the answer carry?
				return false
			}
		}
	}
	slot, child := s.slot(w, key)
	s.space()
	if s.i >= len(s.b) || s.b[s.i] != ':' {
		return s.bad()
	}
	s.i++
	s.space()
	start := s.i
	if !s.value(child) {
		return false
	}
	if slot != nil {
		*slot = Span{start, s.i}
	}
	return true
}
