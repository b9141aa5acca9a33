package pep_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/edge"
	"github.com/mcpvault/mcpvault/dataplane/pep"
	"github.com/mcpvault/mcpvault/snapshot"
)

const notice = `{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"%d"}}`

// speaks scripts a server whose streams say what is sent on words, and end when that is closed.
func speaks(up *scripted) (words chan string) {
	words = make(chan string)
	up.script(func(w http.ResponseWriter, r *http.Request, _ string) {
		w.Header().Set("Content-Type", "text/event-stream")
		_ = http.NewResponseController(w).Flush()
		for {
			select {
			case word, more := <-words:
				if !more {
					return
				}
				_, _ = io.WriteString(w, "data: "+word+"\n\n")
				_ = http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	return words
}

// listens opens a legacy session's stream.
func (g *gateway) listens(t *testing.T, user, session string) *bufio.Reader {
	t.Helper()
	resp, err := g.client.Do(g.request(t.Context(), http.MethodGet, "/mcp/pay", user, "", "Mcp-Session-Id", session, "Accept", "text/event-stream"))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("the stream: %v %v", resp, err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return bufio.NewReader(resp.Body)
}

// hears reads up to the next event that is no comment.
func hears(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			return strings.TrimSpace(data)
		}
	}
}

func TestAListenerHearsAllInOrderBetweenSilencesAndCommentsInEachVersionOfHTTP(t *testing.T) {
	t.Parallel()
	inEach(t, func(t *testing.T, version int) {
		up := newScripted(t)
		g := newGateway(t, pep.Config{KeepAlive: 2 * time.Millisecond}, []snapshot.Grant{{ID: "a", Subject: "user:alice", Server: "pay"}},
			catalogueServer("pay", up.url, allEras(), plainTool("balance", read)))
		c := before(t, g, edge.Config{}).as(t, g, version)
		session := c.legacy("/mcp/pay", "alice")
		words := speaks(up)
		r := c.listens(t, "alice", session)
		go func() {
			defer close(words)
			for i := range 100 {
				words <- fmt.Sprintf(notice, i)
				if i%10 == 0 {
					time.Sleep(5 * time.Millisecond) // there are comments meanwhile
				}
			}
		}()
		for i := range 100 {
			if got := hears(t, r); got != fmt.Sprintf(notice, i) {
				t.Fatalf("%d: %s", i, got)
			}
		}
		if _, err := io.Copy(io.Discard, r); err != nil { // the server has ended its stream, and so ends the client's
			t.Fatal(err)
		}
		until(t, "the stream's place", func() bool { return g.pep.Streams() == 0 })
	})
}

func TestListenersFollowThePolicyWhileNothingIsSaid(t *testing.T) {
	t.Parallel()
	inEach(t, func(t *testing.T, version int) {
		g, up := payments(t)
		c := before(t, g, edge.Config{}).as(t, g, version)
		first, second := c.legacy("/mcp/pay", "root"), c.legacy("/mcp/pay", "root")
		speaks(up)
		readers := []*bufio.Reader{c.listens(t, "root", first), c.listens(t, "root", second)}
		g.cat.Servers[0].Tools = g.cat.GetServers()[0].GetTools()[1:]
		g.policy.Servers[0].Items = append(g.policy.Servers[0].Items[:1:1], g.policy.Servers[0].Items[2:]...)
		g.publish()
		for _, r := range readers {
			if got := hears(t, r); !strings.Contains(got, "notifications/tools/list_changed") {
				t.Fatal(got)
			}
		}
		g.policy.Grants = nil
		g.publish()
		for _, r := range readers {
			if rest, err := io.ReadAll(r); err != nil || strings.Contains(string(rest), "data:") {
				t.Fatalf("%q %v", rest, err)
			}
		}
		until(t, "the streams' places", func() bool { return g.pep.Streams() == 0 })
	})
}

// mute is a server of one goroutine, which answers initialize and holds streams open on which nothing is said.
func mute(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var held []net.Conn
	serve := func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				_ = c.Close()
				return
			}
			if req.Method == http.MethodGet {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
				mu.Lock()
				held = append(held, c)
				mu.Unlock()
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			answer := `{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"mute","version":"1"}}}`
			_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nMcp-Session-Id: s\r\nContent-Length: %d\r\n\r\n%s", len(answer), answer)
		}
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range held {
			_ = c.Close()
		}
	})
	return "http://" + ln.Addr().String()
}

// A listening stream is a socket towards the caller, one towards the server, and what is known of the request. All of it, both
// ends of both sockets in this process included, took 10 KB when this was written; with a goroutine for each direction it was
// more than 30.
//
//nolint:paralleltest // it counts what this process takes
func TestAListenerTakesNoGoroutineAndLittleMemoryWhileNothingIsSaid(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("streams are parked on Linux only")
	}
	const n, most = 400, 16 << 10
	g := newGateway(t, pep.Config{MaxStreams: 2 * n}, []snapshot.Grant{{ID: "a", Subject: "user:alice", Server: "pay"}},
		catalogueServer("pay", mute(t), allEras(), plainTool("balance", read)))
	u, err := url.Parse(g.url)
	if err != nil {
		t.Fatal(err)
	}
	session, token := g.legacy("/mcp/pay", "alice"), g.token("alice")
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	open := func() {
		c, err := net.Dial("tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		_, _ = io.WriteString(c, "GET /mcp/pay HTTP/1.1\r\nHost: "+u.Host+"\r\nAuthorization: Bearer "+token+
			"\r\nAccept: text/event-stream\r\nMCP-Protocol-Version: 2025-11-25\r\nMcp-Session-Id: "+session+"\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReaderSize(c, 512), nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp, err)
		}
	}
	for range n / 4 { // what is made once
		open()
	}
	g.client.CloseIdleConnections()
	goroutines, bytes := inUse()
	for range n {
		open()
	}
	until(t, "the goroutines of those who opened", func() bool { now, _ := inUse(); return now < goroutines+n/8 })
	_, now := inUse()
	each := (now - bytes) / n
	t.Logf("%d bytes a stream", each)
	if each > most {
		t.Errorf("a stream takes %d bytes, more than %d", each, most)
	}
	runtime.KeepAlive(conns)
}

// inUse is what the process has: goroutines, and bytes of heap and stacks.
func inUse() (goroutines, bytes int) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return runtime.NumGoroutine(), int(m.HeapAlloc + m.StackInuse)
}

func TestManyListenersEndTogether(t *testing.T) {
	t.Parallel()
	const n = 100
	g := newGateway(t, pep.Config{MaxStreams: n}, []snapshot.Grant{{ID: "a", Subject: "user:alice", Server: "pay"}},
		catalogueServer("pay", mute(t), allEras(), plainTool("balance", read)))
	session := g.legacy("/mcp/pay", "alice")
	var readers []*bufio.Reader
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	for i := range n {
		if i%2 == 0 {
			readers = append(readers, g.listens(t, "alice", session))
			continue
		}
		resp, err := g.client.Do(g.request(ctx, http.MethodGet, "/mcp/pay", "alice", "", "Mcp-Session-Id", session, "Accept", "text/event-stream"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
	}
	go leave() // while half of the clients leave, the policy is replaced and the node stops
	g.publish()
	g.pep.Drain()
	for _, r := range readers {
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the streams' places", func() bool { return g.pep.Streams() == 0 })
}
