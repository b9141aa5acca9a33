package stdio_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/dataplane/upstream/stdio"
)

// The test binary is also the server that the tests run.
func TestMain(m *testing.M) {
	if os.Getenv("STDIO_TEST_SERVER") != "" {
		serve()
		return
	}
	goleak.VerifyTestMain(m)
}

// odd is a result that a decoder would spoil.
const odd = `{"content":[{"type":"hologram","n":12345678901234567890, "vendor":{"b":1,"a":2}}],"isError":false}`

// tool is a tool that a decoder would spoil.
const tool = `{"name":"odd", "inputSchema":{"oneOf":[{"type":"object"}],"type":"object"},"x-vendor":9007199254740993}`

// serve answers calls by the tool's name.
func serve() {
	switch os.Getenv("STDIO_TEST_SERVER") {
	case "ends":
		os.Exit(3)
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
	}
	var mu sync.Mutex
	say := func(s string) { mu.Lock(); fmt.Println(s); mu.Unlock() }
	fmt.Fprintln(os.Stderr, "hello from the server")
	say("this is no message")
	in := bufio.NewReader(os.Stdin)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			if os.Getenv("STDIO_TEST_SERVER") == "stubborn" {
				select {}
			}
			return
		}
		var m struct {
			ID     json.RawMessage
			Method string
			Params struct {
				Name string
				Meta map[string]json.RawMessage `json:"_meta"`
			}
		}
		if json.Unmarshal([]byte(line), &m) != nil {
			os.Exit(4)
		}
		reply := func(result string) { say(`{"jsonrpc":"2.0","id":` + string(m.ID) + `,"result":` + result + `}`) }
		text := func(s string) {
			b, _ := json.Marshal(s)
			reply(`{"content":[{"type":"text","text":` + string(b) + `}]}`)
		}
		switch {
		case m.Method == "initialize":
			reply(`{"protocolVersion":"2024-11-05","capabilities":{"tools":{}},"serverInfo":{"name":"t","version":"1"}}`)
		case m.Method == "tools/list":
			reply(`{"tools":[` + tool + `]}`)
		case m.Method != "tools/call" && m.ID != nil:
			say(`{"jsonrpc":"2.0","id":` + string(m.ID) + `,"error":{"code":-32601,"message":"no"}}`)
		case m.Method != "tools/call":
		case m.Params.Name == "odd":
			reply(odd)
		case m.Params.Name == "line":
			text(line)
		case m.Params.Name == "pid":
			text(fmt.Sprint(os.Getpid(), os.Getuid(), len(os.Environ())))
		case m.Params.Name == "net":
			_, err := net.Dial("tcp", os.Getenv("ADDR"))
			text(fmt.Sprint(err))
		case m.Params.Name == "progress":
			token := string(m.Params.Meta["progressToken"])
			for i := range 3 {
				say(fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%s,"progress":%d}}`, token, i))
			}
			reply(`{"content":[]}`)
		case m.Params.Name == "huge":
			say(strings.Repeat("x", 1<<20))
		case m.Params.Name == "die":
			os.Exit(5)
		case m.Params.Name == "slow":
			go func() { time.Sleep(50 * time.Millisecond); text("slow") }()
		}
	}
}

func digest(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256(b))
}

func config(t *testing.T, mode string) stdio.Server {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := stdio.Server{Command: self, Digest: digest(t, self), Env: map[string]string{"STDIO_TEST_SERVER": mode}, Network: true, MaxLine: 1 << 16}
	if os.Geteuid() == 0 {
		s.UID, s.GID = 65534, 65534
	}
	return s
}

func run(t *testing.T, cfg stdio.Server, log io.Writer) *stdio.Servers {
	t.Helper()
	servers := map[string]stdio.Server{"files": cfg}
	if p := stdio.Problems(servers); p != nil {
		t.Fatal(p)
	}
	if log == nil {
		log = io.Discard
	}
	s := stdio.New(servers, "1", slog.New(slog.NewTextHandler(log, nil)))
	t.Cleanup(s.Close)
	return s
}

func do(t *testing.T, s *stdio.Servers, session, body string) (*upstream.Response, error) {
	t.Helper()
	set := http.Header{}
	if session != "" {
		set[mcp.HeaderSession] = []string{session}
	}
	return s.Do(t.Context(), &upstream.Request{URL: "stdio:files", Method: http.MethodPost, Body: []byte(body), Set: set})
}

func open(t *testing.T, s *stdio.Servers) string {
	t.Helper()
	resp, err := do(t, s, "", `{"jsonrpc":"2.0","id":"first","method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"c","version":"1"}}}`)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"jsonrpc":"2.0","id":"first","result":{"protocolVersion":"2025-06-18",`; !strings.HasPrefix(string(resp.Body), want) || resp.Session == "" {
		t.Fatalf("%s, session %q", resp.Body, resp.Session)
	}
	return resp.Session
}

func call(id, tool string) string {
	return `{"jsonrpc":"2.0","id":` + id + `,"method":"tools/call","params":{"name":"` + tool + `","arguments":{}}}`
}

