package upstream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// The bounds of an answer's head.
const (
	maxHead    = 32 << 10
	maxFields  = 100
	maxInterim = 5 // 1xx answers before the final one
)

// media is what an answer says its body is.
type media byte

const (
	mediaOther media = iota
	mediaJSON
	mediaEvents
)

// mediaOf reads a Content-Type; parameters do not matter.
func mediaOf(contentType string) media {
	name, _, _ := strings.Cut(contentType, ";")
	switch name = strings.TrimSpace(name); {
	case strings.EqualFold(name, "application/json"):
		return mediaJSON
	case strings.EqualFold(name, "text/event-stream"):
		return mediaEvents
	}
	return mediaOther
}

// The framings of a body, RFC 9112 section 6.
type framing byte

const (
	framedByClose framing = iota
	framedByLength
	framedByChunks
)

// head is what is taken out of an answer's head: all other fields end here.
type head struct {
	status  int
	media   media
	session string
	framing framing
	length  int64
	// keep means that the connection may be used again once the body has been read.
	keep bool
}

func malformed(what string) error { return fmt.Errorf("%w: %s", ErrProtocol, what) }

// headReader reads an answer's head from src into buf, which grows up to the bound.
type headReader struct {
	src io.Reader
	buf []byte
	// buf[:n] has been read, and lines up to pos have been taken.
	n, pos int
	// fields counts those of the interim answers too.
	fields int
}

// read returns the final head and what was read beyond it, which lies in the buffer. Errors of src come as they are.
func (r *headReader) read() (head, []byte, error) {
	for range maxInterim + 1 {
		h, err := r.one()
		if err != nil {
			return head{}, nil, err
		}
		switch {
		case h.status >= 200:
			return h, r.buf[r.pos:r.n], nil
		case h.status == 101:
			return head{}, nil, malformed("it switches protocols unasked")
		}
	}
	return head{}, nil, malformed("too many interim answers")
}

func (r *headReader) one() (head, error) {
	line, err := r.line()
	if err != nil {
		return head{}, err
	}
	var p fieldParser
	http11, err := p.statusLine(line)
	if err != nil {
		return head{}, err
	}
	for {
		if line, err = r.line(); err != nil {
			return head{}, err
		}
		if len(line) == 0 {
			return p.conclude(http11)
		}
		if r.fields++; r.fields > maxFields {
			return head{}, malformed("too many header fields")
		}
		if err := p.field(line); err != nil {
			return head{}, err
		}
	}
}

// line returns the next line without its end. A line that ends in LF alone is refused, so that no two readers of the
// same bytes can disagree on where the head ends.
func (r *headReader) line() ([]byte, error) {
	from := r.pos
	for {
		if i := bytes.IndexByte(r.buf[from:r.n], '\n'); i >= 0 {
			end := from + i
			line := r.buf[r.pos:end]
			if len(line) == 0 || line[len(line)-1] != '\r' {
				return nil, malformed("a header line ends in a bare LF")
			}
			r.pos = end + 1
			return line[:len(line)-1], nil
		}
		from = r.n
		if err := r.more(); err != nil {
			return nil, err
		}
	}
}

func (r *headReader) more() error {
	if r.n >= maxHead {
		return malformed("the header is too large")
	}
	if r.n == len(r.buf) {
		grown := make([]byte, min(maxHead, max(2*len(r.buf), 4<<10)))
		copy(grown, r.buf)
		r.buf = grown
	}
	n, err := r.src.Read(r.buf[r.n:])
	r.n += n
	if n > 0 {
		return nil
	}
	if err == nil {
		return io.ErrNoProgress
	}
	if errors.Is(err, io.EOF) && r.n > 0 {
		return io.ErrUnexpectedEOF
	}
	return err
}

// fieldParser takes the fields of one head, each of those that matter at most once.
type fieldParser struct {
	h                                head
	hasLength, chunked               bool
	hasMedia, hasSession, hasClosing bool
}

// statusLine reads "HTTP/1.1 200 OK"; the reason may be missing, and so may the space before it.
func (p *fieldParser) statusLine(line []byte) (http11 bool, err error) {
	if len(line) < 12 || string(line[:7]) != "HTTP/1." || line[8] != ' ' || (line[7] != '0' && line[7] != '1') {
		return false, malformed("it does not speak HTTP/1.1")
	}
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return false, malformed("the status is not a number")
		}
		p.h.status = p.h.status*10 + int(c-'0')
	}
	if p.h.status < 100 || (len(line) > 12 && line[12] != ' ') || !text(line[12:]) {
		return false, malformed("the status line is malformed")
	}
	return line[7] == '1', nil
}

