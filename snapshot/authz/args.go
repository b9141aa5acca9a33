package authz

import (
	"bytes"
	"encoding/binary"
	"unicode/utf8"

	"github.com/mcpvault/mcpvault/snapshot/index"
)

// The bounds of the arguments that a condition may look into.
const (
	MaxArgs  = 16 << 20 // bytes
	MaxDepth = 64
	// maxRead is how many arguments that conditions of the tenant speak of may be in one call; fewRead is how many most
	// calls have at most, so that they need not clear room for more.
	maxRead = 256
	fewRead = 8
)

// fault is why a condition could not be evaluated.
type fault uint8

const (
	faultNone fault = iota
	faultAbsent
	faultType
	faultTwice
	faultCase
	faultNull
	faultMalformed
	faultTooMany
	faultAttribute
	faultFact
	faultForeign
)

func (f fault) String() string {
	switch f {
	case faultNone:
		return ""
	case faultAbsent:
		return "argument is absent"
	case faultType:
		return "argument is of another type"
	case faultTwice:
		return "argument is there twice"
	case faultCase:
		return "argument is there under a name that differs in case"
	case faultNull:
		return "argument is null"
	case faultMalformed:
		return "arguments are not a well-formed JSON object"
	case faultTooMany:
		return "too many arguments or bytes"
	case faultAttribute:
		return UnknownFact
	case faultFact:
		return "the tool lacks what it compares, or has it of another type"
	case faultForeign:
		return "the Cedar expression cannot be evaluated"
	}
	return "unknown"
}

// args is where the arguments that some condition of the index may read lie in the raw object. Others are skipped, so
// that a large call costs one pass and no memory.
type args struct {
	scanned bool
	fault   fault
	n       int
	room    []arg // the first n are found
}

type arg struct {
	fold           uint64
	key, keyEnd    uint32 // without the quotes
	value, valueTo uint32
}

// find returns the raw value of an argument. A null is neither there nor absent, so it is a fault.
func (a *args) find(x *index.Index, raw, name []byte, fold uint64) ([]byte, fault) {
	if !a.scanned {
		a.scanned = true
		a.fault = a.scan(x, raw)
	}
	if a.fault != faultNone {
		return nil, a.fault
	}
	hit := -1
	for i := range a.n {
		if a.room[i].fold != fold {
			continue
		}
		if hit >= 0 {
			return nil, faultTwice
		}
		hit = i
	}
	if hit < 0 {
		return nil, faultAbsent
	}
	f := &a.room[hit]
	if !sameText(raw[f.key:f.keyEnd], name) {
		return nil, faultCase
	}
	val := raw[f.value:f.valueTo]
	if val[0] == 'n' {
		return nil, faultNull
	}
	return val, faultNone
}

// scan walks the members of the object once.
func (a *args) scan(x *index.Index, raw []byte) fault {
	if raw == nil {
		return faultNone
	}
	if len(raw) > MaxArgs {
		return faultTooMany
	}
	i := space(raw, 0)
	if i >= len(raw) || raw[i] != '{' {
		return faultMalformed
	}
	i = space(raw, i+1)
	if i < len(raw) && raw[i] == '}' {
		return end(raw, i+1)
	}
	for {
		if i >= len(raw) || raw[i] != '"' {
			return faultMalformed
		}
		key := i + 1
		fold, after, ok := foldString(raw, key)
		if !ok {
			return faultMalformed
		}
		i = space(raw, after)
		if i >= len(raw) || raw[i] != ':' {
			return faultMalformed
		}
		val := space(raw, i+1)
		to := skip(raw, val)
		if to < 0 {
			return faultMalformed
		}
		if x.ReadsArg(fold) {
			if a.n == len(a.room) {
				return faultTooMany
			}
			a.room[a.n] = arg{fold: fold, key: uint32(key), keyEnd: uint32(after - 1), value: uint32(val), valueTo: uint32(to)}
			a.n++
		}
		i = space(raw, to)
		switch {
		case i >= len(raw):
			return faultMalformed
		case raw[i] == '}':
			return end(raw, i+1)
		case raw[i] != ',':
			return faultMalformed
		}
		i = space(raw, i+1)
	}
}

func end(raw []byte, i int) fault {
	if space(raw, i) != len(raw) {
		return faultMalformed
	}
	return faultNone
}

func space(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}

// foldString hashes the string whose first character is at i and returns the place after its closing quote.
func foldString(b []byte, i int) (fold uint64, after int, ok bool) {
	fold = index.FoldStart
	for i < len(b) {
		c := b[i]
		if c == '"' {
			return fold, i + 1, true
		}
		if plain(c) {
			fold = index.FoldByte(fold, c)
			i++
			continue
		}
		r, n := nextRune(b, i)
		if n == 0 {
			return 0, 0, false
		}
		fold = index.FoldRune(fold, r)
		i += n
	}
	return 0, 0, false
}

