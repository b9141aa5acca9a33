package pep_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// slow is a server that makes a task of every call, in the form of the era that it is asked in.
func slow(t *testing.T) *scripted {
	t.Helper()
	up := newScripted(t)
	up.script(func(w http.ResponseWriter, r *http.Request, body string) {
		var m struct {
			ID     json.RawMessage
			Method string
			Params struct{ TaskID string }
		}
		_ = json.Unmarshal([]byte(body), &m)
		modern := r.Header.Get("Mcp-Method") != ""
		var result string
		switch {
		case m.Method == "tools/call" && modern:
			result = `{"resultType":"task","taskId":"t-1","status":"working","n":9007199254740993}`
		case m.Method == "tools/call":
			result = `{"task":{"taskId":"t-1","status":"working","n":9007199254740993}}`
		case m.Method == "tasks/result":
			result = `{"content":[],"_meta":{"io.modelcontextprotocol/related-task":{"taskId":"` + m.Params.TaskID + `"}}}`
		case strings.HasPrefix(m.Method, "tasks/"):
			result = `{"resultType":"complete","taskId":"` + m.Params.TaskID + `","status":"completed","result":{"taskId":"t-1"}}`
		case m.Method == "initialize":
			w.Header().Set("Mcp-Session-Id", "upstream-session")
			result = `{"protocolVersion":"2025-11-25","capabilities":{"tools":{},"tasks":{"list":{},"cancel":{}}},"serverInfo":{"name":"ci","version":"1"}}`
		default:
			up.answer(w, body)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":%s}`, m.ID, result)
	})
	return up
}

func slowGateway(t *testing.T, versions []string) (*gateway, *scripted) {
	t.Helper()
	up := slow(t)
	s := catalogueServer("ci", up.url, versions, plainTool("build", read), plainTool("other", read))
	s.Capabilities = []byte(`{"tools":{},"tasks":{"list":{},"cancel":{}},"extensions":{"io.modelcontextprotocol/tasks":{}}}`)
	return newGateway(t, pep.Config{}, []snapshot.Grant{
		{ID: "a", Subject: "user:alice", Server: "ci", Tool: "build"}, {ID: "b", Subject: "user:bob", Server: "ci", Tool: "build"},
	}, s), up
}

const following = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"extensions":{"io.modelcontextprotocol/tasks":{}}}}`

// begin calls a tool of which the server makes a task, and returns the id by which the caller knows it.
func (g *gateway) begin(path, user, name string) string {
	g.t.Helper()
	a := g.post(path, user, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"`+name+`","arguments":{},`+following+`}}`,
		"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", name)
	var r struct{ ResultType, TaskID string }
	if err := json.Unmarshal(a.Result, &r); err != nil || r.ResultType != "task" || r.TaskID == "" || r.TaskID == "t-1" || !strings.Contains(a.body, `"n":9007199254740993`) {
		g.t.Fatal(a.body)
	}
	return r.TaskID
}

func TestATaskIsItsCallersAlone(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/mcp/ci", "/mcp"} {
		g, up := slowGateway(t, allEras())
		name := "build"
		if path == "/mcp" {
			name = "ci__build"
		}
		id := g.begin(path, "alice", name)
		for _, method := range []string{"tasks/get", "tasks/update", "tasks/cancel"} {
			a := g.modern(path, "alice", method, id, `"taskId":"`+id+`","inputResponses":{}`)
			sent, h := up.last()
			if !strings.Contains(sent, `"taskId":"t-1"`) || h.Get("Mcp-Name") != "t-1" {
				t.Errorf("%s: the server saw %s %v", method, sent, h)
			}
			if want := `{"resultType":"complete","taskId":"` + id + `","status":"completed","result":{"taskId":"t-1"}}`; string(a.Result) != want {
				t.Errorf("%s: %s", method, a.body)
			}
		}
		seen := len(up.seen)
		for who, id := range map[string]string{"bob": id, "alice": "t-1", "root": id} {
			a := g.modern(path, who, "tasks/get", id, `"taskId":"`+id+`"`)
			if a.code() != -32602 || a.Error.Message != "unknown task" || len(up.seen) != seen {
				t.Errorf("%s uses %s: %s", who, id, a.body)
			}
			if who != "alice" && g.book.of(a.decision())[0].GetReason() != "task_hijack" {
				t.Errorf("recorded as %v", g.book.of(a.decision())[0])
			}
		}
		g.policy.Grants[0].Tool = "other"
		g.publish()
		if a := g.modern(path, "alice", "tasks/get", id, `"taskId":"`+id+`"`); a.code() != -32602 || len(up.seen) != seen {
			t.Errorf("after the grant on the tool was taken away: %s", a.body)
		}
	}
}

func TestATaskIsNotForcedOnAClientThatCannotFollowOne(t *testing.T) {
	t.Parallel()
	g, _ := slowGateway(t, allEras())
	if a := g.call("/mcp/ci", "alice", "build", "{}"); !strings.Contains(a.body, `"reason":"task_unasked"`) {
		t.Error(a.body)
	}
}

