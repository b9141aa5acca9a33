package tlog

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/mcpvault/mcpvault/kit/flock"
)

// defaultRing is a tmpfs on every Linux.
const defaultRing = "/dev/shm"

const tmpfsMagic = 0x01021994

// mapFile maps a file of the size on a tmpfs, and locks it while keep is open.
func mapFile(name string, size int) (mem []byte, keep io.Closer, err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, nil, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	if st.Type != tmpfsMagic {
		// A copy into a mapped file of a disk could hang with the disk.
		return nil, nil, errors.Join(unix.ENOTSUP, os.Remove(f.Name()), f.Close())
	}
	lock, err := flock.Hold(f)
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	if mem, err = mapOpen(f, size); err != nil {
		return nil, nil, errors.Join(err, lock.Close())
	}
	return mem, lock, nil
}

func mapOpen(f *os.File, size int) ([]byte, error) {
	// Allocated in full, because a tmpfs without room answers a copy with a signal.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(size)); err != nil {
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	if err := f.Truncate(int64(size)); err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

func unmap(mem []byte) error { return unix.Munmap(mem) }

// unused reports whether no process has the ring open.
func unused(f *os.File) bool { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil }
