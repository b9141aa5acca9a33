package upstream

import (
	"bytes"
	"errors"
	"io"
	"sync/atomic"
)

// maxTrailer bounds what may follow the last chunk, and maxLine a chunk's size with its extensions.
const (
	maxTrailer = 4 << 10
	maxLine    = 256
)

// body reads an answer's body as it is framed. Read gives io.EOF once the body has ended as its framing says, and
// io.ErrUnexpectedEOF when the connection ended before.
type body struct {
	src     io.Reader
	rest    []byte // read along with the head, and not yet taken
	framing framing
	left    int64 // framedByLength: of the body
	chunks  chunks
	err     error
	// ended is set when the body has come to its proper end, after which src is not touched any more.
	ended atomic.Bool
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if b.err != nil || len(p) == 0 {
		return 0, b.err
	}
	if b.framing == framedByLength {
		if b.left == 0 {
			return 0, b.end(len(b.rest))
		}
		p = p[:min(int64(len(p)), b.left)]
	}
	for {
		raw, err := b.take(p)
		n := raw
		switch b.framing {
		case framedByLength:
			if b.left -= int64(n); b.left == 0 {
				return n, b.atEnd(len(b.rest))
			}
		case framedByChunks:
			var used int
			var bad error
			if n, used, bad = b.chunks.decode(p, p[:raw]); bad != nil {
				b.err = bad
				return n, b.err
			}
			if b.chunks.done() {
				return n, b.atEnd(raw - used + len(b.rest))
			}
		case framedByClose:
			if errors.Is(err, io.EOF) {
				return n, b.atEnd(0)
			}
		}
		if err != nil {
			if b.err = err; errors.Is(err, io.EOF) {
				b.err = io.ErrUnexpectedEOF
			}
			return n, b.err
		}
		if n > 0 {
			return n, nil
		}
	}
}

func (b *body) take(p []byte) (int, error) {
	if len(b.rest) > 0 {
		n := copy(p, b.rest)
		b.rest = b.rest[n:]
		return n, nil
	}
	n, err := b.src.Read(p)
	if n == 0 && err == nil {
		err = io.ErrNoProgress
	}
	return n, err
}

