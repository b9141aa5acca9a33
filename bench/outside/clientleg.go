package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mcpvault/mcpvault/bench/devrun"
)

// pair is a scenario of the suite's client leg in one revision.
type pair struct{ scenario, revision string }

// clientPairs are the scenarios of the client leg, without OAuth, which is between a client and its issuer, and without
// request-metadata, whose client only asks for server/discover, which the gateway answers.
func clientPairs() []pair {
	return []pair{
		{"initialize", "2025-06-18"},
		{"initialize", "2025-11-25"},
		{"tools_call", "2025-06-18"},
		{"tools_call", "2025-11-25"},
		{"tools_call", modernRevision},
		{"elicitation-sep1034-client-defaults", "2025-11-25"},
		{"sse-retry", "2025-11-25"},
		{"json-schema-2020-12-preservation", "2025-11-25"},
		{"json-schema-2020-12-preservation", modernRevision},
		{"sep-2322-client-request-state", modernRevision},
		{"http-standard-headers", modernRevision},
		{"http-custom-headers", modernRevision},
		{"http-invalid-tool-headers", modernRevision},
		{"json-schema-ref-no-deref", modernRevision},
	}
}

// clientLeg runs the official Go SDK's conformance client against the suite's servers, directly and through one cell, and
// demands the same of both: every check that passes directly passes through the cell.
func clientLeg(ctx context.Context, k *toolkit, bin string) error {
	d, err := devrun.Start(ctx, bin, "--no-demo", "--nodes", "1")
	if err != nil {
		return err
	}
	out, err := os.MkdirTemp("", "mcpvault-clientleg-")
	if err != nil {
		return errors.Join(err, d.Stop())
	}
	err = clientLegWith(ctx, k, d, out)
	if err == nil {
		err = os.RemoveAll(out)
	} else {
		err = fmt.Errorf("%w; details in %s", err, out)
	}
	return errors.Join(err, d.Stop())
}

func clientLegWith(ctx context.Context, k *toolkit, d *devrun.Dev, out string) error {
	r, err := startRegistrar(ctx, d)
	if err != nil {
		return err
	}
	defer r.stop()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	same := 0
	var errs error
	for _, p := range clientPairs() {
		direct, err := runClient(ctx, k, p, filepath.Join(out, "direct"), k.everythingClient)
		if err != nil {
			return err
		}
		through, err := runClient(ctx, k, p, filepath.Join(out, "through"), strings.Join([]string{self, "via", r.url, p.revision, k.everythingClient}, " "))
		if err := errors.Join(err, r.err()); err != nil {
			return err
		}
		if worse := direct.worse(through); len(worse) > 0 {
			errs = errors.Join(errs, fmt.Errorf("%s %s: %s", p.revision, p.scenario, strings.Join(worse, "; ")))
			fmt.Printf("FAIL %s %s: %s\n", p.revision, p.scenario, strings.Join(worse, "; "))
			continue
		}
		same++
		fmt.Printf("same %s %s: %d checks\n", p.revision, p.scenario, direct.Passed)
	}
	fmt.Printf("client leg: %d of %d pairs as directly\n", same, len(clientPairs()))
	return errors.Join(errs, r.err())
}

// worse lists the checks that got worse, from the first to the second.
func (c checks) worse(than checks) []string {
	var out []string
	for check, was := range c.all {
		if now := than.all[check]; now.Passed < was.Passed || now.Failed > was.Failed {
			out = append(out, fmt.Sprintf("%s: %d passed and %d failed, directly %d and %d", check, now.Passed, now.Failed, was.Passed, was.Failed))
		}
	}
	for check, now := range than.all {
		if _, known := c.all[check]; !known && now.Failed > 0 {
			out = append(out, check+" fails, and was not made directly")
		}
	}
	if c.Passed == 0 {
		out = append(out, "no check passed directly: the comparison says nothing")
	}
	slices.Sort(out)
	return out
}

func runClient(ctx context.Context, k *toolkit, p pair, dir, command string) (checks, error) {
	dir = filepath.Join(dir, p.revision, p.scenario)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return checks{}, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return checks{}, err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.CommandContext(ctx, k.node, filepath.Join(k.suite, "dist", "index.js"), "client", "--command", command,
		"--scenario", p.scenario, "--spec-version", p.revision, "--timeout", "10000", "-o", dir)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		return checks{}, err
	}
	found, err := filepath.Glob(filepath.Join(dir, "*", "checks.json"))
	if err != nil || len(found) != 1 {
		return checks{}, fmt.Errorf("%s %s left %d results, see %s", p.revision, p.scenario, len(found), log.Name())
	}
	return readChecks(filepath.Dir(found[0]))
}

// registrar publishes servers of the suite, which live as long as one scenario, through a cell that outlives them all.
type registrar struct {
	url    string
	stop   func()
	failed atomic.Pointer[error]
}

func (r *registrar) err() error {
	if p := r.failed.Load(); p != nil {
		return *p
	}
	return nil
}

func startRegistrar(ctx context.Context, d *devrun.Dev) (*registrar, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	n := 0
	var stops []func()
	r := &registrar{url: "http://" + l.Addr().String()}
	publishOne := func(revision, upstream string) (string, error) {
		if revision == modernRevision {
			only, stop, err := modernOnly(upstream)
			if err != nil {
				return "", err
			}
			upstream, stops = only, append(stops, stop)
		}
		n++
		name := fmt.Sprintf("scenario-%d", n)
		if err := publish(ctx, d, name, "--url", upstream, "--remote-refs"); err != nil {
			return "", err
		}
		u, stop, err := withToken(d.MCPURLs[0]+"/"+name, d.Tokens["alice"])
		if err == nil {
			stops = append(stops, stop)
		}
		return u, err
	}
	var one sync.Mutex
	srv := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		one.Lock()
		defer one.Unlock()
		u, err := publishOne(req.URL.Query().Get("revision"), req.URL.Query().Get("upstream"))
		if err != nil {
			r.failed.CompareAndSwap(nil, &err)
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		_, _ = io.WriteString(w, u)
	})}
	go func() { _ = srv.Serve(l) }()
	r.stop = func() {
		_ = srv.Close()
		for _, s := range stops {
			s()
		}
	}
	return r, nil
}

// modernOnly serves a server of the suite as one that speaks the modern revision only. A scan asks whether a server speaks older
// ones too, in their own form, and the suite, whose modern servers take any form, would judge that as the client's doing.
func modernOnly(server string) (string, func(), error) {
	target, err := url.Parse(server)
	if err != nil {
		return "", nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	on := forward(func(*http.Request, []byte) *url.URL { return target }, func(out *http.Request) { out.Host = out.URL.Host })
	srv := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 8<<20))
		if err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		if !isModern(r, body) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"method not found"}}`)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		on.ServeHTTP(w, r)
	})}
	go func() { _ = srv.Serve(l) }()
	return "http://" + l.Addr().String() + target.Path, func() { _ = srv.Close() }, nil
}

// via is the command that the suite starts: it has the suite's server published and runs the client against the gateway.
func via(ctx context.Context, args []string) error {
	if len(args) != 4 {
		return errors.New("via needs the registrar, the revision, the client and the server")
	}
	ask := url.Values{"revision": {args[1]}, "upstream": {args[3]}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, args[0]+"/?"+ask.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the server was not published: %s", body)
	}
	cmd := exec.CommandContext(ctx, args[2], string(body))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}