func TestLegacyTasksAreFollowedByTheirCallersIDs(t *testing.T) {
	t.Parallel()
	g, up := slowGateway(t, allEras())
	init := g.post("/mcp/ci", "alice", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`)
	h := []string{"Mcp-Session-Id", init.header.Get("Mcp-Session-Id"), "MCP-Protocol-Version", "2025-11-25"}
	a := g.post("/mcp/ci", "alice", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"build","arguments":{},"task":{"ttl":1}}}`, h...)
	var r struct{ Task struct{ TaskID string } }
	if err := json.Unmarshal(a.Result, &r); err != nil || r.Task.TaskID == "t-1" || r.Task.TaskID == "" {
		t.Fatal(a.body)
	}
	id := r.Task.TaskID
	for _, method := range []string{"tasks/get", "tasks/result", "tasks/cancel"} {
		a := g.post("/mcp/ci", "alice", `{"jsonrpc":"2.0","id":1,"method":"`+method+`","params":{ "taskId" : "`+id+`"}}`, h...)
		if sent, _ := up.last(); !strings.Contains(sent, `"taskId" : "t-1"`) || !strings.Contains(string(a.Result), `"taskId":"`+id+`"`) {
			t.Errorf("%s: the server saw %s, the client %s", method, sent, a.body)
		}
	}
	seen := len(up.seen)
	if a := g.post("/mcp/ci", "alice", `{"jsonrpc":"2.0","id":1,"method":"tasks/list"}`, h...); a.code() != -32601 || !strings.Contains(a.body, "tasks are not listed here") || len(up.seen) != seen {
		t.Error(a.body)
	}
	// The server asks something for the task, on the stream on which its result is waited for.
	up.script(func(w http.ResponseWriter, _ *http.Request, body string) {
		if !strings.Contains(body, "tasks/result") {
			up.answer(w, body)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for _, ev := range []string{
			`{"jsonrpc":"2.0","method":"notifications/tasks/status","params":{"taskId":"t-1","status":"input_required"}}`,
			`{"jsonrpc":"2.0","method":"notifications/tasks/status","params":{"taskId":"t-2","status":"of somebody else"}}`,
			`{"jsonrpc":"2.0","id":7,"method":"elicitation/create","params":{"message":"m","_meta":{"io.modelcontextprotocol/related-task":{"taskId":"t-1"}}}}`,
			`{"jsonrpc":"2.0","id":1,"result":{"content":[],"_meta":{"io.modelcontextprotocol/related-task":{"taskId":"t-1"}}}}`,
		} {
			_, _ = fmt.Fprintf(w, "data: %s\n\n", ev)
		}
	})
	a = g.post("/mcp/ci", "alice", `{"jsonrpc":"2.0","id":1,"method":"tasks/result","params":{"taskId":"`+id+`"}}`, h...)
	if strings.Count(a.body, id) != 3 || strings.Contains(a.body, "t-1") || strings.Contains(a.body, "t-2") {
		t.Error(a.body)
	}
	reply := `{"jsonrpc":"2.0","id":7,"result":{"action":"decline","_meta":{"io.modelcontextprotocol/related-task":{"taskId":"` + id + `"}}}}`
	if a := g.post("/mcp/ci", "alice", reply, h...); a.status != http.StatusAccepted {
		t.Error(a.status, a.body)
	}
	if sent, _ := up.last(); !strings.Contains(sent, `"taskId":"t-1"`) {
		t.Errorf("the server saw %s", sent)
	}
	if a := g.post("/mcp/ci", "alice", strings.Replace(reply, id, "t-1", 1), h...); a.status != http.StatusBadRequest {
		t.Error(a.status, a.body)
	}
	if !strings.Contains(init.body, `"tasks":{"cancel":{}}`) {
		t.Errorf("promised are: %s", init.body)
	}
}

func TestATaskStaysInItsRevision(t *testing.T) {
	t.Parallel()
	g, up := slowGateway(t, []string{"2026-07-28"})
	id := g.begin("/mcp/ci", "alice", "build")
	session := g.legacy("/mcp/ci", "alice")
	seen := len(up.seen)
	a := g.post("/mcp/ci", "alice", `{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{"taskId":"`+id+`"}}`, "Mcp-Session-Id", session)
	if !strings.Contains(a.body, `"reason":"task_era"`) || len(up.seen) != seen {
		t.Error(a.body)
	}
}

func TestTasksAreOfferedToThoseWhoHaveATool(t *testing.T) {
	t.Parallel()
	g, _ := slowGateway(t, allEras())
	for path, want := range map[string]bool{"/mcp/ci": true, "/mcp": true} {
		if a := g.modern(path, "alice", "server/discover", "", ""); strings.Contains(a.body, `"io.modelcontextprotocol/tasks":{}`) != want {
			t.Errorf("%s: %s", path, a.body)
		}
	}
	g.cat.Servers = []*snapshotv1.CatalogueServer{catalogueServer("ci", "http://127.0.0.1:1", allEras(), plainTool("build", read), plainTool("other", read))}
	g.publish()
	if a := g.modern("/mcp", "alice", "server/discover", "", ""); strings.Contains(a.body, "tasks") {
		t.Error(a.body)
	}
}
