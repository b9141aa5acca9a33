package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/bench/devrun"
)

// oauth has the TypeScript SDK log in by itself: at a real issuer, for a real cell, which says to it where and for what. The
// issuer is then ended, and everything goes on; the tokens must afterwards be nowhere.
func oauth(ctx context.Context, k *toolkit, bin string) (err error) {
	up, err := startUpstream(ctx, k)
	if err != nil {
		return err
	}
	defer up.stop()
	tap, err := newRecorder(up.url)
	if err != nil {
		return err
	}
	defer tap.stop()
	d, err := devrun.Start(ctx, bin, "--no-demo")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Stop()) }()
	resource := d.MCPURLs[0] + "/everything"
	issuer, stopIssuer, err := startIssuer(ctx, k, resource)
	if err != nil {
		return err
	}
	defer stopIssuer()
	for _, args := range [][]string{
		{"server", "add", "everything", "--url", tap.url},
		{"server", "approve", "everything", "--effect", "read", "--tool", "test_image_content=write"},
		{"user", "create", "robot", "--service-account"},
		{"grant", "user:alice", "server:everything"},
		{"grant", "user:robot", "server:everything"},
		{"issuer", "put", "outside", issuer, "--require", "*=mcp", "--require", "*/read=tools:read", "--require", "*/write=tools:write"},
	} {
		if _, err := d.CLI(ctx, args...); err != nil {
			return err
		}
	}
	tokens := filepath.Join(k.dir, "tokens-"+fmt.Sprint(os.Getpid()))
	defer func() { _ = os.Remove(tokens) }()
	if err := logIn(ctx, k, resource, issuer, tokens, stopIssuer); err != nil {
		return err
	}
	return nowhere(tokens, d.Dir, tap)
}

// logIn runs the client, and ends the issuer when the client has logged in.
func logIn(ctx context.Context, k *toolkit, resource, issuer, tokens string, stopIssuer func()) error {
	cmd := exec.CommandContext(ctx, k.node, k.oauth, resource, issuer, tokens)
	cmd.Dir, cmd.Stderr = k.dir, os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if lines.Text() != "logged in" {
			fmt.Println(lines.Text())
			continue
		}
		stopIssuer()
		if _, err := io.WriteString(in, "go on\n"); err != nil {
			break
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("client oauth: %w", err)
	}
	return nil
}

// startIssuer runs the authorization server on a free port.
func startIssuer(ctx context.Context, k *toolkit, resource string) (issuerURL string, stop func(), err error) {
	addr, err := devrun.FreeAddr()
	if err != nil {
		return "", nil, err
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", nil, err
	}
	stop, err = spawn(ctx, k.node, k.issuer, port, resource)
	if err != nil {
		return "", nil, err
	}
	if err := devrun.WaitListen(ctx, addr); err != nil {
		stop()
		return "", nil, err
	}
	return "http://127.0.0.1:" + port, stop, nil
}

// recorder stands before an upstream and keeps everything that it is sent.
type recorder struct {
	url  string
	stop func()

	mu   sync.Mutex
	seen bytes.Buffer
}

func newRecorder(upstream string) (*recorder, error) {
	target, err := url.Parse(upstream)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	rec := &recorder{url: "http://" + l.Addr().String() + "/mcp"}
	srv := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: forward(func(r *http.Request, body []byte) *url.URL {
		rec.mu.Lock()
		defer rec.mu.Unlock()
		_, _ = fmt.Fprintf(&rec.seen, "%s %s\n", r.Method, r.URL)
		_ = r.Header.Write(&rec.seen)
		rec.seen.Write(body)
		return target
	}, nil)}
	go func() { _ = srv.Serve(l) }()
	rec.stop = func() { _ = srv.Close() }
	return rec, nil
}

// nowhere looks for the callers' tokens where they must not be: in what the upstream was sent, and in every file of control
// plane and cell, logs, audit, store and database included.
func nowhere(tokens, dir string, tap *recorder) error {
	raw, err := os.ReadFile(tokens)
	if err != nil {
		return err
	}
	var parts [][]byte
	for token := range strings.FieldsSeq(string(raw)) {
		if p := strings.Split(token, "."); len(p) == 3 {
			parts = append(parts, []byte(p[1]), []byte(p[2]))
		}
	}
	if len(parts) < 6 {
		return fmt.Errorf("the client got %d tokens, at least three were expected", len(parts)/2)
	}
	found := func(b []byte) bool {
		for _, p := range parts {
			if bytes.Contains(b, p) {
				return true
			}
		}
		return false
	}
	if !found(raw) {
		return errors.New("tokens are not found where they are")
	}
	tap.mu.Lock()
	sent := bytes.Clone(tap.seen.Bytes())
	tap.mu.Unlock()
	if !bytes.Contains(sent, []byte("test_simple_text")) {
		return errors.New("the upstream was sent no call")
	}
	if found(sent) {
		return errors.New("a caller's token was sent to the upstream")
	}
	files := 0
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil //nolint:nilerr // a file of a running system may be gone by now
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // as above
		}
		files++
		if found(b) {
			return fmt.Errorf("a caller's token is in %s", path)
		}
		return nil
	})
	if err == nil {
		fmt.Printf("ok   oauth the callers' %d tokens are nowhere: in %d bytes sent upstream, in %d files\n", len(parts)/2, len(sent), files)
	}
	return err
}
