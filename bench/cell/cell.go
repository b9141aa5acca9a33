// Package cell measures a running cell from outside: what a call through it costs beside a bare reverse proxy to the same
// upstream in the same run, how soon an edit is law on the last node, and how soon a killed node decides again.
package cell

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/mcpvault/mcpvault/bench/devrun"
	"github.com/mcpvault/mcpvault/bench/load"
	"github.com/mcpvault/mcpvault/bench/measure"
	"github.com/mcpvault/mcpvault/bench/peer"
)

// Call is the price of one call through a node. Ratios are to the baseline of the same round, medians over the rounds.
type Call struct {
	C int `json:"c"`
	// TLS says that there was TLS 1.3 in front of both.
	TLS          bool    `json:"tls"`
	Rounds       int     `json:"rounds"`
	RPSRatio     float64 `json:"rps_ratio"`
	CPURatio     float64 `json:"cpu_ratio"`
	P99Ratio     float64 `json:"p99_ratio"`
	SyncRPSRatio float64 `json:"sync_rps_ratio"`
	// Processor time of one call, in microseconds: the node's and the baseline's.
	CPUus       float64 `json:"cpu_us"`
	BaselineCPU float64 `json:"baseline_cpu_us"`
	RPS         float64 `json:"rps"`
	BaselineRPS float64 `json:"baseline_rps"`
	P50us       float64 `json:"p50_us"`
	P99us       float64 `json:"p99_us"`
	// Calls is how many calls through the node were made and checked. Wrong are answers to another question or with another payload; Failed are calls that were refused or not answered, the
	// first of either is FirstError.
	Calls      int    `json:"calls"`
	Wrong      int    `json:"wrong_answers"`
	Failed     int    `json:"failed_calls"`
	FirstError string `json:"first_error,omitempty"`
	// IdleKB is what an idle session with an open stream adds to the resident memory of a fresh node; 0 when not measured.
	IdleKB float64 `json:"idle_kb_per_session"`
}

// Bench is a dev installation with the bench upstream published, and the baseline beside it.
type Bench struct {
	bin string
	dev *devrun.Dev
	dir string // of the credential and the nodes' settings
	up  *exec.Cmd
	// The baseline in the clear and behind TLS.
	plain, secure baseline
}

type baseline struct {
	addr string
	cmd  *exec.Cmd
}

// Start brings up everything, `mcpvault dev` with the flags given; it ends with Stop.
func Start(ctx context.Context, bin string, flags ...string) (*Bench, error) {
	b := &Bench{bin: bin}
	upAddr, err := devrun.FreeAddr()
	if err != nil {
		return nil, err
	}
	if b.up, err = b.spawn(ctx, "upstream", upAddr, ""); err != nil {
		return nil, err
	}
	upURL := "http://" + upAddr + "/mcp"
	for kind, p := range map[string]*baseline{"proxy": &b.plain, "tls-proxy": &b.secure} {
		if p.addr, err = devrun.FreeAddr(); err != nil {
			return nil, errors.Join(err, b.Stop())
		}
		if p.cmd, err = b.spawn(ctx, kind, p.addr, upURL); err != nil {
			return nil, errors.Join(err, b.Stop())
		}
	}
	settings, err := b.settings("http://" + upAddr)
	if err != nil {
		return nil, errors.Join(err, b.Stop())
	}
	if b.dev, err = devrun.Start(ctx, bin, append([]string{"--no-demo", "--node-config", settings}, flags...)...); err != nil {
		return nil, errors.Join(err, b.Stop())
	}
	for _, args := range [][]string{
		{"server", "add", "bench", "--url", upURL},
		{"server", "approve", "bench", "--effect", "hints"},
		{"grant", "user:alice", "server:bench"},
	} {
		if _, err := b.dev.CLI(ctx, args...); err != nil {
			return nil, errors.Join(err, b.Stop())
		}
	}
	return b, nil
}

// settings makes the nodes inject the credential that the upstream demands.
func (b *Bench) settings(origin string) (file string, err error) {
	if b.dir, err = os.MkdirTemp("", "mcpvault-bench-"); err != nil {
		return "", err
	}
	credential := filepath.Join(b.dir, "credential")
	if err := os.WriteFile(credential, []byte(peer.Credential), 0o600); err != nil {
		return "", err
	}
	file = filepath.Join(b.dir, "node.yaml")
	return file, os.WriteFile(file, fmt.Appendf(nil,
		"inject:\n  - {name: bench, tenant: acme, server: bench, origin: %q, header: Authorization, prefix: \"Bearer \", file: %q}\n", origin, credential), 0o600)
}

