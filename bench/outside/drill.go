package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/mcpvault/mcpvault/bench/devrun"
)

// drills says which runs of the server leg follow the plain one.
type drills struct {
	times                        int
	controlPlaneDown, leaderKill bool
}

// summary is what every run came to; it is printed last.
type summary struct{ lines []string }

// run does one thing and keeps how it ended.
func (s *summary) run(name string, f func() error) error {
	began := time.Now()
	fmt.Printf("== %s\n", name)
	err := f()
	word := "ok  "
	if err != nil {
		word, err = "FAIL", fmt.Errorf("%s: %w", name, err)
	}
	s.lines = append(s.lines, fmt.Sprintf("%s %-44s %5.1f s", word, name, time.Since(began).Seconds()))
	return err
}

func (s *summary) print() {
	fmt.Println("\n" + strings.Join(s.lines, "\n"))
}

// conformance runs the server leg through a cell, and again under each drill.
func conformance(ctx context.Context, s *summary, k *toolkit, bin string, floor int, want drills) error {
	var errs error
	for i := range max(want.times, 1) {
		name := "server leg"
		if want.times > 1 {
			name = fmt.Sprintf("server leg, run %d of %d", i+1, want.times)
		}
		errs = errors.Join(errs, s.run(name, func() error {
			return withEverything(ctx, k, bin, func(d *devrun.Dev) error {
				return suite(ctx, k, floor, at(d.MCPURLs[0]+"/everything", d.Tokens["alice"]))
			})
		}))
	}
	if want.controlPlaneDown {
		errs = errors.Join(errs, s.run("server leg, control plane killed before it", func() error {
			return withEverything(ctx, k, bin, func(d *devrun.Dev) error { return withoutControlPlane(ctx, k, d, floor) })
		}))
	}
	if want.leaderKill {
		errs = errors.Join(errs, s.run("server leg, leader killed in each revision", func() error {
			return withEverything(ctx, k, bin, func(d *devrun.Dev) error { return suite(ctx, k, floor, killing(d)) })
		}))
	}
	return errs
}

// withEverything runs f with a cell that publishes the suite's own upstream.
func withEverything(ctx context.Context, k *toolkit, bin string, f func(*devrun.Dev) error) error {
	up, err := startUpstream(ctx, k)
	if err != nil {
		return err
	}
	defer up.stop()
	d, err := devrun.Start(ctx, bin, "--no-demo")
	if err != nil {
		return err
	}
	if err := publish(ctx, d, "everything", "--url", up.url); err != nil {
		return errors.Join(err, d.Stop())
	}
	return errors.Join(f(d), d.Stop())
}

// publish registers and approves a server and lets alice use all of it.
func publish(ctx context.Context, d *devrun.Dev, name string, from ...string) error {
	for _, args := range [][]string{
		append([]string{"server", "add", name}, from...),
		{"server", "approve", name, "--effect", "hints"},
		{"grant", "user:alice", "server:" + name},
	} {
		if _, err := d.CLI(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

func withoutControlPlane(ctx context.Context, k *toolkit, d *devrun.Dev, floor int) error {
	if err := syscall.Kill(d.PIDs.ControlPlane, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill the control plane: %w", err)
	}
	if _, err := d.CLI(ctx, "server", "list"); err == nil {
		return errors.New("the control plane still answers after it was killed")
	}
	if err := suite(ctx, k, floor, at(d.MCPURLs[0]+"/everything", d.Tokens["alice"])); err != nil {
		return err
	}
	if _, err := d.CLI(ctx, "server", "list"); err == nil {
		return errors.New("the control plane was back before the run was over: it shows nothing")
	}
	return nil
}

// killAfter is how many scenarios of a revision have ended when the leader is killed.
const killAfter = 8

// killing runs each revision through a follower and kills the leader while it runs; afterwards the node is started again.
func killing(d *devrun.Dev) staging {
	return func(ctx context.Context, rev, dir string) (stage, error) {
		leader, err := leader(ctx, d)
		if err != nil {
			return stage{}, err
		}
		follower := (leader + 1) % len(d.MCPURLs)
		st, err := at(d.MCPURLs[follower]+"/everything", d.Tokens["alice"])(ctx, rev, dir)
		if err != nil {
			return stage{}, err
		}
		watch, stop := context.WithCancel(ctx)
		killed := make(chan error, 1)
		pid := d.PIDs.Nodes[leader]
		go func() { killed <- killWhen(watch, pid, dir) }()
		end := st.end
		st.end = func() error {
			stop()
			if err := errors.Join(<-killed, end()); err != nil {
				return err
			}
			fmt.Printf("%s: leader n%d killed during the run through n%d\n", rev, leader+1, follower+1)
			if _, err := d.CLI(ctx, "dev", "restart", fmt.Sprintf("n%d", leader+1), "--data-dir", d.Dir); err != nil {
				return err
			}
			return d.Reload()
		}
		return st, nil
	}
}

// killWhen kills a process once enough results are there; that it never came to that is an error.
func killWhen(ctx context.Context, pid int, dir string) error {
	for ctx.Err() == nil {
		done, err := filepath.Glob(filepath.Join(dir, "*", "checks.json"))
		if err != nil {
			return err
		}
		if len(done) >= killAfter {
			return syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return errors.New("the run was over before the leader was killed")
}

// leader is the index of the node that leads, once every node is there.
func leader(ctx context.Context, d *devrun.Dev) (int, error) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline) && ctx.Err() == nil; {
		out, err := d.CLI(ctx, "cell", "status", "-o", "json")
		if err != nil {
			return 0, err
		}
		var nodes []struct {
			Connected bool   `json:"connected"`
			Raft      string `json:"raft_state"`
			MCPURL    string `json:"mcp_url"`
		}
		if err := json.Unmarshal(out, &nodes); err != nil {
			return 0, fmt.Errorf("cell status: %w", err)
		}
		there, found := 0, -1
		for _, n := range nodes {
			if n.Connected {
				there++
			}
			for i, u := range d.MCPURLs {
				if n.Raft == "leader" && n.Connected && u == n.MCPURL {
					found = i
				}
			}
		}
		if found >= 0 && there == len(d.MCPURLs) {
			return found, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return 0, errors.New("the cell has no leader, or not all of its nodes")
}
