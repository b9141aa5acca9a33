package pep

import (
	"net/http"
	"strings"

	"github.com/mcpvault/mcpvault/dataplane/bridge"
	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/snapshot/authz"
)

// A caller knows a task by an id that the cell has sealed. It says whose the task is, on which server, and which tool began it:
// any node can judge it, and whoever may no longer see the tool knows nothing of its tasks. An id of somebody else's looks like
// one that does not exist. Tasks are not listed, for a server's list need not be of one caller's tasks alone.

// task is the one that a request is about.
type task struct {
	session.Task
	// text is the id as the caller has it.
	text string
}

// decideTask judges a request about one task.
func (x *exchange) decideTask() *answer {
	x.task = nil
	params := mcp.Message{Body: x.msg.Raw(x.msg.Params)}
	at := mcp.Member(params.Body, "taskId")
	text, _ := params.Text(at)
	t, err := x.p.sessions.OpenTask(text)
	switch {
	case err != nil || t.Tenant != x.tenant.ID || x.route.server != "" && t.Server != x.route.server:
		return x.unknownTask("unknown_task")
	case t.Owner != x.owner:
		return x.unknownTask("task_hijack")
	}
	s, exists := x.tenant.Server(t.Server)
	if !exists {
		return x.unknownTask("unknown_server")
	}
	if x.server == nil {
		x.choose(s)
	}
	x.rec.Target = bounded(t.Tool, 256)
	tool, exists := s.Tool(t.Tool)
	switch {
	case !exists:
		return x.unknownTask("unknown_tool")
	case !authz.Visible(&x.view, tool.Item, &x.ask):
		return x.unknownTask("no_grant")
	case x.killedTool(s, tool.Name):
		return x.unknownTask("killed")
	case !x.state.Fresh(x.tenant, tool.Called, x.ask.NowMS):
		x.denied("stale")
		return x.fail(mcp.CodeServer, "stale", staleSentence, true)
	case x.owned && x.speaksModern(s) != (x.era == mcp.EraModern):
		x.denied("task_era")
		return x.fail(mcp.CodeServer, "task_era", "this task belongs to another protocol revision, in which its server keeps it: ask for it in that one", false)
	}
	x.task = &task{t, text}
	start := x.msg.Params.Start
	x.renamed = bridge.Rename{At: mcp.Span{Start: start + at.Start, End: start + at.End}, Name: t.ID}
	x.allowed(effectOf(x.msg.Method))
	return nil
}

func (x *exchange) unknownTask(reason string) *answer {
	x.denied(reason)
	d := mcp.ErrorData{DecisionID: x.rec.GetId()}
	return &answer{
		status: http.StatusOK, reason: reason, outcome: "refused",
		body: mcp.AppendError(nil, x.msg.ID, mcp.CodeInvalidParams, "unknown task", d.Append(nil)),
	}
}

// decideTaskList refuses to list tasks.
func (x *exchange) decideTaskList() *answer {
	a := x.unknownMethod("tasks_not_listed")
	d := mcp.ErrorData{DecisionID: x.rec.GetId(), Reason: "tasks_not_listed"}
	a.body = mcp.AppendError(nil, x.msg.ID, mcp.CodeMethodNotFound, "tasks are not listed here: each is known to whoever was given its id", d.Append(nil))
	return a
}

// tasked reports whether the server's answers may speak of tasks.
func (x *exchange) tasked() bool {
	return x.task != nil || x.server != nil && bridge.KeepsTasks(x.server.Capabilities)
}

// withTasks is an answer of the server with the id by which the caller knows the task that it is about.
func (x *exchange) withTasks(m *mcp.Message, body []byte) ([]byte, *answer) {
	if !x.tasked() || !m.Result.Present() {
		return body, nil
	}
	answer := *m
	if len(body) != len(m.Body) || &body[0] != &m.Body[0] { // it was translated
		again, refusal := x.p.framer.FrameAnswer(body)
		if refusal != nil {
			return body, nil
		}
		answer = again
	}
	at, begun := bridge.TaskID(&answer)
	id, is := answer.Text(at)
	switch {
	case !is, begun && x.era == mcp.EraLegacy && !mcp.Member(x.msg.Raw(x.msg.Params), "task").Present():
		return body, nil
	case begun && x.tool == nil, begun && x.era == mcp.EraModern && !bridge.FollowsTasks(x.msg.Raw(x.msg.Capabilities)):
		return nil, x.fail(mcp.CodeServer, "task_unasked", "the server answered with a task, which this client did not say it can follow", false)
	case len(id) > session.MaxTask:
		return nil, x.fail(mcp.CodeServer, "upstream_protocol", "the server's id of a task is too long", false)
	case begun:
		text := x.p.sessions.SealTask(session.Task{Owner: x.owner, Tenant: x.tenant.ID, Server: x.server.Name, Tool: x.tool.Name, ID: id})
		if x.sessionID != "" {
			x.dialogue().Began(id, text)
		}
		return bridge.WithText(body, at, text), nil
	case x.task == nil:
		return body, nil // some tool's own word
	case id != x.task.ID:
		return nil, x.fail(mcp.CodeServer, "upstream_protocol", "the server answered with another task", false)
	}
	return bridge.WithText(body, at, x.task.text), nil
}

// forbidsTaskQuestions judges what a task asks its client.
func (x *exchange) forbidsTaskQuestions(m *mcp.Message) *answer {
	if x.task == nil || !mcp.Member(m.Raw(m.Result), "inputRequests").Present() {
		return nil
	}
	asked, _, err := bridge.Questions(m)
	if err != nil {
		return x.fail(mcp.CodeServer, "upstream_protocol", "the questions of the task cannot be read", false)
	}
	for i := range asked {
		if reason := x.forbids(asked[i].Method, asked[i].Params); reason != "" {
			return x.questionForbidden(reason)
		}
	}
	return nil
}

// taskNotice is a legacy server's message on a stream with the id by which the caller knows the task that it names; nil for one
// that is about a task of somebody else's, or of a session that this node did not see begin it.
func (x *exchange) taskNotice(m *mcp.Message, ev mcp.Event) []byte {
	if x.era != mcp.EraLegacy || !x.tasked() {
		return ev.Raw
	}
	at, _ := bridge.TaskID(m)
	id, is := m.Text(at)
	if !is {
		return ev.Raw
	}
	text, known := "", false
	if x.task != nil && x.task.ID == id {
		text, known = x.task.text, true
	} else if x.sessionID != "" {
		text, known = x.dialogue().Task(id)
	}
	if !known {
		return nil
	}
	return mcp.AppendEventFrom(nil, ev, oneLine(bridge.WithText(m.Body, at, text)))
}

// taskReply is a client's message to its server, with the server's own id of the task that it names.
func (x *exchange) taskReply() ([]byte, *answer) {
	body := x.msg.Body
	if x.era != mcp.EraLegacy || x.msg.Kind == mcp.KindRequest || !strings.Contains(string(body), mcp.MetaRelatedTask) {
		return body, nil
	}
	at, _ := bridge.TaskID(&x.msg)
	text, is := x.msg.Text(at)
	if !is {
		return body, nil
	}
	t, err := x.p.sessions.OpenTask(text)
	if err != nil || t.Owner != x.owner || t.Tenant != x.tenant.ID || t.Server != x.server.Name {
		return nil, x.reject(http.StatusBadRequest, mcp.CodeInvalidParams, "unknown_task", "unknown task")
	}
	return bridge.WithText(body, at, t.ID), nil
}
