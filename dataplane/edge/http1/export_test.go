package http1

import (
	"context"
	"net/http"
)

// Parked counts the connections that wait without buffers.
func Parked(s *Server) int {
	n := 0
	s.each(func(c *conn) {
		if c.state == stateParked && c.buf == nil {
			n++
		}
	})
	return n
}

// Reader reads heads as a connection does, one after the other.
type Reader struct {
	c *conn
}

// NewReader returns a Reader that has read nothing yet.
func NewReader() *Reader {
	c := &conn{remote: "192.0.2.1:1"}
	c.head.forget()
	return &Reader{c}
}

// Read reads the head at the beginning of b, which arrives in pieces of the given size. It returns the length of the head,
// 0 when it is not complete, and the request that a handler would see.
func (r *Reader) Read(b []byte, piece int) (*http.Request, int, error) {
	c := r.c
	c.head.reset()
	for end := min(piece, len(b)); ; end = min(end+piece, len(b)) {
		n, why := c.head.parse(b[:end], 32<<10, 100)
		if why != nil {
			return nil, 0, why
		}
		if n > 0 {
			return r.request(n)
		}
		if end == len(b) {
			return nil, 0, nil
		}
	}
}

func (r *Reader) request(n int) (*http.Request, int, error) {
	c := r.c
	u, ok := parseTarget(c.head.target)
	if !ok {
		return nil, 0, errTarget
	}
	x := &exchange{url: u, close: !c.head.persists(), old: c.head.minor == 0}
	x.base, x.c = context.Background(), c
	x.body.left, x.body.chunked = c.head.length, c.head.chunked()
	x.body.ended = c.head.length <= 0 && !x.body.chunked
	c.reqHeader = http.Header{}
	return c.request(x), n, nil
}

// Unchunk reads a chunked body at the beginning of b, which arrives in pieces of the given size. It returns the data and
// the length of what it was made from, 0 when the body is not complete.
func Unchunk(b []byte, piece int) ([]byte, int, error) {
	var (
		k    chunks
		data []byte
		at   int
	)
	for end := min(piece, len(b)); ; end = min(end+piece, len(b)) {
		for at < end && k.state != chunksDone {
			if k.state == chunkData {
				n := int(min(k.left, int64(end-at)))
				data = append(data, b[at:at+n]...)
				k.took(n)
				at += n
				continue
			}
			n, err := k.next(b[at:end])
			at += n
			if err != nil {
				return nil, 0, err
			}
		}
		switch {
		case k.state == chunksDone:
			return data, at, nil
		case end == len(b):
			return nil, 0, nil
		}
	}
}