func (p *fieldParser) field(line []byte) error {
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 || !token(line[:colon]) {
		return malformed("a header field has no proper name") // a folded line begins with a space and ends here too
	}
	value := bytes.Trim(line[colon+1:], " \t")
	if !text(value) {
		return malformed("a header field holds control characters")
	}
	switch name := line[:colon]; len(name) {
	case len("connection"):
		if is(name, "connection") {
			p.hasClosing = p.hasClosing || listed(value, "close")
		}
	case len("content-type"):
		if is(name, "content-type") {
			return p.contentType(value)
		}
	case len("content-length"): // and mcp-session-id
		switch {
		case is(name, "content-length"):
			return p.contentLength(value)
		case is(name, "mcp-session-id"):
			return p.sessionID(value)
		}
	case len("content-encoding"):
		if is(name, "content-encoding") && len(value) > 0 && !is(value, "identity") {
			return malformed("the body is encoded in a way that was not offered")
		}
	case len("transfer-encoding"):
		if is(name, "transfer-encoding") {
			if p.chunked || !is(value, "chunked") {
				return malformed("its transfer encoding is not known")
			}
			p.chunked = true
		}
	}
	return nil
}

func (p *fieldParser) contentType(value []byte) error {
	if p.hasMedia {
		return malformed("two content types")
	}
	p.hasMedia = true
	if len(value) > 256 {
		return malformed("the content type is too long")
	}
	p.h.media = mediaOf(string(value))
	return nil
}

func (p *fieldParser) contentLength(value []byte) error {
	if p.hasLength {
		return malformed("two content lengths")
	}
	p.hasLength = true
	if len(value) == 0 || len(value) > 18 {
		return malformed("the content length is not a number")
	}
	for _, c := range value {
		if c < '0' || c > '9' {
			return malformed("the content length is not a number")
		}
		p.h.length = p.h.length*10 + int64(c-'0')
	}
	return nil
}

func (p *fieldParser) sessionID(value []byte) error {
	if p.hasSession {
		return malformed("two session ids")
	}
	p.hasSession = true
	p.h.session = string(value)
	return nil
}

// conclude decides how the body is framed, RFC 9112 section 6.3.
func (p *fieldParser) conclude(http11 bool) (head, error) {
	h := p.h
	h.keep = http11 && !p.hasClosing
	switch {
	case p.chunked && (p.hasLength || !http11):
		return head{}, malformed("its length is stated in two ways")
	case h.status < 200 || h.status == 204:
		if p.chunked || h.length > 0 {
			return head{}, malformed("it states a body where there can be none")
		}
		h.framing, h.length = framedByLength, 0
	case p.chunked:
		h.framing = framedByChunks
	case p.hasLength:
		h.framing = framedByLength
	default:
		h.framing, h.keep = framedByClose, false
	}
	return h, nil
}

// is compares ASCII without regard to case; lower is in lower case and has no characters that OR 0x20 maps to others.
func is(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// listed reports whether a comma-separated list has an element.
func listed(list []byte, lower string) bool {
	for item := range bytes.SplitSeq(list, []byte(",")) {
		if is(bytes.Trim(item, " \t"), lower) {
			return true
		}
	}
	return false
}

// tokens are the characters of a field's name, RFC 9110 section 5.6.2.
var tokens = func() (t [256]bool) {
	for c := '0'; c <= '9'; c++ {
		t[c] = true
	}
	for c := 'a'; c <= 'z'; c++ {
		t[c], t[c-0x20] = true, true
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] = true
	}
	return t
}()

func token[S []byte | string](s S) bool {
	for i := range len(s) {
		if !tokens[s[i]] {
			return false
		}
	}
	return len(s) > 0
}

// text reports whether a field's value has no control characters but the tab.
func text[S []byte | string](s S) bool {
	for i := range len(s) {
		if c := s[i]; (c < ' ' && c != '\t') || c == 0x7f {
			return false
		}
	}
	return true
}
