package e2e_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/bench/devrun"
)

// TestDrills rehearses failures on one installation, one after the other; each leaves everything running.
func TestDrills(t *testing.T) {
	t.Parallel()
	d := start(t)
	must(t, d, 0, "grant", "user:alice", "server:payments/refund", "--when", "context.args.amount < 100")
	for _, drill := range []struct {
		name string
		run  func(*testing.T, *devrun.Dev)
	}{
		{"the leader dies under load", leaderDies},
		{"a node that was away hears of a kill from its peers", killWhileAway},
		{"a revoked token is refused everywhere", tokenRevoked},
		{"a node stops with calls under way", stopUnderWay},
		{"strangers knock at the inner ports", strangers},
		{"grants in parallel", grantsInParallel},
		{"the audit disk is full", auditDiskFull},
		{"nodes are killed while generations arrive", killedWhileGenerationsArrive},
		{"drills are run in the installation of a context", drillsInPlace},
		{"everything dies and one node comes back", everythingDies},
	} {
		if !t.Run(drill.name, func(t *testing.T) { drill.run(t, d) }) {
			return
		}
	}
}

// restart starts processes again and learns their new ids.
func restart(t *testing.T, d *devrun.Dev, names ...string) {
	t.Helper()
	for _, name := range names {
		must(t, d, 0, "dev", "restart", name, "--data-dir", d.Dir)
	}
	if err := d.Reload(); err != nil {
		t.Fatal(err)
	}
}

// outcome is what became of one call, in a word; it may be asked from any goroutine.
func outcome(d *devrun.Dev, node int, token, server, tool, args string) (word, decision string) {
	return outcomeBy(&http.Client{Timeout: 15 * time.Second}, d, node, token, server, tool, args)
}

