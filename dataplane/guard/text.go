package guard

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Found counts what was found in a text.
type Found struct {
	// Invisible characters, those of direction overrides, of terminal control, and the marks of chat templates. The last are
	// plain text and are not taken out.
	Invisible, Bidi, Control, Template int
}

// Any reports whether anything was found.
func (f Found) Any() bool { return f != Found{} }

// Hidden is how many characters Clean took out.
func (f Found) Hidden() int { return f.Invisible + f.Bidi + f.Control }

// Add adds counts.
func (f *Found) Add(o Found) {
	f.Invisible += o.Invisible
	f.Bidi += o.Bidi
	f.Control += o.Control
	f.Template += o.Template
}

// String is for records: "invisible=3 bidi=1".
func (f Found) String() string {
	var words []string
	for _, c := range []struct {
		name string
		n    int
	}{{"invisible", f.Invisible}, {"bidi", f.Bidi}, {"control", f.Control}, {"template", f.Template}} {
		if c.n > 0 {
			words = append(words, fmt.Sprintf("%s=%d", c.name, c.n))
		}
	}
	return strings.Join(words, " ")
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// next is the offset of the first byte at or after i that may belong to a finding: a backslash or a byte of a longer UTF-8
// sequence. Eight bytes are looked at together; a borrow can only mark bytes above a true hit.
func next(b []byte, i int) int {
	for ; i+8 <= len(b); i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		slash := w ^ (ones * '\\')
		if hit := (w | (slash-ones)&^slash) & highs; hit != 0 {
			return i + bits.TrailingZeros64(hit)>>3
		}
	}
	for i < len(b) && b[i] < utf8.RuneSelf && b[i] != '\\' {
		i++
	}
	return i
}

// Suspect reports whether a JSON text may hold something to find. It is what every answer costs: one pass, no allocation,
// and false for nearly all of them.
func Suspect(b []byte) bool {
	if bytes.Contains(b, []byte("<|")) || bytes.Contains(b, []byte("INST]")) || bytes.Contains(b, []byte("SYS>>")) || bytes.Contains(b, []byte("_of_turn>")) {
		return true
	}
	for i := next(b, 0); i < len(b); i = next(b, i) {
		r, n := decode(b, i)
		if r == '<' && n > 1 || kindOf(r) != visible {
			return true
		}
		i += n
	}
	return false
}

// decode reads the character at i of the inside of a JSON string, escapes included; what is malformed is read as one byte.
func decode(b []byte, i int) (rune, int) {
	switch {
	case b[i] >= utf8.RuneSelf:
		return utf8.DecodeRune(b[i:])
	case b[i] != '\\' || i+1 >= len(b):
		return rune(b[i]), 1
	}
	switch b[i+1] {
	case 'u':
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
	default:
		return rune(b[i+1]), 2
	}
	r, ok := hex4(b, i+2)
	if !ok {
		return '\\', 1
	}
	if utf16.IsSurrogate(r) && i+12 <= len(b) && b[i+6] == '\\' && b[i+7] == 'u' {
		if low, ok := hex4(b, i+8); ok {
			if whole := utf16.DecodeRune(r, low); whole != utf8.RuneError {
				return whole, 12
			}
		}
	}
	return r, 6
}

func hex4(b []byte, i int) (r rune, ok bool) {
	if i+4 > len(b) {
		return 0, false
	}
	for _, c := range b[i : i+4] {
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 | rune(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			r = r<<4 | rune(c|0x20-'a'+10)
		default:
			return 0, false
		}
	}
	return r, true
}

// kind is what a character is to a reader.
type kind uint8

const (
	visible kind = iota
	// hidden is never seen and does nothing that a text needs.
	hidden
	// joining is not seen, and belongs into some scripts, words and pictures, one at a time.
	joining
	direction
	control
)