// atEnd notes the end, and has the data that came with it be taken first.
func (b *body) atEnd(excess int) error {
	if err := b.end(excess); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// end is how a body ends: bytes behind it are an answer that nobody asked for.
func (b *body) end(excess int) error {
	b.err = io.EOF
	if excess > 0 {
		b.err = malformed("it answered more than once")
	} else {
		b.ended.Store(true)
	}
	return b.err
}

// chunks decodes the chunked transfer coding, RFC 9112 section 7.1, whatever the portions in which it comes.
type chunks struct {
	state chunkState
	size  int64 // of the chunk: what is left of it
	line  int   // bytes of the current line
	// framed and carried count bytes, so that a body cannot be all framing.
	framed, carried int64
	trailer         int
}

type chunkState byte

const (
	chunkSize     chunkState = iota // before the first digit
	chunkDigits                     // after it
	chunkExt                        // in the extensions
	chunkSizeLF                     // CR seen
	chunkData                       //
	chunkDataCR                     // after the data
	chunkDataLF                     //
	chunkTrail                      // at the beginning of a line of the trailer
	chunkTrailing                   // within one
	chunkTrailLF                    // CR at the end of one
	chunkLastLF                     // CR of the last line
	chunkDone
)

func (c *chunks) done() bool { return c.state == chunkDone }

// decode takes src and puts the data into dst, which may be the same memory. It returns the bytes of data and the bytes of
// src that were used, which are all unless the body has ended.
func (c *chunks) decode(dst, src []byte) (n, used int, err error) {
	for used < len(src) && c.state != chunkDone {
		if c.state == chunkData {
			m := copy(dst[n:], src[used:used+int(min(c.size, int64(len(src)-used)))])
			n, used = n+m, used+m
			c.carried += int64(m)
			if c.size -= int64(m); c.size == 0 {
				c.state = chunkDataCR
			}
			continue
		}
		if err := c.step(src[used]); err != nil {
			return n, used, err
		}
		used++
		c.framed++
	}
	const free = 16 << 10
	if c.framed > free+8*c.carried {
		return n, used, malformed("its chunks carry next to nothing")
	}
	return n, used, nil
}

var errChunk = malformed("a chunk is malformed")

func (c *chunks) step(b byte) error {
	switch c.state {
	case chunkSize, chunkDigits, chunkExt, chunkSizeLF:
		return c.sizeLine(b)
	case chunkDataCR:
		return c.expect(b, '\r', chunkDataLF)
	case chunkDataLF:
		c.line = 0
		return c.expect(b, '\n', chunkSize)
	default:
		return c.trail(b)
	}
}

func (c *chunks) expect(b, want byte, next chunkState) error {
	if b != want {
		return errChunk
	}
	c.state = next
	return nil
}

func (c *chunks) sizeLine(b byte) error {
	if c.line++; c.line > maxLine {
		return errChunk
	}
	if c.state == chunkSizeLF {
		next := chunkData
		if c.size == 0 {
			next = chunkTrail
		}
		return c.expect(b, '\n', next)
	}
	digit := hex(b)
	switch {
	case c.state <= chunkDigits && digit >= 0:
		if c.line > 15 {
			return errChunk // 60 bits
		}
		c.state, c.size = chunkDigits, c.size<<4|int64(digit)
	case c.state == chunkSize:
		return errChunk
	case b == '\r':
		c.state = chunkSizeLF
	case c.state == chunkDigits && b != ';':
		return errChunk
	case (b < ' ' && b != '\t') || b == 0x7f:
		return errChunk
	default:
		c.state = chunkExt
	}
	return nil
}

// trail passes over the trailer: nothing in it is wanted.
func (c *chunks) trail(b byte) error {
	if c.trailer++; c.trailer > maxTrailer {
		return malformed("the trailer is too large")
	}
	switch c.state {
	case chunkTrailLF:
		return c.expect(b, '\n', chunkTrail)
	case chunkLastLF:
		return c.expect(b, '\n', chunkDone)
	case chunkTrail:
		if b == '\r' {
			c.state = chunkLastLF
			return nil
		}
		if !tokens[b] {
			return malformed("the trailer is malformed")
		}
		c.line, c.state = 0, chunkTrailing
		return nil
	default:
		return c.trailing(b)
	}
}

// trailing is within a line of the trailer. line becomes 1 at the colon: before it stands a name.
func (c *chunks) trailing(b byte) error {
	switch {
	case c.line == 0 && b == ':':
		c.line = 1
	case c.line == 0 && !tokens[b]:
		return malformed("the trailer is malformed")
	case c.line == 1 && b == '\r':
		c.state = chunkTrailLF
	case c.line == 1 && ((b < ' ' && b != '\t') || b == 0x7f):
		return malformed("the trailer is malformed")
	}
	return nil
}

func hex(b byte) int {
	switch {
	case b >= '0' && b <= '9':
		return int(b - '0')
	case b >= 'a' && b <= 'f':
		return int(b-'a') + 10
	case b >= 'A' && b <= 'F':
		return int(b-'A') + 10
	}
	return -1
}

// all reads the whole body into one buffer; more than max bytes are ErrTooLarge. Memory is taken as bytes come, not as
// they are announced, and never twice the bound.
func (b *body) all(most int64) ([]byte, error) {
	const first, segment = 64 << 10, 1 << 20
	size := int64(len(b.rest)) + 512
	if b.framing == framedByLength {
		if size = b.left; size > most {
			return nil, ErrTooLarge
		}
	}
	var full [][]byte
	var total int64
	buf := make([]byte, 0, max(1, min(size, first)))
	for b.err == nil {
		if len(buf) == cap(buf) {
			if len(buf) >= segment {
				full = append(full, buf)
				buf = nil
			}
			buf = append(make([]byte, 0, min(segment, max(2*cap(buf), first))), buf...)
		}
		n, _ := b.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if total += int64(n); total > most {
			return nil, ErrTooLarge
		}
	}
	switch {
	case !errors.Is(b.err, io.EOF):
		return nil, b.err
	case full != nil:
		return bytes.Join(append(full, buf), nil), nil
	}
	return buf, nil
}