// outcomeBy is outcome for a client that keeps connections of its own.
func outcomeBy(client *http.Client, d *devrun.Dev, node int, token, server, tool, args string) (word, decision string) {
	body := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":%q,"arguments":%s,%s}}`, tool, args, meta)
	req, err := http.NewRequest(http.MethodPost, d.MCPURLs[node]+"/"+server, strings.NewReader(body))
	if err != nil {
		return err.Error(), ""
	}
	for k, v := range map[string]string{
		"Content-Type": "application/json", "Accept": "application/json, text/event-stream", "Mcp-Protocol-Version": "2026-07-28",
		"Mcp-Method": "tools/call", "Mcp-Name": tool, "Authorization": "Bearer " + token,
	} {
		req.Header.Set(k, v)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "failed: " + err.Error(), ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	decision = resp.Header.Get("Mcpvault-Decision-Id")
	for _, sign := range []struct{ part, word string }{
		{`"reason":"audit_unavailable"`, "unaudited"}, {`"reason":"node_stopping"`, "stopping"}, {`"code":-32602`, "hidden"}, {`"isError":true`, "denied"}, {`"result"`, "ok"},
	} {
		if err == nil && bytes.Contains(bytes.ReplaceAll(b, []byte(`": `), []byte(`":`)), []byte(sign.part)) {
			return sign.word, decision
		}
	}
	if resp.StatusCode == http.StatusUnauthorized {
		return "unauthorized", decision
	}
	return fmt.Sprintf("%d %v %s", resp.StatusCode, err, b), decision
}

// rightAnswers asks a node for one call of each kind.
func rightAnswers(d *devrun.Dev, node int) string {
	alice, bob := d.Tokens["alice"], d.Tokens["bob"]
	var all []string
	for _, c := range []struct{ token, server, tool, args, want string }{
		{alice, "demo", "echo", `{"message":"hi"}`, "ok"},
		{alice, "payments", "refund", `{"amount":5}`, "ok"},
		{alice, "payments", "refund", `{"amount":500}`, "denied"},
		{bob, "payments", "refund", `{"amount":5}`, "hidden"},
	} {
		if got, _ := outcome(d, node, c.token, c.server, c.tool, c.args); got != c.want {
			all = append(all, fmt.Sprintf("%s%s: %s, want %s", c.tool, c.args, got, c.want))
		}
	}
	return strings.Join(all, "; ")
}

// wantRight asks again where a node's disk took longer than the audit log waits for it, as a busy machine's does: the node
// then refuses what has effects, which is right, and not what is asked about here.
func wantRight(t *testing.T, d *devrun.Dev, nodes ...int) {
	t.Helper()
	for _, n := range nodes {
		wrong := rightAnswers(d, n)
		for deadline := time.Now().Add(10 * time.Second); strings.Contains(wrong, ": unaudited,") && time.Now().Before(deadline); {
			time.Sleep(200 * time.Millisecond)
			wrong = rightAnswers(d, n)
		}
		if wrong != "" {
			t.Fatalf("node n%d: %s", n+1, wrong)
		}
	}
}

type nodeState struct {
	Node      string `json:"node"`
	Raft      string `json:"raft_state"`
	Connected bool   `json:"connected"`
	Size      uint64 `json:"audit_size"`
	Delivered uint64 `json:"audit_delivered"`
}

func states(t *testing.T, d *devrun.Dev) (all []nodeState) {
	t.Helper()
	out, _, _ := cli(t, d, "cell", "status", "-o", "json")
	_ = json.Unmarshal([]byte(out), &all)
	return all
}

// port is a port of the installation, by its offset.
func port(t *testing.T, d *devrun.Dev, offset int) string {
	t.Helper()
	u, err := url.Parse(d.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	base, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", base+offset)
}

// leads asks the nodes themselves; -1 when nobody leads.
func leads(t *testing.T, d *devrun.Dev) int {
	t.Helper()
	for n := range d.MCPURLs {
		resp, err := (&http.Client{Timeout: time.Second}).Get("http://" + port(t, d, 10+5*n+4) + "/readyz/leader")
		if err != nil {
			continue
		}
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return n
		}
	}
	return -1
}

func leaderDies(t *testing.T, d *devrun.Dev) {
	old := -1
	eventually(t, "somebody leads", func() bool { old = leads(t, d); return old >= 0 })
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var calls atomic.Int64
	wrong := make(chan string, 100)
	for n := range d.MCPURLs {
		if n == old {
			continue
		}
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				calls.Add(1)
				if got, _ := outcome(d, n, d.Tokens["alice"], "demo", "echo", `{"message":"x"}`); got != "ok" {
					select {
					case wrong <- got:
					default:
					}
				}
			}
		})
	}
	begin := time.Now()
	kill(t, d.PIDs.Nodes[old])
	eventually(t, "another node leads", func() bool { n := leads(t, d); return n >= 0 && n != old })
	took := time.Since(begin)
	must(t, d, 0, "grant", "user:bob", "server:demo/slow")
	close(stop)
	wg.Wait()
	close(wrong)
	for w := range wrong {
		t.Errorf("a call failed: %s", w)
	}
	t.Logf("a new leader after %s; %d calls meanwhile", took.Round(time.Millisecond), calls.Load())
	restart(t, d, fmt.Sprintf("n%d", old+1))
	wantRight(t, d, 0, 1, 2)
}

// person makes a user who may call demo/echo, and a token.
func person(t *testing.T, d *devrun.Dev, name string) (token, id string) {
	t.Helper()
	must(t, d, 0, "user", "create", name)
	must(t, d, 0, "grant", "user:"+name, "server:demo/echo")
	out, _ := must(t, d, 0, "token", "create", name, "-o", "json")
	var made struct{ ID, Token string }
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		t.Fatal(err)
	}
	return made.Token, made.ID
}

