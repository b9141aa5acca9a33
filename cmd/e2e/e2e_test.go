package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	mcpclient "github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/client/transport"
	mcpgo "github.com/mark3labs/mcp-go/mcp"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/mcpvault/mcpvault/bench/devrun"
)

func TestTheTourHolds(t *testing.T) {
	t.Parallel()
	bin := buildBinary(t)
	one.Lock()
	defer one.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, "demo")
	cmd.Env = append(os.Environ(), "NO_COLOR=1", "HOME="+t.TempDir())
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// TestStrangersUseTheCell lets clients and requests that were not written for this cell meet one installation.
func TestStrangersUseTheCell(t *testing.T) {
	t.Parallel()
	d := start(t)
	t.Run("official Go client", func(t *testing.T) { officialClient(t, d) })
	t.Run("mcp-go client", func(t *testing.T) { mcpGoClient(t, d) })
	t.Run("over TLS", func(t *testing.T) { overTLS(t, d) })
	t.Run("bad input", func(t *testing.T) { badInput(t, d) })
	t.Run("wrong tokens", func(t *testing.T) { wrongTokens(t, d) })
	t.Run("tenants", func(t *testing.T) { tenants(t, d) })
}

// bearer adds a token to every request.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

func officialClient(t *testing.T, d *devrun.Dev) {
	for _, c := range []struct{ name, path, prefix string }{{"server", "/demo", ""}, {"aggregate", "", "demo__"}} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			client := mcp.NewClient(&mcp.Implementation{Name: "official", Version: "1"}, nil)
			session, err := client.Connect(ctx, &mcp.StreamableClientTransport{
				Endpoint:   d.MCPURLs[1] + c.path,
				HTTPClient: &http.Client{Transport: bearer{d.Tokens["alice"], http.DefaultTransport}},
			}, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer session.Close()
			list, err := session.ListTools(ctx, nil)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, tool := range list.Tools {
				names = append(names, tool.Name)
			}
			if !slices.Contains(names, c.prefix+"echo") || slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(n, "refund") }) {
				t.Fatalf("alice is shown %v", names)
			}
			r, err := session.CallTool(ctx, &mcp.CallToolParams{Name: c.prefix + "echo", Arguments: map[string]any{"message": "hello"}})
			if err != nil || r.IsError {
				t.Fatalf("echo: %v %+v", err, r)
			}
			if _, err := session.CallTool(ctx, &mcp.CallToolParams{Name: "payments__refund"}); err == nil {
				t.Fatal("a hidden tool was called")
			}
		})
	}
}

