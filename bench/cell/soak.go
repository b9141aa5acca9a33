package cell

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Soak is how a node bears many live sessions of many callers for a long time.
type Soak struct {
	Sessions   int     `json:"sessions"`
	Streams    int     `json:"streams"`
	Principals int     `json:"principals"`
	Seconds    float64 `json:"seconds"`
	Requests   int64   `json:"requests"`
	// Errors are requests that were answered wrongly or not at all; Lost are streams that ended by themselves.
	Errors int64 `json:"errors"`
	Lost   int   `json:"streams_lost"`
	// MaxMB is the most resident memory that the node was seen with.
	MaxMB      float64 `json:"max_rss_mb"`
	FirstError string  `json:"first_error,omitempty"`
}

// streamShare is the part of the sessions that hold a stream open; each takes a descriptor towards the caller and one towards
// the upstream, of which a machine has no end but a process has.
const streamShare = 0.4

// caller is one live session.
type caller struct {
	token, session string
	stream         net.Conn // nil for none
}

// Soak opens n sessions of so many principals on the first node and keeps them busy for d: calls in sessions, calls without
// one, and lists.
func (b *Bench) Soak(ctx context.Context, n, principals int, d time.Duration, note func(format string, args ...any)) (*Soak, error) {
	u, err := url.Parse(b.dev.MCPURLs[0] + "/bench")
	if err != nil {
		return nil, err
	}
	note("making %d principals", principals)
	tokens, err := b.crowd(ctx, principals)
	if err != nil {
		return nil, err
	}
	note("opening %d sessions", n)
	all, err := openAll(ctx, u, tokens, n)
	defer func() {
		for _, c := range all {
			if c.stream != nil {
				_ = c.stream.Close()
			}
		}
	}()
	if err != nil {
		return nil, err
	}
	out := &Soak{Sessions: n, Principals: principals}
	note("mixed load for %s", d)
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	began := time.Now()
	var wg sync.WaitGroup
	var first atomic.Pointer[error]
	for w := range 16 {
		wg.Go(func() { busy(ctx, w, u, all, out, &first) })
	}
	pid := b.dev.PIDs.Nodes[0]
	for ctx.Err() == nil {
		kb, err := resident(pid)
		if err != nil {
			cancel()
			wg.Wait()
			return nil, fmt.Errorf("the node is gone: %w", err)
		}
		out.MaxMB = max(out.MaxMB, float64(kb)/1024)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	wg.Wait()
	out.Seconds = time.Since(began).Seconds()
	for _, c := range all {
		if c.stream == nil {
			continue
		}
		out.Streams++
		if quiet(c.stream) != nil {
			out.Lost++
		}
	}
	if err := first.Load(); err != nil {
		out.FirstError = (*err).Error()
	}
	return out, nil
}

// crowd makes principals that may use the server, and returns a token of each.
func (b *Bench) crowd(ctx context.Context, n int) ([]string, error) {
	a := admin{url: b.dev.AdminURL, token: b.dev.AdminToken}
	var none, token struct {
		Secret string `json:"secret"`
	}
	if err := a.call(ctx, "DirectoryService/CreateGroup", map[string]any{"tenant": "acme", "name": "soak"}, &none); err != nil {
		return nil, err
	}
	if err := a.call(ctx, "AccessService/CreateGrant", map[string]any{
		"tenant": "acme", "subject": "group:soak", "target": "server:bench", "effect": "GRANT_EFFECT_ALLOW",
	}, &none); err != nil {
		return nil, err
	}
	tokens := make([]string, 0, n)
	var last struct {
		Revision string `json:"revision"`
	}
	for i := range n {
		name := fmt.Sprintf("soak%04d", i)
		if err := a.call(ctx, "DirectoryService/CreateUser", map[string]any{"tenant": "acme", "name": name, "kind": "USER_KIND_PERSON"}, &none); err != nil {
			return nil, err
		}
		if err := a.call(ctx, "DirectoryService/SetGroupMember", map[string]any{"tenant": "acme", "group": "soak", "user": name}, &last); err != nil {
			return nil, err
		}
		if err := a.call(ctx, "TokenService/CreateToken", map[string]any{"tenant": "acme", "principal": name}, &token); err != nil {
			return nil, err
		}
		tokens = append(tokens, token.Secret)
	}
	var done edited
	if err := a.call(ctx, "SnapshotService/WaitRevision", map[string]any{"tenant": "acme", "revision": last.Revision, "timeout": "60s"}, &done); err != nil {
		return nil, err
	}
	if !done.Complete {
		return nil, errors.New("the principals did not reach every node within 60 s")
	}
	return tokens, nil
}

func openAll(ctx context.Context, u *url.URL, tokens []string, n int) ([]*caller, error) {
	all := make([]*caller, n)
	errs := make([]error, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				c := &caller{token: tokens[i%len(tokens)]}
				all[i] = c
				conn, id, err := openSession(ctx, u, c.token, float64(i) < streamShare*float64(n))
				c.session, errs[i] = id, err
				if conn != nil {
					c.stream = conn
				}
			}
		})
	}
	wg.Wait()
	failed := 0
	var first error
	for _, err := range errs {
		if err != nil {
			failed, first = failed+1, cmp.Or(first, err)
		}
	}
	if failed > 0 {
		return all, fmt.Errorf("%d of %d sessions were not opened, the first because of: %w", failed, n, first)
	}
	return all, nil
}

