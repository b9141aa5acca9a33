package http1

import (
	"os"
	"sync"
	"syscall"
)

// watcher learns from the kernel which clients have left, for all connections with one goroutine. Nothing is read from the
// sockets.
type watcher struct {
	mu   sync.Mutex
	poll *os.File                   // guarded by mu; nil before the first use
	next uint64                     // guarded by mu
	of   map[uint64]*requestContext // guarded by mu
	down bool                       // guarded by mu
}

func newWatcher() *watcher { return &watcher{of: map[uint64]*requestContext{}} }

// add ends x when the client at the other end of sock closes its side. It returns what remove needs, 0 when sock cannot be
// watched.
func (w *watcher) add(sock syscall.Conn, x *requestContext) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.open() {
		return 0
	}
	w.next++
	id := w.next
	ev := syscall.EpollEvent{Events: syscall.EPOLLRDHUP | epollOneShot, Fd: int32(uint32(id)), Pad: int32(uint32(id >> 32))}
	if !w.control(sock, syscall.EPOLL_CTL_ADD, &ev) {
		return 0
	}
	w.of[id] = x
	return id
}

// remove ends the watching.
func (w *watcher) remove(sock syscall.Conn, id uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.of, id)
	if w.poll != nil {
		w.control(sock, syscall.EPOLL_CTL_DEL, nil)
	}
}

const epollOneShot = 1 << 30

// control changes the kernel's list. It is called with mu held.
func (w *watcher) control(sock syscall.Conn, op int, ev *syscall.EpollEvent) bool {
	done := false
	rc, err := sock.SyscallConn()
	if err != nil {
		return false
	}
	pc, err := w.poll.SyscallConn()
	if err != nil {
		return false
	}
	_ = pc.Control(func(epfd uintptr) {
		_ = rc.Control(func(fd uintptr) {
			done = syscall.EpollCtl(int(epfd), op, int(fd), ev) == nil
		})
	})
	return done
}

// open makes the kernel's list when there is none yet. It is called with mu held.
func (w *watcher) open() bool {
	if w.poll != nil || w.down {
		return w.poll != nil
	}
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return false
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		_ = syscall.Close(fd)
		return false
	}
	w.poll = os.NewFile(uintptr(fd), "epoll")
	go w.wait(w.poll)
	return true
}

// wait hears of those who left, until the file is closed.
func (w *watcher) wait(poll *os.File) {
	rc, err := poll.SyscallConn()
	if err != nil {
		return
	}
	events := make([]syscall.EpollEvent, 64)
	for {
		n := 0
		err := rc.Read(func(fd uintptr) bool {
			n, _ = syscall.EpollWait(int(fd), events, 0)
			return n > 0
		})
		if err != nil {
			return
		}
		for _, ev := range events[:n] {
			id := uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32
			w.mu.Lock()
			x := w.of[id]
			w.mu.Unlock()
			if x != nil {
				x.end()
			}
		}
	}
}

func (w *watcher) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = true
	if w.poll != nil {
		_ = w.poll.Close()
		w.poll = nil
	}
}
