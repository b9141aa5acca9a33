package rehearse

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mcpvault/mcpvault/bench/devrun"
	"github.com/mcpvault/mcpvault/bench/drill/load"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/contexts"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/devmode"
	"github.com/mcpvault/mcpvault/kit/pgdev"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// The names of processes that are not nodes.
const (
	ControlPlane = "controlplane"
	Postgres     = "postgres"
)

// Site is the installation that is drilled.
type Site struct {
	Admin *admin.Client
	// Tenant is the organisation whose policy is changed and whose calls are made.
	Tenant string
	// Host is the tenant's public name, for cells that are reached by address; "" for none.
	Host string
	// Nodes in order: those of the first cell first.
	Nodes []Node
	// Private says that it was started for drills.
	Private bool

	bin string
	dir string // data directory of the dev that runs it; "" for a real one
	// faults says that this dev was started with --faults.
	faults bool
	// other is somebody who may use the demo servers of a dev.
	other load.Person
	own   *devrun.Dev
}

// Node is one node of a cell.
type Node struct {
	Cell, Name string
	// MCP is the address of its endpoint, ending in /mcp.
	MCP string
	// Pages is where /livez, /readyz and /metrics are; "" when they cannot be reached.
	Pages string
}

// ID is the node's name: "local/n1".
func (n Node) ID() string { return n.Cell + "/" + n.Name }

// Private starts a throw-away installation with the program, and the flags of `mcpvault dev` given.
func Private(ctx context.Context, bin string, flags ...string) (*Site, error) {
	d, err := devrun.Start(ctx, bin, append([]string{"--no-demo"}, flags...)...)
	if err != nil {
		return nil, err
	}
	s, err := dev(ctx, bin, d.Dir)
	if err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	s.own, s.Private = d, true
	return s, nil
}

// Open is the installation that a context names. One that `mcpvault dev` runs on this machine, whose file of contexts was given, can
// be broken; of any other only what its interfaces offer.
func Open(ctx context.Context, bin, contextFile string, c *contexts.Context, client *admin.Client) (*Site, error) {
	dir := filepath.Dir(contextFile)
	if filepath.Base(contextFile) == contexts.DevFile {
		if s, err := dev(ctx, bin, dir); err == nil && s.Admin.URL == c.AdminURL {
			return s, nil
		}
	}
	s := &Site{Admin: client, Tenant: c.Tenant, Host: c.Hosts[c.Tenant], bin: bin}
	resp, err := client.Cells.ListCells(ctx, &adminv1.ListCellsRequest{})
	if err != nil {
		return nil, admin.Problem(err, client.URL)
	}
	for _, cell := range resp.GetCells() {
		for _, n := range cell.GetNodes() {
			url := n.GetStatus().GetMcpUrl()
			if url != "" && (len(c.MCPURLs) == 0 || slices.Contains(c.MCPURLs, url)) {
				s.Nodes = append(s.Nodes, Node{Cell: cell.GetName(), Name: n.GetStatus().GetNode(), MCP: url})
			}
		}
	}
	if len(s.Nodes) == 0 {
		return nil, problem.New(problem.Unavailable, "no node of the installation can be called",
			"see `mcpvault cell status -o wide`, and give the context the nodes' addresses with `mcpvault login --mcp-url URL`")
	}
	return s, nil
}

// dev reads what a running dev left in its data directory.
func dev(ctx context.Context, bin, dir string) (*Site, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "dev.json"))
	if err != nil {
		return nil, err
	}
	var info devmode.Info
	if err := json.Unmarshal(raw, &info); err != nil {
		return nil, fmt.Errorf("read dev.json: %w", err)
	}
	processes, err := devmode.Tell(ctx, dir, "status")
	if err != nil {
		return nil, err
	}
	client, err := admin.Dial(admin.Config{URL: info.AdminURL, Token: info.AdminToken, Version: "drill"})
	if err != nil {
		return nil, err
	}
	s := &Site{Admin: client, Tenant: "acme", bin: bin, dir: dir}
	s.faults, s.other = s.breakable(ctx), load.Person{Name: "alice", Token: info.Tokens["alice"]}
	for _, p := range processes {
		cell, name, ok := strings.Cut(p.Name, "/")
		if at := len(s.Nodes); ok && at < len(info.MCPURLs) && at < len(info.Metrics) {
			s.Nodes = append(s.Nodes, Node{Cell: cell, Name: name, MCP: info.MCPURLs[at], Pages: info.Metrics[at]})
		}
	}
	if len(s.Nodes) != len(info.MCPURLs) {
		return nil, fmt.Errorf("dev.json names %d nodes, dev runs %d", len(info.MCPURLs), len(s.Nodes))
	}
	return s, nil
}

// Close ends an installation that was started for drills.
func (s *Site) Close() error {
	if s.own == nil {
		return nil
	}
	return s.own.Stop()
}

// Name is how reports call the installation.
func (s *Site) Name() string {
	cells := len(s.Cells())
	kind := "installation of a context"
	if s.Private {
		kind = "private mcpvault dev"
	}
	return fmt.Sprintf("%s, %d cell(s), %d nodes", kind, cells, len(s.Nodes))
}

// Cells are the names of the cells, in order.
func (s *Site) Cells() (names []string) {
	for _, n := range s.Nodes {
		if !slices.Contains(names, n.Cell) {
			names = append(names, n.Cell)
		}
	}
	return names
}