// kindOf classes a character: Unicode's default ignorable code points, the direction controls of UAX 9 (but the marks,
// which are joining), and control characters but tab and line breaks.
func kindOf(r rune) kind {
	switch {
	case r >= 0x2070 && r < 0xd800 && r != 0x3164: // most of what is not Latin
		return visible
	case r < 0x20:
		if r == '\t' || r == '\n' || r == '\r' || r == '\f' {
			return visible
		}
		return control
	case r <= 0x7f: // a raw DEL is plain JSON, and terminals ignore it
		return visible
	case r < 0xa0:
		if r == 0x85 {
			return visible
		}
		return control
	case r < 0x300:
		if r == 0xad {
			return joining
		}
		return visible
	case r < 0x2000:
		switch {
		case r == 0x34f, r == 0x61c, r >= 0x180b && r <= 0x180d, r == 0x180f:
			return joining
		case r == 0x115f, r == 0x1160, r == 0x17b4, r == 0x17b5, r == 0x180e:
			return hidden
		}
		return visible
	case r < 0x2070:
		switch {
		case r >= 0x200c && r <= 0x200f:
			return joining
		case r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
			return direction
		case r == 0x200b, r >= 0x2060 && r <= 0x2065, r >= 0x206a && r <= 0x206f:
			return hidden
		}
		return visible
	case r < 0xfe00:
		// Half of a character is none, and two halves must not come together when what is between them is taken out.
		if r == 0x3164 || utf16.IsSurrogate(r) {
			return hidden
		}
		return visible
	case r <= 0xfe0f:
		return joining
	case r == 0xfeff, r == 0xffa0, r >= 0xfff0 && r <= 0xfffb, r >= 0x1d173 && r <= 0x1d17a, r >= 0x1bca0 && r <= 0x1bca3:
		return hidden
	case r >= 0xe0100 && r <= 0xe01ef:
		return joining
	case r >= 0xe0000 && r <= 0xe0fff:
		return hidden
	}
	return visible
}

// belongs reports whether a joining character belongs after prev: where a script, a word or a picture needs it. A run of
// them, or one where nothing is to be joined, is how bytes are hidden in a text.
func belongs(r, prev rune) bool {
	switch {
	case r == 0x200d && prev == 0xfe0f: // pictures: heart, variation selector, joiner, fire
		return true
	case prev == 0 || kindOf(prev) != visible:
		return false
	case r == 0x200c || r == 0x200d:
		return prev >= 0x600
	case r == 0xfe0e || r == 0xfe0f:
		return prev >= 0xa9 || prev == '#' || prev == '*' || prev >= '0' && prev <= '9'
	case r >= 0xfe00 && r <= 0xfe0d:
		return prev >= 0x1000
	case r >= 0xe0100:
		return prev >= 0x2e80
	case r >= 0x180b && r <= 0x180f:
		return prev >= 0x1800 && prev <= 0x18af
	}
	return true
}

// flags are the three that Unicode recommends to spell with tags (UTS 51): England, Scotland, Wales.
func flagTags() []string { return []string{"gbeng", "gbsct", "gbwls"} }

const (
	blackFlag = 0x1f3f4
	tagBase   = 0xe0000
	tagEnd    = 0xe007f
)

// flag is the length of the tags at i that make a flag of the black flag before them, 0 for none.
func flag(b []byte, i int) int {
	for _, word := range flagTags() {
		at, fits := i, true
		for _, want := range append([]rune(word), tagEnd-tagBase) {
			if at >= len(b) {
				fits = false
				break
			}
			r, n := decode(b, at)
			if r != tagBase+want {
				fits = false
				break
			}
			at += n
		}
		if fits {
			return at - i
		}
	}
	return 0
}

// maxSequence bounds a command to a terminal, in bytes.
const maxSequence = 4096

