package tlog_test

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mountSmall mounts a tmpfs of the size on dir for the test.
func mountSmall(t *testing.T, dir string, size int) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		return err
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return nil
}

func cpuTime() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
