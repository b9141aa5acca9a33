package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/demo"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/devmode"
	"github.com/mcpvault/mcpvault/kit/ports"
)

// TestMain makes this test binary answer as mcpvault, for the tests' commands and for the servers that dev starts.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"mcpvault": main})
}

// machine lets one installation run at a time: each is six processes.
var machine sync.Mutex

// world is a private HOME and directory to run the program in.
type world struct {
	t    *testing.T
	home string
	env  []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	machine.Lock()
	t.Cleanup(machine.Unlock)
	home := t.TempDir()
	return &world{t, home, []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "NO_COLOR=1", "GORACE=atexit_sleep_ms=0"}}
}

func (w *world) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "mcpvault", args...)
	cmd.Dir, cmd.Env = w.home, w.env
	return cmd
}

// run runs a command to its end and demands its exit status.
func (w *world) run(want int, args ...string) (stdout, stderr string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := w.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != want {
		w.t.Fatalf("mcpvault %s: exit status %d, want %d\n%s%s", strings.Join(args, " "), got, want, out.String(), errs.String())
	}
	return out.String(), errs.String()
}

// dev starts an installation in the world's default directory and waits for dev.json.
func (w *world) dev(args ...string) (*exec.Cmd, *devmode.Info) {
	w.t.Helper()
	var out bytes.Buffer
	cmd := w.command(context.Background(), append([]string{"dev", "--port-base", w.base()}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	var info *devmode.Info
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	w.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		if info != nil {
			forget(w.t, info.DatabaseURL)
		}
		if w.t.Failed() {
			w.t.Log(out.String())
		}
	})
	w.eventually("dev is ready", func() bool {
		select {
		case <-ended:
			w.t.Fatalf("dev ended: %s", out.String())
		default:
		}
		info = w.info()
		return info != nil
	})
	return cmd, info
}

// forget removes the database's files where they could not live in the test's own directory: as root, the server's user
// cannot reach that.
func forget(t *testing.T, databaseURL string) {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Error(err)
		return
	}
	home := filepath.Dir(u.Query().Get("host"))
	if strings.HasPrefix(home, "/var/tmp/mcpvault-pg-") {
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	}
}

func (w *world) base() string {
	w.t.Helper()
	block, err := ports.Take()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = block.Close() })
	return strconv.Itoa(block.Base)
}

// info reads dev.json; nil while there is none.
func (w *world) info() *devmode.Info {
	raw, err := os.ReadFile(filepath.Join(w.home, ".mcpvault", "dev.json"))
	if err != nil {
		return nil
	}
	info := &devmode.Info{}
	if err := json.Unmarshal(raw, info); err != nil {
		w.t.Fatalf("dev.json is not whole: %v", err)
	}
	return info
}

func (w *world) eventually(what string, f func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	w.t.Fatalf("not within a minute: %s", what)
}

func alive(pid int) bool {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return syscall.Kill(pid, 0) == nil && !errors.Is(err, fs.ErrNotExist)
	}
	return !strings.Contains(string(raw), ") Z ")
}

func (i *devPIDs) all() []int { return append([]int{i.ControlPlane, i.Postgres}, i.Nodes...) }

type devPIDs devmode.PIDs

func (w *world) gone(p devmode.PIDs) {
	w.t.Helper()
	pids := devPIDs(p)
	w.eventually("no process is left", func() bool {
		for _, pid := range pids.all() {
			if pid != 0 && alive(pid) {
				return false
			}
		}
		return true
	})
}

func TestDevFromItsFirstStartToItsEnd(t *testing.T) {
	w := newWorld(t)
	cmd, info := w.dev()
	for _, name := range []string{"dev.json", "cli.yaml", "dev.sock"} {
		if st, err := os.Stat(filepath.Join(w.home, ".mcpvault", name)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, st, err)
		}
	}
	if len(info.MCPURLs) != 3 || len(info.MCPTLSURLs) != 3 || len(info.Tokens) != 4 || info.PIDs.Postgres == 0 || info.DatabaseURL == "" {
		t.Fatalf("%+v", info)
	}
	for i, url := range info.MCPURLs {
		if !strings.HasSuffix(url, "/mcp") || !strings.HasPrefix(info.MCPTLSURLs[i], "https://") || !alive(info.PIDs.Nodes[i]) {
			t.Errorf("node %d: %s %s", i, url, info.MCPTLSURLs[i])
		}
	}
	w.commands()
	w.breakage(info)
	w.run(0, "dev", "stop", "all")
	w.eventually("dev ends", func() bool { return !alive(cmd.Process.Pid) })
	w.gone(info.PIDs)
	if w.info() != nil {
		t.Error("dev.json is left")
	}
	if _, err := os.Stat(filepath.Join(w.home, ".mcpvault", "dev.sock")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the socket is left")
	}
	// A later start finds everything.
	_, again := w.dev("--no-demo")
	if again.Demo || again.Tokens["alice"] == info.Tokens["alice"] {
		t.Error("the tokens are not of today, or the demo servers are there")
	}
	if out, _ := w.run(0, "server", "list", "-o", "name"); out != "" {
		t.Errorf("servers without demo: %s", out)
	}
	w.run(0, "user", "get", "alice")
}

