//go:build !linux

package http1

import "syscall"

// watcher does nothing here: that a client has left shows at the next write to it.
type watcher struct{}

func newWatcher() *watcher { return nil }

func (*watcher) add(syscall.Conn, *requestContext) uint64 { return 0 }
func (*watcher) remove(syscall.Conn, uint64)              {}
func (*watcher) close()                                   {}