func killWhileAway(t *testing.T, d *devrun.Dev) {
	token, _ := person(t, d, "carol")
	echo := func(n int) string {
		w, _ := outcome(d, n, token, "demo", "echo", `{"message":"x"}`)
		return w
	}
	if got := echo(2); got != "ok" {
		t.Fatal(got)
	}
	kill(t, d.PIDs.Nodes[2])
	begin := time.Now()
	must(t, d, 0, "kill", "user", "carol")
	eventually(t, "the kill is in force on the nodes that run", func() bool { return echo(0) == "unauthorized" && echo(1) == "unauthorized" })
	t.Logf("killed on two nodes %s after the command began", time.Since(begin).Round(time.Millisecond))
	// Long enough for the leader to have given up on the dead node, so that it does not bring the kill at once.
	time.Sleep(1500 * time.Millisecond)
	kill(t, d.PIDs.ControlPlane)
	restart(t, d, "n3")
	if got := echo(2); got != "unauthorized" {
		t.Fatalf("n3 does not know of the kill that its peers know of: %s", got)
	}
	restart(t, d, "controlplane")
	wantRight(t, d, 0, 1, 2)
}

func tokenRevoked(t *testing.T, d *devrun.Dev) {
	token, id := person(t, d, "dave")
	all := func(want string) bool {
		for n := range d.MCPURLs {
			if got, _ := outcome(d, n, token, "demo", "echo", `{"message":"x"}`); got != want {
				return false
			}
		}
		return true
	}
	eventually(t, "the token is good", func() bool { return all("ok") })
	begin := time.Now()
	must(t, d, 0, "token", "revoke", id)
	eventually(t, "the token is refused", func() bool { return all("unauthorized") })
	t.Logf("refused on every node %s after the command began", time.Since(begin).Round(time.Millisecond))
	wantRight(t, d, 0, 1, 2)
}

func stopUnderWay(t *testing.T, d *devrun.Dev) {
	node := -1
	eventually(t, "somebody leads", func() bool { node = leads(t, d); return node >= 0 })
	answers := make(chan [2]string, 4)
	for range cap(answers) {
		go func() {
			w, id := outcome(d, node, d.Tokens["alice"], "demo", "slow", `{"seconds":20}`)
			answers <- [2]string{w, id}
		}()
	}
	time.Sleep(500 * time.Millisecond) // the calls are at the server by then, and if not the test tests less
	name := fmt.Sprintf("n%d", node+1)
	must(t, d, 0, "dev", "stop", name, "--data-dir", d.Dir)
	var ids []string
	for range cap(answers) {
		a := <-answers
		if a[0] != "stopping" && a[0] != "ok" {
			t.Errorf("a call under way ended with: %s", a[0])
		}
		ids = append(ids, a[1])
	}
	out, _ := must(t, d, 0, "dev", "status", "--data-dir", d.Dir)
	if !strings.Contains(out, "exit status 0") {
		t.Errorf("the node did not end well:\n%s", out)
	}
	eventually(t, "another node leads", func() bool { n := leads(t, d); return n >= 0 && n != node })
	restart(t, d, name)
	eventually(t, "the calls that were cut off are on record", func() bool {
		out, _, _ := cli(t, d, "audit", "tail", "--limit", "1000", "--tool", "slow", "-o", "json")
		return !slices.ContainsFunc(ids, func(id string) bool { return !strings.Contains(out, id) })
	})
}

func strangers(t *testing.T, d *devrun.Dev) {
	cert := foreignCert(t)
	for name, offset := range map[string]int{"cellapi": 4, "raft": 12, "peer": 13} {
		addr := port(t, d, offset)
		for who, conf := range map[string]*tls.Config{
			"nobody": {}, "another CA's node": {Certificates: []tls.Certificate{cert}},
			"TLS 1.2": {Certificates: []tls.Certificate{cert}, MaxVersion: tls.VersionTLS12},
		} {
			conf.InsecureSkipVerify = true // it is the stranger who does not look
			conf.NextProtos = []string{"h2", "mcpvault-raft"}
			if got := knock(addr, conf); got != "" {
				t.Errorf("%s let %s in and said %q", name, who, got)
			}
		}
		for _, size := range []int{1, 100, 5000} {
			garbage := make([]byte, size)
			_, _ = rand.Read(garbage)
			if c, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
				_, _ = c.Write(garbage)
				_ = c.Close()
			}
		}
	}
	wantRight(t, d, 0, 1, 2)
	must(t, d, 0, "grant", "user:bob", "server:demo/leak")
}

