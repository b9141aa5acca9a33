package poll

import (
	"cmp"
	"errors"
	"os"
	"sync"
	"syscall"
)

const (
	// Gone is that the other side has closed its end: everything that it sent may still be unread.
	Gone What = syscall.EPOLLRDHUP
	// Bytes is that a read would not wait: there are bytes, or there is the end.
	Bytes What = syscall.EPOLLIN | syscall.EPOLLRDHUP
)

const oneShot = 1 << 30

// Poller watches sockets. Its zero value is ready; it takes a goroutine once it has something to watch, until Close.
type Poller struct {
	mu   sync.Mutex
	file *os.File      // guarded by mu; the kernel's list, nil before the first use
	next ID            // guarded by mu
	of   map[ID]func() // guarded by mu
	down bool          // guarded by mu
}

// Watch has f called once, when what is waited for has happened, which it may have before. f is called on the poller's one
// goroutine and must not wait for anything. A socket can be watched once at a time. The answer is 0 when it cannot be watched.
func (p *Poller) Watch(socket syscall.RawConn, what What, f func()) ID {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.open() {
		return 0
	}
	p.next++
	id := p.next
	ev := syscall.EpollEvent{Events: uint32(what) | oneShot, Fd: int32(uint32(id)), Pad: int32(uint32(id >> 32))}
	err := p.control(socket, syscall.EPOLL_CTL_ADD, &ev)
	if errors.Is(err, syscall.EEXIST) { // from the last time, when f was called
		err = p.control(socket, syscall.EPOLL_CTL_MOD, &ev)
	}
	if err != nil {
		return 0
	}
	p.of[id] = f
	return id
}

// Stop ends a watch. It reports whether its function has not been called and will not be.
func (p *Poller) Stop(socket syscall.RawConn, id ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, waits := p.of[id]
	delete(p.of, id)
	if waits && p.file != nil {
		_ = p.control(socket, syscall.EPOLL_CTL_DEL, nil) // a socket that was closed is off the list already
	}
	return waits
}

// Close ends all watches. Their functions are not called any more.
func (p *Poller) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = true
	clear(p.of)
	if p.file != nil {
		_ = p.file.Close()
		p.file = nil
	}
}

// control changes the kernel's list. It is called with mu held.
func (p *Poller) control(socket syscall.RawConn, op int, ev *syscall.EpollEvent) error {
	list, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	var done, reached error
	err = list.Control(func(epfd uintptr) {
		reached = socket.Control(func(fd uintptr) { done = syscall.EpollCtl(int(epfd), op, int(fd), ev) })
	})
	return cmp.Or(err, reached, done)
}

// open makes the kernel's list when there is none yet. It is called with mu held.
func (p *Poller) open() bool {
	if p.file != nil || p.down {
		return p.file != nil
	}
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return false
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		_ = syscall.Close(fd)
		return false
	}
	p.file, p.of = os.NewFile(uintptr(fd), "epoll"), map[ID]func(){}
	go p.run(p.file)
	return true
}

// run calls who waits, until the file is closed.
func (p *Poller) run(file *os.File) {
	list, err := file.SyscallConn()
	if err != nil {
		return
	}
	events := make([]syscall.EpollEvent, 64)
	for {
		n := 0
		err := list.Read(func(fd uintptr) bool {
			n, _ = syscall.EpollWait(int(fd), events, 0)
			return n > 0
		})
		if err != nil {
			return
		}
		for _, ev := range events[:n] {
			if f := p.take(ID(uint32(ev.Fd)) | ID(uint32(ev.Pad))<<32); f != nil {
				f()
			}
		}
	}
}

func (p *Poller) take(id ID) func() {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.of[id]
	delete(p.of, id)
	return f
}
