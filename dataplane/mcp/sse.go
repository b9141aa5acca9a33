package mcp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
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
	r     *bufio.Reader
	max   int
	raw   []byte
	data  []byte
	id    []byte
	first bool
	skip  bool // a line ended in a bare CR: a LF right after it belongs to it
}

// NewEventReader reads r; a block of more than maxEvent bytes is an error.
func NewEventReader(r io.Reader, maxEvent int) *EventReader {
	return &EventReader{r: bufio.NewReaderSize(r, 4096), max: maxEvent, first: true}
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
		if _, err := e.r.Peek(1); err != nil {
			return err
		}
		chunk, _ := e.r.Peek(e.r.Buffered())
		if e.skip {
			e.skip = false
			if chunk[0] == '\n' {
				_, _ = e.r.Discard(1)
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
			if _, err := e.r.Discard(take); err != nil {
				return err
			}
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
		_, err := e.r.Discard(take)
		return err
	}
}

// AppendEvent appends a message as one event. The message must not hold line breaks, which JSON never needs.
func AppendEvent(dst, message []byte) []byte {
	dst = append(dst, "event: message\ndata: "...)
	dst = append(dst, message...)
	return append(dst, '\n', '\n')
}

// AppendEventFrom appends a message in place of the event's own data, keeping its id.
func AppendEventFrom(dst []byte, ev Event, message []byte) []byte {
	if ev.ID != nil {
		dst = append(dst, "id: "...)
		dst = append(dst, ev.ID...)
		dst = append(dst, '\n')
	}
	return AppendEvent(dst, message)
}

// KeepAlive is a comment: it keeps proxies from closing an idle stream.
const KeepAlive = ": keep-alive\n\n"
