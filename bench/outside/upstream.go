package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mcpvault/mcpvault/bench/devrun"
)

// upstream is the official Go SDK's conformance server in both eras behind one address: the SDK serves 2026-07-28 only
// when stateless, and server-to-client requests of the older revisions only when not.
type upstream struct {
	url  string
	stop func()
}

func startUpstream(ctx context.Context, k *toolkit) (*upstream, error) {
	var stops []func()
	stopAll := func() {
		for _, s := range stops {
			s()
		}
	}
	var targets [2]*url.URL
	for i, stateless := range []string{"true", "false"} {
		addr, err := devrun.FreeAddr()
		if err != nil {
			return nil, err
		}
		stop, err := spawn(ctx, k.everything, "-http", addr, "-stateless="+stateless)
		if err != nil {
			stopAll()
			return nil, err
		}
		stops = append(stops, stop)
		targets[i] = &url.URL{Scheme: "http", Host: addr}
		if err := devrun.WaitListen(ctx, addr); err != nil {
			stopAll()
			return nil, err
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		stopAll()
		return nil, err
	}
	srv := &http.Server{Handler: eraRouter(targets[0], targets[1]), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = srv.Serve(l) }()
	stops = append(stops, func() { _ = srv.Close() })
	return &upstream{url: "http://" + l.Addr().String() + "/mcp", stop: stopAll}, nil
}

// eraRouter sends what names 2026-07-28, in a header or in the body, to the modern server.
func eraRouter(modern, legacy *url.URL) http.Handler {
	return forward(func(r *http.Request, body []byte) *url.URL {
		if isModern(r, body) {
			return modern
		}
		return legacy
	}, nil)
}

const modernRevision = "2026-07-28"

func isModern(r *http.Request, body []byte) bool {
	if r.Header.Get("Mcp-Session-Id") != "" {
		return false
	}
	if v := r.Header.Get("Mcp-Protocol-Version"); v >= modernRevision || r.Header.Get("Mcp-Method") != "" {
		return true
	} else if v != "" {
		return false
	}
	var m struct {
		Method string `json:"method"`
		Params struct {
			Meta map[string]json.RawMessage `json:"_meta"`
		} `json:"params"`
	}
	if json.Unmarshal(body, &m) != nil || m.Method == "initialize" {
		return false
	}
	for key := range m.Params.Meta {
		if strings.HasPrefix(key, "io.modelcontextprotocol/") {
			return true
		}
	}
	return m.Method == "server/discover"
}

// forward proxies with the body read first: a streamed one loses answers now and then (golang/go#40747).
func forward(pick func(*http.Request, []byte) *url.URL, change func(*http.Request)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 8<<20))
		if err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		target := pick(r, body)
		rp := &httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = target.Scheme, target.Host, p.In.Host
			if target.Path != "" {
				p.Out.URL.Path = target.Path
			}
			if change != nil {
				change(p.Out)
			}
		}}
		rp.ServeHTTP(w, r)
	})
}

// withToken serves the gateway on an address of its own with a bearer token added, for suites that cannot send one.
func withToken(gateway, token string) (string, func(), error) {
	target, err := url.Parse(gateway)
	if err != nil {
		return "", nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	h := forward(func(*http.Request, []byte) *url.URL { return target },
		func(out *http.Request) { out.Header.Set("Authorization", "Bearer "+token) })
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = srv.Serve(l) }()
	return "http://" + l.Addr().String() + "/", func() { _ = srv.Close() }, nil
}

// spawn starts a process and returns what ends it.
func spawn(ctx context.Context, name string, args ...string) (func(), error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			var exit *exec.ExitError
			if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
				fmt.Println(name, err)
			}
		})
	}, nil
}
