package mcp

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"sync"
	"time"
)

// ErrEventTooLarge ends a stream whose event passes the bound.
var ErrEventTooLarge = errors.New("server-sent event too large")

// Event is one block of an event stream: an event, or comments alone.
type Event struct {
	// Raw is the block as it came, its blank line included. It is valid until the next call of Next.
	Raw []byte
	// Data is the event's data, its lines joined; nil when the block has none.
	Data []byte
	ID   []byte
	// Retry is how long a reader is asked to wait before it comes back for more; 0 when the block does not say.
	Retry time.Duration
}

// maxRetry bounds what is believed of a Retry.
const maxRetry = 24 * time.Hour

// EventReader cuts an event stream into its blocks.
type EventReader struct {
	src   io.Reader
	buf   *[eventBuffer]byte // from a pool; nil while nothing is in it
	r, w  int                // what was read from src and not yet taken
	err   error              // of src, to be told once that was taken
	max   int
	raw   []byte
	data  []byte
	id    []byte
	first bool
	skip  bool // a line ended in a bare CR: a LF right after it belongs to it
}

// NewEventReader reads r; a block of more than maxEvent bytes is an error.
func NewEventReader(r io.Reader, maxEvent int) *EventReader {
	return &EventReader{src: r, max: maxEvent, first: true}
}

const eventBuffer = 4 << 10

var eventBuffers = sync.Pool{New: func() any { return new([eventBuffer]byte) }}

// Rest gives up all buffers until the next call of Next, the last event with them. It reports whether that was possible: it is
// not while anything is left of what was read.
func (e *EventReader) Rest() bool {
	if e.r < e.w || e.err != nil {
		return false
	}
	e.free()
	e.raw, e.data, e.id = nil, nil, nil
	return true
}

func (e *EventReader) free() {
	if e.buf != nil {
		eventBuffers.Put(e.buf)
		e.buf = nil
	}
}

// fill reads when everything was taken.
func (e *EventReader) fill() error {
	const most = 100 // readers that read nothing and say nothing of it
	for range most {
		switch {
		case e.r < e.w:
			return nil
		case e.err != nil:
			e.free()
			return e.err
		case e.buf == nil:
			e.buf = eventBuffers.Get().(*[eventBuffer]byte)
		}
		var n int
		n, e.err = e.src.Read(e.buf[:])
		e.r, e.w = 0, n
	}
	return io.ErrNoProgress
}

// Next returns the next block; io.EOF at the end. A block that the end cuts off is dropped, as readers of event streams
// must.
func (e *EventReader) Next() (Event, error) {
	e.raw, e.data, e.id = e.raw[:0], e.data[:0], e.id[:0]
	hasData, hasID := false, false
	var retry time.Duration
	for {
		from := len(e.raw)
		if err := e.line(); err != nil {
			return Event{}, err
		}
		line := bytes.TrimRight(e.raw[from:], "\r\n")
		if e.first {
			e.first = false
			line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
		}
		if len(line) == 0 {
			if len(e.raw) <= 2 {
				e.raw = e.raw[:0]
				continue
			}
			ev := Event{Raw: e.raw, Retry: retry}
			if hasData {
				ev.Data = e.data
			}
			if hasID {
				ev.ID = e.id
			}
			return ev, nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "data":
			if hasData {
				e.data = append(e.data, '\n')
			}
			hasData = true
			e.data = append(e.data, value...)
		case "id":
			hasID = true
			e.id = append(e.id[:0], value...)
		case "retry":
			if ms, err := strconv.ParseUint(string(value), 10, 32); err == nil {
				retry = min(time.Duration(ms)*time.Millisecond, maxRetry)
			}
		}
	}
}

// line appends one line with its end, which is CR, LF or both.
func (e *EventReader) line() error {
	for {
		if err := e.fill(); err != nil {
			return err
		}
		chunk := e.buf[e.r:e.w]
		if e.skip {
			e.skip = false
			if chunk[0] == '\n' {
				e.r++
				continue
			}
		}
		n := bytes.IndexAny(chunk, "\r\n")
		take := n + 1
		if n < 0 {
			take = len(chunk)
		}
		if len(e.raw)+take > e.max {
			return ErrEventTooLarge
		}
		e.raw = append(e.raw, chunk[:take]...)
		if n < 0 {
			e.r += take
			continue
		}
		if chunk[n] == '\r' {
			e.skip = true
			if take < len(chunk) && chunk[take] == '\n' {
				e.raw = append(e.raw, '\n')
				take++
				e.skip = false
			}
		}
		e.r += take
		return nil
	}
}

// AppendEvent appends a message as one event. The message must not hold line breaks, which JSON never needs.
func AppendEvent(dst, message []byte) []byte {
	dst = append(dst, "event: message\ndata: "...)
	dst = append(dst, message...)
	return append(dst, '\n', '\n')
}

// AppendEventFrom appends a message in place of the event's own data, keeping its id and when to come back.
func AppendEventFrom(dst []byte, ev Event, message []byte) []byte {
	if ev.Retry > 0 {
		dst = append(strconv.AppendInt(append(dst, "retry: "...), ev.Retry.Milliseconds(), 10), '\n')
	}
	if ev.ID != nil {
		dst = append(dst, "id: "...)
		dst = append(dst, ev.ID...)
		dst = append(dst, '\n')
	}
	return AppendEvent(dst, message)
}

// KeepAlive is a comment: it keeps proxies from closing an idle stream.
const KeepAlive = ": keep-alive\n\n"
