package pep_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// asking makes the legacy server ask before it answers a call, and waits for the answer to the question.
func asking(up *scripted) (cancelled <-chan string) {
	var open sync.Map // of channels, by the id of the question
	var count atomic.Int64
	gone := make(chan string, 8)
	up.script(func(w http.ResponseWriter, r *http.Request, body string) {
		var m struct {
			ID     json.RawMessage
			Method string
		}
		_ = json.Unmarshal([]byte(body), &m)
		switch {
		case m.Method == "tools/call":
			w.Header().Set("Content-Type", "text/event-stream")
			id, answered := fmt.Sprintf(`"s%d"`, count.Add(1)), make(chan struct{})
			open.Store(id, answered)
			_, _ = fmt.Fprintf(w, `data: {"jsonrpc":"2.0","id":%s,"method":"elicitation/create","params":{"message":"sure?"}}`+"\n\n", id)
			_ = http.NewResponseController(w).Flush()
			select {
			case <-answered:
				_, _ = fmt.Fprintf(w, `data: {"jsonrpc":"2.0","id":%s,"result":{"content":[]}}`+"\n\n", m.ID)
			case <-r.Context().Done():
			}
		case m.Method == "":
			if answered, is := open.LoadAndDelete(string(m.ID)); is {
				close(answered.(chan struct{}))
			}
			w.WriteHeader(http.StatusAccepted)
		case m.Method == "notifications/cancelled":
			gone <- body
			w.WriteHeader(http.StatusAccepted)
		default:
			up.answer(w, body)
		}
	})
	return gone
}

const askable = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"elicitation":{}}}`

// round posts one round of a call by a client that can be asked; state is "" for the first.
func (g *gateway) round(user, state string) *answer {
	g.t.Helper()
	params := `"name":"refund","arguments":{},` + askable
	if state != "" {
		params += `,"inputResponses":{"q1":{"action":"accept"}},"requestState":"` + state + `"`
	}
	return g.post("/mcp/pay", user, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{`+params+`}}`,
		"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "refund")
}

func stateOf(t *testing.T, a *answer) string {
	t.Helper()
	var r struct{ ResultType, RequestState string }
	if err := json.Unmarshal(a.Result, &r); err != nil || r.ResultType != "input_required" || r.RequestState == "" {
		t.Fatalf("no questions: %s", a.body)
	}
	return r.RequestState
}

func asked(t *testing.T, cfg pep.Config, change func(*pep.Parts)) (*gateway, <-chan string) {
	t.Helper()
	up := newScripted(t)
	if change == nil {
		change = func(*pep.Parts) {}
	}
	g := assembled(t, cfg, change, nil, catalogueServer("pay", up.url, []string{"2025-11-25"}, plainTool("refund", destructive)))
	return g, asking(up)
}

func TestEachRoundIsDecidedAndRecordedAndGoodForItsCallerOnly(t *testing.T) {
	t.Parallel()
	g, _ := asked(t, pep.Config{}, nil)
	g.policy.Grants = append(g.policy.Grants, snapshot.Grant{ID: "a", Subject: "user:alice", Server: "*"})
	g.publish()
	first := g.round("root", "")
	state := stateOf(t, first)
	recs := g.book.of(first.decision())
	if len(recs) != 2 || recs[0].GetKind() != auditv1.RecordKind_RECORD_KIND_INTENT || recs[1].GetOutcome() != "input_required" {
		t.Errorf("%v", recs)
	}
	if strings.Contains(fmt.Sprint(g.book.records), state) {
		t.Error("a requestState is in the log")
	}
	if a := g.round("alice", state); a.status != 400 || a.code() != -32602 || g.book.of(a.decision())[1].GetDetail() != "request_state_invalid" {
		t.Errorf("C25, another user: %d %s", a.status, a.body)
	}
	last := g.round("root", state)
	if string(last.Result) != `{"resultType":"complete","content":[]}` {
		t.Fatalf("%s", last.body)
	}
	if recs := g.book.of(last.decision()); len(recs) != 2 || recs[1].GetOutcome() != "ok" {
		t.Errorf("%v", recs)
	}
	state = stateOf(t, g.round("root", ""))
	g.policy.Grants = nil
	g.publish()
	if a := g.round("root", state); a.code() != -32602 || !strings.Contains(a.body, "unknown server") {
		t.Errorf("a round whose caller has lost the grant: %s", a.body)
	}
}

