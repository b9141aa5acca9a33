package mcp

import "strings"

// conclude judges a well-formed object as a JSON-RPC message.
func (s *scanner) conclude() {
	m := &s.m
	s.readID()
	if string(m.Raw(m.jsonrpc)) != `"2.0"` {
		if v, ok := m.Text(m.jsonrpc); !ok || v != "2.0" {
			s.note(CodeInvalidRequest, "jsonrpc_version", `the member "jsonrpc" must be "2.0"`)
		}
	}
	if m.Params.Present() && m.Body[m.Params.Start] != '{' {
		s.note(CodeInvalidRequest, "params_not_object", `the member "params" must be an object`)
	}
	if m.Meta.Present() && m.Body[m.Meta.Start] != '{' {
		s.note(CodeInvalidParams, "meta_not_object", `the member "_meta" must be an object`)
	}
	switch {
	case m.method.Present():
		s.concludeCall()
	case m.Result.Present() != m.Error.Present():
		m.Kind = KindResponse
		if m.ID == nil {
			s.note(CodeInvalidRequest, "id_invalid", "a response needs the id of its request")
		}
	default:
		s.note(CodeInvalidRequest, "not_a_message", "the body is neither a request nor a response")
	}
}

func (s *scanner) readID() {
	m := &s.m
	if !m.id.Present() {
		return
	}
	raw := m.Raw(m.id)
	if len(raw) <= s.limits.ID+2 && (raw[0] == '"' || integer(raw)) {
		m.ID = raw
		return
	}
	s.note(CodeInvalidRequest, "id_invalid", "an id is a string or an integer, of bounded length")
}

func integer(raw []byte) bool {
	if string(raw) == "-0" {
		return false
	}
	for i, c := range raw {
		if (c < '0' || c > '9') && (c != '-' || i > 0) {
			return false
		}
	}
	return true
}

func (s *scanner) concludeCall() {
	m := &s.m
	if m.Result.Present() || m.Error.Present() {
		s.note(CodeInvalidRequest, "not_a_message", "a message is either a request or a response")
		return
	}
	raw := m.Raw(m.method)
	if raw[0] != '"' || len(raw) < 3 {
		s.note(CodeInvalidRequest, "method_invalid", `the member "method" must be a string`)
		return
	}
	m.Method = intern(raw[1 : len(raw)-1])
	if m.Method == "" {
		m.Method, _ = m.Text(m.method)
	}
	if len(m.Method) > 256 || hasNUL(m.Method) {
		m.Method = ""
		s.note(CodeInvalidRequest, "method_invalid", `the member "method" is not a method's name`)
		return
	}
	m.Kind = KindRequest
	if !m.id.Present() {
		m.Kind = KindNotification
		if s.strict && !notification(m.Method) {
			s.note(CodeInvalidRequest, "id_missing", "this method needs an id")
		}
	}
	s.readName()
}

func (s *scanner) readName() {
	m := &s.m
	var span Span
	member := Named(m.Method)
	switch member {
	case "name":
		span = m.name
	case "uri":
		span = m.uri
	case "taskId":
		span = m.taskID
	default:
		return
	}
	var ok bool
	if m.Name, ok = m.Text(span); !ok || m.Name == "" {
		s.note(CodeInvalidParams, "name_missing", "params."+member+" must be a string")
		return
	}
	m.NameValue = span
	if hasNUL(m.Name) {
		s.note(CodeInvalidRequest, "name_invalid", "params."+member+" holds a NUL")
	}
	if m.Method != MethodToolsCall || !m.Arguments.Present() {
		return
	}
	switch m.Body[m.Arguments.Start] {
	case '{':
	case 'n':
		m.Arguments = Span{}
	default:
		s.note(CodeInvalidParams, "arguments_not_object", "params.arguments must be an object")
	}
}

func hasNUL(s string) bool { return strings.IndexByte(s, 0) >= 0 }

// intern returns the constant of a method that is met often, so that framing it costs no allocation.
func intern(b []byte) string {
	switch string(b) {
	case MethodToolsCall:
		return MethodToolsCall
	case MethodToolsList:
		return MethodToolsList
	case MethodInitialize:
		return MethodInitialize
	case MethodInitialized:
		return MethodInitialized
	case MethodDiscover:
		return MethodDiscover
	case MethodPing:
		return MethodPing
	case MethodPromptsGet:
		return MethodPromptsGet
	case MethodPromptsList:
		return MethodPromptsList
	case MethodResourcesRead:
		return MethodResourcesRead
	case MethodResourcesList:
		return MethodResourcesList
	case MethodProgress:
		return MethodProgress
	case MethodCancelled:
		return MethodCancelled
	case MethodListen:
		return MethodListen
	}
	return ""
}
