// Package stdio runs MCP servers that speak over standard input and output beside the node, and speaks to them.
//
// What is run comes from the node's own configuration and from nowhere else: a snapshot can only name a server, as
// stdio:NAME. The executable is opened once, its digest is checked, and that open file is what is started, so that nothing
// can be put in its place between the two. A process has its own user when the node runs as root, its own process group, no
// network unless it is granted one, no environment but the configured, and dies with the node.
package stdio

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/dataplane/upstream/mux"
)

// Scheme begins the address of a server that a node runs: stdio:NAME.
const Scheme = "stdio:"

// Server is how one server is run.
type Server struct {
	// Command is the absolute path of an executable file; a script's interpreter is named here, and the script in Args.
	Command string `yaml:"command"`
	// Digest is sha256: and 64 hex digits, of the executable. Files are digests of further files, by absolute path, that
	// are checked before each start, such as a script.
	Digest string            `yaml:"digest"`
	Files  map[string]string `yaml:"files"`
	Args   []string          `yaml:"args"`
	// Env is all of the environment; Dir is the working directory, / when empty.
	Env map[string]string `yaml:"env"`
	Dir string            `yaml:"dir"`
	// UID and GID are whom the process runs as: required, and not 0, when the node runs as root.
	UID uint32 `yaml:"uid"`
	GID uint32 `yaml:"gid"`
	// Network lets the process use the machine's network. Without it the process gets an empty network namespace, and is
	// not started where there are none.
	Network bool `yaml:"network"`
	// Per says who shares a process: node (everybody, the default) or session (nobody: each session of a caller has one).
	Per string `yaml:"per"`
	// MaxProcesses bounds the processes of per: session: 16. MaxCalls bounds the calls under way in a process: 64.
	MaxProcesses int `yaml:"max_processes"`
	MaxCalls     int `yaml:"max_calls"`
	// MaxLine bounds one message from the process, in bytes: 8 MiB. MemoryMB bounds its data segment; unbounded when 0.
	MaxLine  int `yaml:"max_line"`
	MemoryMB int `yaml:"memory_mb"`
}

// Problems returns what is wrong with the configured servers.
func Problems(servers map[string]Server) []string {
	var p []string
	for _, name := range slices.Sorted(maps.Keys(servers)) {
		bad := func(format string, args ...any) { p = append(p, "stdio."+name+": "+fmt.Sprintf(format, args...)) }
		s := servers[name]
		if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || name == "" || len(name) > 63 {
			bad("a name is 1 to 63 of a-z, 0-9 and -")
		}
		if !filepath.IsAbs(s.Command) {
			bad("command %q is not an absolute path", s.Command)
		}
		if _, err := parseDigest(s.Digest); err != nil {
			bad("digest: %v", err)
		}
		for _, path := range slices.Sorted(maps.Keys(s.Files)) {
			if _, err := parseDigest(s.Files[path]); err != nil || !filepath.IsAbs(path) {
				bad("files: %q needs an absolute path and a digest", path)
			}
		}
		if s.Dir != "" && !filepath.IsAbs(s.Dir) {
			bad("dir %q is not an absolute path", s.Dir)
		}
		if s.Per != "" && s.Per != "node" && s.Per != "session" {
			bad("per %q is neither node nor session", s.Per)
		}
		if os.Geteuid() == 0 && (s.UID == 0 || s.GID == 0) {
			bad("uid and gid are required, and not 0: this node runs as root")
		}
		if s.MaxProcesses < 0 || s.MaxCalls < 0 || s.MaxLine < 0 || s.MemoryMB < 0 {
			bad("limits are not negative")
		}
	}
	return p
}

func parseDigest(s string) (d [sha256.Size]byte, err error) {
	b, err := hex.DecodeString(strings.TrimPrefix(s, "sha256:"))
	if err != nil || len(b) != len(d) || !strings.HasPrefix(s, "sha256:") {
		return d, errors.New("it is sha256: and 64 hex digits")
	}
	copy(d[:], b)
	return d, nil
}

// Servers are the configured servers. None is started before it is called.
type Servers struct {
	log     *slog.Logger
	version string
	byName  map[string]*runner
	closed  sync.Once
}

