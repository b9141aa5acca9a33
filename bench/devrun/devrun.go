// Package devrun runs `mcpvault dev` as a process of its own, for benchmarks and end-to-end tests: real PostgreSQL, control
// plane and cell, in a throw-away directory and on free ports.
package devrun

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/mcpvault/mcpvault/kit/ports"
)

// Dev is one running `mcpvault dev`; the exported fields are dev.json.
type Dev struct {
	AdminURL    string            `json:"admin_url"`
	AdminToken  string            `json:"admin_token"`
	MCPURLs     []string          `json:"mcp_urls"`
	MCPTLSURLs  []string          `json:"mcp_tls_urls"`
	DatabaseURL string            `json:"database_url"`
	CAFile      string            `json:"ca_file"`
	Tokens      map[string]string `json:"tokens"`
	// Metrics are the nodes' pages for /livez, /readyz and /metrics.
	Metrics []string `json:"metrics_urls"`
	PIDs    struct {
		ControlPlane int   `json:"controlplane"`
		Nodes        []int `json:"nodes"`
		Postgres     int   `json:"postgres"`
	} `json:"pids"`

	// Dir is the data directory.
	Dir string `json:"-"`
	// Ready is how long the start took.
	Ready time.Duration `json:"-"`
	bin   string
	ports *ports.Block
	cmd   *exec.Cmd
	out   *bytes.Buffer
}

const (
	readyLimit = 90 * time.Second
	stopLimit  = 20 * time.Second
)

// Start runs the binary and returns when dev.json is there. The directory is removed by Stop.
func Start(ctx context.Context, bin string, flags ...string) (*Dev, error) {
	dir, err := os.MkdirTemp("", "mcpvault-devrun-")
	if err != nil {
		return nil, err
	}
	block, err := ports.Take()
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	args := append([]string{"dev", "--ephemeral", "--data-dir", dir, "--port-base", fmt.Sprint(block.Base)}, flags...)
	d := &Dev{Dir: dir, bin: bin, ports: block, out: &bytes.Buffer{}, cmd: exec.CommandContext(ctx, bin, args...)}
	d.cmd.Stdout, d.cmd.Stderr = d.out, d.out
	d.cmd.Cancel = func() error { return d.cmd.Process.Signal(syscall.SIGTERM) }
	d.cmd.WaitDelay = stopLimit
	begin := time.Now()
	if err := d.cmd.Start(); err != nil {
		return nil, errors.Join(err, block.Close(), os.RemoveAll(dir))
	}
	for time.Since(begin) < readyLimit && ctx.Err() == nil {
		if err := d.Reload(); err == nil {
			d.Ready = time.Since(begin)
			return d, nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	_ = d.Stop()
	return nil, fmt.Errorf("mcpvault dev was not ready within %s:\n%s", readyLimit, d.out)
}

// Reload reads dev.json again: process ids change when a process is restarted.
func (d *Dev) Reload() error {
	b, err := os.ReadFile(filepath.Join(d.Dir, "dev.json"))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, d)
}

// Stop asks dev to end, waits, and removes the directory.
func (d *Dev) Stop() error {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	err := d.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("mcpvault dev: %w\n%s", err, d.out)
	}
	return errors.Join(err, os.RemoveAll(d.Dir), d.ports.Close())
}

// PID is the parent process.
func (d *Dev) PID() int { return d.cmd.Process.Pid }

// CLI runs one mcpvault command as the dev administrator and returns its standard output; the error carries standard error,
// and is an *exec.ExitError at heart.
func (d *Dev) CLI(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, d.bin, args...)
	cmd.Env = append(os.Environ(), "MCPVAULT_CONFIG="+filepath.Join(d.Dir, "cli.yaml"), "NO_COLOR=1")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("mcpvault %s: %w\n%s%s", strings.Join(args, " "), err, out.Bytes(), errs.Bytes())
	}
	return out.Bytes(), nil
}

// FreeAddr is a loopback address that nobody listens on.
func FreeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String(), nil
}

// WaitListen returns when something accepts connections on the address.
func WaitListen(ctx context.Context, addr string) error {
	dialer := net.Dialer{Timeout: time.Second}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline) && ctx.Err() == nil; {
		c, err := dialer.DialContext(ctx, "tcp", addr)
		if err == nil {
			return c.Close()
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("nothing listens on %s", addr)
}