// Cell are the nodes of a cell.
func (s *Site) Cell(name string) (nodes []Node) {
	for _, n := range s.Nodes {
		if n.Cell == name {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// Lacks says why the installation cannot do what a drill needs; "" when it can.
func (s *Site) Lacks(d *Drill, cell string) string {
	if cell == "" {
		cell = s.Nodes[0].Cell
	}
	for _, need := range d.Needs {
		lacks := s.dir == ""
		switch need {
		case TwoCells:
			lacks = len(s.Cells()) < 2
		case ThreeNodes:
			lacks = len(s.Cell(cell)) < 3
		case Faults:
			lacks = !s.faults
		case Processes, Disks:
		}
		if lacks {
			return string(need)
		}
	}
	return ""
}

// Kill ends processes at once, with SIGKILL, and returns when they have ended: "controlplane", "postgres", "local/n1".
func (s *Site) Kill(ctx context.Context, names ...string) error { return s.tell(ctx, "kill", names) }

// Start starts processes again, in order, ending those that run, and returns when they serve.
func (s *Site) Start(ctx context.Context, names ...string) error {
	return s.tell(ctx, "restart", names)
}

func (s *Site) tell(ctx context.Context, op string, names []string) error {
	if len(names) == 0 {
		return nil
	}
	_, err := devmode.Tell(ctx, s.dir, op, names...)
	return err
}

// PID is a process's id; an error when it does not run.
func (s *Site) PID(ctx context.Context, name string) (int, error) {
	processes, err := devmode.Tell(ctx, s.dir, "status")
	if err != nil {
		return 0, err
	}
	for _, p := range processes {
		if p.Name == name && p.Running {
			return p.PID, nil
		}
	}
	return 0, fmt.Errorf("%s does not run", name)
}

// Wake starts every process that does not run.
func (s *Site) Wake(ctx context.Context) error {
	processes, err := devmode.Tell(ctx, s.dir, "status")
	if err != nil {
		return err
	}
	var ended []string
	for _, p := range processes {
		if !p.Running {
			ended = append(ended, p.Name)
		}
	}
	return s.Start(ctx, ended...)
}

// Signal sends a signal to a process's group: SIGSTOP and SIGCONT, for example.
func (s *Site) Signal(ctx context.Context, name string, sig syscall.Signal) error {
	pid, err := s.PID(ctx, name)
	if err != nil {
		return err
	}
	return syscall.Kill(-pid, sig)
}

// Problems are what a node says is wrong with it, as the control plane has it.
func (s *Site) Problems(ctx context.Context, n Node) ([]string, error) {
	resp, err := s.Admin.Cells.ListCells(ctx, &adminv1.ListCellsRequest{})
	if err != nil {
		return nil, admin.Problem(err, s.Admin.URL)
	}
	for _, c := range resp.GetCells() {
		for _, x := range c.GetNodes() {
			if c.GetName() == n.Cell && x.GetStatus().GetNode() == n.Name {
				return x.GetStatus().GetProblems(), nil
			}
		}
	}
	return nil, nil
}

// Dir is a node's data directory.
func (s *Site) Dir(n Node) string { return filepath.Join(s.dir, "data", n.Cell+"-"+n.Name) }

// Fault runs `mcpvault dev fault` with the words given.
func (s *Site) Fault(ctx context.Context, words ...string) ([]byte, error) {
	return s.CLI(ctx, slices.Concat([]string{"dev", "fault"}, words, []string{"--data-dir", s.dir})...)
}

// CLI runs a command of mcpvault as the administrator of the dev, and returns its standard output.
func (s *Site) CLI(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, s.bin, args...) //nolint:gosec // The program is this one.
	cmd.Env = append(os.Environ(), "MCPVAULT_CONFIG="+filepath.Join(s.dir, contexts.DevFile), "NO_COLOR=1")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("mcpvault %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.Bytes(), nil
}

// SQL runs a statement in a database of the dev's PostgreSQL, "" for the control plane's own, and returns what it prints.
func (s *Site) SQL(ctx context.Context, database, statement string) (string, error) {
	var info devmode.Info
	raw, err := os.ReadFile(filepath.Join(s.dir, "dev.json"))
	if err == nil {
		err = json.Unmarshal(raw, &info)
	}
	if err != nil {
		return "", err
	}
	u, err := url.Parse(info.DatabaseURL)
	if err != nil {
		return "", fmt.Errorf("read the database's address: %w", err)
	}
	if database != "" {
		u.Path = "/" + database
	}
	bin, err := pgdev.FindBinaries()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "psql"), "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", statement, u.String()) //nolint:gosec // PostgreSQL's own.
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("psql: %w: %s", err, bytes.TrimSpace(out))
	}
	return string(bytes.TrimSpace(out)), nil
}

// Page reports whether a page of a node says 200: "/readyz", "/readyz/leader", "/readyz/controlplane".
func (s *Site) Page(ctx context.Context, n Node, page string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.Pages+page, nil)
	if err != nil {
		return false
	}
	resp, err := pages.Do(req)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16))
	return errors.Join(err, resp.Body.Close()) == nil && resp.StatusCode == http.StatusOK
}

// pages opens a connection for each question: what answers must be the process that runs now.
var pages = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// Leader is the node that says of itself that it leads a cell, and is none of those excepted; false when there is none.
func (s *Site) Leader(ctx context.Context, cell string, except ...Node) (Node, bool) {
	for _, n := range s.Cell(cell) {
		if !slices.Contains(except, n) && s.Page(ctx, n, "/readyz/leader") {
			return n, true
		}
	}
	return Node{}, false
}

// IDs are the names of nodes.
func IDs(nodes []Node) []string {
	names := make([]string, 0, len(nodes))
	for _, n := range nodes {
		names = append(names, n.ID())
	}
	return names
}
