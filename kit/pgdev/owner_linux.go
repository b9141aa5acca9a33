package pgdev

import (
	"os"
	"strconv"
	"syscall"
)

// dieWithParent asks the kernel for a fast shutdown when the thread that forked ends; that thread must therefore live as
// long as the child (see process.wait).
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGINT }

// runsIn reports whether the process is alive and works in dir, as a postmaster does in its data directory.
func runsIn(pid int, dir string) bool {
	cwd, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/cwd")
	return err == nil && cwd == dir
}
