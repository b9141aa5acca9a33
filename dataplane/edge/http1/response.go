package http1

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// errEnded is what writing gives to those whom a handler has left behind.
var errEnded = errors.New("http1: the handler has returned")

// exchange is one request and its answer. It is new for each request, so that whoever keeps it, or the context, beyond the
// handler's end cannot reach into the next one.
type exchange struct {
	requestContext

	url  url.URL
	body body

	wmu    sync.Mutex // guards what follows, and the writing of the answer
	header http.Header
	out    []byte // head of the answer, from a pool
	held   []byte // of the answer's body what waits for its length to be known, from a pool
	status int
	// length is the one that the handler has stated, -1 for none; written counts what it wrote.
	length, written int64
	noBody          bool // by its status or as the answer to HEAD
	isHead          bool
	chunked         bool
	sent            bool // the head is sent
	close           bool // the connection ends after this answer
	old             bool // HTTP/1.0
	ended           bool
	failed          error
	noType          bool // no Content-Type was set: it has to be found out

	panicked bool // what the handler did in place of returning
	stay     stay // guarded by the connection's mu
}

// Header is the header of the answer (http.ResponseWriter).
func (x *exchange) Header() http.Header { return x.header }

// WriteHeader sets the status and freezes the header (http.ResponseWriter).
func (x *exchange) WriteHeader(status int) {
	x.wmu.Lock()
	defer x.wmu.Unlock()
	x.writeHeader(status)
}

func (x *exchange) writeHeader(status int) {
	if x.ended || x.status != 0 {
		x.c.srv.cfg.Log.Debug("superfluous WriteHeader")
		return
	}
	if status < 100 || status > 999 {
		panic("http1: no such status: " + strconv.Itoa(status))
	}
	if status < 200 && status != http.StatusSwitchingProtocols {
		x.out = appendHeader(appendStatus(getSmall()[:0], status), x.header)
		x.out = append(x.out, "\r\n"...)
		x.fail(x.c.write(x.out))
		put(x.out)
		x.out = nil
		return
	}
	x.status = status
	x.noBody = x.isHead || status < 200 || status == http.StatusNoContent || status == http.StatusNotModified
	x.out = appendStatus(getSmall()[:0], status)
	h := x.header
	if cl := h["Content-Length"]; len(cl) > 0 {
		if n, ok := number(cl[0]); ok && len(cl) == 1 {
			x.length = n
		}
	}
	for _, v := range h["Connection"] {
		x.close = x.close || v == "close" || strings.EqualFold(v, "close")
	}
	_, typed := h["Content-Type"]
	x.noType = !typed && h["Content-Encoding"] == nil
	x.out = appendHeader(x.out, h)
	if _, dated := h["Date"]; !dated {
		x.out = append(x.out, *x.c.srv.date.Load()...)
	}
}

func appendStatus(b []byte, status int) []byte {
	if status == http.StatusOK {
		return append(b, "HTTP/1.1 200 OK\r\n"...)
	}
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	return append(b, "\r\n"...)
}

// appendHeader writes the fields of an answer. What the framing is made of is written elsewhere; names that are none are
// left out, and a line end in a value becomes a space.
func appendHeader(b []byte, h http.Header) []byte {
	for name, values := range h {
		switch name {
		case "Content-Length", "Transfer-Encoding", "Connection", "Trailer", "Upgrade", "Keep-Alive":
			continue
		}
		if !tokenString(name) {
			continue
		}
		for _, v := range values {
			b = append(b, name...)
			b = append(b, ": "...)
			if strings.IndexByte(v, '\n') >= 0 || strings.IndexByte(v, '\r') >= 0 {
				v = strings.NewReplacer("\n", " ", "\r", " ").Replace(v)
			}
			b = append(b, v...)
			b = append(b, "\r\n"...)
		}
	}
	return b
}

func tokenString(s string) bool {
	for i := range len(s) {
		if class[s[i]]&isToken == 0 {
			return false
		}
	}
	return s != ""
}

// Write writes to the body of the answer (io.Writer).
func (x *exchange) Write(p []byte) (int, error) {
	x.wmu.Lock()
	defer x.wmu.Unlock()
	return x.write(p)
}

// WriteString is Write without a copy of its own (io.StringWriter).
func (x *exchange) WriteString(s string) (int, error) { return x.Write([]byte(s)) }

