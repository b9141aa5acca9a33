package cell

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// settle is how long a node is left alone before its memory is read.
const settle = 4 * time.Second

// Idle opens n sessions, each with a stream that stays open, on connections of their own, and returns what each of them
// added to the resident memory of the first node, in KiB.
func (b *Bench) Idle(ctx context.Context, n int) (float64, error) {
	pid := b.dev.PIDs.Nodes[0]
	u, err := url.Parse(b.dev.MCPURLs[0] + "/bench")
	if err != nil {
		return 0, err
	}
	before, err := resident(pid)
	if err != nil {
		return 0, err
	}
	var mu sync.Mutex
	var open []net.Conn
	var failed error
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	next := make(chan struct{}, n)
	for range n {
		next <- struct{}{}
	}
	close(next)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range next {
				c, _, err := openSession(ctx, u, b.dev.Tokens["alice"], true)
				mu.Lock()
				if failed = errors.Join(failed, err); c != nil {
					open = append(open, c)
				}
				stop := failed != nil
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return 0, failed
	}
	time.Sleep(settle)
	after, err := resident(pid)
	if err != nil {
		return 0, err
	}
	for _, c := range open {
		if err := quiet(c); err != nil {
			return 0, fmt.Errorf("a stream was not idle: %w", err)
		}
	}
	return float64(after-before) / float64(n), nil
}

// errPutOff is an initialize that the cell asks to send again in a moment: it has no leader just then.
var errPutOff = errors.New("put off")

const (
	// putOff is how long a client waits when it is asked to, and patience how long it goes on asking.
	putOff   = 2 * time.Second
	patience = 30 * time.Second
)

// openSession is openOnce, again when it was put off.
func openSession(ctx context.Context, u *url.URL, token string, stream bool) (net.Conn, string, error) {
	for until := time.Now().Add(patience); ; {
		c, id, err := openOnce(ctx, u, token, stream)
		if !errors.Is(err, errPutOff) || time.Now().After(until) {
			return c, id, err
		}
		select {
		case <-time.After(putOff):
		case <-ctx.Done():
			return nil, "", ctx.Err()
		}
	}
}

// openOnce initializes and, when stream, opens the stream on which a server speaks unasked, on the connection that it
// returns.
func openOnce(ctx context.Context, u *url.URL, token string, stream bool) (_ net.Conn, id string, err error) {
	c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, "", err
	}
	defer func() {
		if err != nil || !stream {
			_ = c.Close()
		}
	}()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return nil, "", err
	}
	head := func(method string) string {
		return method + " " + u.Path + " HTTP/1.1\r\nHost: " + u.Host + "\r\nAuthorization: Bearer " + token +
			"\r\nAccept: application/json, text/event-stream\r\nContent-Type: application/json\r\n"
	}
	r := bufio.NewReaderSize(c, 4<<10)
	say := func(request string) (*http.Response, error) {
		if _, err := c.Write([]byte(request)); err != nil {
			return nil, err
		}
		return http.ReadResponse(r, nil)
	}
	const hello = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}`
	resp, err := say(head("POST") + "Content-Length: " + strconv.Itoa(len(hello)) + "\r\n\r\n" + hello)
	if err != nil {
		return nil, "", err
	}
	id = resp.Header.Get("Mcp-Session-Id")
	if resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "" {
		return nil, "", errors.Join(errPutOff, resp.Body.Close())
	}
	if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK || id == "" {
		return nil, "", errors.Join(fmt.Errorf("initialize: %s", resp.Status), err)
	}
	if !stream {
		return nil, id, nil
	}
	resp, err = say(head("GET") + //nolint:bodyclose // the body is the stream that stays open
		"MCP-Protocol-Version: 2025-11-25\r\nMcp-Session-Id: " + id + "\r\n\r\n")
	if err != nil {
		return nil, "", err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, "", fmt.Errorf("the stream: %s", resp.Status)
	}
	return c, id, c.SetDeadline(time.Time{})
}

// quiet reports an error when the connection has ended.
func quiet(c net.Conn) error {
	if err := c.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		return err
	}
	var b [1]byte
	if _, err := c.Read(b[:]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}

// resident is a process's memory in KiB.
func resident(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")))
		}
	}
	return 0, errors.New("no resident memory in the process's status")
}
