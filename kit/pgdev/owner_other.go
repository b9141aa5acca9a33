//go:build unix && !linux

package pgdev

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// dieWithParent has no counterpart here; an orphan is ended by the next Start.
func dieWithParent(*syscall.SysProcAttr) {}

// runsIn reports whether the process is alive and was started on dir.
func runsIn(pid int, dir string) bool {
	out, err := exec.Command("ps", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(out), dir)
}