// say calls a tool and returns the text that it answers.
func say(t *testing.T, s *stdio.Servers, session, tool string) string {
	t.Helper()
	resp, err := do(t, s, session, call("7", tool))
	if err != nil {
		t.Fatal(err)
	}
	var m struct {
		Result struct{ Content []struct{ Text string } }
	}
	if err := json.Unmarshal(resp.Body, &m); err != nil || len(m.Result.Content) != 1 {
		t.Fatalf("%s: %v", resp.Body, err)
	}
	return m.Result.Content[0].Text
}

func TestAResultComesBackByteForByteUnderTheCallersID(t *testing.T) {
	t.Parallel()
	s := run(t, config(t, "1"), nil)
	session := open(t, s)
	for _, id := range []string{"9007199254740993", `"a\u0062"`, "1"} {
		resp, err := do(t, s, session, call(id, "odd"))
		if err != nil {
			t.Fatal(err)
		}
		if want := `{"jsonrpc":"2.0","id":` + id + `,"result":` + odd + `}`; string(resp.Body) != want {
			t.Errorf("%s\nwant %s", resp.Body, want)
		}
	}
}

func TestARequestIsSentAsItCameButForItsIDAndItsLineBreaks(t *testing.T) {
	t.Parallel()
	s := run(t, config(t, "1"), nil)
	session := open(t, s)
	resp, err := do(t, s, session, "{\"jsonrpc\":\"2.0\",\n \"id\": 77,\"method\":\"tools/call\",\"params\":{\"name\":\"line\",\"arguments\":{\"n\":12345678901234567890,\"x\":\"\\n\"}}}")
	if err != nil {
		t.Fatal(err)
	}
	var m struct {
		Result struct{ Content []struct{ Text string } }
	}
	if err := json.Unmarshal(resp.Body, &m); err != nil {
		t.Fatal(err)
	}
	want := "{\"jsonrpc\":\"2.0\",  \"id\": 2,\"method\":\"tools/call\",\"params\":{\"name\":\"line\",\"arguments\":{\"n\":12345678901234567890,\"x\":\"\\n\"}}}\n"
	if got := m.Result.Content[0].Text; got != want {
		t.Errorf("sent %q\nwant %q", got, want)
	}
}

