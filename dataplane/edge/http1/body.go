package http1

import (
	"errors"
	"io"
	"net/http"
	"sync"
)

// Bounds of the chunked coding (RFC 9112, section 7.1).
const (
	// maxChunkLine bounds the line with a chunk's size and its extensions.
	maxChunkLine = 256
	// maxChunkExtra bounds what all extensions of a body take together.
	maxChunkExtra = 16 << 10
	// maxTrailer bounds the trailer section, which is judged and dropped.
	maxTrailer = 4 << 10
)

// errChunk is what reading a body gives whose chunks are malformed.
var errChunk = errors.New("the chunked body is malformed")

// chunks follows the chunked coding byte by byte, however the bytes are cut.
type chunks struct {
	state   chunkState
	left    int64 // of this chunk's data
	digits  int
	line    int // bytes of the line so far
	extra   int
	trailer int
}

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkExtension
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	trailerStart
	trailerName
	trailerValue
	trailerLF
	trailerEndLF
	chunksDone
)

// next reads what is not data. It returns how much of b it took, and stops where data begins and at the end of the body.
func (k *chunks) next(b []byte) (int, error) {
	for i, c := range b {
		if k.state == chunkData || k.state == chunksDone {
			return i, nil
		}
		if !k.step(c) {
			return i, errChunk
		}
	}
	return len(b), nil
}

func (k *chunks) step(c byte) bool { //nolint:gocyclo,cyclop // one state machine reads better in one piece
	switch k.state {
	case chunkSize:
		if v, ok := hexDigit(c); ok {
			k.digits++
			k.left = k.left<<4 | v
			return k.digits <= 15
		}
		k.line = k.digits
		switch {
		case k.digits == 0:
			return false
		case c == '\r':
			k.state = chunkSizeLF
		case c == ';':
			k.state = chunkExtension
		default:
			return false
		}
	case chunkExtension:
		if k.line++; k.line > maxChunkLine {
			return false
		}
		if k.extra++; k.extra > maxChunkExtra {
			return false
		}
		if c == '\r' {
			k.state = chunkSizeLF
			return true
		}
		return class[c]&isValue != 0
	case chunkSizeLF:
		k.digits = 0
		k.state = chunkData
		if k.left == 0 {
			k.state = trailerStart
		}
		return c == '\n'
	case chunkDataCR:
		k.state = chunkDataLF
		return c == '\r'
	case chunkDataLF:
		k.state = chunkSize
		return c == '\n'
	case trailerEndLF:
		k.state = chunksDone
		return c == '\n'
	case chunkData, chunksDone:
		return false
	default:
		return k.trailerStep(c)
	}
	return true
}

func (k *chunks) trailerStep(c byte) bool {
	if k.trailer++; k.trailer > maxTrailer {
		return false
	}
	switch k.state {
	case trailerStart:
		if c == '\r' {
			k.state = trailerEndLF
			return true
		}
		k.state = trailerName
		return class[c]&isToken != 0
	case trailerName:
		if c == ':' {
			k.state = trailerValue
			return true
		}
		return class[c]&isToken != 0
	case trailerValue:
		if c == '\r' {
			k.state = trailerLF
			return true
		}
		return class[c]&isValue != 0
	default: // trailerLF
		k.state = trailerStart
		return c == '\n'
	}
}

// took counts data that was read.
func (k *chunks) took(n int) {
	if k.left -= int64(n); k.left == 0 {
		k.state = chunkDataCR
	}
}

func hexDigit(c byte) (int64, bool) {
	switch {
	case c >= '0' && c <= '9':
		return int64(c - '0'), true
	case c >= 'a' && c <= 'f':
		return int64(c-'a') + 10, true
	case c >= 'A' && c <= 'F':
		return int64(c-'A') + 10, true
	}
	return 0, false
}

// body is the body of one request. It belongs to that request alone: whoever reads it after the handler's end gets an
// error and not a byte of what follows on the connection.
type body struct {
	c *conn
	x *exchange

	mu      sync.Mutex
	left    int64  // guarded by mu; of a body with a length
	chunks  chunks // guarded by mu
	chunked bool
	ended   bool  // guarded by mu; all of it was read
	err     error // guarded by mu; what every further read gives
	closed  bool  // guarded by mu
	waits   bool  // guarded by mu; the client waits for 100 Continue
}