// knock returns what the other side says to a stranger; "" when it refuses.
func knock(addr string, conf *tls.Config) string {
	raw, err := net.DialTimeout("tcp", addr, 2*time.Second)
	if err != nil {
		return ""
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(2 * time.Second))
	c := tls.Client(raw, conf)
	if _, err := io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		return ""
	}
	b := make([]byte, 64)
	n, _ := c.Read(b)
	return string(b[:n])
}

// foreignCert says of itself what a node's says, signed by somebody else.
func foreignCert(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "n2"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "mcpvault.dev", Path: "/cell/local/node/n2"}},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func grantsInParallel(t *testing.T, d *devrun.Dev) {
	const workers, each = 4, 6 // an even number of grants and revokes leaves nothing
	tokens := make([]string, workers)
	for w := range workers {
		tokens[w], _ = person(t, d, fmt.Sprintf("worker%d", w))
	}
	var wg sync.WaitGroup
	failed := make(chan error, workers*each)
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				verb := []string{"revoke", "grant"}[i%2]
				ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
				if _, err := d.CLI(ctx, verb, fmt.Sprintf("user:worker%d", w), "server:demo/echo"); err != nil {
					failed <- err
				}
				cancel()
				want := []string{"hidden", "ok"}[i%2]
				// The command has said that all nodes have it.
				for n := range d.MCPURLs {
					if got, _ := outcome(d, n, tokens[w], "demo", "echo", `{"message":"x"}`); got != want {
						failed <- fmt.Errorf("worker%d after %s on n%d: %s", w, verb, n+1, got)
					}
				}
			}
		})
	}
	wg.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
}

// auditDiskFull gives one node a small disk for its audit log and fills it. Only root can mount one.
func auditDiskFull(t *testing.T, d *devrun.Dev) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	dir := filepath.Join(nodeDir(t, d, "n3"), "audit")
	disk := t.TempDir()
	kill(t, d.PIDs.Nodes[2])
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=16m"); err != nil {
		restart(t, d, "n3")
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	if err := os.CopyFS(filepath.Join(disk, "audit"), os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	moveAside(t, dir, filepath.Join(disk, "audit"))
	restart(t, d, "n3")
	filler := filepath.Join(disk, "filler")
	fillDisk(t, filler)
	refund := func() (string, string) {
		return outcome(d, 2, d.Tokens["alice"], "payments", "refund", `{"amount":5}`)
	}
	var refused string
	eventually(t, "calls with effects are refused", func() bool {
		fillDisk(t, filler)
		got, id := refund()
		refused = id
		if got != "ok" && got != "unaudited" {
			t.Fatalf("on a full disk: %s", got)
		}
		return got == "unaudited"
	})
	if got, _ := outcome(d, 2, d.Tokens["alice"], "demo", "echo", `{"message":"x"}`); got != "ok" {
		t.Errorf("a read on a full disk: %s", got)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	eventually(t, "calls with effects are served again", func() bool { got, _ := refund(); return got == "ok" })
	t.Logf("served again %s after there was room", time.Since(begin).Round(time.Millisecond))
	eventually(t, "the refusal is on record", func() bool {
		out, _, _ := cli(t, d, "audit", "get", refused, "-o", "json")
		return strings.Contains(out, "audit_unavailable") && strings.Contains(out, `"deny"`)
	})
	must(t, d, 0, "audit", "verify")
	kill(t, d.PIDs.Nodes[2])
	moveBack(t, dir, filepath.Join(disk, "audit"))
	restart(t, d, "n3")
	wantRight(t, d, 2)
}

// moveAside puts a link to another directory in the place of dir; moveBack undoes it with the other's content.
func moveAside(t *testing.T, dir, other string) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(dir), os.Symlink(other, dir)); err != nil {
		t.Fatal(err)
	}
}