func TestACallThatNobodyComesBackForIsAbandoned(t *testing.T) {
	t.Parallel()
	var late atomic.Int64
	g, cancelled := asked(t, pep.Config{
		InputWait: time.Minute, MaxParked: 1, Now: func() time.Time { return time.Now().Add(time.Duration(late.Load())) },
	}, nil)
	state := stateOf(t, g.round("root", ""))
	if a := g.round("root", ""); string(a.Result) != `{"resultType":"complete","content":[]}` {
		t.Errorf("a second call waits: %s", a.body)
	}
	late.Store(int64(61 * time.Second))
	if a := g.round("root", state); a.status != 400 || a.code() != -32602 {
		t.Errorf("C25, expired: %d %s", a.status, a.body)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.pep.Run(ctx)
	}()
	cancel()
	<-done
	if body := <-cancelled; !strings.Contains(body, `"method":"notifications/cancelled"`) {
		t.Errorf("%s", body)
	}
	g.book.mu.Lock()
	defer g.book.mu.Unlock()
	if last := g.book.records[len(g.book.records)-1]; last.GetDetail() != "input_abandoned" || last.GetOutcome() != "canceled" || last.GetTarget() != "refund" {
		t.Errorf("%v", last)
	}
}

func TestAnotherNodeSaysWhereACallWaits(t *testing.T) {
	t.Parallel()
	var parts pep.Parts
	g, _ := asked(t, pep.Config{}, func(p *pep.Parts) { parts = *p })
	state := stateOf(t, g.round("root", ""))
	// The same policy and the same keys: another node of the cell.
	srv := httptest.NewServer(pep.New(pep.Config{Cell: "c1", Node: "n2", Loopback: true}, parts))
	t.Cleanup(srv.Close)
	g.url = srv.URL
	if a := g.round("root", state); !strings.Contains(a.body, `"reason":"other_node"`) || !strings.Contains(a.Error.Message, "waits on node n1") {
		t.Errorf("%s", a.body)
	}
}

func TestAServersQuestionGoesToTheSessionThatItWasAskedIn(t *testing.T) {
	t.Parallel()
	up := newScripted(t)
	asking(up)
	g := newGateway(t, pep.Config{}, nil, catalogueServer("pay", up.url, []string{"2025-11-25"}, plainTool("refund", destructive)))
	// On the aggregate the gateway leads the dialogue with both.
	init := `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"elicitation":{}},"clientInfo":{"name":"t","version":"1"}}}`
	mine := g.post("/mcp", "root", init).header.Get("Mcp-Session-Id")
	other := g.post("/mcp", "root", init).header.Get("Mcp-Session-Id")
	req := g.request(t.Context(), http.MethodPost, "/mcp", "root", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"pay__refund","arguments":{}}}`, "Mcp-Session-Id", mine)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	events := bufio.NewScanner(resp.Body)
	next := func() (m struct {
		ID     json.RawMessage
		Method string
		Result json.RawMessage
	},
	) {
		for events.Scan() {
			if data, is := strings.CutPrefix(events.Text(), "data: "); is && data != "" {
				if err := json.Unmarshal([]byte(data), &m); err != nil {
					t.Fatal(err, data)
				}
				return m
			}
		}
		t.Fatal("the stream ended", events.Err())
		return m
	}
	q := next()
	if q.Method != "elicitation/create" || string(q.ID) == `"s1"` {
		t.Fatalf("%+v", q)
	}
	reply := `{"jsonrpc":"2.0","id":` + string(q.ID) + `,"result":{"action":"accept"}}`
	if a := g.post("/mcp", "root", reply, "Mcp-Session-Id", other); a.status != 400 || g.book.of(a.decision())[0].GetReason() != "response_unasked" {
		t.Errorf("C27: %d %s", a.status, a.body)
	}
	if a := g.post("/mcp", "root", reply, "Mcp-Session-Id", mine); a.status != 202 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if last := next(); string(last.ID) != "1" || string(last.Result) != `{"content":[]}` {
		t.Errorf("%+v", last)
	}
}