// sequence is the length of the rest of a terminal command (ECMA-48) whose introducer, ESC or its form of one byte, was
// before i; 0 when nothing of what follows belongs to it.
func sequence(b []byte, i int, introducer rune) int {
	at, kind := i, introducer
	if introducer == 0x1b {
		if at >= len(b) {
			return 0
		}
		r, n := decode(b, at)
		switch r {
		case '[':
			kind = 0x9b
		case ']', 'P', 'X', '^', '_':
			kind = 0x9d
		default:
			if r >= 0x20 && r <= 0x2f && at+n < len(b) { // ESC ( B
				_, m := decode(b, at+n)
				return n + m
			}
			if r >= 0x30 && r < 0x7f && r != '"' {
				return n
			}
			return 0
		}
		at += n
	}
	switch kind {
	case 0x9b:
		for at < len(b) && at-i < maxSequence {
			r, n := decode(b, at)
			switch {
			case r >= 0x40 && r < 0x7f:
				return at + n - i
			case r < 0x20 || r >= 0x7f:
				return at - i
			}
			at += n
		}
		return at - i
	case 0x9d, 0x90, 0x98, 0x9e, 0x9f:
		from := at - i
		for at < len(b) && at-i < maxSequence {
			r, n := decode(b, at)
			at += n
			switch r {
			case 0x07, 0x9c:
				return at - i
			case 0x1b:
				if at < len(b) {
					if r, n := decode(b, at); r == '\\' {
						return at + n - i
					}
				}
			}
		}
		return from // without an end it is shown as what it is
	}
	return 0
}

// Clean takes hidden text out of the strings of a JSON value, keys included, and counts what it found. When there is
// nothing to take out it returns raw itself. It trusts raw to be valid JSON, and never reads beyond it where it is not.
func Clean(raw []byte) ([]byte, Found) {
	c := cleaner{raw: raw}
	for i := 0; i < len(raw); {
		at := bytes.IndexByte(raw[i:], '"')
		if at < 0 {
			break
		}
		i = c.text(i + at + 1)
	}
	if c.out == nil {
		return raw, c.found
	}
	return append(c.out, raw[c.copied:]...), c.found
}

type cleaner struct {
	raw, out []byte
	copied   int // of raw
	shown    []byte
	found    Found
}

// text reads the string whose inside begins at i and returns the offset after its closing quote.
func (c *cleaner) text(i int) int {
	b := c.raw
	c.shown = c.shown[:0]
	var prev rune
	for i < len(b) && b[i] != '"' {
		r, n := decode(b, i)
		k := kindOf(r)
		switch {
		case k == visible:
			c.shown = utf8.AppendRune(c.shown, r)
		case k == joining && belongs(r, prev):
			c.shown = utf8.AppendRune(c.shown, r)
		case k == hidden && prev == blackFlag && flag(b, i) > 0:
			n = flag(b, i)
		default:
			switch k {
			case control:
				c.found.Control++
				if r == 0x1b || r >= 0x80 {
					n += c.bounded(i+n, r)
				}
			case direction:
				c.found.Bidi++
			default:
				c.found.Invisible++
			}
			c.cut(i, i+n)
		}
		prev = r
		i += n
	}
	c.found.Template += templates(c.shown)
	return i + 1
}

// bounded is sequence within the string.
func (c *cleaner) bounded(i int, introducer rune) int {
	end := i
	for end < len(c.raw) && end-i <= maxSequence && c.raw[end] != '"' {
		_, n := decode(c.raw, end)
		end += n
	}
	return sequence(c.raw[:min(end, len(c.raw))], i, introducer)
}

func (c *cleaner) cut(from, to int) {
	if c.out == nil {
		c.out = make([]byte, 0, len(c.raw))
	}
	c.out = append(c.out, c.raw[c.copied:from]...)
	c.copied = to
}

// templates counts the marks that chat templates of language models set between roles: a text that holds them pretends
// to be more than a text.
func templates(text []byte) int {
	n := 0
	for rest := text; ; {
		_, after, found := bytes.Cut(rest, []byte("<|"))
		if !found {
			break
		}
		word := 0
		for word < len(after) && word <= 32 && (after[word] >= 'a' && after[word] <= 'z' || after[word] >= '0' && after[word] <= '9' || after[word] == '_') {
			word++
		}
		if word > 1 && bytes.HasPrefix(after[word:], []byte("|>")) {
			n++
		}
		rest = after
	}
	for _, mark := range []string{"[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<start_of_turn>", "<end_of_turn>"} {
		n += bytes.Count(text, []byte(mark))
	}
	return n
}
