// Package tlogtest puts faults between a log and its disk: writes that fail, a disk that is full, a disk that hangs. It also
// has a disk that does not wait for the medium, for tests of everything but the power.
package tlogtest

import (
	"io"
	"sync"
	"syscall"

	"github.com/mcpvault/mcpvault/kit/tlog"
)

// FS is a file system with faults. The zero value is not usable; see New.
type FS struct {
	tlog.FS
	mu       sync.Mutex
	writeErr error
	syncErr  error
	room     int64 // bytes that may still be written; negative for no bound
	hang     chan struct{}
	syncs    int
}

// Quick is the machine's file system without waiting for the medium: what it holds survives the process, not the power.
type Quick struct{ tlog.Disk }

// Open implements tlog.FS.
func (q Quick) Open(name string, create bool) (tlog.File, error) {
	f, err := q.Disk.Open(name, create)
	if err != nil {
		return nil, err
	}
	return quickFile{f}, nil
}

// SyncDir implements tlog.FS.
func (Quick) SyncDir(string) error { return nil }

type quickFile struct{ tlog.File }

func (quickFile) Sync() error { return nil }

// New puts faults in front of a file system.
func New(under tlog.FS) *FS { return &FS{FS: under, room: -1} }

// FailWrites makes every write fail; nil ends it.
func (f *FS) FailWrites(err error) { f.set(func() { f.writeErr = err }) }

// FailSyncs makes every sync fail; nil ends it.
func (f *FS) FailSyncs(err error) { f.set(func() { f.syncErr = err }) }

// Full lets n more bytes be written and then fails with ENOSPC, after a part of the write.
func (f *FS) Full(n int64) { f.set(func() { f.room = n }) }

// Free ends Full.
func (f *FS) Free() { f.set(func() { f.room = -1 }) }

// Hang blocks writes and syncs until the function that it returns is called.
func (f *FS) Hang() (release func()) {
	ch := make(chan struct{})
	f.set(func() { f.hang = ch })
	return func() {
		f.set(func() { f.hang = nil })
		close(ch)
	}
}

// Syncs counts the syncs that reached the disk.
func (f *FS) Syncs() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.syncs
}

func (f *FS) set(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

func (f *FS) wait() {
	f.mu.Lock()
	ch := f.hang
	f.mu.Unlock()
	if ch != nil {
		<-ch
	}
}

// Open implements tlog.FS.
func (f *FS) Open(name string, create bool) (tlog.File, error) {
	g, err := f.FS.Open(name, create)
	if err != nil {
		return nil, err
	}
	return &file{File: g, fs: f}, nil
}

// Lock implements tlog.FS.
func (f *FS) Lock(name string) (io.Closer, error) { return f.FS.Lock(name) }

type file struct {
	tlog.File
	fs *FS
}

func (f *file) WriteAt(b []byte, off int64) (int, error) {
	f.fs.wait()
	f.fs.mu.Lock()
	err, n := f.fs.writeErr, len(b)
	if err == nil && f.fs.room >= 0 {
		if size, serr := f.File.Size(); serr == nil && off+int64(n) > size {
			grow := off + int64(n) - max(size, off)
			if grow > f.fs.room {
				n, err = int(int64(n)-grow+f.fs.room), syscall.ENOSPC
				grow = f.fs.room
			}
			f.fs.room -= grow
		}
	}
	f.fs.mu.Unlock()
	if err != nil && n == len(b) {
		return 0, err
	}
	if m, werr := f.File.WriteAt(b[:n], off); werr != nil {
		return m, werr
	}
	return n, err
}

func (f *file) Sync() error {
	f.fs.wait()
	f.fs.mu.Lock()
	err := f.fs.syncErr
	if err == nil {
		f.fs.syncs++
	}
	f.fs.mu.Unlock()
	if err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *file) Allocate(n int64) error {
	f.fs.mu.Lock()
	room := f.fs.room
	f.fs.mu.Unlock()
	if room >= 0 && n > room {
		return syscall.ENOSPC
	}
	return f.File.Allocate(n)
}
