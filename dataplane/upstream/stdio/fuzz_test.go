package stdio

import (
	"bytes"
	"testing"
)

// FuzzLines: whatever a process writes, what is read is its lines without their ends, and none is longer than allowed.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb\r\n\n\r\ncut"))
	f.Add(bytes.Repeat([]byte("x"), 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		var got [][]byte
		err := lines(bytes.NewReader(b), 16, func(l []byte) { got = append(got, l) })
		var want [][]byte
		whole, tooLong := bytes.Split(b, []byte("\n")), false
		for i, l := range whole {
			if i < len(whole)-1 && len(l) > 16 || i == len(whole)-1 && len(l) > 17 {
				tooLong = true
				break
			}
			if l = bytes.TrimRight(l, "\r"); i < len(whole)-1 && len(l) > 0 {
				want = append(want, l)
			}
		}
		if tooLong != (err != nil) || len(got) != len(want) {
			t.Fatalf("%d lines, %v; want %d, too long %v", len(got), err, len(want), tooLong)
		}
		for i := range got {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("line %d is %q, want %q", i, got[i], want[i])
			}
		}
	})
}
