// Package limit holds what one request and one caller may take: header fields, body bytes and time, open streams, requests
// under way, and requests over time, the budget of which the nodes of a cell share. It counts; what a refusal looks like is
// for the pipeline.
package limit

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

// The refusals of ReadBody.
var (
	ErrTooLarge = errors.New("body too large")
	ErrTooSlow  = errors.New("body too slow")
	ErrCut      = errors.New("body ended early")
)

// Body bounds a request's body.
type Body struct {
	Max     int64
	Timeout time.Duration
}

// Read reads the whole body. A stated length beyond the bound is refused before a byte is read. After an error the read
// deadline stays: the connection cannot be used again, and a server that still wants to read the rest of the body before
// it closes must not wait for it.
func (b Body) Read(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if here, ok := r.Body.(interface{ Arrived() bool }); ok && here.Arrived() {
		return b.read(r) // there is nothing to wait for
	}
	rc := http.NewResponseController(w)
	timed := b.Timeout > 0 && rc.SetReadDeadline(time.Now().Add(b.Timeout)) == nil
	body, err := b.read(r)
	if err == nil && timed {
		_ = rc.SetReadDeadline(time.Time{})
	}
	return body, err
}

func (b Body) read(r *http.Request) ([]byte, error) {
	if r.ContentLength > b.Max {
		return nil, ErrTooLarge
	}
	size := int64(512)
	if r.ContentLength >= 0 {
		size = min(r.ContentLength, 64<<10)
	}
	body := make([]byte, 0, size+1)
	for {
		if len(body) == cap(body) {
			body = append(body, 0)[:len(body)]
		}
		n, err := r.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case int64(len(body)) > b.Max:
			return nil, ErrTooLarge
		case err == nil:
		case errors.Is(err, io.EOF):
			return body, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, ErrTooSlow
		default:
			return nil, ErrCut
		}
	}
}

// MaxFields bounds the header fields of a request.
const MaxFields = 100

// FieldsOK reports whether a header stays within the bound.
func FieldsOK(h http.Header) bool {
	n := 0
	for _, values := range h {
		n += len(values)
	}
	return n <= MaxFields
}

// Streams counts the open streams of each caller.
type Streams struct {
	max int

	mu   sync.Mutex
	open map[string]int // guarded by mu; no zero entries
}

// NewStreams allows each caller perCaller open streams.
func NewStreams(perCaller int) *Streams {
	return &Streams{max: perCaller, open: map[string]int{}}
}

// Acquire takes a place; release gives it back and must be called exactly once when ok.
func (s *Streams) Acquire(caller string) (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[caller] >= s.max {
		return nil, false
	}
	s.open[caller]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.open[caller]--; s.open[caller] == 0 {
			delete(s.open, caller)
		}
	}, true
}

// Open counts all open streams.
func (s *Streams) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, c := range s.open {
		n += c
	}
	return n
}