// commands tries what the banner tells people to try.
func (w *world) commands() {
	w.t.Helper()
	if out, _ := w.run(0, "mcp", "call", "demo/echo", "message=hi", "--as", "alice"); out != "hi\n" {
		w.t.Errorf("echo: %q", out)
	}
	w.run(4, "mcp", "call", "payments/refund", "amount=5", "--as", "alice")
	w.run(0, "mcp", "call", "payments/balance", "--as", "alice")
	w.run(4, "mcp", "call", "demo/echo", "message=hi", "--as", "mallory")
	w.run(4, "access", "explain", "alice", "payments/refund", "amount=5")
	if _, errs := w.run(0, "grant", "user:alice", "server:payments/refund", "--when", "context.args.amount < 100", "--for", "1h"); !strings.Contains(errs, "applied by 3 of 3 nodes in ") {
		w.t.Errorf("grant: %s", errs)
	}
	w.run(0, "mcp", "call", "payments/refund", "amount=5", "--as", "alice", "--node", "n3")
	w.run(4, "mcp", "call", "payments/refund", "amount=500", "--as", "alice")
	w.run(0, "snapshot", "verify")
	w.run(0, "audit", "verify")
	// A node says every other second how it is; what it said while it was starting may still stand.
	w.eventually("the doctor finds nothing", func() bool { return w.command(context.Background(), "doctor").Run() == nil })
	if out, _ := w.run(0, "mcp", "list", "--as", "alice", "-o", "name"); !strings.Contains(out, "demo__echo\n") {
		w.t.Errorf("list: %s", out)
	}
}

// breakage kills processes behind dev's back: dev stays, and brings back only what it is told to.
func (w *world) breakage(info *devmode.Info) {
	w.t.Helper()
	if err := syscall.Kill(info.PIDs.Nodes[1], syscall.SIGKILL); err != nil {
		w.t.Fatal(err)
	}
	w.eventually("the node is gone", func() bool {
		out, _ := w.run(0, "dev", "status")
		return strings.Contains(out, "signal: killed")
	})
	w.run(0, "dev", "restart", "n2")
	now := w.info()
	if now.PIDs.Nodes[1] == info.PIDs.Nodes[1] || !alive(now.PIDs.Nodes[1]) || now.PIDs.Nodes[0] != info.PIDs.Nodes[0] {
		w.t.Errorf("process ids: %+v, before %+v", now.PIDs, info.PIDs)
	}
	w.run(0, "mcp", "call", "demo/echo", "message=hi", "--as", "alice", "--node", "n2")
	w.run(3, "dev", "restart", "n9")
	*info = *now
}

func TestAKilledDevTakesItsServersWithIt(t *testing.T) {
	w := newWorld(t)
	cmd, info := w.dev("--nodes", "1", "--no-demo")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	w.gone(info.PIDs)
	// And the next start is none the worse for it.
	w.dev("--nodes", "1", "--no-demo")
}

func TestEphemeralLeavesNothing(t *testing.T) {
	w := newWorld(t)
	cmd, info := w.dev("--ephemeral", "--data-dir", filepath.Join(w.home, ".mcpvault"), "--nodes", "1")
	// A terminal and a build tool both pass an interrupt on.
	for range 3 {
		_ = cmd.Process.Signal(syscall.SIGINT)
	}
	w.eventually("dev ends", func() bool { return !alive(cmd.Process.Pid) })
	w.gone(info.PIDs)
	if left, _ := os.ReadDir(w.home); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestATakenPortIsSaidBeforeAnythingStarts(t *testing.T) {
	w := newWorld(t)
	base := w.base()
	n, _ := strconv.Atoi(base)
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(n+10)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, errs := w.run(6, "dev", "--port-base", base)
	if !strings.Contains(errs, "port "+strconv.Itoa(n+10)+" is in use") || !strings.Contains(errs, "--port-base") {
		t.Fatal(errs)
	}
}

func TestTheTourHolds(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts six processes and kills most of them")
	}
	w := newWorld(t)
	out, errs := w.run(0, "demo", "-o", "json")
	var sum demo.Summary
	if err := json.Unmarshal([]byte(out), &sum); err != nil || !sum.OK || len(sum.Steps) != 10 {
		t.Fatalf("%+v %v\n%s", sum, err, errs)
	}
	for _, s := range sum.Steps {
		t.Logf("%6.2f s  %s %v", s.Seconds, s.Name, s.Figures)
	}
	if left, _ := os.ReadDir(w.home); len(left) != 0 {
		t.Errorf("left in HOME: %v", left)
	}
}

func TestConfigurationFilesAreChecked(t *testing.T) {
	w := newWorld(t)
	bad := filepath.Join(w.home, "cell.yaml")
	if err := os.WriteFile(bad, []byte("cel: local\nnode: n1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs := w.run(2, "config", "validate", bad, "--kind", "cell"); !strings.Contains(errs, "cel") || !strings.Contains(errs, "data_dir") {
		t.Error(errs)
	}
	w.run(2, "config", "validate", bad, "--kind", "toaster")
	w.run(2, "internal", "cell")
}
