package limit_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/mcpvault/mcpvault/dataplane/limit"
)

func TestBodiesAreBounded(t *testing.T) {
	t.Parallel()
	b := limit.Body{Max: 10}
	for _, tc := range []struct {
		row  string
		body io.Reader
		want error
	}{
		{"exact", strings.NewReader("0123456789"), nil},
		{"A01", strings.NewReader("0123456789x"), limit.ErrTooLarge},
		{"A02", io.LimitReader(neverEnding{}, 1<<30), limit.ErrTooLarge},
		{"byte by byte", iotest.OneByteReader(strings.NewReader("0123456789")), nil},
		{"A33", iotest.ErrReader(io.ErrUnexpectedEOF), limit.ErrCut},
	} {
		r := httptest.NewRequest(http.MethodPost, "/mcp", tc.body)
		if got, err := b.Read(httptest.NewRecorder(), r); !errors.Is(err, tc.want) || (err == nil && len(got) != 10) {
			t.Errorf("%s: %q, %v", tc.row, got, err)
		}
	}
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }

func TestAHundredHeaderFieldsAreEnough(t *testing.T) {
	t.Parallel()
	h := http.Header{}
	for range 100 {
		h.Add("X", "1")
	}
	if !limit.FieldsOK(h) {
		t.Fatal("100 fields refused")
	}
	if h.Add("Y", "1"); limit.FieldsOK(h) {
		t.Fatal("A11: 101 fields taken")
	}
}

func TestStreamsAreCountedPerCaller(t *testing.T) {
	t.Parallel()
	s := limit.NewStreams(2)
	first, _ := s.Acquire("alice")
	_, ok := s.Acquire("alice")
	if _, third := s.Acquire("alice"); !ok || third {
		t.Fatal("C23: the cap does not hold")
	}
	if _, ok := s.Acquire("bob"); !ok {
		t.Fatal("one caller's streams count for another")
	}
	first()
	if _, ok := s.Acquire("alice"); !ok || s.Open() != 3 {
		t.Fatal("a closed stream still counts")
	}
}