// New takes over what Problems found nothing wrong with.
func New(servers map[string]Server, version string, log *slog.Logger) *Servers {
	s := &Servers{log: log, version: version, byName: map[string]*runner{}}
	for name, cfg := range servers {
		s.byName[name] = newRunner(name, cfg, version, log.With("server", name))
	}
	return s
}

// Do sends one message to the server that the address names.
func (s *Servers) Do(ctx context.Context, req *upstream.Request) (*upstream.Response, error) {
	r := s.byName[strings.TrimPrefix(req.URL, Scheme)]
	if r == nil || !strings.HasPrefix(req.URL, Scheme) {
		return nil, fmt.Errorf("%w: this node's configuration has no such server under stdio", upstream.ErrUnavailable)
	}
	return r.sessions.Do(ctx, req)
}

// Sweep ends processes that nobody has used for long.
func (s *Servers) Sweep() {
	for _, r := range s.byName {
		r.sessions.Sweep()
	}
}

// Close ends every process and returns when all are gone.
func (s *Servers) Close() {
	s.closed.Do(func() {
		var wg sync.WaitGroup
		for _, r := range s.byName {
			wg.Go(r.close)
		}
		wg.Wait()
	})
}

// The waits between starts of a process that does not last, and how long one lasts that counts as good.
const (
	firstWait = 250 * time.Millisecond
	mostWait  = 30 * time.Second
	lasting   = time.Minute
)

// runner starts the processes of one server.
type runner struct {
	name, version string
	cfg           Server
	log           *slog.Logger
	sessions      *mux.Sessions
	now           func() time.Time

	mu      sync.Mutex
	procs   map[*mux.Conn]*process // guarded by mu
	closed  bool                   // guarded by mu
	wait    time.Duration          // guarded by mu; before the next start
	notTill time.Time              // guarded by mu
}

func newRunner(name string, cfg Server, version string, log *slog.Logger) *runner {
	if cfg.MaxLine == 0 {
		cfg.MaxLine = 8 << 20
	}
	r := &runner{name: name, cfg: cfg, version: version, log: log, now: time.Now, procs: map[*mux.Conn]*process{}}
	r.sessions = mux.NewSessions(mux.Opening{Open: r.open, Hang: r.hang, Shared: cfg.Per != "session", MaxSessions: cfg.MaxProcesses})
	if cfg.Per != "session" {
		r.sessions = mux.NewSessions(mux.Opening{Open: r.open, Hang: r.hang, Shared: true})
	}
	return r
}

// open starts a process, unless the last ones ended too soon and too recently.
func (r *runner) open(ctx context.Context, _ *upstream.Request) (*mux.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("%w: this node is stopping", upstream.ErrUnavailable)
	}
	if left := r.notTill.Sub(r.now()); left > 0 {
		return nil, fmt.Errorf("%w: its process ended and is started again in %s at the earliest", upstream.ErrRefused, left.Round(time.Millisecond))
	}
	p, err := start(r.cfg, r.version, r.log)
	if err != nil {
		r.backOff()
		r.log.Error("stdio server not started", "error", err)
		return nil, fmt.Errorf("%w (%w)", upstream.ErrUnavailable, err)
	}
	r.procs[p.conn] = p
	go r.watch(p, r.now())
	return p.conn, nil
}

// backOff is called with mu held.
func (r *runner) backOff() {
	r.wait = min(max(2*r.wait, firstWait), mostWait)
	r.notTill = r.now().Add(r.wait)
}

// watch waits for the end of a process.
func (r *runner) watch(p *process, began time.Time) {
	<-p.done
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.procs, p.conn)
	switch {
	case p.asked.Load():
		return
	case r.now().Sub(began) >= lasting:
		r.wait = 0
	}
	r.backOff()
	r.log.Warn("stdio server ended", "pid", p.pid, "how", p.how, "next_start_in", r.wait)
}

func (r *runner) hang(c *mux.Conn) {
	r.mu.Lock()
	p := r.procs[c]
	r.mu.Unlock()
	if p != nil {
		p.stop()
	}
}

func (r *runner) close() {
	r.mu.Lock()
	r.closed = true
	var all []*process
	for _, p := range r.procs {
		all = append(all, p)
	}
	r.mu.Unlock()
	r.sessions.Close()
	var wg sync.WaitGroup
	for _, p := range all {
		wg.Go(p.stop)
	}
	wg.Wait()
}
