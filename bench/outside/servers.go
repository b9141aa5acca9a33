package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/mcpvault/mcpvault/bench/devrun"
)

// nobody is whom servers under stdio run as when the run is root's.
const nobody = 65534

// servers puts servers from npm behind a cell: filesystem and memory over standard input and output, everything over
// Streamable HTTP and over the transport of 2024-11-05. Each is listed and called, and what it answers is compared byte for
// byte with what it answers without the cell.
func servers(ctx context.Context, k *toolkit, bin string) error {
	work, err := os.MkdirTemp("", "mcpvault-stdio-")
	if err != nil {
		return err
	}
	err = serversIn(ctx, k, bin, work)
	return errors.Join(err, os.RemoveAll(work))
}

func serversIn(ctx context.Context, k *toolkit, bin, work string) error {
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	share := filepath.Join(work, "share")
	if err := os.Mkdir(share, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(share, "note.txt"), []byte("a note é \u2028 9007199254740993\n"), 0o644); err != nil {
		return err
	}
	node, err := filepath.EvalSymlinks(k.node)
	if err != nil {
		return err
	}
	// Another user cannot read the cache of this one.
	modules := filepath.Join(work, "node_modules")
	if err := command(ctx, work, nil, "cp", "-rL", filepath.Join(k.dir, "node_modules"), modules); err != nil {
		return err
	}
	stdio := map[string]any{}
	for name, args := range map[string][]string{
		"files":  {filepath.Join(modules, "@modelcontextprotocol/server-filesystem/dist/index.js"), share},
		"memory": {filepath.Join(modules, "@modelcontextprotocol/server-memory/dist/index.js")},
	} {
		exe, err := fileDigest(node)
		if err != nil {
			return err
		}
		script, err := fileDigest(args[0])
		if err != nil {
			return err
		}
		home := filepath.Join(work, "home-"+name)
		if err := os.Mkdir(home, 0o700); err != nil {
			return err
		}
		cfg := map[string]any{
			"command": node, "digest": exe, "args": args, "files": map[string]string{args[0]: script},
			"env": map[string]string{"MEMORY_FILE_PATH": filepath.Join(home, "memory.jsonl")}, "dir": home,
		}
		if os.Geteuid() == 0 {
			cfg["uid"], cfg["gid"] = nobody, nobody
			if err := os.Chown(home, nobody, nobody); err != nil {
				return err
			}
		}
		stdio[name] = cfg
	}
	raw, err := yaml.Marshal(map[string]any{"stdio": stdio})
	if err != nil {
		return err
	}
	config := filepath.Join(work, "node.yaml")
	if err := os.WriteFile(config, raw, 0o600); err != nil {
		return err
	}
	d, err := devrun.Start(ctx, bin, "--no-demo", "--node-config", config)
	if err != nil {
		return err
	}
	return errors.Join(stdioServers(ctx, d, bin, work), httpServers(ctx, k, d), d.Stop())
}

func fileDigest(path string) (string, error) {
	b, err := os.ReadFile(path)
	return fmt.Sprintf("sha256:%x", sha256.Sum256(b)), err
}

// stdioServers scans each server as a node would start it, registers what was found, and calls it through two nodes.
func stdioServers(ctx context.Context, d *devrun.Dev, bin, work string) error {
	nodeConfig, err := nodeConfig(d.Dir)
	if err != nil {
		return err
	}
	for name, calls := range map[string][]string{
		"files":  {`{"name":"read_text_file","arguments":{"path":"` + work + `/share/note.txt"}}`, `{"name":"list_allowed_directories","arguments":{}}`},
		"memory": {`{"name":"create_entities","arguments":{"entities":[{"name":"a","entityType":"t","observations":["9007199254740993"]}]}}`, `{"name":"read_graph","arguments":{}}`},
	} {
		scan := exec.CommandContext(ctx, bin+"-cell", "stdio", "scan", name, "-config", nodeConfig)
		var errs bytes.Buffer
		scan.Stderr = &errs
		out, err := scan.Output()
		if err != nil {
			return fmt.Errorf("scan %s: %w\n%s", name, err, errs.Bytes())
		}
		surface := filepath.Join(work, name+".json")
		if err := os.WriteFile(surface, out, 0o600); err != nil {
			return err
		}
		if err := publish(ctx, d, name, "--url", "stdio:"+name, "--surface", surface); err != nil {
			return err
		}
		for i, call := range calls {
			answer, err := legacyCall(ctx, d.MCPURLs[0]+"/"+name, d.Tokens["alice"], "9007199254740993", call)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if !bytes.Contains(answer, []byte(`"content":[`)) || !bytes.Contains(answer, []byte(`"id":9007199254740993`)) || bytes.Contains(answer, []byte(`"isError":true`)) {
				return fmt.Errorf("%s answered %s", name, answer)
			}
			fmt.Printf("ok   stdio %s call %d: %.120s\n", name, i+1, answer)
		}
	}
	return nil
}