func moveBack(t *testing.T, dir, other string) {
	t.Helper()
	if err := errors.Join(os.Remove(dir), os.CopyFS(dir, os.DirFS(other))); err != nil {
		t.Fatal(err)
	}
}

func fillDisk(t *testing.T, name string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 16; size > 0; size /= 16 {
		for {
			if _, err := f.Write(make([]byte, size)); err != nil {
				break
			}
		}
	}
}

func everythingDies(t *testing.T, d *devrun.Dev) {
	session := initialize(t, d, 0)
	kill(t, d.PIDs.Postgres)
	kill(t, d.PIDs.ControlPlane)
	var ids []string
	for range 100 {
		for n := range d.MCPURLs {
			got, id := outcome(d, n, d.Tokens["alice"], "payments", "refund", `{"amount":5}`)
			if got != "ok" {
				t.Fatalf("without control plane and PostgreSQL, on n%d: %s", n+1, got)
			}
			ids = append(ids, id)
		}
	}
	for _, pid := range d.PIDs.Nodes {
		kill(t, pid)
	}
	begin := time.Now()
	restart(t, d, "n2")
	wantRight(t, d, 1)
	t.Logf("one node alone is right %s after the command to start it", time.Since(begin).Round(time.Millisecond))
	if got := inSession(t, d, 1, session); got != http.StatusOK {
		t.Errorf("a session that another node opened: status %d", got)
	}
	restart(t, d, "n1", "n3")
	wantRight(t, d, 0, 1, 2)
	restart(t, d, "postgres", "controlplane")
	eventually(t, "every node is back and has delivered its audit log", func() bool {
		all := states(t, d)
		return len(all) == 3 && !slices.ContainsFunc(all, func(s nodeState) bool { return !s.Connected || s.Size != s.Delivered })
	})
	must(t, d, 0, "audit", "verify")
	out, _ := must(t, d, 0, "audit", "tail", "--limit", "1000", "--tool", "refund", "-o", "json")
	for _, id := range ids {
		// Once as the intent's own id and its request id, once as the outcome's request id and what it refers to.
		if n := strings.Count(out, `"id": "`+id+`"`); n != 1 {
			t.Fatalf("call %s has %d records of its own", id, n)
		}
	}
	must(t, d, 0, "revoke", "user:alice", "server:payments/refund")
	for n := range d.MCPURLs {
		if got, _ := outcome(d, n, d.Tokens["alice"], "payments", "refund", `{"amount":5}`); got != "hidden" {
			t.Errorf("revoked, and n%d says %s", n+1, got)
		}
	}
}

// initialize opens a legacy session on a node and returns its id.
func initialize(t *testing.T, d *devrun.Dev, node int) string {
	t.Helper()
	a := post(t, d.MCPURLs[node]+"/demo", d.Tokens["alice"], "initialize", "",
		`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"e2e","version":"1"}}}`,
		"Mcp-Protocol-Version", "", "Mcp-Method", "")
	id := a.header.Get("Mcp-Session-Id")
	if id == "" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	return id
}

func inSession(t *testing.T, d *devrun.Dev, node int, session string) int {
	t.Helper()
	a := post(t, d.MCPURLs[node]+"/demo", d.Tokens["alice"], "tools/list", "", `{"jsonrpc":"2.0","id":2,"method":"tools/list"}`,
		"Mcp-Protocol-Version", "2025-11-25", "Mcp-Method", "", "Mcp-Session-Id", session)
	return a.status
}
