package index

import (
	"unicode"
	"unicode/utf8"
)

// FoldHash hashes a name so that names which differ in case only are one: JSON decoders that ignore case would take one
// for the other. It is the same for whole runes and for a name decoded rune by rune with FoldRune.
func FoldHash(name []byte) uint64 {
	h := FoldStart
	for i := 0; i < len(name); {
		if c := name[i]; c < utf8.RuneSelf {
			h = FoldByte(h, c)
			i++
			continue
		}
		r, n := utf8.DecodeRune(name[i:])
		h = FoldRune(h, r)
		i += n
	}
	return h
}

// FoldStart is the hash of the empty name.
const FoldStart uint64 = 14695981039346656037

const foldPrime = 1099511628211

// FoldByte adds one ASCII character to a folded hash.
func FoldByte(h uint64, c byte) uint64 {
	if c-'a' < 26 {
		c -= 'a' - 'A'
	}
	return (h ^ uint64(c)) * foldPrime
}

// FoldRune adds one character to a folded hash, as the smallest of those that fold together: 'ſ' is 'S', the Kelvin sign
// is 'K'.
func FoldRune(h uint64, r rune) uint64 {
	if r < utf8.RuneSelf {
		return FoldByte(h, byte(r))
	}
	for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
		if f < r {
			r = f
			break
		}
	}
	return (h ^ uint64(r)) * foldPrime
}
