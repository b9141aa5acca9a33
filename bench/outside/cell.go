package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// dev is a running `mcpvault dev` with a data directory of its own.
type dev struct {
	bin, dir string
	stop     func()
	MCPURLs  []string          `json:"mcp_urls"`
	Tokens   map[string]string `json:"tokens"`
}

func startDev(ctx context.Context, bin string, flags ...string) (*dev, error) {
	dir, err := os.MkdirTemp("", "mcpvault-outside-")
	if err != nil {
		return nil, err
	}
	base, err := freeBase()
	if err != nil {
		return nil, err
	}
	args := append([]string{"dev", "--ephemeral", "--data-dir", dir, "--port-base", fmt.Sprint(base)}, flags...)
	stop, err := spawn(ctx, bin, args...)
	if err != nil {
		return nil, err
	}
	d := &dev{bin: bin, dir: dir, stop: func() { stop(); _ = os.RemoveAll(dir) }}
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline) && ctx.Err() == nil; {
		if b, err := os.ReadFile(filepath.Join(dir, "dev.json")); err == nil {
			return d, json.Unmarshal(b, d)
		}
		time.Sleep(20 * time.Millisecond)
	}
	d.stop()
	return nil, errors.New("mcpvault dev was not ready within 60 s")
}

// cli runs one command as the dev administrator.
func (d *dev) cli(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, d.bin, args...)
	cmd.Env = append(os.Environ(), "MCPVAULT_CONFIG="+filepath.Join(d.dir, "cli.yaml"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("mcpvault %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// freeBase finds a port base whose block of 200 looks free.
func freeBase() (int, error) {
	for base := 21000; base < 30000; base += 200 {
		free := true
		for _, off := range []int{0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 15, 20, 24} {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base+off))
			if err != nil {
				free = false
				break
			}
			_ = l.Close()
		}
		if free {
			return base, nil
		}
	}
	return 0, errors.New("no free block of ports between 21000 and 30000")
}

func clients(ctx context.Context, k *toolkit, bin string) error {
	d, err := startDev(ctx, bin)
	if err != nil {
		return err
	}
	defer d.stop()
	runs := []struct{ path, prefix, hidden, tools string }{
		{"/demo", "", "nope", `["echo","leak","slow"]`},
		{"", "demo__", "payments__refund", `["demo__echo","demo__leak","demo__slow","payments__balance"]`},
	}
	var errs error
	for _, r := range runs {
		for _, flavour := range []string{"v1", "v2", "v2-auto", "v2-pin"} {
			cmd := exec.CommandContext(ctx, k.node, k.client, flavour, d.MCPURLs[0]+r.path, d.Tokens["alice"])
			cmd.Dir = k.dir
			cmd.Env = append(os.Environ(), "PREFIX="+r.prefix, "HIDDEN_TOOL="+r.hidden, "WANT_TOOLS="+r.tools)
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			if err := cmd.Run(); err != nil {
				errs = errors.Join(errs, fmt.Errorf("client %s on /mcp%s: %w", flavour, r.path, err))
			}
		}
	}
	return errs
}

func conformance(ctx context.Context, k *toolkit, bin string, floor int) error {
	up, err := startUpstream(ctx, k)
	if err != nil {
		return err
	}
	defer up.stop()
	d, err := startDev(ctx, bin, "--no-demo")
	if err != nil {
		return err
	}
	defer d.stop()
	for _, args := range [][]string{
		{"server", "add", "everything", "--url", up.url},
		{"server", "approve", "everything", "--effect", "hints"},
		{"grant", "user:alice", "server:everything"},
	} {
		if err := d.cli(ctx, args...); err != nil {
			return err
		}
	}
	return suite(ctx, k, d.MCPURLs[0]+"/everything", d.Tokens["alice"], floor)
}