// nodeConfig is the configuration that dev wrote for its first node.
func nodeConfig(dir string) (string, error) {
	var found string
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".yaml") && found == "" {
			if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte("\nstdio:")) {
				found = path
			}
		}
		return nil
	})
	if err == nil && found == "" {
		err = errors.New("no node's configuration has the stdio servers")
	}
	return found, err
}

// httpServers runs the everything server from npm in both of its HTTP transports and compares its answers.
func httpServers(ctx context.Context, k *toolkit, d *devrun.Dev) error {
	script := filepath.Join(k.dir, "node_modules/@modelcontextprotocol/server-everything/dist/index.js")
	for _, t := range []struct{ mode, name, scheme, path string }{
		{"streamableHttp", "npm-everything", "http://", "/mcp"}, {"sse", "npm-sse", "sse+http://", "/sse"},
	} {
		addr, err := devrun.FreeAddr()
		if err != nil {
			return err
		}
		_, port, _ := strings.Cut(addr, ":")
		cmd := exec.CommandContext(ctx, k.node, script, t.mode)
		cmd.Env = append(os.Environ(), "PORT="+port)
		if err := cmd.Start(); err != nil {
			return err
		}
		err = httpServer(ctx, d, t.name, t.scheme+addr+t.path, addr)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	return nil
}

func httpServer(ctx context.Context, d *devrun.Dev, name, address, addr string) error {
	if err := devrun.WaitListen(ctx, addr); err != nil {
		return err
	}
	if err := publish(ctx, d, name, "--url", address); err != nil {
		return err
	}
	for _, call := range []string{`{"name":"echo","arguments":{"message":"é 9007199254740993"}}`, `{"name":"get-tiny-image","arguments":{}}`} {
		through, err := legacyCall(ctx, d.MCPURLs[0]+"/"+name, d.Tokens["alice"], `"x"`, call)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(address, "sse+") {
			direct, err := legacyCall(ctx, address, "", `"x"`, call)
			if err != nil {
				return err
			}
			if !bytes.Equal(direct, through) {
				return fmt.Errorf("directly %s\nthrough the cell %s", direct, through)
			}
		}
		if !bytes.Contains(through, []byte(`"content":[`)) || bytes.Contains(through, []byte(`"isError":true`)) {
			return fmt.Errorf("answered %s", through)
		}
		fmt.Printf("ok   %s: %.100s\n", name, through)
	}
	return nil
}

// legacyCall initializes a session, calls a tool under a raw id, and returns the response message as it came.
func legacyCall(ctx context.Context, url, token, id, params string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	session := ""
	post := func(body string) ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Accept", "application/json, text/event-stream")
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		if session != "" {
			req.Header.Set("Mcp-Session-Id", session)
			req.Header.Set("MCP-Protocol-Version", "2025-06-18")
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			return nil, err
		}
		if resp.StatusCode >= http.StatusMultipleChoices {
			return nil, fmt.Errorf("status %d: %s", resp.StatusCode, b)
		}
		if s := resp.Header.Get("Mcp-Session-Id"); s != "" {
			session = s
		}
		return message(b), nil
	}
	if _, err := post(`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"outside","version":"1"}}}`); err != nil {
		return nil, err
	}
	if _, err := post(`{"jsonrpc":"2.0","method":"notifications/initialized"}`); err != nil {
		return nil, err
	}
	return post(`{"jsonrpc":"2.0","id":` + id + `,"method":"tools/call","params":` + params + `}`)
}

// message is a body's JSON, or the last message of its event stream.
func message(b []byte) []byte {
	if json.Valid(b) {
		return b
	}
	var last []byte
	for line := range bytes.Lines(b) {
		if data, ok := bytes.CutPrefix(bytes.TrimRight(line, "\r\n"), []byte("data:")); ok {
			last = bytes.TrimPrefix(data, []byte(" "))
		}
	}
	return last
}