// nextRune decodes one character of a JSON string, escapes included. It returns 0 bytes for a raw control character,
// invalid UTF-8, an unknown escape or half a surrogate pair.
func nextRune(b []byte, i int) (r rune, n int) {
	switch c := b[i]; {
	case c == '\\':
		return escape(b, i)
	case c < 0x20:
		return 0, 0
	case c < utf8.RuneSelf:
		return rune(c), 1
	}
	r, n = utf8.DecodeRune(b[i:])
	if r == utf8.RuneError && n <= 1 {
		return 0, 0
	}
	return r, n
}

func escape(b []byte, i int) (rune, int) {
	if i+1 >= len(b) {
		return 0, 0
	}
	switch b[i+1] {
	case '"', '\\', '/':
		return rune(b[i+1]), 2
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	case 'u':
		r, ok := hex4(b, i+2)
		switch {
		case !ok || 0xDC00 <= r && r < 0xE000:
			return 0, 0
		case r < 0xD800 || r >= 0xE000:
			return r, 6
		}
		low, ok := hex4(b, i+8)
		if !ok || b[i+6] != '\\' || b[i+7] != 'u' || low < 0xDC00 || low >= 0xE000 {
			return 0, 0
		}
		return (r-0xD800)<<10 + (low - 0xDC00) + 0x10000, 12
	}
	return 0, 0
}

func hex4(b []byte, i int) (rune, bool) {
	if i+4 > len(b) {
		return 0, false
	}
	var r rune
	for _, c := range b[i : i+4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// skip returns the place after the value at i, or -1. Strings and scalars are checked; of objects and arrays that no
// condition can read, the nesting is.
func skip(b []byte, i int) int {
	if i >= len(b) {
		return -1
	}
	switch b[i] {
	case '"':
		return skipString(b, i+1)
	case '{', '[':
		return skipNested(b, i)
	case 't':
		return literal(b, i, "true")
	case 'f':
		return literal(b, i, "false")
	case 'n':
		return literal(b, i, "null")
	}
	return numberEnd(b, i)
}

func skipString(b []byte, i int) int {
	for {
		for i+8 <= len(b) && allPlain(binary.LittleEndian.Uint64(b[i:])) {
			i += 8
		}
		for i < len(b) && plain(b[i]) {
			i++
		}
		switch {
		case i >= len(b):
			return -1
		case b[i] == '"':
			return i + 1
		}
		_, n := nextRune(b, i)
		if n == 0 {
			return -1
		}
		i += n
	}
}

// plain reports whether a byte of a string stands for itself and goes on.
func plain(c byte) bool { return c >= 0x20 && c < utf8.RuneSelf && c != '"' && c != '\\' }

// allPlain is plain for eight bytes at once. Each term has the high bit of a byte set when the byte is below 0x20, a quote
// or a backslash; a carry can only make it say no too often.
func allPlain(w uint64) bool {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	quote, back := w^ones*'"', w^ones*'\\'
	return (w|(w-ones*0x20)|(quote-ones)|(back-ones))&high == 0
}

func skipNested(b []byte, i int) int {
	var kinds uint64 // a bit a level: 1 is an object
	depth := 1       // the arguments themselves are the first level
	for i < len(b) {
		switch c := b[i]; c {
		case '"':
			if i = skipString(b, i+1); i < 0 {
				return -1
			}
			continue
		case '{', '[':
			if depth++; depth > MaxDepth {
				return -1
			}
			kinds <<= 1
			if c == '{' {
				kinds |= 1
			}
		case '}', ']':
			if (kinds&1 == 1) != (c == '}') {
				return -1
			}
			kinds >>= 1
			if depth--; depth == 1 {
				return i + 1
			}
		}
		i++
	}
	return -1
}

func literal(b []byte, i int, word string) int {
	if i+len(word) > len(b) || string(b[i:i+len(word)]) != word {
		return -1
	}
	return i + len(word)
}

// sameText compares a string as it stands in JSON, without its quotes, with a text.
func sameText(raw, text []byte) bool {
	if bytes.Equal(raw, text) {
		return bytes.IndexByte(raw, '\\') < 0
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return false
	}
	for i := 0; i < len(raw); {
		r, n := nextRune(raw, i)
		if n == 0 {
			return false
		}
		i += n
		want, m := utf8.DecodeRune(text)
		if m == 0 || r != want {
			return false
		}
		text = text[m:]
	}
	return len(text) == 0
}
