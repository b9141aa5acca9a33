package devmode

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/mcpvault/mcpvault/kit/ports"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// The names of development.
const (
	trustDomain = "mcpvault.dev"
	tenant      = "acme"
	otherTenant = "globex"
	hostSuffix  = ".localhost"
	firstCell   = "local"
)

// span is how many ports an installation may take from its base on.
const span = ports.Span

// plan says where everything is: a pure function of the configuration.
type plan struct {
	cfg   Config
	dir   string
	nodes []node
}

// node is one member of one cell.
type node struct {
	cell, name                     string
	http, tls, raft, peer, metrics int
}

// id is how people name the node.
func (n node) id() string { return n.cell + "/" + n.name }

func newPlan(cfg Config) (*plan, error) {
	if cfg.Nodes != 1 && cfg.Nodes != 3 && cfg.Nodes != 5 {
		return nil, problem.Newf(problem.Invalid, "use --nodes 1, 3 or 5", "a cell cannot have %d nodes", cfg.Nodes)
	}
	if cfg.Cells < 1 || 10+40*cfg.Cells > span+10 {
		return nil, problem.Newf(problem.Invalid, "use --cells 1 to 4", "%d cells are not possible", cfg.Cells)
	}
	if cfg.PortBase < 1024 || cfg.PortBase+span > 65536 {
		return nil, problem.Newf(problem.Invalid, "use --port-base 1024 to 65336", "port base %d leaves no room for %d ports", cfg.PortBase, span)
	}
	dir, err := filepath.Abs(cfg.DataDir)
	if err != nil {
		return nil, fmt.Errorf("find the data directory: %w", err)
	}
	p := &plan{cfg: cfg, dir: dir}
	for c := range cfg.Cells {
		for n := range cfg.Nodes {
			x := cfg.PortBase + 10 + 40*c + 5*n
			p.nodes = append(p.nodes, node{cellName(c), "n" + strconv.Itoa(n+1), x, x + 1, x + 2, x + 3, x + 4})
		}
	}
	return p, nil
}

func cellName(i int) string {
	if i == 0 {
		return firstCell
	}
	return "cell" + strconv.Itoa(i+1)
}

func (p *plan) cellNames() []string {
	names := make([]string, 0, p.cfg.Cells)
	for c := range p.cfg.Cells {
		names = append(names, cellName(c))
	}
	return names
}

func (p *plan) adminPort() int    { return p.cfg.PortBase }
func (p *plan) demoPort() int     { return p.cfg.PortBase + 2 }
func (p *plan) paymentsPort() int { return p.cfg.PortBase + 3 }
func (p *plan) cellapiPort() int  { return p.cfg.PortBase + 4 }

func (p *plan) adminURL() string { return "http://" + addr(p.adminPort()) }

// cellURL is where machines that join find the control plane.
func (p *plan) cellURL() string { return "https://" + addr(p.cellapiPort()) }

// addr is a port on loopback.
func addr(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func (p *plan) logs() string                { return filepath.Join(p.dir, "logs") }
func (p *plan) keys() string                { return filepath.Join(p.dir, "keys") }
func (p *plan) caDir() string               { return filepath.Join(p.dir, "keys", "ca") }
func (p *plan) caFile() string              { return filepath.Join(p.caDir(), "ca.pem") }
func (p *plan) rootsFile() string           { return filepath.Join(p.keys(), "roots.pb") }
func (p *plan) bootstrapToken() string      { return filepath.Join(p.keys(), "bootstrap.token") }
func (p *plan) identity(name string) string { return filepath.Join(p.dir, "identity", name) }
func (p *plan) config(name string) string   { return filepath.Join(p.dir, "run", name+".yaml") }
func (p *plan) data(name string) string     { return filepath.Join(p.dir, "data", name) }
func (p *plan) devJSON() string             { return filepath.Join(p.dir, "dev.json") }
func (p *plan) cliYAML() string             { return filepath.Join(p.dir, "cli.yaml") }
func (p *plan) marker() string              { return filepath.Join(p.dir, "seeded.json") }

// file is the node's name in paths.
func (n node) file() string { return n.cell + "-" + n.name }

// ports are all ports that will be listened on, in order.
func (p *plan) ports() []int {
	ports := []int{p.adminPort(), p.cellapiPort()}
	if !p.cfg.NoDemo {
		ports = append(ports, p.demoPort(), p.paymentsPort())
	}
	for _, n := range p.nodes {
		ports = append(ports, n.http, n.tls, n.raft, n.peer, n.metrics)
	}
	return ports
}

// checkPorts finds out before anything is started whether every port is free: an error of a child is harder to read.
func (p *plan) checkPorts() error {
	for _, port := range p.ports() {
		l, err := listen(port)
		if err != nil {
			return portTaken(port, err)
		}
		_ = l.Close()
	}
	for _, n := range p.nodes {
		c, err := (&net.ListenConfig{}).ListenPacket(context.Background(), "udp", addr(n.tls))
		if err != nil {
			return portTaken(n.tls, err)
		}
		_ = c.Close()
	}
	return nil
}

// listen takes a port on loopback.
func listen(port int) (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr(port))
}

func portTaken(port int, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return problem.Newf(problem.Conflict, "stop what uses it, or choose others with --port-base", "port %d is in use", port)
	}
	return fmt.Errorf("listen on port %d: %w", port, err)
}

// childEnv is the environment without what would reach into the children's own settings.
func childEnv(env []string) []string {
	out := make([]string, 0, len(env))
	for _, kv := range env {
		if !strings.HasPrefix(kv, "MCPVAULT_") && !strings.HasPrefix(kv, "SPIFFE_ENDPOINT_SOCKET=") {
			out = append(out, kv)
		}
	}
	return out
}

// writeFile replaces a private file in one step.
func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return nil
}
