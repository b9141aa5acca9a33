package access

import "testing"

// FuzzPlaceOf: a token is what a client sends; one that is taken is one that was made here.
func FuzzPlaceOf(f *testing.F) {
	f.Add("1.2.3.4.5")
	f.Add("1.2.3.-4.5")
	f.Add("18446744073709551615.1.9223372036854775807.1.0")
	f.Add("1.2.3.4.5.6")
	f.Add("+1.02. 3.4.5")
	f.Fuzz(func(t *testing.T, token string) {
		p, err := placeOf(token)
		if err == nil && (p.next(p.first, p.second) != token || p.first < 0 || p.second < 0) {
			t.Fatalf("%q is read as %+v", token, p)
		}
	})
}
