// Package mcp is the framing of the Model Context Protocol over HTTP: one strict pass over a bounded body, the choice of
// the protocol era, the header checks of the modern one, JSON-RPC answers and server-sent events as bytes. It knows the
// revisions and no policy.
//
// It promises that whatever it accepts is read the same way by every JSON reader behind it: no duplicate or case-variant
// protocol key, no invalid UTF-8, no lone surrogate, nothing after the value. The bytes that were judged can therefore
// be sent on as they came; a Message holds offsets into them and never a decoded copy.
package mcp

import (
	"bytes"
	"net/http"
)

// The protocol revisions spoken here. The first two are legacy (initialize, sessions), the last is modern (stateless).
const (
	Rev20250618 = "2025-06-18"
	Rev20251125 = "2025-11-25"
	Rev20260728 = "2026-07-28"
)

// Revisions lists what is spoken, newest first.
func Revisions() []string { return []string{Rev20260728, Rev20251125, Rev20250618} }

// Known reports whether the revision is spoken here.
func Known(rev string) bool { return rev == Rev20260728 || IsLegacy(rev) }

// IsLegacy reports whether the revision is one with sessions.
func IsLegacy(rev string) bool { return rev == Rev20251125 || rev == Rev20250618 }

// Header names, in canonical form.
const (
	HeaderVersion     = "Mcp-Protocol-Version"
	HeaderMethod      = "Mcp-Method"
	HeaderName        = "Mcp-Name"
	HeaderSession     = "Mcp-Session-Id"
	HeaderLastEventID = "Last-Event-Id"
	HeaderParamPrefix = "Mcp-Param-"
)

// Keys of _meta that the protocol reserves.
const (
	MetaVersion      = "io.modelcontextprotocol/protocolVersion"
	MetaClientInfo   = "io.modelcontextprotocol/clientInfo"
	MetaCapabilities = "io.modelcontextprotocol/clientCapabilities"
	MetaServerInfo   = "io.modelcontextprotocol/serverInfo"
	MetaLogLevel     = "io.modelcontextprotocol/logLevel"
	MetaSubscription = "io.modelcontextprotocol/subscriptionId"
	MetaRelatedTask  = "io.modelcontextprotocol/related-task" // legacy
	ExtensionTasks   = "io.modelcontextprotocol/tasks"        // modern
)

// JSON-RPC error codes. -32000..-32019 are a server's own; the three after them are the protocol's.
const (
	CodeParse              = -32700
	CodeInvalidRequest     = -32600
	CodeMethodNotFound     = -32601
	CodeInvalidParams      = -32602
	CodeInternal           = -32603
	CodeServer             = -32000
	CodeNoResource         = -32002 // legacy; modern peers are told CodeInvalidParams
	CodeHeaderMismatch     = -32020
	CodeMissingCapability  = -32021
	CodeUnsupportedVersion = -32022
	CodeURLRequired        = -32042 // 2025-11-25; modern peers answer that they need input
)

// The methods that the gate knows by name. Others are forwarded or refused by policy, never guessed at.
const (
	MethodInitialize    = "initialize"
	MethodDiscover      = "server/discover"
	MethodPing          = "ping"
	MethodToolsList     = "tools/list"
	MethodToolsCall     = "tools/call"
	MethodPromptsList   = "prompts/list"
	MethodPromptsGet    = "prompts/get"
	MethodResourcesList = "resources/list"
	MethodResourcesRead = "resources/read"
	MethodTemplatesList = "resources/templates/list"
	MethodListen        = "subscriptions/listen"
	MethodSetLevel      = "logging/setLevel"
	MethodSubscribe     = "resources/subscribe"
	MethodUnsubscribe   = "resources/unsubscribe"
	MethodInitialized   = "notifications/initialized"
	MethodTasksGet      = "tasks/get"
	MethodTasksResult   = "tasks/result" // legacy
	MethodTasksList     = "tasks/list"   // legacy
	MethodTasksUpdate   = "tasks/update" // modern
	MethodTasksCancel   = "tasks/cancel"
	MethodTaskStatus    = "notifications/tasks/status" // legacy
	MethodCancelled     = "notifications/cancelled"
	MethodProgress      = "notifications/progress"
	MethodMessage       = "notifications/message"
	MethodAcknowledged  = "notifications/subscriptions/acknowledged"
	MethodUpdated       = "notifications/resources/updated"
	MethodComplete      = "completion/complete"
	MethodElicit        = "elicitation/create"
	MethodSample        = "sampling/createMessage"
	MethodRoots         = "roots/list"
	notificationPrefix  = "notifications/"
)

