package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/bench/devrun"
)

//go:embed tools.json
var toolsJSON []byte

// tools holds the gateway to the programs that people hold in their hands: the MCP Inspector's CLI and Claude Code, which
// checks its servers without an account.
func tools(ctx context.Context, k *toolkit, bin string) error {
	dir := filepath.Join(k.dir, "tools")
	claude := filepath.Join(dir, "node_modules", ".bin", "claude")
	if err := npmInstall(ctx, dir, toolsJSON, claude); err != nil {
		return err
	}
	d, err := devrun.Start(ctx, bin)
	if err != nil {
		return err
	}
	home, err := os.MkdirTemp("", "mcpvault-home-")
	if err != nil {
		return errors.Join(err, d.Stop())
	}
	t := &tool{env: append(os.Environ(), "HOME="+home, "PATH="+filepath.Dir(k.node)+":"+os.Getenv("PATH")), dir: home}
	auth := "Authorization: Bearer " + d.Tokens["alice"]
	inspector := filepath.Join(dir, "node_modules", ".bin", "mcp-inspector")
	var errs error
	for _, path := range []string{"/demo", ""} {
		url := d.MCPURLs[0] + path
		echo := map[string]string{"/demo": "echo", "": "demo__echo"}[path]
		ask := func(args ...string) []string {
			return append([]string{inspector, "--cli", url, "--transport", "http", "--header", auth}, args...)
		}
		errs = errors.Join(errs,
			t.must(ctx, "inspector lists "+url, `"`+echo+`"`, ask("--method", "tools/list")...),
			t.must(ctx, "inspector calls "+echo, "hello", ask("--method", "tools/call", "--tool-name", echo, "--tool-arg", "message=hello")...))
		name := "vault" + strings.ReplaceAll(path, "/", "-")
		errs = errors.Join(errs, t.must(ctx, "claude mcp add "+name, "", claude, "mcp", "add", "--transport", "http", "--scope", "user", name, url, "--header", auth))
	}
	errs = errors.Join(errs,
		t.must(ctx, "claude mcp list", "vault-demo: "+d.MCPURLs[0]+"/demo (HTTP) - ✔ Connected", claude, "mcp", "list"),
		t.must(ctx, "claude mcp list, aggregate", "vault: "+d.MCPURLs[0]+" (HTTP) - ✔ Connected", claude, "mcp", "list"))
	return errors.Join(errs, os.RemoveAll(home), d.Stop())
}

type tool struct {
	env []string
	dir string
}

// must runs a program that has to succeed and to print what is wanted.
func (t *tool) must(ctx context.Context, name, want string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env, cmd.Dir = t.env, t.dir
	out, err := cmd.CombinedOutput()
	if err == nil && !bytes.Contains(out, []byte(want)) {
		err = fmt.Errorf("did not print %q", want)
	}
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	fmt.Println("ok  ", name)
	return nil
}
