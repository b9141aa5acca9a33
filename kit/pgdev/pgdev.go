// Package pgdev runs a private PostgreSQL from the binaries that the machine already has: its own data directory, a unix
// socket that only its owner can reach, no TCP, fsync on. It is what development and tests use in place of a database
// that somebody has to install and configure first.
//
// It promises that data survives Stop, Kill and the death of the process that called Start; that two servers never share
// a data directory; and that a server never outlives the process that started it (on Linux). It speaks no SQL: migrations
// and roles are the caller's.
package pgdev

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/mcpvault/mcpvault/kit/flock"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// Limits of waiting. Recovery after a crash reads the write-ahead log, so a start may take long; a stop may not.
const (
	startLimit = 60 * time.Second
	quitLimit  = 3 * time.Second
	pollEvery  = 5 * time.Millisecond
)

// Config says where the server lives.
type Config struct {
	// Dir holds the data directory, the socket and the log. It is made when absent. As root, when Dir cannot be reached
	// by an unprivileged user, only a note stays there and the data lives under /var/tmp, in a place derived from Dir.
	// Empty means a new temporary directory; then Ephemeral should be set.
	Dir string
	// Ephemeral removes everything at Stop.
	Ephemeral bool
	// Logger may be nil.
	Logger *slog.Logger
}

// Server is a running PostgreSQL.
type Server struct {
	home      home
	ephemeral bool
	log       *slog.Logger
	proc      *process
	lock      *flock.Lock
	// done is closed when the process has ended and the directory may be used again.
	done chan struct{}
}

// Start makes the data directory when it is new, starts the server and returns once it takes connections. A directory
// that another live process uses is problem.Conflict; missing binaries are problem.Unavailable with the line that
// installs them. When ctx ends first, what was started is stopped.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	bin, err := FindBinaries()
	if err != nil {
		return nil, err
	}
	who, err := pickOwner()
	if err != nil {
		return nil, err
	}
	h, err := openHome(cfg.Dir, who)
	if err != nil {
		return nil, err
	}
	lock, err := h.lock()
	if err != nil {
		return nil, err
	}
	s := &Server{home: h, ephemeral: cfg.Ephemeral, log: cfg.Logger, lock: lock, done: make(chan struct{})}
	if err := s.start(ctx, bin); err != nil {
		if cfg.Ephemeral {
			err = errors.Join(err, h.remove())
		}
		return nil, errors.Join(err, lock.Close())
	}
	s.log.Info("postgresql is ready", "pid", s.PID(), "data_dir", h.data())
	go s.watch()
	return s, nil
}

func (s *Server) start(ctx context.Context, bin string) error {
	if err := s.home.endOrphan(ctx); err != nil {
		return err
	}
	if err := s.home.initialise(ctx, bin); err != nil {
		return err
	}
	proc, err := s.home.launch(ctx, bin)
	if err != nil {
		return err
	}
	s.proc = proc
	return nil
}

// watch gives the directory free when the process has ended, however it ended. It needs no waiting for: it ends with the
// process, which Stop and Kill wait for.
func (s *Server) watch() {
	<-s.proc.done
	if err := s.lock.Close(); err != nil {
		s.log.Error("postgresql's lock could not be released", "error", err)
	}
	close(s.done)
}

// URL is a DSN for the superuser and the database postgres, through the unix socket.
func (s *Server) URL() string {
	q := url.Values{"host": {s.home.run}, "port": {port}, "sslmode": {"disable"}}
	u := url.URL{Scheme: "postgres", User: url.User(superuser), Host: "", Path: "/postgres", RawQuery: q.Encode()}
	return u.String()
}

// PID is the postmaster's process id.
func (s *Server) PID() int { return s.proc.cmd.Process.Pid }

// Dir is where the data really is; it differs from Config.Dir when that could not be reached by an unprivileged user.
func (s *Server) Dir() string { return s.home.base }

// Done is closed when the server has ended, asked or not.
func (s *Server) Done() <-chan struct{} { return s.done }

// Stop asks for a fast shutdown: open transactions are rolled back, the data is checkpointed. When ctx ends first the
// server is made to quit at once, which costs a recovery at the next start but no data. It may be called more than once.
func (s *Server) Stop(ctx context.Context) error {
	err := s.stop(ctx)
	if s.ephemeral {
		err = errors.Join(err, s.home.remove())
	}
	return err
}

func (s *Server) stop(ctx context.Context) error {
	select {
	case <-s.done:
		return nil
	default:
	}
	for _, step := range []struct {
		signal syscall.Signal
		limit  context.Context
	}{{syscall.SIGINT, ctx}, {syscall.SIGQUIT, timeLimit(quitLimit)}} {
		if err := s.proc.cmd.Process.Signal(step.signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("stop postgresql: %w", err)
		}
		select {
		case <-s.done:
			if step.signal == syscall.SIGINT {
				return nil
			}
			return fmt.Errorf("stop postgresql: it had to quit without a checkpoint: %w", context.Cause(ctx))
		case <-step.limit.Done():
		}
	}
	s.Kill()
	return fmt.Errorf("stop postgresql: it had to be killed: %w", context.Cause(ctx))
}

// Kill ends the server as a crash would and waits until it is gone. The data stays, also of an ephemeral server, so that
// a new Start on Dir can recover it.
func (s *Server) Kill() {
	// The only error is that it has ended already.
	_ = s.proc.cmd.Process.Kill()
	<-s.done
}

// timeLimit is a context that ends by itself; its timer is the only thing it holds.
func timeLimit(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	context.AfterFunc(ctx, cancel)
	return ctx
}

// command is one of PostgreSQL's programs, run as the owner with an environment in which no PG* variable of the caller
// can point it elsewhere.
func (h home) command(ctx context.Context, bin, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(bin, name), args...) //nolint:gosec // bin is where FindBinaries found PostgreSQL
	cmd.Dir = h.base
	cmd.Env = []string{"PATH=" + bin + ":/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	if v := os.Getenv("LD_LIBRARY_PATH"); v != "" {
		cmd.Env = append(cmd.Env, "LD_LIBRARY_PATH="+v)
	}
	cmd.SysProcAttr = h.owner.procAttr()
	return cmd
}

func conflict(dir string) error {
	return problem.Newf(problem.Conflict, "stop the other one, or choose another data directory",
		"a PostgreSQL of another process uses %s", dir)
}
