package main

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/devmode"
)

// said is what a node answered.
type said struct {
	status  int
	header  http.Header
	body    string
	session string
}

// ask sends one message of a legacy client to a node.
func (w *world) ask(info *devmode.Info, node int, method, session, body string) said {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, info.MCPURLs[node]+"/demo", strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+info.Tokens["alice"])
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	if session != "" {
		req.Header.Set("Mcp-Session-Id", session)
		req.Header.Set("Mcp-Protocol-Version", "2025-11-25")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return said{resp.StatusCode, resp.Header, string(b), resp.Header.Get("Mcp-Session-Id")}
}

func (w *world) initialize(info *devmode.Info, node int) said {
	w.t.Helper()
	return w.ask(info, node, http.MethodPost, "", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25",`+
		`"capabilities":{},"clientInfo":{"name":"drill","version":"1"}}}`)
}

func (w *world) echo(info *devmode.Info, node int, session string) said {
	w.t.Helper()
	return w.ask(info, node, http.MethodPost, session, `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"echo","arguments":{"message":"hi"}}}`)
}

// leads asks a node whether it leads; false when it does not answer.
func leads(info *devmode.Info, node int) bool {
	resp, err := http.Get(info.Metrics[node] + "/readyz/leader")
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func (w *world) sessions() (all []struct{ ID, Principal, Server, Node, Client string }) {
	w.t.Helper()
	out, _ := w.run(0, "sessions", "list", "--user", "alice", "-o", "json")
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
	return all
}

// TestSessionsGoOnWhenTheLeaderIsKilled is the drill: real processes, SIGKILL, one session that goes on at every node that is
// left, ends everywhere at once, and cannot be opened when most of the cell is gone.
func TestSessionsGoOnWhenTheLeaderIsKilled(t *testing.T) {
	w := newWorld(t)
	_, info := w.dev()
	leader := -1
	w.eventually("a leader", func() bool {
		for i := range info.MCPURLs {
			if leads(info, i) {
				leader = i
			}
		}
		return leader >= 0
	})
	rest := []int{(leader + 1) % 3, (leader + 2) % 3}
	first := w.initialize(info, leader)
	if first.status != http.StatusOK || first.session == "" {
		t.Fatalf("%d %s", first.status, first.body)
	}
	if err := syscall.Kill(info.PIDs.Nodes[leader], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	calls := 0
	w.eventually("a new leader", func() bool {
		for _, i := range rest {
			// While nobody leads, too.
			if a := w.echo(info, i, first.session); a.status != http.StatusOK || !strings.Contains(a.body, `"hi"`) {
				t.Fatalf("the session does not go on at node %d: %d %s", i+1, a.status, a.body)
			}
			calls++
		}
		return leads(info, rest[0]) || leads(info, rest[1])
	})
	t.Logf("%d calls in the session of the dead leader, none failed", calls)
	var second said
	w.eventually("a session under the new leader", func() bool {
		second = w.initialize(info, rest[0])
		return second.status == http.StatusOK
	})

	began := time.Now()
	if a := w.ask(info, rest[0], http.MethodDelete, second.session, ""); a.status != http.StatusNoContent {
		t.Fatalf("%d %s", a.status, a.body)
	}
	w.eventually("the end is known at the other node", func() bool { return w.echo(info, rest[1], second.session).status == http.StatusNotFound })
	t.Logf("ended everywhere after %s", time.Since(began))
	if a := w.echo(info, rest[0], second.session); a.status != http.StatusNotFound {
		t.Errorf("it lives on where it was ended: %d", a.status)
	}

	all := w.sessions()
	if len(all) != 1 || all[0].Server != "demo" || all[0].Client != "drill 1" || all[0].Principal != "alice" {
		t.Fatalf("%+v", all)
	}
	third := w.initialize(info, rest[1])
	for _, s := range w.sessions() {
		w.run(0, "sessions", "show", s.ID)
		w.run(0, "sessions", "end", s.ID, "--reason", "a drill")
	}
	for _, i := range rest {
		for _, id := range []string{first.session, third.session} {
			if a := w.echo(info, i, id); a.status != http.StatusNotFound {
				t.Errorf("node %d serves a session that an administrator ended: %d", i+1, a.status)
			}
		}
	}
	w.eventually("no lease is left", func() bool { return len(w.sessions()) == 0 })

	last := w.initialize(info, rest[0])
	if last.status != http.StatusOK {
		t.Fatalf("%d %s", last.status, last.body)
	}
	if err := syscall.Kill(info.PIDs.Nodes[rest[1]], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.eventually("no session can be opened by one node of three", func() bool {
		began := time.Now()
		a := w.initialize(info, rest[0])
		if a.status == http.StatusServiceUnavailable {
			if a.header.Get("Retry-After") == "" || !strings.Contains(a.body, "session_no_quorum") {
				t.Errorf("%v %s", a.header, a.body)
			}
			t.Logf("refused after %s", time.Since(began))
		}
		return a.status == http.StatusServiceUnavailable
	})
	if a := w.echo(info, rest[0], last.session); a.status != http.StatusOK {
		t.Errorf("a session that is open does not go on without a quorum: %d %s", a.status, a.body)
	}
}