func mcpGoClient(t *testing.T, d *devrun.Dev) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := mcpclient.NewStreamableHttpClient(d.MCPURLs[2]+"/demo",
		transport.WithHTTPHeaders(map[string]string{"Authorization": "Bearer " + d.Tokens["alice"]}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	init := mcpgo.InitializeRequest{}
	init.Params.ProtocolVersion = mcpgo.LATEST_PROTOCOL_VERSION
	init.Params.ClientInfo = mcpgo.Implementation{Name: "mcp-go", Version: "1"}
	if _, err := c.Initialize(ctx, init); err != nil {
		t.Fatal(err)
	}
	list, err := c.ListTools(ctx, mcpgo.ListToolsRequest{})
	if err != nil || len(list.Tools) != 3 {
		t.Fatalf("list: %v %+v", err, list)
	}
	req := mcpgo.CallToolRequest{}
	req.Params.Name, req.Params.Arguments = "echo", map[string]any{"message": "hello"}
	r, err := c.CallTool(ctx, req)
	if err != nil || r.IsError {
		t.Fatalf("echo: %v %+v", err, r)
	}
}

func overTLS(t *testing.T, d *devrun.Dev) {
	conf := devTLS(t, d)
	client := &http.Client{Transport: bearer{d.Tokens["alice"], &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	session, err := mcp.NewClient(&mcp.Implementation{Name: "tls", Version: "1"}, nil).Connect(ctx,
		&mcp.StreamableClientTransport{Endpoint: d.MCPTLSURLs[0] + "/demo", HTTPClient: client}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	if _, err := session.ListTools(ctx, nil); err != nil {
		t.Fatal(err)
	}
}

func badInput(t *testing.T, d *devrun.Dev) {
	url, alice := d.MCPURLs[0]+"/demo", d.Tokens["alice"]
	good := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"message":"hi"},` + meta + `}}`
	if a := post(t, url, alice, "tools/call", "echo", good); !allowed(a) {
		t.Fatalf("the good request: %d %s", a.status, a.body)
	}
	for name, c := range map[string]struct {
		body   string
		header []string
		status int
		code   int
	}{
		"malformed":         {good[:len(good)-1], nil, 400, -32700},
		"trailing data":     {good + "x", nil, 400, -32700},
		"empty":             {"", nil, 400, -32700},
		"batch":             {"[" + good + "]", nil, 400, -32600},
		"duplicate key":     {strings.Replace(good, `"name":"echo"`, `"name":"echo","name":"leak"`, 1), nil, 400, -32600},
		"case-variant key":  {strings.Replace(good, `"name":"echo"`, `"name":"echo","Name":"leak"`, 1), nil, 400, -32600},
		"duplicate method":  {strings.Replace(good, `"id":1`, `"id":1,"method":"tools/list"`, 1), nil, 400, -32600},
		"invalid UTF-8":     {strings.Replace(good, "hi", "h\xff", 1), nil, 400, -32700},
		"null id":           {strings.Replace(good, `"id":1`, `"id":null`, 1), nil, 400, -32600},
		"too large":         {strings.Replace(good, "hi", strings.Repeat("x", 5<<20), 1), nil, 413, -32600},
		"too deep":          {strings.Replace(good, `"hi"`, strings.Repeat("[", 100)+strings.Repeat("]", 100), 1), nil, 400, -32600},
		"header says other": {good, []string{"Mcp-Name", "leak"}, 400, -32020},
		"unknown version":   {good, []string{"Mcp-Protocol-Version", "1999-01-01"}, 400, -32022},
		"text/plain":        {good, []string{"Content-Type", "text/plain"}, 415, 0},
		"foreign origin":    {good, []string{"Origin", "https://evil.example"}, 403, 0},
	} {
		t.Run(name, func(t *testing.T) {
			a := post(t, url, alice, "tools/call", "echo", c.body, c.header...)
			if a.status != c.status {
				t.Fatalf("status %d, want %d: %s", a.status, c.status, a.body)
			}
			if c.code != 0 && (a.msg.Error == nil || a.msg.Error.Code != c.code || a.msg.Error.Message == "") {
				t.Fatalf("want error %d with words, got %s", c.code, a.body)
			}
		})
	}
	if a := post(t, url, alice, "tools/call", "echo", good); !allowed(a) {
		t.Fatalf("the good request afterwards: %d %s", a.status, a.body)
	}
}

func wrongTokens(t *testing.T, d *devrun.Dev) {
	url, alice := d.MCPURLs[0]+"/demo", d.Tokens["alice"]
	parts := strings.Split(alice, ".")
	none := "eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0In0." + parts[1] + "."
	flipped := []byte(alice)
	flipped[len(flipped)-10] ^= 1
	bodies := map[string]bool{}
	for name, token := range map[string]string{
		"none": "", "alg none": none, "signature flipped": string(flipped), "other tenant": d.Tokens["mallory"], "noise": "abc",
	} {
		a := call(t, url, token, "echo", `{"message":"hi"}`)
		if a.status != 401 || !strings.Contains(a.header.Get("WWW-Authenticate"), "resource_metadata=") {
			t.Errorf("%s: %d %v %s", name, a.status, a.header, a.body)
		}
		if a.msg.Error != nil {
			bodies[a.msg.Error.Message] = true
		}
	}
	if len(bodies) > 1 {
		t.Errorf("the answers tell the reasons apart: %v", bodies)
	}
}

func tenants(t *testing.T, d *devrun.Dev) {
	body := `{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{` + meta + `}}`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, d.MCPURLs[0], strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "globex.localhost"
	for k, v := range map[string]string{
		"Content-Type": "application/json", "Accept": "application/json, text/event-stream",
		"Mcp-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/list", "Authorization": "Bearer " + d.Tokens["mallory"],
	} {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var msg struct {
		Result *struct {
			Tools []json.RawMessage `json:"tools"`
		} `json:"result"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&msg); err != nil || msg.Result == nil || len(msg.Result.Tools) != 0 {
		t.Fatalf("mallory at her own tenant: %d %v %+v", resp.StatusCode, err, msg)
	}
}

