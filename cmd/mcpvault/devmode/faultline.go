package devmode

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/fault"
)

// faultLine is a pair of sockets, one of them a node's. A nil one is that of a process in which nothing can be broken.
type faultLine struct {
	conn net.Conn
	line *fault.Line
}

// newFaultLine makes a line, and the end that the node gets.
func newFaultLine() (l *faultLine, theirs *os.File, err error) {
	// Nobody may fork between the making of the sockets and the mark that they are not for other children.
	syscall.ForkLock.RLock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, fmt.Errorf("make a line for faults: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "faults"), os.NewFile(uintptr(fds[1]), "faults of a node")
	defer func() { _ = ours.Close() }() // the connection has a copy
	conn, err := net.FileConn(ours)
	if err != nil {
		_ = theirs.Close()
		return nil, nil, fmt.Errorf("make a line for faults: %w", err)
	}
	return &faultLine{conn, fault.NewLine(conn)}, theirs, nil
}

// send says in which state the node is to be.
func (l *faultLine) send(s fault.State) error {
	if l == nil {
		return nil
	}
	return l.line.Send(s)
}

// tell is send, and waits until it is so.
func (l *faultLine) tell(ctx context.Context, s fault.State) error {
	if l == nil {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = l.conn.SetReadDeadline(time.Now()) })
	defer stop()
	if err := l.line.Send(s); err != nil {
		return err
	}
	return l.line.Wait()
}

func (l *faultLine) close() {
	if l != nil {
		_ = l.conn.Close()
	}
}
