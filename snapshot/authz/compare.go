package authz

import "math"

// equalString compares a JSON string with a text: 0 when they are the same.
func equalString(val, text []byte) int {
	if sameText(val[1:len(val)-1], text) {
		return 0
	}
	return 1
}

func equalBool(val []byte, want bool) int {
	if (val[0] == 't') == want {
		return 0
	}
	return 1
}

// numberEnd returns the place after the JSON number at i, or -1 when there is none.
func numberEnd(b []byte, i int) int {
	if i < len(b) && b[i] == '-' {
		i++
	}
	switch {
	case i >= len(b):
		return -1
	case b[i] == '0':
		i++
	default:
		if i = digits(b, i); i < 0 {
			return -1
		}
	}
	if i < len(b) && b[i] == '.' {
		if i = digits(b, i+1); i < 0 {
			return -1
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		i = digits(b, i)
	}
	return i
}

// digits skips at least one digit.
func digits(b []byte, i int) int {
	from := i
	for i < len(b) && '0' <= b[i] && b[i] <= '9' {
		i++
	}
	if i == from {
		return -1
	}
	return i
}

// compareNumber compares a JSON number, as exact decimal, with an integer: -1, 0 or 1.
func compareNumber(val []byte, want int64) (int, fault) {
	if got, ok := smallInt(val); ok {
		switch {
		case got < want:
			return -1, faultNone
		case got > want:
			return 1, faultNone
		}
		return 0, faultNone
	}
	d, ok := parseDecimal(val)
	if !ok {
		return 0, faultMalformed
	}
	sign := 0
	switch {
	case want > 0:
		sign = 1
	case want < 0:
		sign = -1
	}
	if d.sign != sign {
		if d.sign < sign {
			return -1, faultNone
		}
		return 1, faultNone
	}
	if sign == 0 {
		return 0, faultNone
	}
	return sign * d.compareMagnitude(magnitude(want)), faultNone
}

func magnitude(n int64) uint64 {
	if n < 0 {
		return uint64(-(n + 1)) + 1
	}
	return uint64(n)
}

// smallInt reads what most numbers are: an integer of at most 18 digits.
func smallInt(val []byte) (int64, bool) {
	neg := len(val) > 0 && val[0] == '-'
	b := val
	if neg {
		b = b[1:]
	}
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	if neg {
		n = -n
	}
	return n, true
}

// decimal is ±0.d1d2d3... × 10^point with d1 not zero; its digits are those of whole and frac in the text itself.
type decimal struct {
	sign        int // 0 for zero
	whole, frac []byte
	point       int64
}

func parseDecimal(b []byte) (decimal, bool) {
	d := decimal{sign: 1}
	i := 0
	if i < len(b) && b[i] == '-' {
		d.sign = -1
		i++
	}
	from := i
	if i = digits(b, i); i < 0 {
		return d, false
	}
	d.whole = b[from:i]
	if i < len(b) && b[i] == '.' {
		from = i + 1
		if i = digits(b, from); i < 0 {
			return d, false
		}
		d.frac = b[from:i]
	}
	var exp int64
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		exp, i = exponent(b, i+1)
	}
	if i != len(b) {
		return d, false
	}
	d.whole = trimZeros(d.whole)
	d.point = int64(len(d.whole)) + exp
	if len(d.whole) == 0 {
		n := len(d.frac)
		d.frac = trimZeros(d.frac)
		d.point -= int64(n - len(d.frac))
		if len(d.frac) == 0 {
			d.sign = 0
		}
	}
	return d, true
}

// exponent reads [+-]digits; beyond any size that could matter it stays where it is.
func exponent(b []byte, i int) (exp int64, end int) {
	neg := false
	if i < len(b) && (b[i] == '+' || b[i] == '-') {
		neg = b[i] == '-'
		i++
	}
	end = digits(b, i)
	if end < 0 {
		return 0, -1
	}
	for _, c := range b[i:end] {
		if exp < math.MaxInt64/1000 {
			exp = exp*10 + int64(c-'0')
		}
	}
	if neg {
		exp = -exp
	}
	return exp, end
}

func trimZeros(b []byte) []byte {
	for len(b) > 0 && b[0] == '0' {
		b = b[1:]
	}
	return b
}

// compareMagnitude compares without the sign; neither side is zero.
func (d *decimal) compareMagnitude(m uint64) int {
	var text [20]byte
	at := len(text)
	for n := m; n > 0; n /= 10 {
		at--
		text[at] = byte('0' + n%10)
	}
	want := text[at:]
	if d.point != int64(len(want)) {
		if d.point < int64(len(want)) {
			return -1
		}
		return 1
	}
	n := len(d.whole) + len(d.frac)
	for i := range max(n, len(want)) {
		got, w := d.digit(i), byte('0')
		if i < len(want) {
			w = want[i]
		}
		if got != w {
			if got < w {
				return -1
			}
			return 1
		}
	}
	return 0
}

func (d *decimal) digit(i int) byte {
	if i < len(d.whole) {
		return d.whole[i]
	}
	if i -= len(d.whole); i < len(d.frac) {
		return d.frac[i]
	}
	return '0'
}
