//go:build unix

package offheap

import "golang.org/x/sys/unix"

func take(n int) ([]byte, error) {
	return unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
}

func protect(mem []byte) error { return unix.Mprotect(mem, unix.PROT_READ) }

func give(mem []byte) { _ = unix.Munmap(mem) }
