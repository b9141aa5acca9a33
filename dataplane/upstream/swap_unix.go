//go:build unix

package upstream

import (
	"io"
	"os"
	"syscall"
)

const nonBlocking = true

// swap is one exchange of bytes on a socket: see that nothing waits there, write the request, wait for the answer and read
// it. As one operation on the socket it needs three system calls and one wait: a plain Write and Read take the same three
// without the check, because Read tries before it waits.
//
// The write happens after the runtime's poller was armed, so an answer that is quicker than the wait is not missed.
type swap struct {
	step, look func(fd uintptr) bool // made once

	out, in  []byte
	check    bool
	waiting  bool // the request is written
	wrote, n int
	err      error
	one      [1]byte
	busy     bool // look found bytes, or the end
}

func (s *swap) init() {
	s.step = s.advance
	s.look = func(fd uintptr) bool { s.busy = s.readable(int(fd)); return true }
}

// peek reports whether an idle socket is closed or has bytes waiting.
func (s *swap) peek(raw syscall.RawConn) bool {
	s.busy = true
	err := raw.Read(s.look)
	return err != nil || s.busy
}

// readable takes a byte if there is one; such a connection is not used any more.
func (s *swap) readable(fd int) bool {
	for {
		_, err := syscall.Read(fd, s.one[:])
		if err != syscall.EINTR {
			return err != syscall.EAGAIN
		}
	}
}

func (s *swap) run(c *conn, out, in []byte) (n int, sent bool, err error) {
	s.out, s.in, s.check, s.waiting, s.wrote, s.n, s.err = out, in, c.used, false, 0, 0, nil
	err = c.raw.Read(s.step)
	n, wrote := s.n, s.wrote
	s.out, s.in = nil, nil
	if err == nil {
		err = s.err
	}
	if err != nil || s.waiting {
		return n, wrote > 0, err
	}
	// The socket's buffer was full: the rest goes the usual way.
	return c.writeAndRead(wrote, out[wrote:], nil, in)
}

// advance reports whether the operation is over; if not, it is called again when the socket can be read.
func (s *swap) advance(fd uintptr) bool {
	if !s.waiting {
		if s.check && s.readable(int(fd)) {
			s.err = errStale
			return true
		}
		s.wrote, s.err = write(int(fd), s.out)
		s.waiting = s.err == nil && s.wrote == len(s.out)
		return !s.waiting
	}
	for {
		n, err := syscall.Read(int(fd), s.in)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			return false
		case err != nil:
			s.err = os.NewSyscallError("read", err)
		case n == 0:
			s.err = io.EOF
		default:
			s.n = n
		}
		return true
	}
}

func write(fd int, b []byte) (int, error) {
	for {
		n, err := syscall.Write(fd, b)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			return 0, nil
		case err != nil:
			return max(n, 0), os.NewSyscallError("write", err)
		}
		return n, nil
	}
}
