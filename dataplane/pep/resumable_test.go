package pep_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/snapshot"
)

// events are what comes on a stream: the newest id, and data that is not empty.
type events struct {
	t      *testing.T
	cancel context.CancelFunc
	resp   *http.Response
	sc     *bufio.Scanner
	last   string
}

func (g *gateway) open(t *testing.T, method, user, body string, header ...string) *events {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	t.Cleanup(cancel)
	resp, err := http.DefaultClient.Do(g.request(ctx, method, "/mcp", user, body, header...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return &events{t: t, cancel: cancel, resp: resp, sc: bufio.NewScanner(resp.Body)}
}

// next is the next message, "" at the end.
func (e *events) next() string {
	e.t.Helper()
	for e.sc.Scan() {
		line := e.sc.Text()
		if id, is := strings.CutPrefix(line, "id: "); is {
			e.last = id
		}
		if data, is := strings.CutPrefix(line, "data: "); is && data != "" {
			return data
		}
	}
	return ""
}

// primed reads the place that a stream begins with.
func (e *events) primed() {
	e.t.Helper()
	for e.last == "" && e.sc.Scan() {
		if id, is := strings.CutPrefix(e.sc.Text(), "id: "); is {
			e.last = id
		}
	}
	if e.last == "" {
		e.t.Fatal("no place to come back to")
	}
}

// slowly is a legacy server whose calls report progress and end when they are told to.
func slowly(t *testing.T) (up *scripted, end chan string, gone chan struct{}) {
	t.Helper()
	up, end, gone = newScripted(t), make(chan string), make(chan struct{}, 1)
	up.script(func(w http.ResponseWriter, r *http.Request, body string) {
		if !strings.Contains(body, "tools/call") {
			up.answer(w, body)
			return
		}
		id := body[strings.Index(body, `"id":`)+5:]
		id = id[:strings.IndexByte(id, ',')]
		w.Header().Set("Content-Type", "text/event-stream")
		say := func(s string) {
			_, _ = fmt.Fprintf(w, "data: %s\n\n", s)
			_ = http.NewResponseController(w).Flush()
		}
		say(`{"jsonrpc":"2.0","method":"notifications/vendor","params":{"n":1}}`)
		for {
			select {
			case s := <-end:
				if s == "" {
					say(`{"jsonrpc":"2.0","id":` + id + `,"result":{"content":[]}}`)
					return
				}
				say(s)
			case <-r.Context().Done():
				gone <- struct{}{}
				return
			}
		}
	})
	return up, end, gone
}

// flipped is an id with another letter in the middle.
func flipped(id string) string {
	letter := "A"
	if id[20] == 'A' {
		letter = "B"
	}
	return id[:20] + letter + id[21:]
}

func resumableGateway(t *testing.T, url string) *gateway {
	t.Helper()
	return newGateway(t, pep.Config{}, []snapshot.Grant{{ID: "a", Subject: "user:alice", Server: "pay"}},
		catalogueServer("pay", url, []string{"2025-11-25"}, plainTool("balance", read), plainTool("refund", destructive)))
}

const slowCall = `{"jsonrpc":"2.0","id":"mine","method":"tools/call","params":{"name":"pay__balance","arguments":{}}}`

func TestAnAnswerIsFetchedByAClientThatLostItsConnection(t *testing.T) {
	t.Parallel()
	up, end, _ := slowly(t)
	g := resumableGateway(t, up.url)
	id := g.legacy("/mcp", "root")
	h := []string{"Mcp-Session-Id", id, "MCP-Protocol-Version", "2025-11-25"}
	first := g.open(t, http.MethodPost, "root", slowCall, h...)
	first.primed()
	began := first.last
	if m := first.next(); !strings.Contains(m, `"n":1`) || first.last == began {
		t.Fatal(m)
	}
	first.cancel()
	_ = first.resp.Body.Close()
	end <- `{"jsonrpc":"2.0","method":"notifications/vendor","params":{"n":2}}`

	get := func(session, user, last string) *events {
		return g.open(t, http.MethodGet, user, "", "Accept", "text/event-stream", "Mcp-Session-Id", session, "Last-Event-ID", last)
	}
	again := get(id, "root", first.last)
	if m := again.next(); !strings.Contains(m, `"n":2`) || again.resp.StatusCode != http.StatusOK {
		t.Fatal(again.resp.StatusCode, m)
	}
	// Who comes later has the stream.
	later := get(id, "root", began)
	for n := 1; n <= 2; n++ {
		if m := later.next(); !strings.Contains(m, fmt.Sprintf(`"n":%d`, n)) {
			t.Fatal(m)
		}
	}
	end <- ""
	if m := later.next(); m != `{"jsonrpc":"2.0","id":"mine","result":{"content":[]}}` {
		t.Fatal(m)
	}
	if m := later.next(); m != "" {
		t.Error("after the answer came", m)
	}
	if m := again.next(); m != "" {
		t.Error("the reader before was told", m)
	}
	if up.calls() != 1 {
		t.Errorf("the call was made %d times", up.calls())
	}
	for _, rec := range g.book.all() {
		if rec.GetTarget() == "balance" && rec.GetOutcome() != "ok" {
			t.Errorf("recorded as %v", rec)
		}
	}

	other, alices := g.legacy("/mcp", "root"), g.legacy("/mcp", "alice")
	sessions, err := session.New(session.Config{Keys: []session.Key{{ID: 1, Secret: [32]byte{1}}}})
	if err != nil {
		t.Fatal(err)
	}
	mine, err := sessions.OpenEvent(began, session.Hash(id))
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(*session.Event)) string {
		e := mine
		f(&e)
		return sessions.SealEvent(e)
	}
	for name, c := range map[string]struct{ session, user, last, reason string }{
		"forged":               {id, "root", "event-1", "event_id_unknown"},
		"one bit changed":      {id, "root", flipped(began), "event_id_unknown"},
		"another session's":    {other, "root", began, "event_id_unknown"},
		"another user's":       {alices, "alice", began, "event_id_unknown"},
		"far ahead":            {id, "root", change(func(e *session.Event) { e.Number = 1e9 }), "event_gone"},
		"of an unknown stream": {id, "root", change(func(e *session.Event) { e.Stream++ }), "event_gone"},
		"of another node":      {id, "root", change(func(e *session.Event) { e.Stream++; e.Node = "n2" }), "event_gone"},
	} {
		e := get(c.session, c.user, c.last)
		b, _ := io.ReadAll(e.resp.Body)
		recs := g.book.of(e.resp.Header.Get("MCPVault-Decision-Id"))
		if e.resp.StatusCode != http.StatusBadRequest || len(recs) != 1 || recs[0].GetDetail()+recs[0].GetReason() == "" || !strings.Contains(fmt.Sprint(recs), c.reason) {
			t.Errorf("C21, %s: %d %s %v", name, e.resp.StatusCode, b, recs)
		}
		if strings.HasSuffix(name, "node") != strings.Contains(string(b), "on node n2") {
			t.Errorf("C21, %s: %s", name, b)
		}
	}
}

func TestACallWhoseClientStaysAwayIsCancelled(t *testing.T) {
	t.Parallel()
	up, _, gone := slowly(t)
	g := resumableGateway(t, up.url)
	id := g.legacy("/mcp", "root")
	h := []string{"Mcp-Session-Id", id, "MCP-Protocol-Version", "2025-11-25"}
	first := g.open(t, http.MethodPost, "root", slowCall, h...)
	first.next()
	first.cancel()
	_ = first.resp.Body.Close()
	// The end of the session is the end of all that might be come back for.
	if a := g.do(g.request(t.Context(), http.MethodDelete, "/mcp", "root", "", h...)); a.status != http.StatusNoContent {
		t.Fatal(a.status)
	}
	select {
	case <-gone:
	case <-time.After(patience):
		t.Fatal("the server still works on it")
	}
}

func TestTheGatewaysOwnStreamTellsWhatWasMissed(t *testing.T) {
	t.Parallel()
	up := newScripted(t)
	g := resumableGateway(t, up.url)
	id := g.legacy("/mcp", "alice")
	h := []string{"Accept", "text/event-stream", "Mcp-Session-Id", id, "MCP-Protocol-Version", "2025-11-25"}
	first := g.open(t, http.MethodGet, "alice", "", h...)
	first.primed()
	began := first.last
	deny := func(tool string) {
		g.policy.Grants = append(g.policy.Grants, snapshot.Grant{ID: "deny-" + tool, Subject: "user:alice", Server: "pay", Tool: tool, Deny: true})
		g.publish()
	}
	deny("balance")
	const changed = `{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`
	if m := first.next(); m != changed {
		t.Fatal(m)
	}
	first.cancel()
	_ = first.resp.Body.Close()
	until(t, "the end of the stream", func() bool { return g.pep.Streams() == 0 })
	g.policy.Grants = g.policy.Grants[:len(g.policy.Grants)-1]
	g.publish() // nobody is there to be told
	again := g.open(t, http.MethodGet, "alice", "", append(h, "Last-Event-ID", began)...)
	for range 2 { // the one that it says it has not read, and the one that it missed
		if m := again.next(); m != changed {
			t.Fatal(m)
		}
	}
	// What is not known any more is a stream that starts now.
	sessions, err := session.New(session.Config{Keys: []session.Key{{ID: 1, Secret: [32]byte{1}}}})
	if err != nil {
		t.Fatal(err)
	}
	e, err := sessions.OpenEvent(began, session.Hash(id))
	if err != nil {
		t.Fatal(err)
	}
	e.Number = 1e9
	fresh := g.open(t, http.MethodGet, "alice", "", append(h, "Last-Event-ID", sessions.SealEvent(e))...)
	if fresh.primed(); fresh.resp.StatusCode != http.StatusOK {
		t.Fatal(fresh.resp.StatusCode)
	}
	deny("refund")
	if m := fresh.next(); m != changed {
		t.Error(m)
	}
}
