package e2e_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/mcpvault/mcpvault/bench/devrun"
)

// buildCell builds the node's own program: a machine that joins has no other.
func buildCell(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "mcpvault-cell")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "github.com/mcpvault/mcpvault/cmd/mcpvault-cell").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

// cellConfig is what dev has given a node.
type cellConfig struct {
	Listen struct{ Raft, Peer, TLS, Metrics string }
}

func readCellConfig(t *testing.T, d *devrun.Dev, name string) cellConfig {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.Dir, "run", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var c cellConfig
	if err := yaml.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// machine is one that is to become a node.
type machine struct {
	bin, dir string
	args     []string
}

func (m machine) join(t *testing.T, token string) (out string, status int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), m.bin, append([]string{"join", "-token", "-", "-data-dir", m.dir}, m.args...)...)
	cmd.Stdin = strings.NewReader(token + "\n")
	b, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte(token)) {
		t.Error("the token was printed")
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// run starts the node and returns what ends it; a second call does nothing.
func (m machine) run(t *testing.T) (stop func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), m.bin, "-config", filepath.Join(m.dir, "node", "cell.yaml"))
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("the joined node ended: %v", err)
			}
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			t.Error("the joined node does not stop")
		}
		if t.Failed() {
			text := log.String()
			t.Logf("the joined node's log:\n%s", text[max(0, len(text)-5000):])
		}
	}
	t.Cleanup(stop)
	return stop
}

func joinToken(t *testing.T, d *devrun.Dev, node string) string {
	t.Helper()
	out, _ := must(t, d, 0, "cell", "token", "create", node, "--cell", "local", "-o", "json")
	var v struct{ Token string }
	if err := json.Unmarshal([]byte(out), &v); err != nil || v.Token == "" {
		t.Fatalf("%s: %v", out, err)
	}
	return v.Token
}

