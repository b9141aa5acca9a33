package devmode

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mcpvault/mcpvault/kit/pgdev"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// command is one line to the socket of a running dev.
type command struct {
	// Op is status, restart, stop or kill, or one of those on faults.
	Op string `json:"op"`
	// Names are processes; "all" with stop ends dev itself.
	Names []string `json:"names"`
	// Fault is the one to set or clear; without one all are cleared.
	Fault *Fault `json:"fault,omitempty"`
}

// The commands on faults.
const (
	opFaultSet   = "fault-set"
	opFaultClear = "fault-clear"
	opFaultList  = "fault-list"
)

// Process is one server and how it is.
type Process struct {
	Name    string `json:"name"`
	PID     int    `json:"pid"`
	Running bool   `json:"running"`
	// Ended says how it ended, when it did.
	Ended string `json:"ended,omitempty"`
	Log   string `json:"log,omitempty"`
}

// reply is the one line that comes back.
type reply struct {
	Processes []Process `json:"processes"`
	Faults    []Fault   `json:"faults,omitempty"`
	Code      string    `json:"code,omitempty"`
	What      string    `json:"what,omitempty"`
	Fix       string    `json:"fix,omitempty"`
}

// Bounds of the conversation on the socket.
const (
	maxCommand   = 64 << 10
	restartLimit = 60 * time.Second
)

// socket is the address of the control socket. A path may be too long for an address; Linux reaches any through /proc.
func socket(dir string) (address string, release func(), err error) {
	path := filepath.Join(dir, "dev.sock")
	if len(path) < 100 || runtime.GOOS != "linux" {
		return path, func() {}, nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/dev.sock", f.Fd()), func() { _ = f.Close() }, nil
}

// serveControl listens for other mcpvault processes of the same user.
func (d *Dev) serveControl(bg *background) error {
	if err := removeIfThere(filepath.Join(d.plan.dir, "dev.sock")); err != nil {
		return fmt.Errorf("open the control socket: %w", err)
	}
	address, release, err := socket(d.plan.dir)
	if err != nil {
		return fmt.Errorf("open the control socket: %w", err)
	}
	// Nobody else may connect between the listening and the change of mode.
	old := syscall.Umask(0o077)
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", address)
	syscall.Umask(old)
	if err == nil {
		err = os.Chmod(filepath.Join(d.plan.dir, "dev.sock"), 0o600)
	}
	if err != nil {
		release()
		return fmt.Errorf("open the control socket: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	bg.run(func(ctx context.Context) error {
		<-ctx.Done()
		return l.Close()
	})
	bg.run(func(ctx context.Context) error {
		defer release()
		for {
			conn, err := l.Accept()
			if err != nil {
				if ctx.Err() != nil {
					return removeIfThere(filepath.Join(d.plan.dir, "dev.sock"))
				}
				return fmt.Errorf("serve the control socket: %w", err)
			}
			bg.run(func(ctx context.Context) error {
				d.converse(ctx, conn)
				return nil
			})
		}
	})
	return nil
}

func (d *Dev) converse(ctx context.Context, conn net.Conn) {
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })
	defer stop()
	var cmd command
	var r reply
	if err := json.NewDecoder(io.LimitReader(conn, maxCommand)).Decode(&cmd); err != nil {
		return // Whoever it was has gone.
	}
	ctx, cancel := context.WithTimeout(ctx, restartLimit)
	defer cancel()
	if err := d.obey(ctx, cmd); err != nil {
		r.Code, r.What = string(problem.CodeOf(err)), err.Error()
		if p, ok := problem.As(err); ok {
			r.What, r.Fix = p.What, p.Fix
		}
	}
	r.Processes, r.Faults = d.processes(), d.inForce()
	if err := json.NewEncoder(conn).Encode(r); err != nil {
		d.log.Warn("the control socket's reply could not be sent", "error", err)
	}
}

// obey carries out one command.
func (d *Dev) obey(ctx context.Context, cmd command) error {
	if cmd.Op == "status" {
		return nil
	}
	if strings.HasPrefix(cmd.Op, "fault-") {
		return d.obeyFault(ctx, cmd)
	}
	if cmd.Op == "stop" && slices.Contains(cmd.Names, "all") {
		d.mu.Lock()
		halt := d.halt
		d.mu.Unlock()
		halt()
		return nil
	}
	d.ops.Lock()
	defer d.ops.Unlock()
	var names []string
	for _, n := range cmd.Names {
		name, err := d.plan.resolve(n)
		if err != nil {
			return err
		}
		names = append(names, name)
	}
	for _, name := range names {
		var err error
		switch cmd.Op {
		case "restart":
			err = d.Restart(ctx, name)
		case "stop":
			err = d.end(ctx, name, false)
		case "kill":
			err = d.end(ctx, name, true)
		default:
			err = problem.Newf(problem.Invalid, "update mcpvault", "command %q is not known", cmd.Op)
		}
		if err != nil {
			return err
		}
	}
	return d.refresh()
}

// resolve finds the process that a person means: controlplane, postgres, local/n1 or just n1.
func (p *plan) resolve(name string) (string, error) {
	all := []string{controlPlane}
	if p.cfg.DatabaseURL == "" {
		all = append(all, postgres)
	}
	for _, n := range p.nodes {
		all = append(all, n.id())
	}
	for _, candidate := range []string{name, firstCell + "/" + name} {
		if slices.Contains(all, candidate) {
			return candidate, nil
		}
	}
	return "", problem.Newf(problem.NotFound, "use one of "+strings.Join(all, ", "), "there is no process %q", name)
}

