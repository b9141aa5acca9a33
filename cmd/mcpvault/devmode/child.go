package devmode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/mcpvault/mcpvault/kit/problem"
)

// ParentFD is the file descriptor on which a child sees its parent: it reads nothing and ends when the parent is gone,
// however that came about.
const ParentFD = 3

// FaultFD is the file descriptor on which a node hears what is to be broken in it, where faults are allowed.
const FaultFD = 4

// child is one server process: a group of its own, with a pipe that ties its life to ours.
type child struct {
	name    string
	cmd     *exec.Cmd
	logFile string
	// lifeline is our end of the pipe.
	lifeline *os.File
	// faults is the line to what can be broken in it; nil when nothing can. Dev.ops orders who uses it.
	faults *faultLine
	// done is closed when the process has ended; ended says how then.
	done  chan struct{}
	ended error
	// asked is set when it was us who wanted it to end.
	asked bool
}

// spawn starts this program again in the role. Its output goes to a file of its own; a new run begins a new file.
func (d *Dev) spawn(name, role, config string, fresh bool) (*child, error) {
	base := strings.ReplaceAll(name, "/", "-")
	logFile := filepath.Join(d.plan.logs(), base+".log")
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if fresh {
		flags |= os.O_TRUNC
	}
	out, err := os.OpenFile(logFile, flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer func() { _ = out.Close() }()
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer func() { _ = theirs.Close() }()
	c := &child{name: name, logFile: logFile, lifeline: ours, done: make(chan struct{})}
	//nolint:gosec,noctx // The program is this one; it ends when it is told to, or when the pipe closes.
	c.cmd = exec.Command(d.cfg.Executable, "internal", role, "--config", config, "--parent-fd", fmt.Sprint(ParentFD))
	c.cmd.Env = childEnv(d.cfg.Env)
	c.cmd.Dir = d.plan.dir
	c.cmd.Stdout, c.cmd.Stderr = out, out
	c.cmd.ExtraFiles = []*os.File{theirs}
	if role == cellRole && d.cfg.Faults {
		line, end, err := newFaultLine()
		if err != nil {
			_ = ours.Close()
			return nil, fmt.Errorf("start %s: %w", name, err)
		}
		defer func() { _ = end.Close() }()
		c.faults = line
		c.cmd.Args = append(c.cmd.Args, "--fault-fd", fmt.Sprint(FaultFD))
		c.cmd.ExtraFiles = append(c.cmd.ExtraFiles, end)
	}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		_ = ours.Close()
		c.faults.close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	d.adopt(c)
	return c, nil
}

// adopt enters a child into the book and watches it.
func (d *Dev) adopt(c *child) {
	d.mu.Lock()
	d.children[c.name] = c
	d.mu.Unlock()
	d.watchers.Go(func() {
		err := c.cmd.Wait()
		_ = c.lifeline.Close()
		c.faults.close()
		d.mu.Lock()
		c.ended = err
		quiet := c.asked || d.stopping
		d.mu.Unlock()
		close(c.done)
		if !quiet {
			d.log.Info("child ended", "name", c.name, "pid", c.pid(), "error", err)
			d.event("%s (pid %d) ended: %s; start it again with `mcpvault dev restart %s`", c.name, c.pid(), how(err), c.name)
		}
	})
}

func how(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

func (c *child) pid() int { return c.cmd.Process.Pid }

func (c *child) running() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// signal reaches the whole group, so that nothing that the child started is left.
func (c *child) signal(s syscall.Signal) {
	if c.running() {
		_ = syscall.Kill(-c.pid(), s) // It has just ended.
	}
}

// stop ends the child in order, and by force when that takes longer than ctx.
func (d *Dev) stopChild(ctx context.Context, c *child) {
	d.mu.Lock()
	c.asked = true
	d.mu.Unlock()
	c.signal(syscall.SIGTERM)
	select {
	case <-c.done:
	case <-ctx.Done():
		d.log.Warn("child does not stop", "name", c.name, "pid", c.pid())
		c.signal(syscall.SIGKILL)
		<-c.done
	}
}

// died says why a child that should serve does not, in the words of its log.
func (c *child) died() error {
	return problem.Newf(problem.Unavailable, "read "+c.logFile, "%s ended while it was starting (%s)%s", c.name, how(c.ended), tail(c.logFile))
}

// tail returns the last lines of a log, for an error.
func tail(path string) string {
	const most = 2048
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && info.Size() > most {
		_, _ = f.Seek(-most, io.SeekEnd) // Reading it all does no harm.
	}
	raw, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil || len(bytes.TrimSpace(raw)) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return ": " + strings.Join(lines[max(0, len(lines)-3):], " | ")
}

// poll calls f until it is done, the child has died or the time is up.
func poll(ctx context.Context, c *child, f func(context.Context) (bool, error)) error {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		done, err := f(ctx)
		if done || err != nil {
			return err
		}
		var dead <-chan struct{}
		if c != nil {
			dead = c.done
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-dead:
			return c.died()
		case <-ticker.C:
		}
	}
}

// stop ends everything: the servers at once, then the database, whose last customer has gone by then.
func (d *Dev) stop() error {
	d.mu.Lock()
	d.stopping = true
	children := make([]*child, 0, len(d.children))
	for _, c := range d.children {
		children = append(children, c)
	}
	pg := d.pg
	d.mu.Unlock()
	err := removeIfThere(d.plan.devJSON())
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	ended := make(chan struct{}, len(children))
	for _, c := range children {
		go func() {
			d.stopChild(ctx, c)
			ended <- struct{}{}
		}()
	}
	for range children {
		<-ended
	}
	if pg != nil {
		err = errors.Join(err, pg.Stop(ctx))
	}
	return err
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