// Read reads from the body (io.Reader).
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return 0, http.ErrBodyReadAfterClose
	case b.err != nil:
		return 0, b.err
	case b.ended:
		return 0, io.EOF
	case len(p) == 0:
		return 0, nil
	}
	n, err := b.read(p)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF) && b.ended:
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
		b.err = err
	default:
		b.err = err
	}
	return n, err
}

func (b *body) read(p []byte) (int, error) {
	if b.chunked {
		return b.readChunks(p)
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.raw(p)
	if b.left -= int64(n); b.left == 0 {
		b.ended = true
		err = io.EOF
	}
	return n, err
}

func (b *body) readChunks(p []byte) (int, error) {
	for b.chunks.state != chunkData {
		in, err := b.buffered()
		if err != nil {
			return 0, err
		}
		n, err := b.chunks.next(in)
		b.c.r += n
		if err != nil {
			return 0, err
		}
		if b.chunks.state == chunksDone {
			b.ended = true
			return 0, io.EOF
		}
	}
	if int64(len(p)) > b.chunks.left {
		p = p[:b.chunks.left]
	}
	n, err := b.raw(p)
	b.chunks.took(n)
	return n, err
}

// raw reads from the buffer, and from the connection when that is empty.
func (b *body) raw(p []byte) (int, error) {
	c := b.c
	if c.r < c.w {
		n := copy(p, c.buf[c.r:c.w])
		c.r += n
		return n, nil
	}
	if err := b.sayContinue(); err != nil {
		return 0, err
	}
	return c.readBody(p)
}

// buffered returns what is in the buffer, and fills it first when it is empty.
func (b *body) buffered() ([]byte, error) {
	c := b.c
	if c.r == c.w {
		if err := b.sayContinue(); err != nil {
			return nil, err
		}
		c.r, c.w = 0, 0
		if c.buf == nil {
			c.buf = getSmall()
		}
		n, err := c.readBody(c.buf[:cap(c.buf)])
		c.w = n
		if n == 0 {
			return nil, err
		}
	}
	return c.buf[c.r:c.w], nil
}

var continueLine = []byte("HTTP/1.1 100 Continue\r\n\r\n")

// sayContinue tells a client that waits for it to send the body.
func (b *body) sayContinue() error {
	if !b.waits {
		return nil
	}
	b.waits = false
	return b.x.interim(continueLine)
}

// Close makes further reads fail (io.Closer).
func (b *body) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return nil
}

// end is called when the handler has returned. It reports whether the connection stands at the beginning of the next
// request: what is left of the body is skipped when it has arrived already.
func (b *body) end() bool {
	if !b.mu.TryLock() {
		// Somebody whom the handler has left behind is reading.
		b.c.interruptRead()
		b.mu.Lock()
		b.closed = true
		b.mu.Unlock()
		return false
	}
	defer b.mu.Unlock()
	b.closed = true
	return b.skip()
}

// Arrived reports whether the whole body is in the buffer or was read: nothing would have to be waited for.
func (b *body) Arrived() bool {
	if !b.mu.TryLock() {
		return false
	}
	defer b.mu.Unlock()
	return b.ended || !b.chunked && b.err == nil && int64(b.c.w-b.c.r) >= b.left
}

// wasRead reports whether there is nothing left to read.
func (b *body) wasRead() bool {
	if !b.mu.TryLock() {
		return false
	}
	defer b.mu.Unlock()
	return b.ended
}

// skip drops what is buffered of the body and reports whether that was all of it.
func (b *body) skip() bool {
	c := b.c
	for !b.ended && b.err == nil && c.r < c.w {
		in := c.buf[c.r:c.w]
		switch {
		case !b.chunked:
			n := int(min(b.left, int64(len(in))))
			c.r += n
			if b.left -= int64(n); b.left == 0 {
				b.ended = true
			}
		case b.chunks.state == chunkData:
			n := int(min(b.chunks.left, int64(len(in))))
			c.r += n
			b.chunks.took(n)
		default:
			n, err := b.chunks.next(in)
			c.r += n
			b.err = err
			b.ended = b.chunks.state == chunksDone
		}
	}
	return b.ended
}