// end stops or kills one process.
func (d *Dev) end(ctx context.Context, name string, hard bool) error {
	if name == postgres {
		d.mu.Lock()
		pg := d.pg
		d.mu.Unlock()
		if hard {
			pg.Kill()
			return nil
		}
		return halt(ctx, pg)
	}
	d.mu.Lock()
	c := d.children[name]
	d.mu.Unlock()
	if c == nil {
		return problem.Newf(problem.NotFound, "see `mcpvault dev status`", "%s was never started", name)
	}
	if hard {
		d.mu.Lock()
		c.asked = true
		d.mu.Unlock()
		c.signal(syscall.SIGKILL)
		<-c.done
		return nil
	}
	grace, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	d.stopChild(grace, c)
	return nil
}

// halt ends the database in order. Its own Stop would take an ephemeral one's data away as well.
func halt(ctx context.Context, pg *pgdev.Server) error {
	_ = syscall.Kill(pg.PID(), syscall.SIGINT) // It has ended already.
	select {
	case <-pg.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop postgres: %w", context.Cause(ctx))
	}
}

// Restart starts a process again, ending it first when it still runs, and returns when it serves.
func (d *Dev) Restart(ctx context.Context, name string) error {
	if name == postgres {
		d.mu.Lock()
		old := d.pg
		d.pg = nil // Its end is wanted.
		d.mu.Unlock()
		err := halt(ctx, old)
		if err == nil {
			_, err = d.startDatabase(ctx)
		}
		if err != nil {
			d.mu.Lock()
			d.pg = old
			d.mu.Unlock()
			return err
		}
		return d.refresh()
	}
	d.mu.Lock()
	_, known := d.children[name]
	d.mu.Unlock()
	if known {
		if err := d.end(ctx, name, false); err != nil {
			return err
		}
	}
	if name == controlPlane {
		url := d.cfg.DatabaseURL
		d.mu.Lock()
		if d.pg != nil {
			url = d.pg.URL()
		}
		d.mu.Unlock()
		if err := d.launchControlPlane(ctx, url, false); err != nil {
			return err
		}
		return d.refresh()
	}
	for _, n := range d.plan.nodes {
		if n.id() == name {
			if err := d.launchNode(n, false); err != nil {
				return err
			}
			if err := d.nodeReady(ctx, n); err != nil {
				return err
			}
		}
	}
	return d.refresh()
}

// refresh brings dev.json up to date: process ids have changed.
func (d *Dev) refresh() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.info == nil || d.stopping {
		return nil
	}
	d.info.PIDs = d.pids()
	if d.pg != nil {
		d.info.DatabaseURL = d.pg.URL()
	}
	return d.writeInfo()
}

func (d *Dev) processes() []Process {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []Process
	if d.pg != nil {
		p := Process{Name: postgres, PID: d.pg.PID(), Running: true}
		select {
		case <-d.pg.Done():
			p.Running = false
		default:
		}
		all = append(all, p)
	}
	names := []string{controlPlane}
	for _, n := range d.plan.nodes {
		names = append(names, n.id())
	}
	for _, name := range names {
		c := d.children[name]
		if c == nil {
			continue
		}
		p := Process{Name: name, PID: c.pid(), Running: c.running(), Log: c.logFile}
		if !p.Running {
			p.Ended = how(c.ended)
		}
		all = append(all, p)
	}
	return all
}

// Tell sends a command to the dev that runs on a data directory.
func Tell(ctx context.Context, dataDir, op string, names ...string) ([]Process, error) {
	r, err := ask(ctx, dataDir, command{Op: op, Names: names})
	return r.Processes, err
}

// SetFault breaks something in the dev that runs on a data directory.
func SetFault(ctx context.Context, dataDir string, f Fault) error {
	_, err := ask(ctx, dataDir, command{Op: opFaultSet, Fault: &f})
	return err
}

// ClearFault ends one fault, of which only the kind and what it is on count; nil ends all.
func ClearFault(ctx context.Context, dataDir string, f *Fault) error {
	_, err := ask(ctx, dataDir, command{Op: opFaultClear, Fault: f})
	return err
}

// Faults lists what is broken.
func Faults(ctx context.Context, dataDir string) ([]Fault, error) {
	r, err := ask(ctx, dataDir, command{Op: opFaultList})
	return r.Faults, err
}

// ask sends a command and returns the reply.
func ask(ctx context.Context, dataDir string, cmd command) (r reply, err error) {
	dir, err := filepath.Abs(dataDir)
	if err != nil {
		return r, fmt.Errorf("find the data directory: %w", err)
	}
	nobody := problem.Newf(problem.Unavailable, "start it with `mcpvault dev`, or name its directory with --data-dir", "no mcpvault dev runs in %s", dir)
	address, release, err := socket(dir)
	if err != nil {
		return r, nobody.Because(err)
	}
	defer release()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", address)
	if err != nil {
		return r, nobody.Because(err)
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	if err := json.NewEncoder(conn).Encode(cmd); err != nil {
		return r, nobody.Because(err)
	}
	if err := json.NewDecoder(bufio.NewReader(conn)).Decode(&r); err != nil {
		if cmd.Op == "stop" && errors.Is(err, io.EOF) {
			return r, nil // It was quicker than its answer.
		}
		return r, problem.New(problem.Unavailable, "mcpvault dev did not answer", "see `mcpvault dev status`").Because(err)
	}
	if r.Code != "" {
		return r, problem.New(problem.Code(r.Code), r.What, r.Fix)
	}
	return r, nil
}