// busy makes requests, one after the other, each for a session picked at random.
func busy(ctx context.Context, w int, u *url.URL, all []*caller, out *Soak, first *atomic.Pointer[error]) {
	var c net.Conn
	var r *bufio.Reader
	defer func() {
		if c != nil {
			_ = c.Close()
		}
	}()
	for i := 0; ctx.Err() == nil; i++ {
		if c == nil {
			var err error
			if c, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", u.Host); err != nil {
				if ctx.Err() == nil {
					atomic.AddInt64(&out.Errors, 1)
				}
				return
			}
			r = bufio.NewReader(c)
		}
		if err := ask(c, r, u, all[rand.IntN(len(all))], w, i); err != nil {
			_ = c.Close()
			c = nil
			atomic.AddInt64(&out.Errors, 1)
			first.CompareAndSwap(nil, &err)
		}
		atomic.AddInt64(&out.Requests, 1)
		time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond)
	}
}

// ask makes one request of a kind that changes from turn to turn, and checks id and payload of the answer.
func ask(c net.Conn, r *bufio.Reader, u *url.URL, who *caller, w, i int) error {
	id := fmt.Sprintf("%d-%d-%s", w, i, who.session[:8])
	params, method, extra, want := `{}`, "tools/list", "", `"t19"`
	if i%4 != 0 {
		method, want = "tools/call", `"text":"`+id+`"`
		params = `{"name":"t00","arguments":{"message":"` + id + `"}`
		if i%4 == 3 {
			params += `,"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}`
			extra = "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name: t00\r\n"
		}
		params += `}`
	}
	if extra == "" {
		extra = "MCP-Protocol-Version: 2025-11-25\r\nMcp-Session-Id: " + who.session + "\r\n"
	}
	body := `{"jsonrpc":"2.0","id":"` + id + `","method":"` + method + `","params":` + params + `}`
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("POST " + u.Path + " HTTP/1.1\r\nHost: " + u.Host + "\r\nAuthorization: Bearer " + who.token +
		"\r\nAccept: application/json, text/event-stream\r\nContent-Type: application/json\r\n" + extra +
		"Content-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body)); err != nil {
		return err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || !bytes.Contains(got, []byte(want)) || !bytes.Contains(got, []byte(`"id":"`+id+`"`)) {
		return fmt.Errorf("%s answered %s: %.300s", method, resp.Status, got)
	}
	return nil
}