func TestANodeWithASpoiltSnapshotServesTheRightOne(t *testing.T) {
	t.Parallel()
	d := start(t)
	kill(t, d.PIDs.Nodes[2])
	blobs, err := filepath.Glob(filepath.Join(nodeDir(t, d, "n3"), "blobs", "*", "*"))
	if err != nil || len(blobs) == 0 {
		t.Fatalf("the node has no shards on disk: %v", err)
	}
	for _, name := range blobs {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 0x40
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kill(t, d.PIDs.ControlPlane)
	must(t, d, 0, "dev", "restart", "n3", "--data-dir", d.Dir)
	url := d.MCPURLs[2]
	eventually(t, "the node serves what its peers gave it", func() bool {
		return allowed(call(t, url+"/demo", d.Tokens["alice"], "echo", `{"message":"hi"}`))
	})
	if a := call(t, url+"/payments", d.Tokens["alice"], "refund", `{"amount":5}`); !hidden(a) {
		t.Fatalf("refund: %s", a.body)
	}
}

func TestATruncatedAuditLogIsReported(t *testing.T) {
	t.Parallel()
	d := start(t)
	for range 5 {
		if a := call(t, d.MCPURLs[2]+"/demo", d.Tokens["alice"], "echo", `{"message":"hi"}`); !allowed(a) {
			t.Fatalf("%s", a.body)
		}
	}
	must(t, d, 0, "audit", "verify")
	kill(t, d.PIDs.Nodes[2])
	dir := filepath.Join(nodeDir(t, d, "n3"), "audit")
	must(t, d, 0, "audit", "verify", "--dir", dir)
	segments, err := filepath.Glob(filepath.Join(dir, "*.seg*"))
	if err != nil || len(segments) == 0 {
		entries, _ := os.ReadDir(dir)
		t.Fatalf("no segment in %v", entries)
	}
	info, err := os.Stat(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(segments[0], info.Size()/2); err != nil {
		t.Fatal(err)
	}
	if out, errs, status := cli(t, d, "audit", "verify", "--dir", dir); status == 0 || out+errs == "" {
		t.Fatalf("the cut was not found: %s%s", out, errs)
	}
	if _, _, status := cli(t, d, "dev", "restart", "n3", "--data-dir", d.Dir); status == 0 {
		logs, _ := os.ReadFile(filepath.Join(d.Dir, "logs", "n3.log"))
		t.Logf("%s", logs)
		if a, err := http.Get(d.MCPURLs[2]); err == nil {
			a.Body.Close()
			t.Fatal("a node whose audit log was cut serves as if nothing had happened")
		}
	}
}

func TestPostgreSQLGoneInTheMiddleOfAWrite(t *testing.T) {
	t.Parallel()
	d := start(t)
	kill(t, d.PIDs.Postgres)
	_, errs, status := cli(t, d, "grant", "user:bob", "server:demo/echo")
	if status != 7 || !strings.Contains(errs, "PostgreSQL") {
		t.Fatalf("exit status %d, want 7 and words about PostgreSQL: %s", status, errs)
	}
	if a := call(t, d.MCPURLs[0]+"/demo", d.Tokens["alice"], "echo", `{"message":"hi"}`); !allowed(a) {
		t.Fatalf("the cell stopped with the database: %s", a.body)
	}
	must(t, d, 0, "dev", "restart", "postgres", "--data-dir", d.Dir)
	eventually(t, "the control plane writes again", func() bool {
		_, _, status := cli(t, d, "grant", "user:bob", "server:demo/echo")
		return status == 0
	})
	out, _ := must(t, d, 0, "grants", "list", "-o", "json")
	if n := strings.Count(out, "user:bob"); n != 1 {
		t.Fatalf("bob has %d grants, want the one that was acknowledged:\n%s", n, out)
	}
}

func TestAStopLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	bin := buildBinary(t)
	one.Lock()
	defer one.Unlock()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGKILL} {
		d, err := devrun.Start(t.Context(), bin)
		if err != nil {
			t.Fatal(err)
		}
		pids := append([]int{d.PIDs.ControlPlane}, d.PIDs.Nodes...)
		if sig != syscall.SIGKILL {
			// PostgreSQL is no child of ours to end when dev itself is killed: the next start finds and ends it.
			pids = append(pids, d.PIDs.Postgres)
		}
		begin := time.Now()
		if err := syscall.Kill(d.PID(), sig); err != nil {
			t.Fatal(err)
		}
		eventually(t, fmt.Sprintf("after %s no process is left", sig), func() bool {
			return !slices.ContainsFunc(pids, func(pid int) bool { return syscall.Kill(pid, 0) == nil && !zombie(pid) })
		})
		t.Logf("%s: gone after %s", sig, time.Since(begin).Round(time.Millisecond))
		if sig == syscall.SIGKILL {
			_ = syscall.Kill(d.PIDs.Postgres, syscall.SIGTERM)
		}
		_ = d.Stop()
	}
}

func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

// nodeDir finds the data directory of a node.
func nodeDir(t *testing.T, d *devrun.Dev, node string) string {
	t.Helper()
	for _, pattern := range []string{"cells/*/" + node, "cell/*/" + node, "nodes/*-" + node, "nodes/" + node, "data/*-" + node, "*-" + node} {
		if m, _ := filepath.Glob(filepath.Join(d.Dir, pattern)); len(m) == 1 {
			return m[0]
		}
	}
	entries, _ := os.ReadDir(d.Dir)
	t.Fatalf("no data directory of %s in %v", node, entries)
	return ""
}
