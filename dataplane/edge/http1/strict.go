package http1

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// Limits are the bounds of what a strict connection lets pass.
type Limits struct {
	// MaxHeader bounds a head, in bytes, 60 KiB at most; MaxFields bounds its fields.
	MaxHeader, MaxFields int
	// HeaderTimeout bounds the reading of a head from its first byte.
	HeaderTimeout time.Duration
	// Refused is told of each request that was not taken, with one word for why; it may be nil.
	Refused func(from net.Addr, status int, reason string)
}

// NewStrict puts this package's judgement before another server of HTTP/1.1, which is what makes net/http as strict as
// Server is: the bytes of a request pass only when its head was read to the end and taken. In place of one that is not,
// the server behind finds one that it refuses with the same class of answer and closes.
func NewStrict(nc net.Conn, lim Limits) net.Conn {
	lim.MaxHeader = min(lim.MaxHeader, largeBuffer-4<<10)
	s := &strictConn{Conn: nc, lim: lim, buf: getSmall()}
	s.head.forget()
	if t, ok := nc.(*tls.Conn); ok {
		return strictTLS{s, t}
	}
	return s
}

// strictTLS lets net/http see with whom it speaks.
type strictTLS struct {
	*strictConn
	tls *tls.Conn
}

// ConnectionState is that of the connection below.
func (s strictTLS) ConnectionState() tls.ConnectionState { return s.tls.ConnectionState() }

type strictConn struct {
	net.Conn
	lim  Limits
	head head

	buf     []byte
	r, w    int // what was read and not passed on
	pass    int // bytes at r that may be passed on
	left    int64
	chunks  chunks
	chunked bool
	until   time.Time       // the end of the patience with a head of which a part has come
	poison  *strings.Reader // what is read in place of a request that is refused
}

// errRefused ends the reading of a body that breaks the rules.
var errRefused = errors.New("http1: malformed body")

// NetConn is the connection below.
func (s *strictConn) NetConn() net.Conn { return s.Conn }

// Read passes on what was judged.
func (s *strictConn) Read(p []byte) (int, error) {
	for {
		switch {
		case s.poison != nil:
			return s.poison.Read(p)
		case s.pass > 0:
			n := copy(p, s.buf[s.r:s.r+min(s.pass, len(p))])
			s.r += n
			s.pass -= n
			return n, nil
		case len(p) == 0:
			return 0, nil
		}
		if s.r < s.w {
			if err := s.judge(); err != nil {
				return 0, err
			}
			if s.pass > 0 || s.poison != nil {
				continue
			}
		}
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
}

// judge says how much of what is buffered may pass.
func (s *strictConn) judge() error {
	in := s.buf[s.r:s.w]
	switch {
	case s.left > 0:
		s.pass = int(min(s.left, int64(len(in))))
		s.left -= int64(s.pass)
	case s.chunked:
		for s.pass < len(in) && s.chunks.state != chunksDone {
			if s.chunks.state == chunkData {
				n := int(min(s.chunks.left, int64(len(in)-s.pass)))
				s.chunks.took(n)
				s.pass += n
				continue
			}
			n, err := s.chunks.next(in[s.pass:])
			s.pass += n
			if err != nil {
				s.pass = 0
				return errRefused
			}
		}
		s.chunked = s.chunks.state != chunksDone
	default:
		n, why := s.head.parse(in, s.lim.MaxHeader, s.lim.MaxFields)
		if why != nil {
			s.refuse(why)
			return nil
		}
		switch {
		case n == 0 && s.until.IsZero():
			s.until = time.Now().Add(s.lim.HeaderTimeout)
			_ = s.SetReadDeadline(s.until)
		case n > 0:
			s.until = time.Time{}
			s.pass = n
			s.left, s.chunked, s.chunks = max(s.head.length, 0), s.head.chunked(), chunks{}
			s.head.reset()
		}
	}
	return nil
}

func (s *strictConn) refuse(why *refusal) {
	s.report(why)
	text := "\r\n\r\n" // no request line: 400
	switch why {
	case errHeadLarge, errFields:
		text = "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", s.lim.MaxHeader+slack) + "\r\n\r\n"
	case errEncoding:
		text = "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: x\r\n\r\n"
	case errExpect:
		text = "GET / HTTP/1.1\r\nHost: x\r\nExpect: x\r\nConnection: close\r\n\r\n"
	}
	s.poison = strings.NewReader(text)
}

func (s *strictConn) report(why *refusal) {
	if s.lim.Refused != nil {
		s.lim.Refused(s.RemoteAddr(), why.status, why.reason)
	}
}

// slack is what net/http reads beyond its limit.
const slack = 8 << 10

func (s *strictConn) fill() error {
	switch {
	case s.r == s.w:
		s.r, s.w = 0, 0
	case s.w == len(s.buf) && s.r > 0:
		s.w = copy(s.buf, s.buf[s.r:s.w])
		s.r = 0
	case s.w == len(s.buf):
		s.buf = enlarge(s.buf)[:largeBuffer]
	}
	n, err := s.Conn.Read(s.buf[s.w:])
	s.w += n
	if n > 0 {
		return nil
	}
	switch {
	case err == nil:
		err = io.ErrNoProgress
	case !s.until.IsZero() && errors.Is(err, os.ErrDeadlineExceeded) && !time.Now().Before(s.until):
		s.report(errSlow)
	}
	return err
}