func TestCallersWithTheSameIDsGetTheirOwnAnswersAndProgress(t *testing.T) {
	t.Parallel()
	s := run(t, config(t, "1"), nil)
	var wg sync.WaitGroup
	for range 20 {
		session := open(t, s)
		wg.Go(func() {
			body := strings.Replace(call("1", "progress"), `"arguments"`, `"_meta":{"progressToken":"mine"},"arguments"`, 1)
			resp, err := do(t, s, session, body)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Close()
			if resp.Events == nil {
				t.Errorf("no stream: %s", resp.Body)
				return
			}
			for i := 0; ; i++ {
				ev, err := resp.Events.Next()
				if errors.Is(err, io.EOF) && i == 4 {
					return
				}
				want := fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"mine","progress":%d}}`, i)
				if i == 3 {
					want = `{"jsonrpc":"2.0","id":1,"result":{"content":[]}}`
				}
				if err != nil || string(ev.Data) != want {
					t.Errorf("event %d: %q, %v", i, ev.Data, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestAProcessIsSharedByTheNodeOrBelongsToASession(t *testing.T) {
	t.Parallel()
	for per, same := range map[string]bool{"node": true, "session": false} {
		cfg := config(t, "1")
		cfg.Per, cfg.MaxProcesses = per, 2
		s := run(t, cfg, nil)
		a, b := open(t, s), open(t, s)
		pidA, pidB := say(t, s, a, "pid"), say(t, s, b, "pid")
		if (pidA == pidB) != same {
			t.Errorf("%s: %s and %s", per, pidA, pidB)
		}
		if os.Geteuid() == 0 && !strings.Contains(pidA, " 65534 1") {
			t.Errorf("pid, uid and number of variables: %s", pidA)
		}
		if same {
			continue
		}
		third := `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"c","version":"1"}}}`
		if _, err := do(t, s, "", third); !errors.Is(err, upstream.ErrBusy) {
			t.Errorf("a third process: %v", err)
		}
		if _, err := s.Do(t.Context(), &upstream.Request{URL: "stdio:files", Method: http.MethodDelete, Set: http.Header{mcp.HeaderSession: {a}}}); err != nil {
			t.Error(err)
		}
		if resp, err := do(t, s, a, call("1", "pid")); err != nil || resp.Status != http.StatusNotFound {
			t.Errorf("after its end: %+v, %v", resp, err)
		}
		open(t, s)
	}
}

func TestNothingIsStartedWhoseDigestDiffers(t *testing.T) {
	t.Parallel()
	script := filepath.Join(t.TempDir(), "x.js")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	wrong := "sha256:" + strings.Repeat("0", 64)
	for name, change := range map[string]func(*stdio.Server){
		"executable": func(c *stdio.Server) { c.Digest = wrong },
		"file":       func(c *stdio.Server) { c.Files = map[string]string{script: wrong} },
		"script":     func(c *stdio.Server) { c.Command, c.Digest = script, digest(t, script) },
	} {
		cfg := config(t, "1")
		change(&cfg)
		var log bytes.Buffer
		_, err := do(t, run(t, cfg, &log), "", call("1", "odd"))
		if !errors.Is(err, upstream.ErrUnavailable) || strings.Contains(log.String(), "server started") {
			t.Errorf("%s: %v\n%s", name, err, log.String())
		}
	}
}

func TestAnUnknownNameIsNotStarted(t *testing.T) {
	t.Parallel()
	s := run(t, config(t, "1"), nil)
	for _, u := range []string{"stdio:", "stdio:other", "files", "stdio:files/../x"} {
		if _, err := s.Do(t.Context(), &upstream.Request{URL: u, Method: http.MethodPost, Body: []byte(call("1", "odd"))}); !errors.Is(err, upstream.ErrUnavailable) {
			t.Errorf("%s: %v", u, err)
		}
	}
}

func TestAProcessThatEndsIsNotStartedAgainAtOnce(t *testing.T) {
	t.Parallel()
	s := run(t, config(t, "ends"), nil)
	if _, err := do(t, s, "", call("1", "odd")); err == nil {
		t.Fatal("answered")
	}
	refused := false
	for range 100 {
		if _, err := do(t, s, "", call("1", "odd")); errors.Is(err, upstream.ErrRefused) {
			refused = true
			break
		}
	}
	if !refused {
		t.Error("started again and again without a pause")
	}
}

func TestTheCallsUnderWayFailWhenTheProcessDiesAndTheSessionIsOver(t *testing.T) {
	t.Parallel()
	s := run(t, config(t, "1"), nil)
	session := open(t, s)
	if _, err := do(t, s, session, call("1", "die")); !errors.Is(err, upstream.ErrBroken) {
		t.Errorf("%v", err)
	}
	if resp, err := do(t, s, session, call("1", "odd")); err != nil || resp.Status != http.StatusNotFound {
		t.Errorf("%+v %v", resp, err)
	}
}

func TestALineWithoutAnEndEndsTheProcess(t *testing.T) {
	t.Parallel()
	s := run(t, config(t, "1"), nil)
	session := open(t, s)
	if _, err := do(t, s, session, call("1", "huge")); !errors.Is(err, upstream.ErrTooLarge) {
		t.Errorf("%v", err)
	}
}

func TestNoProcessOutlivesTheNodeEvenOneThatIgnoresSignals(t *testing.T) {
	t.Parallel()
	s := run(t, config(t, "stubborn"), nil)
	var pid int
	if _, err := fmt.Sscan(say(t, s, open(t, s), "pid"), &pid); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is still there: %v", pid, err)
	}
	if _, err := do(t, s, "", call("1", "odd")); !errors.Is(err, upstream.ErrUnavailable) {
		t.Errorf("started after the end: %v", err)
	}
}

func TestWithoutAGrantThereIsNoNetwork(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for _, granted := range []bool{true, false} {
		cfg := config(t, "1")
		cfg.Network, cfg.Env["ADDR"] = granted, l.Addr().String()
		s := run(t, cfg, nil)
		resp, err := do(t, s, "", call("1", "net"))
		if err != nil {
			if !granted && strings.Contains(err.Error(), "network: true") {
				t.Skip(err) // refused rather than started with the network
			}
			t.Fatal(err)
		}
		if reached := strings.Contains(string(resp.Body), `"<nil>"`) || strings.Contains(string(resp.Body), `\u003cnil`); reached != granted {
			t.Errorf("granted %v: %s", granted, resp.Body)
		}
	}
}

func TestWhatItWritesToStandardErrorIsLogged(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	s := run(t, config(t, "1"), &log)
	open(t, s)
	s.Close()
	if !strings.Contains(log.String(), "hello from the server") {
		t.Error(log.String())
	}
}

func TestBadConfigurationIsNamed(t *testing.T) {
	t.Parallel()
	p := strings.Join(stdio.Problems(map[string]stdio.Server{"Bad/Name": {Command: "node", Digest: "md5:1", Dir: "x", Per: "user", MaxCalls: -1, Files: map[string]string{"a": "b"}}}), "\n")
	for _, want := range []string{"a name is", "absolute path", "sha256", "files", "dir", "per", "limits"} {
		if !strings.Contains(p, want) {
			t.Errorf("nothing about %q in:\n%s", want, p)
		}
	}
}

func TestAScanKeepsWhatTheServerSaidAndTheErasItSpeaks(t *testing.T) {
	t.Parallel()
	got, err := stdio.Scan(t.Context(), "files", map[string]stdio.Server{"files": config(t, "1")}, "1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Tools) != 1 || string(got.Tools[0]) != tool || got.URL != "stdio:files" || strings.Join(got.ProtocolVersions, " ") != "2025-06-18 2024-11-05" {
		t.Errorf("%s %+v", got.Tools, got)
	}
	if _, err := stdio.Scan(t.Context(), "other", nil, "1", slog.New(slog.DiscardHandler)); err == nil {
		t.Error("scanned a server that is not configured")
	}
}
