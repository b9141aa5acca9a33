package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/bench/devrun"
)

// binary is the mcpvault under test, built once.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "mcpvault-e2e-")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "mcpvault")
	out, err := exec.Command("go", "build", "-o", bin, "github.com/mcpvault/mcpvault/cmd/mcpvault").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return bin, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if bin, err := binary(); err == nil {
		_ = os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(code)
}

func buildBinary(t *testing.T) string {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// one lets the tests that start an installation of their own do so one after the other: the machine is small.
var one sync.Mutex

func start(t *testing.T, flags ...string) *devrun.Dev {
	t.Helper()
	bin := buildBinary(t)
	one.Lock()
	t.Cleanup(one.Unlock)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	d, err := devrun.Start(ctx, bin, flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, d.Dir)
		}
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func showLogs(t *testing.T, dir string) {
	t.Helper()
	logs, _ := filepath.Glob(filepath.Join(dir, "logs", "*.log"))
	for _, name := range logs {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		if len(b) > 3000 {
			b = b[len(b)-3000:]
		}
		t.Logf("%s:\n%s", filepath.Base(name), b)
	}
}

// cli runs a command and returns its output and exit status.
func cli(t *testing.T, d *devrun.Dev, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), buildBinary(t), args...)
	cmd.Env = append(os.Environ(), "MCPVAULT_CONFIG="+filepath.Join(d.Dir, "cli.yaml"), "NO_COLOR=1")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must runs a command that has to end with the given status.
func must(t *testing.T, d *devrun.Dev, status int, args ...string) (stdout, stderr string) {
	t.Helper()
	out, errs, got := cli(t, d, args...)
	if got != status {
		t.Fatalf("mcpvault %s: exit status %d, want %d\n%s%s", strings.Join(args, " "), got, status, out, errs)
	}
	return out, errs
}

// eventually polls: the other side is another process.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal("not within 20 s: " + what)
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

// answer is what a raw request gave.
type answer struct {
	status int
	header http.Header
	body   []byte
	msg    struct {
		ID     json.RawMessage `json:"id"`
		Result *struct {
			IsError           bool            `json:"isError"`
			StructuredContent json.RawMessage `json:"structuredContent"`
			Content           json.RawMessage `json:"content"`
			Tools             []struct {
				Name string `json:"name"`
			} `json:"tools"`
		} `json:"result"`
		Error *struct {
			Code    int             `json:"code"`
			Message string          `json:"message"`
			Data    json.RawMessage `json:"data"`
		} `json:"error"`
	}
}

const meta = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"e2e","version":"1"}}`

// post sends a body as a 2026-07-28 client would; header entries replace the usual ones, an empty value removes one.
func post(t *testing.T, url, token, method, name, body string, header ...string) *answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	req.Header.Set("Mcp-Protocol-Version", "2026-07-28")
	req.Header.Set("Mcp-Method", method)
	if name != "" {
		req.Header.Set("Mcp-Name", name)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i+1] == "" {
			req.Header.Del(header[i])
			continue
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := (&http.Client{Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	a := &answer{status: resp.StatusCode, header: resp.Header}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	raw := a.body
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		for line := range strings.Lines(string(a.body)) {
			if data, ok := strings.CutPrefix(line, "data:"); ok && strings.TrimSpace(data) != "" {
				raw = []byte(data)
			}
		}
	}
	_ = json.Unmarshal(raw, &a.msg)
	return a
}

func call(t *testing.T, url, token, tool, args string) *answer {
	t.Helper()
	body := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":%q,"arguments":%s,%s}}`, tool, args, meta)
	return post(t, url, token, "tools/call", tool, body)
}

func allowed(a *answer) bool { return a.status == 200 && a.msg.Result != nil && !a.msg.Result.IsError }

// hidden reports whether the answer is the one for a tool that does not exist.
func hidden(a *answer) bool { return a.msg.Error != nil && a.msg.Error.Code == -32602 }

func devTLS(t *testing.T, d *devrun.Dev) *tls.Config {
	t.Helper()
	pem, err := os.ReadFile(d.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatal("ca_file holds no certificate")
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
}