// TestAMachineJoinsWithATokenAndServes: from nothing to a node that serves a workload, whose SVID was issued for it. The node's
// disk and key were lost for good; nothing of them is used again.
func TestAMachineJoinsWithATokenAndServes(t *testing.T) {
	t.Parallel()
	d := start(t)
	bin := buildCell(t)
	const id = "spiffe://local.workloads.mcpvault.dev/org/acme/billing"
	must(t, d, 0, "workload", "create", id)
	must(t, d, 0, "grant", id, "demo/echo")
	must(t, d, 0, "dev", "kill", "n3", "--data-dir", d.Dir)
	at := readCellConfig(t, d, "local-n3").Listen
	for _, lost := range []string{filepath.Join("data", "local-n3"), filepath.Join("identity", "local-n3")} {
		if err := os.RemoveAll(filepath.Join(d.Dir, lost)); err != nil {
			t.Fatal(err)
		}
	}
	url := "https://" + at.TLS + "/mcp"
	m := machine{bin, filepath.Join(t.TempDir(), "disk"), []string{
		"-raft", at.Raft, "-peer", at.Peer, "-tls", at.TLS, "-metrics", at.Metrics, "-public-url", url,
		"-tls-cert", filepath.Join(d.Dir, "identity", "front", "tls.crt"), "-tls-key", filepath.Join(d.Dir, "identity", "front", "tls.key"),
	}}
	token := joinToken(t, d, "n3")
	if out, status := m.join(t, token); status != 0 || !strings.Contains(out, "node n3 of cell local") || !strings.Contains(out, "n1, n2") {
		t.Fatalf("exit status %d: %s", status, out)
	}
	// The token is used up, for another machine and for this one.
	other := m
	other.dir = filepath.Join(t.TempDir(), "other")
	if out, status := other.join(t, token); status != 6 || !strings.Contains(out, "kill node local/n3") {
		t.Errorf("another machine: exit status %d: %s", status, out)
	}
	if out, status := m.join(t, token); status != 6 {
		t.Errorf("again: exit status %d: %s", status, out)
	}
	if out, _ := must(t, d, 0, "cell", "token", "list", "-o", "json"); !strings.Contains(out, `"used"`) || strings.Contains(out, token) {
		t.Errorf("listed: %s", out)
	}
	if out, _ := must(t, d, 0, "audit", "changes"); !strings.Contains(out, "node.enroll") || !strings.Contains(out, "join_token.create") {
		t.Errorf("the ledger: %s", out)
	}

	// What development needs of every node, besides.
	config := filepath.Join(m.dir, "node", "cell.yaml")
	f, err := os.OpenFile(config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("default_tenant: acme\negress_allow: ['127.0.0.0/8:*']\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), bin, "-config", config, "-check").CombinedOutput(); err != nil {
		t.Fatalf("the configuration: %s", out)
	}
	stop := m.run(t)
	probe := "http://" + at.Metrics + "/readyz"
	eventually(t, "the joined node is ready", func() bool {
		resp, err := http.Get(probe)
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	eventually(t, "the joined node is a member that the control plane sees", func() bool {
		out, _, status := cli(t, d, "cell", "status", "local", "-o", "json")
		var nodes []struct {
			Node, Leader string
			Connected    bool
			Raft         string `json:"raft_state"`
		}
		if status != 0 || json.Unmarshal([]byte(out), &nodes) != nil {
			return false
		}
		for _, n := range nodes {
			if n.Node == "n3" {
				return n.Connected && n.Leader != "" && (n.Raft == "follower" || n.Raft == "leader")
			}
		}
		return false
	})

	// A workload gets its SVID, and calls through the node that has joined.
	own := filepath.Join(t.TempDir(), "billing")
	must(t, d, 0, "workload", "svid", "billing", "--cell", "local", "--out", own)
	cert, err := tls.LoadX509KeyPair(filepath.Join(own, "svid.pem"), filepath.Join(own, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := devTLS(t, d)
	cfg.Certificates = []tls.Certificate{cert}
	tr := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	echo := func() (int, string) {
		body := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"message":"joined"},` + meta + `}}`
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/demo", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range map[string]string{
			"Content-Type": "application/json", "Accept": "application/json, text/event-stream",
			"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "echo",
		} {
			req.Header.Set(k, v)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	if status, body := echo(); status != 200 || !strings.Contains(body, "joined") {
		t.Errorf("the workload's call: %d %s", status, body)
	}

	// It was told which authority signs and has nothing to renew; its identity is shown.
	resp, err := http.Get("http://" + at.Metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(page, []byte("mcpvault_svid_not_after_timestamp_seconds")) || bytes.Contains(page, []byte(`mcpvault_svid_renewals_total{result="failed"}`)) {
		t.Error("the metrics of the identity are not what they should be")
	}

	// Killed, it serves nobody, and no machine becomes it again.
	must(t, d, 0, "kill", "node", "local/n3", "--reason", "stolen")
	eventually(t, "the killed node serves nobody", func() bool {
		status, _ := echo()
		return status != 200
	})
	if out, errs, status := cli(t, d, "cell", "token", "create", "n3", "--cell", "local"); status != 4 {
		t.Errorf("a token for a killed node: exit status %d: %s%s", status, out, errs)
	}
	stop()
}

// TestNobodyJoinsWhileTheControlPlaneIsLost: the token stays good, and the same command works when it is back.
func TestNobodyJoinsWhileTheControlPlaneIsLost(t *testing.T) {
	t.Parallel()
	d := start(t, "--nodes", "1", "--no-demo")
	bin := buildCell(t)
	m := machine{bin, filepath.Join(t.TempDir(), "disk"), []string{
		"-raft", "127.0.0.1:1", "-peer", "127.0.0.1:2", "-public-url", "https://mcp.test/mcp", "-member", "n3=127.0.0.1:3,127.0.0.1:4",
		"-tls-cert", filepath.Join(d.Dir, "identity", "front", "tls.crt"), "-tls-key", filepath.Join(d.Dir, "identity", "front", "tls.key"),
	}}
	token := joinToken(t, d, "n2")
	must(t, d, 0, "dev", "stop", "controlplane", "--data-dir", d.Dir)
	if out, status := m.join(t, token); status != 7 || !strings.Contains(out, "cannot be reached") {
		t.Fatalf("exit status %d: %s", status, out)
	}
	must(t, d, 0, "dev", "restart", "controlplane", "--data-dir", d.Dir)
	if out, status := m.join(t, token); status != 0 {
		t.Fatalf("exit status %d: %s", status, out)
	}
}
