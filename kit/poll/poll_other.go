//go:build !linux

package poll

import "syscall"

// Gone and Bytes are what is waited for where there is a poller.
const (
	Gone What = iota + 1
	Bytes
)

// Poller watches nothing here.
type Poller struct{}

// Watch says that it does not.
func (*Poller) Watch(syscall.RawConn, What, func()) ID { return 0 }

// Stop has nothing to stop.
func (*Poller) Stop(syscall.RawConn, ID) bool { return false }

// Close has nothing to close.
func (*Poller) Close() {}
