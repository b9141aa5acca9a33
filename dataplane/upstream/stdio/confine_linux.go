package stdio

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// confine makes the process run the file that was checked, as its own user, in its own group and network.
func confine(cmd *exec.Cmd, cfg Server, exe *os.File) error {
	// The child resolves this to the file that it has inherited until it executes it.
	cmd.Path = fmt.Sprintf("/proc/self/fd/%d", exe.Fd())
	attr := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	root := os.Geteuid() == 0
	if root {
		if cfg.UID == 0 || cfg.GID == 0 {
			return errors.New("uid and gid are required, and not 0, when the node runs as root")
		}
		attr.Credential = &syscall.Credential{Uid: cfg.UID, Gid: cfg.GID}
	}
	if !cfg.Network {
		attr.Cloneflags = syscall.CLONE_NEWNET
		if !root {
			attr.Cloneflags |= syscall.CLONE_NEWUSER
			attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
			attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
		}
	}
	cmd.SysProcAttr = attr
	return nil
}

func explain(err error, cfg Server) error {
	if !cfg.Network && (errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EINVAL)) {
		return fmt.Errorf("this machine does not let the node make a network namespace, so the process could not be kept off the network; "+
			"permit it, or grant the network with network: true: %w", err)
	}
	return err
}

// limitProcess bounds what the process may take.
func limitProcess(pid int, cfg Server, log *slog.Logger) {
	limits := map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: 1024}
	if cfg.MemoryMB > 0 {
		limits[unix.RLIMIT_DATA] = uint64(cfg.MemoryMB) << 20
	}
	for what, n := range limits {
		if err := unix.Prlimit(pid, what, &unix.Rlimit{Cur: n, Max: n}, nil); err != nil && !errors.Is(err, unix.ESRCH) {
			log.Warn("a limit of the stdio server could not be set", "limit", what, "error", err)
		}
	}
}

func terminate(pid int) { _ = syscall.Kill(-pid, syscall.SIGTERM) }
func killGroup(pid int) { _ = syscall.Kill(-pid, syscall.SIGKILL) }
