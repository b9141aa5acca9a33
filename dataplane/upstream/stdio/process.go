package stdio

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/dataplane/upstream/mux"
)

const (
	// grace is what a process has after its input was closed, and again after SIGTERM.
	grace = time.Second
	// maxSaid bounds a line of a process's standard error in the log, and maxSaidRate the lines of one second.
	maxSaid     = 1 << 10
	maxSaidRate = 20
)

// process is one running server.
type process struct {
	cfg   Server
	log   *slog.Logger
	cmd   *exec.Cmd
	in    io.WriteCloser
	conn  *mux.Conn
	pid   int
	asked atomic.Bool   // its end is wanted
	how   string        // set before done is closed
	done  chan struct{} // closed when it is gone and everything it wrote was read
}

// start checks the executable and runs it.
func start(cfg Server, version string, log *slog.Logger) (*process, error) {
	for path, want := range cfg.Files {
		f, err := checked(path, want)
		if err != nil {
			return nil, err
		}
		_ = f.Close()
	}
	exe, err := checked(cfg.Command, cfg.Digest)
	if err != nil {
		return nil, err
	}
	defer func() { _ = exe.Close() }()
	var head [2]byte
	if _, err := exe.ReadAt(head[:], 0); err != nil || string(head[:]) == "#!" {
		return nil, fmt.Errorf("%s is a script: name its interpreter as the command, the script in args, and its digest in files", cfg.Command)
	}
	p := &process{cfg: cfg, log: log, done: make(chan struct{})}
	p.cmd = &exec.Cmd{Args: append([]string{cfg.Command}, cfg.Args...), Env: []string{}, Dir: cfg.Dir}
	if p.cmd.Dir == "" {
		p.cmd.Dir = "/"
	}
	for k, v := range cfg.Env {
		p.cmd.Env = append(p.cmd.Env, k+"="+v)
	}
	if err := confine(p.cmd, cfg, exe); err != nil {
		return nil, err
	}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	said, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	p.conn = mux.New(mux.Config{
		Send: p.send, MaxCalls: cfg.MaxCalls, MaxMessage: cfg.MaxLine, Version: version,
		Odd: func(what string) { log.Debug("stdio server wrote something else on its output", "what", what) },
	})
	started := make(chan error, 1)
	go p.live(out, said, started)
	if err := <-started; err != nil {
		return nil, explain(err, cfg)
	}
	limitProcess(p.pid, cfg, log)
	log.Info("stdio server started", "pid", p.pid, "network", cfg.Network, "uid", cfg.UID)
	return p, nil
}

// checked opens a file of which the digest is right.
func checked(path, digest string) (*os.File, error) {
	want, err := parseDigest(digest)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	if _, err = io.Copy(h, f); err == nil && [sha256.Size]byte(h.Sum(nil)) != want {
		err = fmt.Errorf("%s does not have the digest that the configuration names; it has sha256:%x", path, h.Sum(nil))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// live starts the process and waits for its end. The thread stays with it: the kernel ends the process with the thread that
// started it, which here means with the node.
func (p *process) live(out, said io.Reader, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := p.cmd.Start(); err != nil {
		p.conn.Close(err)
		close(p.done)
		started <- err
		return
	}
	p.pid = p.cmd.Process.Pid
	started <- nil
	stderr := make(chan struct{})
	go func() {
		defer close(stderr)
		p.overhear(said)
	}()
	err := p.listen(out)
	if err != nil {
		p.log.Error("stdio server is ended", "error", err)
	}
	// Whatever it is, a process that says nothing any more is of no use.
	p.conn.Close(errors.Join(upstream.ErrBroken, err))
	p.finish(stderr)
}

// finish ends what is left of the process's group and waits.
func (p *process) finish(stderr <-chan struct{}) {
	_ = p.in.Close()
	gone := make(chan struct{})
	go func() {
		for _, end := range []func(int){terminate, killGroup} {
			select {
			case <-gone:
				return
			case <-time.After(grace):
				end(p.pid)
			}
		}
	}()
	if state, err := p.cmd.Process.Wait(); err != nil {
		p.how = err.Error()
	} else {
		p.how = state.String()
	}
	close(gone)
	killGroup(p.pid) // children that it left behind, and that may hold its pipes
	<-stderr
	_ = p.cmd.Wait() // closes the pipes
	close(p.done)
}

// stop ends the process: its input is closed, then it is asked, then killed.
func (p *process) stop() {
	p.asked.Store(true)
	_ = p.in.Close()
	for _, end := range []func(int){terminate, killGroup} {
		select {
		case <-p.done:
			return
		case <-time.After(grace):
			end(p.pid)
		}
	}
	<-p.done
}

func (p *process) send(b []byte) error {
	_, err := p.in.Write(append(b[:len(b):len(b)], '\n'))
	return err
}

// listen reads messages, one a line, until the end; a line that is too long ends it.
func (p *process) listen(out io.Reader) error {
	return lines(out, p.cfg.MaxLine, func(line []byte) { p.conn.Receive(line) })
}

// lines calls f with a copy of each line of at most most bytes; empty ones are skipped.
func lines(r io.Reader, most int, f func([]byte)) error {
	in := bufio.NewReaderSize(r, 64<<10)
	var line []byte
	for {
		chunk, err := in.ReadSlice('\n')
		if len(line)+len(chunk) > most+1 {
			return fmt.Errorf("%w: a line of more than %d bytes", upstream.ErrTooLarge, most)
		}
		line = append(line, chunk...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil:
			return nil //nolint:nilerr // the process closed its output, which needs no explanation; what was cut off is no message
		}
		for len(line) > 0 && (line[len(line)-1] == '\n' || line[len(line)-1] == '\r') {
			line = line[:len(line)-1]
		}
		if len(line) > 0 {
			f(line)
		}
		line = nil
	}
}

// overhear logs what the process writes to its standard error, within bounds.
func (p *process) overhear(said io.Reader) {
	in := bufio.NewReaderSize(said, maxSaid)
	var second time.Time
	lines, dropped, cut := 0, 0, false
	for {
		chunk, err := in.ReadSlice('\n')
		whole := !cut
		cut = errors.Is(err, bufio.ErrBufferFull)
		if now := time.Now(); now.Sub(second) > time.Second {
			if dropped > 0 {
				p.log.Warn("stdio server said more than is logged", "lines_dropped", dropped)
			}
			second, lines, dropped = now, 0, 0
		}
		switch {
		case !whole || len(chunk) == 0:
		case lines >= maxSaidRate:
			dropped++
		default:
			lines++
			p.log.Info("stdio server says", "pid", p.pid, "text", string(trim(chunk)))
		}
		if err != nil && !cut {
			return
		}
	}
}

func trim(b []byte) []byte {
	for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == '\r') {
		b = b[:len(b)-1]
	}
	return b
}