// Kind says what a message is.
type Kind uint8

// The kinds of message.
const (
	KindInvalid Kind = iota
	KindRequest
	KindNotification
	KindResponse
)

// Era is one of the protocol's two generations.
type Era uint8

// The eras.
const (
	EraLegacy Era = iota
	EraModern
)

// Span is a range of the body; the zero Span is absent, for no value starts at offset 0 of an object.
type Span struct{ Start, End int }

// Present reports whether the span holds a value.
func (s Span) Present() bool { return s.End > s.Start }

// Message is one framed body. The spans hold raw JSON values, strings with their quotes.
type Message struct {
	Body []byte
	Kind Kind
	// Method is "" for a response.
	Method string
	// ID is the raw id, nil when there is none (or when it could not be read).
	ID []byte
	// Name is what the request names: params.name of tools/call and prompts/get, uri of resources/read, taskId of tasks/*.
	Name string

	Params, Arguments, Meta, NameValue              Span
	Cursor, RequestState                            Span
	InitVersion, InitCapabilities, InitInfo         Span
	Version, Capabilities, Info                     Span
	ProgressToken, TraceParent, TraceState, Baggage Span
	Result, Error                                   Span

	clientName, clientVersion Span
	// IsError and ResultType are read from the result of an answer.
	IsError    bool
	ResultType Span

	id, jsonrpc, method, name, uri, taskID Span
}

// Raw returns the bytes of a span, nil when it is absent.
func (m *Message) Raw(s Span) []byte {
	if !s.Present() {
		return nil
	}
	return m.Body[s.Start:s.End]
}

// IDSpan is where the id is in the body.
func (m *Message) IDSpan() Span { return m.id }

// Text returns the decoded string of a span; it reports false when the value is absent or not a string.
func (m *Message) Text(s Span) (string, bool) {
	if !s.Present() || m.Body[s.Start] != '"' {
		return "", false
	}
	raw := m.Body[s.Start+1 : s.End-1]
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw), true
	}
	return string(unescape(make([]byte, 0, len(raw)), raw)), true
}

// Client returns the name and version that the client gives itself, from _meta or from initialize. They are claims.
func (m *Message) Client() (name, version string) {
	name, _ = m.Text(m.clientName)
	version, _ = m.Text(m.clientVersion)
	return name, version
}

// Notification reports whether the method's name is a notification's.
func notification(method string) bool {
	return len(method) > len(notificationPrefix) && method[:len(notificationPrefix)] == notificationPrefix
}

// Named reports which member of params the method names its target by, "" when it names none.
func Named(method string) string {
	switch method {
	case MethodToolsCall, MethodPromptsGet:
		return "name"
	case MethodResourcesRead:
		return "uri"
	case MethodTasksGet, MethodTasksUpdate, MethodTasksCancel:
		return "taskId"
	}
	return ""
}

// Refusal is the answer to a request that cannot be served as it is framed. Reason is a stable word for records.
type Refusal struct {
	Reason  string
	Status  int
	Code    int
	Message string
	// Data is raw JSON for the error's data, nil for none.
	Data []byte
}

func (r *Refusal) Error() string { return r.Reason + ": " + r.Message }

func refuse(code int, reason, message string) *Refusal {
	return &Refusal{Reason: reason, Status: http.StatusBadRequest, Code: code, Message: message}
}