// Stop ends what Start started.
func (b *Bench) Stop() error {
	var err error
	if b.dev != nil {
		err = b.dev.Stop()
	}
	if b.dir != "" {
		err = errors.Join(err, os.RemoveAll(b.dir))
	}
	for _, p := range []*exec.Cmd{b.up, b.plain.cmd, b.secure.cmd} {
		if p != nil {
			_ = p.Process.Signal(syscall.SIGTERM)
			_ = p.Wait()
		}
	}
	return err
}

func (b *Bench) spawn(ctx context.Context, kind, listen, target string) (*exec.Cmd, error) {
	cmd := exec.CommandContext(ctx, b.bin, "internal", "bench-peer", kind, "--listen", listen, "--target", target)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return cmd, devrun.WaitListen(ctx, listen)
}

// round is one turn of one target.
type round struct {
	rps, cpu float64
	p50, p99 time.Duration
	wrong    int
	failed   int
	calls    int
	first    error
}

func (b *Bench) round(ctx context.Context, t load.Target, pid, c int, d time.Duration) (round, error) {
	before, err := measure.CPU(pid)
	if err != nil {
		return round{}, err
	}
	r, err := load.Run(ctx, t, c, d)
	if err != nil {
		return round{}, err
	}
	after, err := measure.CPU(pid)
	if err != nil {
		return round{}, err
	}
	return round{
		rps: r.PerSecond(), cpu: (after - before).Seconds() / float64(r.Calls),
		p50: measure.Percentile(r.Each, 50), p99: measure.Percentile(r.Each, 99), wrong: r.Wrong, failed: r.Failed, calls: r.Calls, first: r.FirstError,
	}, nil
}

// Call measures with c calls in flight, in interleaved rounds: baseline, a tool that reads, a tool that writes; with TLS 1.3
// in front of the cell and of the baseline when secure.
func (b *Bench) Call(ctx context.Context, c, rounds int, d time.Duration, secure bool) (*Call, error) {
	node := b.dev.PIDs.Nodes[0]
	baseProcess := b.plain
	base := load.Target{URL: "http://" + b.plain.addr + "/mcp", Token: peer.Credential, Tool: "t00"}
	read := load.Target{URL: b.dev.MCPURLs[0] + "/bench", Token: b.dev.Tokens["alice"], Tool: "t00"}
	if secure {
		baseProcess = b.secure
		base.URL, read.URL = "https://"+b.secure.addr+"/mcp", b.dev.MCPTLSURLs[0]+"/bench"
		// What is measured is the price of TLS, not whose certificate it is.
		base.TLS = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
		read.TLS = base.TLS
	}
	write := read
	write.Tool = fmt.Sprintf("t%02d", peer.Tools-1)
	out := &Call{C: c, Rounds: rounds, TLS: secure}
	var rps, cpu, p99, sync, nodeRPS, baseRPS, p50s, p99s, nodeCPU, baseCPU []float64
	for i := range rounds + 1 {
		bl, err := b.round(ctx, base, baseProcess.cmd.Process.Pid, c, d)
		if err != nil {
			return nil, fmt.Errorf("baseline: %w", err)
		}
		rd, err := b.round(ctx, read, node, c, d)
		if err != nil {
			return nil, fmt.Errorf("read through the cell: %w", err)
		}
		wr, err := b.round(ctx, write, node, c, d)
		if err != nil {
			return nil, fmt.Errorf("write through the cell: %w", err)
		}
		out.Wrong += rd.wrong + wr.wrong
		out.Calls += rd.calls + wr.calls
		out.Failed += rd.failed + wr.failed
		if first := errors.Join(rd.first, wr.first); first != nil && out.FirstError == "" {
			out.FirstError = first.Error()
		}
		if i == 0 {
			continue // the first round warms connections and caches
		}
		rps = append(rps, rd.rps/bl.rps)
		cpu = append(cpu, rd.cpu/bl.cpu)
		nodeCPU, baseCPU = append(nodeCPU, 1e6*rd.cpu), append(baseCPU, 1e6*bl.cpu)
		p99 = append(p99, float64(rd.p99)/float64(bl.p99))
		sync = append(sync, wr.rps/bl.rps)
		nodeRPS, baseRPS = append(nodeRPS, rd.rps), append(baseRPS, bl.rps)
		p50s = append(p50s, float64(rd.p50.Microseconds()))
		p99s = append(p99s, float64(rd.p99.Microseconds()))
	}
	out.RPSRatio, out.CPURatio, out.P99Ratio = measure.Median(rps), measure.Median(cpu), measure.Median(p99)
	out.SyncRPSRatio = measure.Median(sync)
	out.CPUus, out.BaselineCPU = measure.Median(nodeCPU), measure.Median(baseCPU)
	out.RPS, out.BaselineRPS = measure.Median(nodeRPS), measure.Median(baseRPS)
	out.P50us, out.P99us = measure.Median(p50s), measure.Median(p99s)
	return out, nil
}

