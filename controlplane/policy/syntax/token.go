package syntax

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/cedar-policy/cedar-go/types"
)

// Kind says what a word of a text is.
type Kind uint8

// The kinds.
const (
	Word Kind = iota
	String
	Number
	Sign
)

// token is one word of a text of Cedar. A string is without its quotes and escapes.
type token struct {
	kind Kind
	text string
	at   Place
}

// tokens takes a text apart. It is lenient: whether the text is Cedar, the parser has said.
func tokens(text string, at Place) []token {
	var out []token
	for i := 0; i < len(text); {
		end, kind := tokenEnd(text, i)
		word := text[i:end]
		switch {
		case strings.TrimSpace(word) == "" || strings.HasPrefix(word, "//"):
		case kind == String:
			out = append(out, token{String, unquote(word), at})
		default:
			out = append(out, token{kind, word, at})
		}
		for _, r := range word {
			if at.Column++; r == '\n' {
				at = Place{at.Line + 1, 1}
			}
		}
		i = end
	}
	return out
}

func tokenEnd(text string, i int) (int, Kind) {
	run := func(from int, in func(byte) bool) int {
		for from < len(text) && in(text[from]) {
			from++
		}
		return from
	}
	switch c := text[i]; {
	case strings.HasPrefix(text[i:], "//"):
		return run(i, func(c byte) bool { return c != '\n' }), Sign
	case c == '"':
		return stringEnd(text, i), String
	case c >= '0' && c <= '9':
		return run(i, func(c byte) bool { return c >= '0' && c <= '9' }), Number
	case IsWord(c):
		return run(i, IsWord), Word
	}
	for _, sign := range []string{"::", "&&", "||", "==", "!=", "<=", ">="} {
		if strings.HasPrefix(text[i:], sign) {
			return i + 2, Sign
		}
	}
	_, n := utf8.DecodeRuneInString(text[i:])
	return i + n, Sign
}

// unquote reads the escapes of a string of Cedar that the parser has accepted.
func unquote(quoted string) string {
	body := strings.TrimSuffix(strings.TrimPrefix(quoted, `"`), `"`)
	if !strings.Contains(body, `\`) {
		return body
	}
	var u types.EntityUID
	// An entity's id is a string like any other, and the only one whose reader cedar-go exports.
	if err := u.UnmarshalCedar([]byte(`T::` + quoted)); err != nil {
		return body
	}
	return string(u.ID)
}

func stringEnd(text string, i int) int {
	for i++; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(text)
}

// IsWord reports whether a character belongs to a name.
func IsWord(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// Invisible finds a character that makes a text look like another one, or plays with the terminal that shows it.
func Invisible(text string) (at Place, found rune, ok bool) {
	at = Place{1, 1}
	for _, r := range text {
		switch {
		case r == '\n':
			at = Place{at.Line + 1, 0}
		case r == '\t' || r == '\r':
		case unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == utf8.RuneError:
			return at, r, true
		}
		at.Column++
	}
	return Place{}, 0, false
}

// Comment finds the first comment.
func Comment(text string) (Place, bool) {
	at := Place{1, 1}
	for i := 0; i < len(text); {
		end, _ := tokenEnd(text, i)
		if strings.HasPrefix(text[i:end], "//") {
			return at, true
		}
		for _, r := range text[i:end] {
			if at.Column++; r == '\n' {
				at = Place{at.Line + 1, 1}
			}
		}
		i = end
	}
	return Place{}, false
}

// Deepest is the depth of brackets and of chains of prefix operators. The parser behind us recurses, so it is bounded
// before it starts.
func Deepest(text string) int {
	depth, most, run := 0, 0, 0
	for i := range len(text) {
		switch text[i] {
		case '(', '[', '{':
			depth++
			run = 0
		case ')', ']', '}':
			depth--
			run = 0
		case '!', '-':
			run++
		case ' ', '\t', '\n', '\r':
		default:
			run = 0
		}
		most = max(most, depth+run)
	}
	return most
}
