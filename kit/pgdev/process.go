package pgdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mcpvault/mcpvault/kit/problem"
)

// maxLog is how large the server's log may be at a start before it is begun anew.
const maxLog = 8 << 20

// process is a child and the thread that made it.
type process struct {
	cmd *exec.Cmd
	// done is closed when the child has ended.
	done chan struct{}
}

// spawn starts cmd on a thread of its own that lives until the child has ended: the kernel's parent-death signal follows
// the thread, and the Go runtime may end any other one.
func spawn(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		defer close(p.done)
		// Never unlocked: the thread ends with this goroutine.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			// How it ended is in the log file; whoever cares looks there.
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		<-p.done
		return nil, fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err)
	}
	return p, nil
}

// runLocked runs cmd to its end and returns what it printed.
func runLocked(cmd *exec.Cmd) ([]byte, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := spawn(cmd)
	if err != nil {
		return nil, err
	}
	<-p.done
	if !cmd.ProcessState.Success() {
		return out.Bytes(), errors.New(cmd.ProcessState.String())
	}
	return out.Bytes(), nil
}

// launch starts the postmaster and returns when it takes connections. The backends of a killed predecessor may hold its
// shared memory for a moment; that is waited for.
func (h home) launch(ctx context.Context, bin string) (*process, error) {
	for {
		p, logStart, err := h.launchOnce(bin)
		if err != nil {
			return nil, err
		}
		why, err := h.awaitReady(ctx, p, logStart)
		if err != nil {
			_ = p.cmd.Process.Signal(syscall.SIGQUIT)
			<-p.done
			return nil, err
		}
		if why == "" {
			return p, nil
		}
		if !strings.Contains(why, "pre-existing shared memory block") {
			return nil, problem.Newf(problem.Unavailable, "read "+h.logFile(), "PostgreSQL does not start on %s", h.data()).
				Because(errors.New(why))
		}
		if err := pause(ctx, 10*pollEvery); err != nil {
			return nil, h.late(err)
		}
	}
}

// launchOnce starts the postmaster; it also returns where in the log its words begin.
func (h home) launchOnce(bin string) (*process, int64, error) {
	logFile, err := h.openLog()
	if err != nil {
		return nil, 0, err
	}
	// The child has its own copy of the descriptor.
	defer func() { _ = logFile.Close() }()
	logStart, err := logFile.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, 0, fmt.Errorf("read postgresql's log: %w", err)
	}
	args := []string{"-D", h.data()}
	for _, s := range [][2]string{
		{"listen_addresses", ""},
		{"unix_socket_directories", `"` + strings.ReplaceAll(h.run, `"`, `""`) + `"`},
		{"unix_socket_permissions", "0700"},
		{"port", port},
		{"fsync", "on"},
		{"synchronous_commit", "on"},
		{"full_page_writes", "on"},
		{"max_connections", "200"},
		{"shared_buffers", "64MB"},
		// In the data directory: POSIX shared memory outlives a server that was killed and never started again.
		{"dynamic_shared_memory_type", "mmap"},
		{"max_wal_size", "256MB"},
		{"jit", "off"},
		{"timezone", "UTC"},
		{"log_timezone", "UTC"},
		{"logging_collector", "off"},
	} {
		args = append(args, "-c", s[0]+"="+s[1])
	}
	// Not bound to a context: the server outlives the call that starts it.
	cmd := h.command(context.Background(), bin, "postgres", args...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	p, err := spawn(cmd)
	return p, logStart, err
}

func (h home) openLog() (*os.File, error) {
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND | syscall.O_NOFOLLOW
	if info, err := os.Lstat(h.logFile()); err == nil && info.Size() > maxLog {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(h.logFile(), flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open postgresql's log: %w", err)
	}
	return f, nil
}

// awaitReady returns "" when the postmaster takes connections, or why it has ended.
func (h home) awaitReady(ctx context.Context, p *process, logStart int64) (string, error) {
	for {
		if pid, state := h.pidFile(); pid == p.cmd.Process.Pid && state == "ready" {
			return "", nil
		}
		select {
		case <-p.done:
			return h.lastWords(logStart), nil
		default:
		}
		if err := pause(ctx, pollEvery); err != nil {
			return "", h.late(err)
		}
	}
}

func (h home) late(cause error) error {
	return problem.Newf(problem.Timeout, "read "+h.logFile(), "PostgreSQL was not ready in time on %s", h.data()).Because(cause)
}

// pidFile reads the postmaster's own note of its process id and state, with 0 for none. It is what pg_ctl waits for, and
// says more than a connection would: "starting" is not an error.
func (h home) pidFile() (pid int, state string) {
	b, err := os.ReadFile(h.pidPath())
	if err != nil {
		return 0, ""
	}
	lines := strings.Split(string(b), "\n")
	if pid, err = strconv.Atoi(strings.TrimSpace(lines[0])); err != nil {
		return 0, ""
	}
	const stateLine = 7
	if len(lines) > stateLine {
		state = strings.TrimSpace(lines[stateLine])
	}
	return pid, state
}

func (h home) pidPath() string { return filepath.Join(h.data(), "postmaster.pid") }

// endOrphan stops a postmaster whose starter has died: the lock is ours, so nobody alive owns it. A note whose process
// id now belongs to something else is removed, since PostgreSQL would take it for a running server.
func (h home) endOrphan(ctx context.Context) error {
	pid, _ := h.pidFile()
	if pid <= 1 {
		return nil
	}
	for _, step := range []struct {
		signal syscall.Signal
		polls  int
	}{{syscall.SIGINT, 1000}, {syscall.SIGQUIT, 400}, {syscall.SIGKILL, 400}} {
		if !runsIn(pid, h.data()) {
			break
		}
		// The only errors are that it has ended, or that it is not ours, which runsIn has excluded.
		_ = syscall.Kill(pid, step.signal)
		for range step.polls {
			if !runsIn(pid, h.data()) {
				break
			}
			if err := pause(ctx, pollEvery); err != nil {
				return h.late(err)
			}
		}
	}
	if now, _ := h.pidFile(); now == pid && syscall.Kill(pid, 0) == nil {
		if err := os.Remove(h.pidPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove a stale postmaster.pid: %w", err)
		}
	}
	return nil
}

// lastWords is the end of what the server has logged from an offset on.
func (h home) lastWords(from int64) string {
	b, err := os.ReadFile(h.logFile())
	if err != nil {
		return "its log cannot be read"
	}
	if from >= int64(len(b)) {
		return "it ended without a word"
	}
	return lastLines(b[from:], 5)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