// Propagation is how soon an edit is law: milliseconds from the commit in PostgreSQL to the last node's acknowledgement.
type Propagation struct {
	Edits int     `json:"edits"`
	Nodes int     `json:"nodes"`
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
	Max   float64 `json:"max_ms"`
}

// Propagation grants and revokes n times.
func (b *Bench) Propagation(ctx context.Context, n int) (*Propagation, error) {
	out := &Propagation{Edits: n, Nodes: len(b.dev.PIDs.Nodes)}
	var all []time.Duration
	for i := range n {
		verb := "CreateGrant"
		if i%2 == 1 {
			verb = "DeleteGrants"
		}
		done, err := b.edit(ctx, verb)
		if err != nil {
			return nil, err
		}
		all = append(all, time.Duration(done.ElapsedMS*float64(time.Millisecond)))
	}
	toMS := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	out.P50, out.P99, out.Max = toMS(measure.Percentile(all, 50)), toMS(measure.Percentile(all, 99)), toMS(measure.Percentile(all, 100))
	return out, nil
}

// Restart is how soon a node that was killed decides again, alone: the control plane is not asked.
type Restart struct {
	Restarts int `json:"restarts"`
	// Milliseconds from asking for the process to its first right answer.
	P50 float64 `json:"p50_ms"`
	Max float64 `json:"max_ms"`
}

// Restart kills a node n times and starts it again.
func (b *Bench) Restart(ctx context.Context, n int) (*Restart, error) {
	out := &Restart{Restarts: n}
	var all []time.Duration
	last := len(b.dev.PIDs.Nodes) - 1
	target := load.Target{URL: b.dev.MCPURLs[last] + "/bench", Token: b.dev.Tokens["alice"], Tool: "t00"}
	for range n {
		if err := syscall.Kill(b.dev.PIDs.Nodes[last], syscall.SIGKILL); err != nil {
			return nil, err
		}
		begin := time.Now()
		restarted := make(chan error, 1)
		go func() {
			_, err := b.dev.CLI(ctx, "dev", "restart", fmt.Sprintf("n%d", last+1), "--data-dir", b.dev.Dir)
			restarted <- err
		}()
		if err := firstAnswer(ctx, target); err != nil {
			return nil, err
		}
		all = append(all, time.Since(begin))
		if err := <-restarted; err != nil {
			return nil, err
		}
		if err := b.dev.Reload(); err != nil {
			return nil, err
		}
	}
	toMS := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	out.P50, out.Max = toMS(measure.Percentile(all, 50)), toMS(measure.Percentile(all, 100))
	return out, nil
}

func firstAnswer(ctx context.Context, t load.Target) error {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline) && ctx.Err() == nil; {
		if err := load.Once(ctx, t); err == nil {
			return nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	return errors.New("the restarted node did not answer within 20 s")
}

// admin speaks the Connect protocol's JSON: what any script would.
type admin struct{ url, token string }

func (a admin) call(ctx context.Context, procedure string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url+"/mcpvault.admin.v1."+procedure, strings.NewReader(string(body)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+a.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var raw json.RawMessage
	if err := json.NewDecoder(resp.Body).Decode(&raw); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", procedure, raw)
	}
	return json.Unmarshal(raw, out)
}