func (x *exchange) write(p []byte) (int, error) {
	if x.ended {
		return 0, errEnded
	}
	if x.status == 0 {
		x.writeHeader(http.StatusOK)
	}
	switch {
	case x.failed != nil:
		return 0, x.failed
	case len(p) == 0:
		return 0, nil
	case x.noBody && !x.isHead:
		return 0, http.ErrBodyNotAllowed
	case x.length >= 0 && x.written+int64(len(p)) > x.length:
		return 0, http.ErrContentLength
	}
	x.sniff(p)
	x.written += int64(len(p))
	if x.isHead {
		return len(p), nil
	}
	if len(x.held)+len(p) <= largeBuffer-smallBuffer {
		x.hold(p)
		return len(p), nil
	}
	if err := x.send(p, false); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (x *exchange) sniff(p []byte) {
	if x.noType && !x.sent {
		x.noType = false
		x.out = append(x.out, "Content-Type: "...)
		x.out = append(x.out, http.DetectContentType(p)...)
		x.out = append(x.out, "\r\n"...)
	}
}

func (x *exchange) hold(p []byte) {
	switch {
	case x.held == nil && len(p) <= smallBuffer:
		x.held = getSmall()[:0]
	case x.held == nil:
		x.held = getLarge()[:0]
	case len(x.held)+len(p) > cap(x.held):
		x.held = enlarge(x.held)
	}
	x.held = append(x.held, p...)
}

// Flush sends what was written (http.Flusher).
func (x *exchange) Flush() { _ = x.FlushError() }

// FlushError sends what was written and says whether that went well. It keeps no buffer: an answer that is sent in pieces
// may rest for long between them.
func (x *exchange) FlushError() error {
	x.wmu.Lock()
	defer x.wmu.Unlock()
	if x.ended {
		return errEnded
	}
	if x.status == 0 {
		x.writeHeader(http.StatusOK)
	}
	err := x.send(nil, false)
	x.c.rest(x)
	return err
}

// send sends the head, when it was not, what was held back, and p. The last piece carries the end of the body with it.
func (x *exchange) send(p []byte, last bool) error {
	if x.failed != nil {
		return x.failed
	}
	if !x.sent {
		x.sent = true
		x.frame(last)
	} else if x.out == nil {
		x.out = getSmall()[:0]
	}
	held := x.held
	x.held = nil
	out := x.out
	x.out = nil
	n := len(held) + len(p)
	if x.chunked && n > 0 {
		out = strconv.AppendInt(out, int64(n), 16)
		out = append(out, "\r\n"...)
	}
	// One write for all of it, unless p is large.
	small := largeBuffer - len(out) - len(held) - 16
	if len(held)+len(p)+len(out)+16 > cap(out) && len(p) <= small {
		out = enlarge(out)
	}
	out = append(out, held...)
	put(held)
	if len(p) > small {
		x.fail(x.c.write(out))
		if x.failed == nil {
			x.fail(x.c.write(p))
		}
		out = out[:0]
	} else {
		out = append(out, p...)
	}
	if x.chunked {
		if n > 0 {
			out = append(out, "\r\n"...)
		}
		if last {
			out = append(out, "0\r\n\r\n"...)
		}
	}
	if len(out) > 0 && x.failed == nil {
		x.fail(x.c.write(out))
	}
	put(out)
	return x.failed
}

// frame ends the head: it says how long the body is and whether the connection goes on.
func (x *exchange) frame(last bool) {
	length := x.length
	if length < 0 && last && (!x.isHead || x.written > 0) {
		length = x.written
	}
	bodyless := x.status < 200 || x.status == http.StatusNoContent
	switch {
	case bodyless || x.status == http.StatusNotModified && x.length < 0:
	case length >= 0:
		x.out = append(x.out, "Content-Length: "...)
		x.out = strconv.AppendInt(x.out, length, 10)
		x.out = append(x.out, "\r\n"...)
	case x.isHead:
	case x.old:
		x.close = true
	default:
		x.chunked = true
		x.out = append(x.out, "Transfer-Encoding: chunked\r\n"...)
	}
	if !x.close && (x.c.srv.draining() || !x.body.Arrived()) {
		x.close = true
	}
	switch {
	case x.close:
		x.out = append(x.out, "Connection: close\r\n"...)
	case x.old:
		x.out = append(x.out, "Connection: keep-alive\r\n"...)
	}
	x.out = append(x.out, "\r\n"...)
}

// interim sends a line before the answer, unless that has begun.
func (x *exchange) interim(line []byte) error {
	x.wmu.Lock()
	defer x.wmu.Unlock()
	if x.status != 0 || x.ended {
		return nil
	}
	x.fail(x.c.write(line))
	return x.failed
}

// fail remembers that the client cannot be reached, and ends the request's context.
func (x *exchange) fail(err error) {
	if err != nil && x.failed == nil {
		x.failed = err
		x.requestContext.end()
	}
}

// aftermath is what becomes of the connection after an answer.
type aftermath uint8

const (
	cutOff  aftermath = iota
	lingers           // the client may still be sending what nobody will read
	goesOn
)

// finish sends what the handler has left.
func (x *exchange) finish() aftermath {
	x.wmu.Lock()
	if x.status == 0 {
		x.writeHeader(http.StatusOK)
	}
	if !x.sent || x.chunked || len(x.held) > 0 {
		_ = x.send(nil, true)
	}
	x.drop()
	short := !x.noBody && x.length >= 0 && x.written < x.length
	failed, ends := x.failed != nil || short, x.close
	x.wmu.Unlock()
	switch skipped := x.body.end(); {
	case failed || ends && skipped:
		return cutOff
	case !skipped:
		return lingers
	}
	return goesOn
}

// abandon ends the exchange without another byte.
func (x *exchange) abandon() {
	x.wmu.Lock()
	x.drop()
	x.wmu.Unlock()
	x.body.end()
}

func (x *exchange) drop() {
	x.ended = true
	put(x.out)
	put(x.held)
	x.out, x.held = nil, nil
}

// SetReadDeadline bounds the reading of the body (http.ResponseController).
func (x *exchange) SetReadDeadline(t time.Time) error {
	return x.c.setDeadline(x, t, false)
}

// SetWriteDeadline bounds the writing of the answer, in place of the server's own bound (http.ResponseController).
func (x *exchange) SetWriteDeadline(t time.Time) error {
	return x.c.setDeadline(x, t, true)
}

// EnableFullDuplex does nothing: the body is never read ahead of the handler (http.ResponseController).
func (x *exchange) EnableFullDuplex() error { return nil }
