package bridge

import (
	"bytes"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/veneer"
)

// Tasks are what a server makes of a call that takes long: an experiment of 2025-11-25, where a client asks for one, and an
// extension of 2026-07-28, where a server decides. The forms differ; what both have is the task's id.

// TaskMethod reports whether a method of the era is about one task.
func TaskMethod(era mcp.Era, method string) bool {
	switch method {
	case mcp.MethodTasksGet, mcp.MethodTasksCancel:
		return true
	case mcp.MethodTasksResult:
		return era == mcp.EraLegacy
	case mcp.MethodTasksUpdate:
		return era == mcp.EraModern
	}
	return false
}

// KeepsTasks reports whether a server's raw capabilities say that it makes tasks, in whichever era.
func KeepsTasks(capabilities []byte) bool {
	return bytes.Contains(capabilities, []byte("tasks")) && (mcp.Member(capabilities, "tasks").Present() || FollowsTasks(capabilities))
}

// FollowsTasks reports whether raw modern capabilities, of a client or a server, have the extension.
func FollowsTasks(capabilities []byte) bool {
	at := mcp.Member(capabilities, "extensions")
	return at.Present() && mcp.Member(capabilities[at.Start:at.End], mcp.ExtensionTasks).Present()
}

// TaskID is where a message names a task, absent where it names none: begun says that the message is the answer to a call that
// has become one.
func TaskID(m *mcp.Message) (at mcp.Span, begun bool) {
	if m.Kind == mcp.KindNotification || m.Kind == mcp.KindRequest {
		if m.Method == mcp.MethodTaskStatus {
			return in(m, m.Params, "taskId"), false
		}
		return in(m, m.Params, "_meta", mcp.MetaRelatedTask, "taskId"), false
	}
	if kind, _ := m.Text(m.ResultType); kind == "task" {
		return in(m, m.Result, "taskId"), true
	}
	if at := in(m, m.Result, "task", "taskId"); at.Present() {
		return at, true
	}
	if at := in(m, m.Result, "_meta", mcp.MetaRelatedTask, "taskId"); at.Present() {
		return at, false
	}
	return in(m, m.Result, "taskId"), false
}

// in follows keys into objects.
func in(m *mcp.Message, at mcp.Span, keys ...string) mcp.Span {
	for _, key := range keys {
		raw := m.Raw(at)
		if len(raw) == 0 || raw[0] != '{' {
			return mcp.Span{}
		}
		next := mcp.Member(raw, key)
		if !next.Present() {
			return mcp.Span{}
		}
		at = shift(next, at.Start)
	}
	return at
}

// WithText is a body with another text at a place.
func WithText(body []byte, at mcp.Span, text string) []byte {
	return veneer.Apply(body, veneer.Splice{At: at, With: mcp.AppendString(nil, text)})
}

// WithoutTaskList are raw legacy capabilities that do not promise a list of tasks.
func WithoutTaskList(capabilities []byte) []byte {
	at := mcp.Member(capabilities, "tasks")
	if !at.Present() || capabilities[at.Start] != '{' {
		return capabilities
	}
	tasks := capabilities[at.Start:at.End]
	var cuts []veneer.Splice
	for _, gone := range mcp.Cuts(tasks, "list") {
		cuts = append(cuts, veneer.Splice{At: gone})
	}
	return veneer.Apply(capabilities, veneer.Splice{At: at, With: veneer.Apply(tasks, cuts...)})
}
