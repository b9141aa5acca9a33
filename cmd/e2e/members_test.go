package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/mcpvault/mcpvault/bench/devrun"
	"github.com/mcpvault/mcpvault/kit/svid"
)

// TestMembers has a cell of three lose a node in order, grow by one and lose one for good, on real processes.
func TestMembers(t *testing.T) {
	t.Parallel()
	d := start(t)
	must(t, d, 0, "grant", "user:alice", "server:payments/refund", "--when", "context.args.amount < 100")
	for _, step := range []struct {
		name string
		run  func(*testing.T, *devrun.Dev)
	}{
		{"the leader is drained under load", drainedUnderLoad},
		{"leadership is handed over on demand", steppedDown},
		{"a node is added and another removed", addedAndRemoved},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, d) }) {
			return
		}
	}
}

// careful is a client as a balancer makes one: it goes where a node is ready, keeps connections, and where nobody listens any
// more it goes on to the next node. Anything else that is not the right answer is a failed call.
type careful struct {
	d     *devrun.Dev
	t     *testing.T
	ready [3]atomic.Bool
	calls atomic.Int64
	mu    sync.Mutex
	wrong []string
}

func (c *careful) watch(ctx context.Context) {
	probe := &http.Client{Timeout: time.Second}
	for ctx.Err() == nil {
		for n := range c.ready {
			resp, err := probe.Get("http://" + port(c.t, c.d, 10+5*n+4) + "/readyz")
			ok := err == nil && resp.StatusCode == http.StatusOK
			if err == nil {
				_ = resp.Body.Close()
			}
			c.ready[n].Store(ok)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (c *careful) run(ctx context.Context, first int, tool, args string) {
	client := &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for n := first; ctx.Err() == nil; {
		if !c.ready[n%3].Load() {
			n++
			time.Sleep(time.Millisecond)
			continue
		}
		got, _ := outcomeBy(client, c.d, n%3, c.d.Tokens["alice"], "demo", tool, args)
		switch {
		case got == "ok":
			c.calls.Add(1)
		case strings.Contains(got, "dial tcp"):
			n++
		default:
			c.mu.Lock()
			c.wrong = append(c.wrong, fmt.Sprintf("%s on n%d: %s", tool, n%3+1, got))
			c.mu.Unlock()
		}
	}
}

func drainedUnderLoad(t *testing.T, d *devrun.Dev) {
	node := -1
	eventually(t, "somebody leads", func() bool { node = leads(t, d); return node >= 0 })
	name := fmt.Sprintf("n%d", node+1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := &careful{d: d, t: t}
	var wg sync.WaitGroup
	wg.Go(func() { c.watch(ctx) })
	for i := range 6 {
		wg.Go(func() { c.run(ctx, i, "echo", `{"message":"x"}`) })
	}
	for i := range 3 {
		wg.Go(func() { c.run(ctx, i, "slow", `{"seconds":1}`) })
	}
	session := initialize(t, d, node)
	ended := make(chan error, 1)
	stream := openStream(t, d, node, session)
	go func() {
		_, err := io.Copy(io.Discard, stream)
		ended <- err
	}()
	eventually(t, "there is load", func() bool { return c.calls.Load() > 100 })
	began := time.Now()
	_, said := must(t, d, 0, "cell", "drain", name)
	if !strings.Contains(said, "has stopped") {
		t.Errorf("drain said %q", said)
	}
	took := time.Since(began)
	if err := <-ended; err != nil {
		t.Errorf("the stream was cut and not ended: %v", err)
	}
	eventually(t, "another node leads", func() bool { n := leads(t, d); return n >= 0 && n != node })
	before := c.calls.Load()
	eventually(t, "calls go on", func() bool { return c.calls.Load() > before+50 })
	// The client of the stream comes back elsewhere, with the session that it had.
	_ = openStream(t, d, (node+1)%3, session).Close()
	cancel()
	wg.Wait()
	for _, w := range c.wrong {
		t.Errorf("a call failed: %s", w)
	}
	out, _ := must(t, d, 0, "dev", "status", "--data-dir", d.Dir)
	if !strings.Contains(out, "exit status 0") {
		t.Errorf("the node did not end well:\n%s", out)
	}
	t.Logf("drained in %s; %d calls, %d failed", took.Round(time.Millisecond), c.calls.Load(), len(c.wrong))
	restart(t, d, name)
	wantRight(t, d, 0, 1, 2)
}

func openStream(t *testing.T, d *devrun.Dev, node int, session string) io.ReadCloser {
	t.Helper()
	var resp *http.Response
	eventually(t, "the stream opens", func() bool {
		resp = legacy(t, d, node, http.MethodGet, session, "")
		if resp.StatusCode != http.StatusOK {
			_ = resp.Body.Close()
		}
		return resp.StatusCode == http.StatusOK
	})
	return resp.Body
}

func legacy(t *testing.T, d *devrun.Dev, node int, method, session, body string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, d.MCPURLs[node]+"/demo", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{
		"Content-Type": "application/json", "Accept": "application/json, text/event-stream", "Mcp-Protocol-Version": "2025-11-25",
		"Authorization": "Bearer " + d.Tokens["alice"],
	} {
		req.Header.Set(k, v)
	}
	if session != "" {
		req.Header.Set("Mcp-Session-Id", session)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

type member struct {
	Node   string `json:"node"`
	Votes  bool   `json:"votes"`
	Leader bool   `json:"leader"`
}

func members(t *testing.T, d *devrun.Dev) map[string]member {
	t.Helper()
	out, _, _ := cli(t, d, "cell", "members", "-o", "json")
	var all []member
	_ = json.Unmarshal([]byte(out), &all)
	named := map[string]member{}
	for _, m := range all {
		named[m.Node] = m
	}
	return named
}

func steppedDown(t *testing.T, d *devrun.Dev) {
	old := -1
	eventually(t, "somebody leads", func() bool { old = leads(t, d); return old >= 0 })
	must(t, d, 0, "cell", "step-down")
	eventually(t, "another node leads", func() bool { n := leads(t, d); return n >= 0 && n != old })
}

// addedAndRemoved starts a fourth node, of which no configuration of the others knows, and removes the one that leads.
func addedAndRemoved(t *testing.T, d *devrun.Dev) {
	config := fourth(t, d)
	node := exec.Command(buildBinary(t), "internal", "cell", "--config", config)
	var log bytes.Buffer
	node.Stderr = &log
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- node.Wait() }()
	t.Cleanup(func() {
		_ = node.Process.Kill()
		if t.Failed() {
			t.Logf("n4:\n%s", log.String())
		}
	})
	eventually(t, "n4 says where it is", func() bool {
		out, _, _ := cli(t, d, "cell", "status", "-o", "json")
		return strings.Contains(out, `"n4"`)
	})
	eventually(t, "n4 is added", func() bool { _, _, status := cli(t, d, "cell", "add", "local/n4"); return status == 0 })
	session := initialize(t, d, 1)
	old := -1
	eventually(t, "somebody leads", func() bool { old = leads(t, d); return old >= 0 })
	gone := fmt.Sprintf("n%d", old+1)
	must(t, d, 2, "cell", "remove", "local/"+gone) // nobody is here to be asked
	must(t, d, 0, "cell", "remove", "local/"+gone, "--yes")
	eventually(t, "n4 votes and the removed node is none", func() bool {
		m := members(t, d)
		_, there := m[gone]
		return len(m) == 3 && m["n4"].Votes && !there
	})
	// It knows that it was removed, and serves nobody.
	eventually(t, gone+" serves nobody", func() bool {
		resp, err := http.Get("http://" + port(t, d, 10+5*old+4) + "/readyz/member")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusServiceUnavailable
	})
	if got, _ := outcome(d, old, d.Tokens["alice"], "demo", "echo", `{"message":"x"}`); !strings.HasPrefix(got, "503") {
		t.Errorf("the removed node answers: %s", got)
	}
	// What was sealed before opens still; the session is the same on whoever is left.
	other := (old + 1) % 3
	_ = openStream(t, d, other, session).Close()
	wantRight(t, d, other, (old+2)%3)
	// Policy still reaches everybody, n4 included.
	must(t, d, 0, "grant", "user:bob", "server:demo/slow")
	must(t, d, 6, "cell", "add", "local/"+gone)
	must(t, d, 0, "cell", "drain", "local/n4")
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("n4 ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("n4 has not ended")
	}
}

// fourth writes the configuration and identity of a node that joins.
func fourth(t *testing.T, d *devrun.Dev) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(d.Dir, "run", "local-n1.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := map[string]any{}
	if err := yaml.Unmarshal(raw, &cfg); err != nil {
		t.Fatal(err)
	}
	ca, err := svid.LoadCA(filepath.Join(d.Dir, "keys", "ca"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := svid.NodeID(ca.TrustDomain(), "local", "n4")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.IssueNode(id, time.Hour)
	dir := filepath.Join(d.Dir, "identity", "local-n4")
	if err == nil {
		err = svid.WriteIdentity(dir, cert, key, ca.Bundle())
	}
	if err != nil {
		t.Fatal(err)
	}
	listen := map[string]any{}
	for _, what := range []string{"http", "raft", "peer", "metrics"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listen[what] = "127.0.0.1:" + strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
		_ = ln.Close()
	}
	cfg["node"], cfg["data_dir"], cfg["identity_dir"], cfg["join"], cfg["listen"] = "n4", filepath.Join(d.Dir, "data", "local-n4"), dir, true, listen
	cfg["seal_key"] = ""
	cfg["members"] = append(cfg["members"].([]any), map[string]any{"node": "n4", "raft": listen["raft"], "peer": listen["peer"]})
	raw, err = yaml.Marshal(cfg)
	path := filepath.Join(d.Dir, "run", "local-n4.yaml")
	if err == nil {
		err = os.WriteFile(path, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}
