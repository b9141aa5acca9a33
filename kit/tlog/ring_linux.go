package tlog

import (
	"os"

	"golang.org/x/sys/unix"
)

// defaultRing is a tmpfs on every Linux.
const defaultRing = "/dev/shm"

const tmpfsMagic = 0x01021994

// mapFile maps a file of the size on a tmpfs.
func mapFile(name string, size int) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Type != tmpfsMagic {
		// A copy into a mapped file of a disk could hang with the disk.
		_ = os.Remove(name)
		return nil, unix.ENOTSUP
	}
	// Allocated in full, because a tmpfs without room answers a copy with a signal.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(size)); err != nil {
		_ = os.Remove(name)
		return nil, err
	}
	if err := f.Truncate(int64(size)); err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

func unmap(mem []byte) error { return unix.Munmap(mem) }
