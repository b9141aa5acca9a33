package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/bench/devrun"
)

//go:embed smuggle.json
var smuggleJSON []byte

//go:embed smuggle.mjs
var smuggleJS []byte

// modernMeta is what a legacy client does not say.
const modernMeta = `"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"t","version":"1"}`

// smuggle sends the bodies that two readers could read differently through a cell to servers of both TypeScript SDKs, in
// both eras. alice may call the tool allowed and not the tool denied: whatever the gate lets through must be a call of
// allowed to those servers too, and what it refuses must not run.
func smuggle(ctx context.Context, k *toolkit, bin, file string) error {
	passes, refused, err := smuggled(file)
	if err != nil {
		return err
	}
	dir := filepath.Join(k.dir, "smuggle")
	if err := npmInstall(ctx, dir, smuggleJSON, filepath.Join(dir, "node_modules/@modelcontextprotocol/server/package.json")); err != nil {
		return err
	}
	script := filepath.Join(dir, "smuggle.mjs")
	if err := os.WriteFile(script, smuggleJS, 0o600); err != nil {
		return err
	}
	d, err := devrun.Start(ctx, bin, "--no-demo")
	if err != nil {
		return err
	}
	var errs error
	for _, flavour := range []string{"v2", "v1"} {
		errs = errors.Join(errs, smuggleTo(ctx, k, d, script, flavour, passes, refused))
	}
	return errors.Join(errs, d.Stop())
}

func smuggleTo(ctx context.Context, k *toolkit, d *devrun.Dev, script, flavour string, passes, refused []string) error {
	addr, err := devrun.FreeAddr()
	if err != nil {
		return err
	}
	_, port, _ := strings.Cut(addr, ":")
	stop, err := spawn(ctx, k.node, script, flavour, port)
	if err != nil {
		return err
	}
	defer stop()
	if err := devrun.WaitListen(ctx, addr); err != nil {
		return err
	}
	name := "ts-" + flavour
	for _, args := range [][]string{
		{"server", "add", name, "--url", "http://" + addr + "/mcp"}, {"server", "approve", name, "--effect", "hints"}, {"grant", "user:alice", "server:" + name + "/allowed"},
	} {
		if _, err := d.CLI(ctx, args...); err != nil {
			return err
		}
	}
	s := &smuggler{ctx: ctx, url: d.MCPURLs[0] + "/" + name, token: d.Tokens["alice"], counts: "http://" + addr + "/counts"}
	if s.session, err = s.initialize(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	var errs error
	for _, legacy := range []bool{false, true} {
		era := map[bool]string{false: "modern", true: "legacy"}[legacy]
		before, err := s.ran()
		if err != nil {
			return err
		}
		for _, body := range passes {
			ok, answer, err := s.send(body, "allowed", legacy)
			if err == nil && !ok {
				err = fmt.Errorf("%s, %s: %q was refused: %.300s", name, era, body, answer)
			}
			errs = errors.Join(errs, err)
		}
		between, err := s.ran()
		if err != nil {
			return err
		}
		if between.Allowed-before.Allowed != len(passes) {
			errs = errors.Join(errs, fmt.Errorf("%s, %s: %d calls that pass ran %d times", name, era, len(passes), between.Allowed-before.Allowed))
		}
		for _, body := range refused {
			for _, header := range []string{"allowed", "denied"} {
				ok, answer, err := s.send(body, header, legacy)
				if err == nil && ok {
					err = fmt.Errorf("%s, %s: %q passed: %.300s", name, era, body, answer)
				}
				errs = errors.Join(errs, err)
			}
		}
		after, err := s.ran()
		switch {
		case err != nil:
			return err
		case after.Denied != 0 || after.Allowed != between.Allowed:
			errs = errors.Join(errs, fmt.Errorf("%s, %s: bodies that were refused ran: denied %d, allowed %d", name, era, after.Denied, after.Allowed-between.Allowed))
		}
		fmt.Printf("ok   %s, %s: %d bodies read alike, %d refused; the denied tool ran %d times\n", name, era, len(passes), len(refused), after.Denied)
	}
	return errs
}

// smuggled reads bodies, each quoted as Go quotes bytes, behind the word pass or refuse.
func smuggled(file string) (passes, refused []string, err error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, fmt.Errorf("the bodies are read from the repository's root: %w", err)
	}
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		verdict, quoted, _ := strings.Cut(line, " ")
		body, err := strconv.Unquote(quoted)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", line, err)
		}
		if verdict == "pass" {
			passes = append(passes, body)
		} else {
			refused = append(refused, body)
		}
	}
	if len(passes)+len(refused) < 60 {
		return nil, nil, fmt.Errorf("only %d bodies in %s", len(passes)+len(refused), file)
	}
	return passes, refused, nil
}

type smuggler struct {
	ctx                         context.Context
	url, token, counts, session string
}

// reply is what came back for one body.
type reply struct {
	status  int
	session string
	body    []byte
}

func (s *smuggler) post(body string, header map[string]string) (r reply, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, strings.NewReader(body))
	if err != nil {
		return r, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	req.Header.Set("Authorization", "Bearer "+s.token)
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return r, err
	}
	r.status, r.session = resp.StatusCode, resp.Header.Get("Mcp-Session-Id")
	r.body, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return r, errors.Join(err, resp.Body.Close())
}

// initialize waits until the policy is live, too.
func (s *smuggler) initialize() (string, error) {
	r, err := s.post(`{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"smuggle","version":"1"}}}`, nil)
	if err != nil {
		return "", err
	}
	if r.session == "" {
		return "", fmt.Errorf("no session: %d %s", r.status, r.body)
	}
	return r.session, nil
}

// send posts one body and reports whether it came to a result.
func (s *smuggler) send(body, header string, legacy bool) (ok bool, answer []byte, err error) {
	h := map[string]string{"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": header}
	if legacy {
		h = map[string]string{"MCP-Protocol-Version": "2025-11-25", "Mcp-Session-Id": s.session}
		body = strings.ReplaceAll(body, modernMeta, "")
	}
	r, err := s.post(body, h)
	if err != nil {
		return false, nil, err
	}
	var m struct {
		Result *struct {
			IsError bool `json:"isError"`
		} `json:"result"`
	}
	_ = json.Unmarshal(message(r.body), &m)
	return r.status == http.StatusOK && m.Result != nil && !m.Result.IsError, bytes.TrimSpace(r.body), nil
}

type ran struct {
	Allowed int `json:"allowed"`
	Denied  int `json:"denied"`
}

func (s *smuggler) ran() (r ran, err error) {
	req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, s.counts, http.NoBody)
	if err != nil {
		return r, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return r, err
	}
	return r, errors.Join(json.NewDecoder(resp.Body).Decode(&r), resp.Body.Close())
}
