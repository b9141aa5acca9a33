package mcp

import "strconv"

// ErrorData is what an error of the gate tells besides its message.
type ErrorData struct {
	DecisionID string
	Reason     string
	Hint       string
	Retryable  bool
}

// AppendError appends a JSON-RPC error. id is raw, nil leaves it out; data is raw JSON, nil leaves it out.
func AppendError(dst, id []byte, code int, message string, data []byte) []byte {
	dst = append(dst, `{"jsonrpc":"2.0"`...)
	if id != nil {
		dst = append(dst, `,"id":`...)
		dst = append(dst, id...)
	}
	dst = append(dst, `,"error":{"code":`...)
	dst = strconv.AppendInt(dst, int64(code), 10)
	dst = append(dst, `,"message":`...)
	dst = AppendString(dst, message)
	if data != nil {
		dst = append(dst, `,"data":`...)
		dst = append(dst, data...)
	}
	return append(dst, '}', '}')
}

// Append appends the data as a JSON object.
func (d *ErrorData) Append(dst []byte) []byte {
	dst = append(dst, `{"decisionId":`...)
	dst = AppendString(dst, d.DecisionID)
	if d.Reason != "" {
		dst = append(dst, `,"reason":`...)
		dst = AppendString(dst, d.Reason)
		dst = append(dst, `,"retryable":`...)
		dst = strconv.AppendBool(dst, d.Retryable)
	}
	if d.Hint != "" {
		dst = append(dst, `,"hint":`...)
		dst = AppendString(dst, d.Hint)
	}
	return append(dst, '}')
}

// AppendResultHead opens a result object: what follows is its members (begin with a comma after the first) and then
// AppendResultTail. A modern result says that it is complete, which is its first member.
func AppendResultHead(dst, id []byte, era Era) []byte {
	dst = append(dst, `{"jsonrpc":"2.0","id":`...)
	dst = append(dst, id...)
	dst = append(dst, `,"result":{`...)
	if era == EraModern {
		dst = append(dst, `"resultType":"complete",`...)
	}
	return dst
}

// AppendResultTail closes what AppendResultHead opened.
func AppendResultTail(dst []byte) []byte { return append(dst, '}', '}') }

// AppendEmptyResult appends a result without members of its own.
func AppendEmptyResult(dst, id []byte, era Era) []byte {
	dst = append(dst, `{"jsonrpc":"2.0","id":`...)
	dst = append(dst, id...)
	if era == EraModern {
		return append(dst, `,"result":{"resultType":"complete"}}`...)
	}
	return append(dst, `,"result":{}}`...)
}

// AppendToolDenial appends a tool result that says why the call was refused, for the model and for its user.
func AppendToolDenial(dst, id []byte, era Era, sentence string, d *ErrorData) []byte {
	dst = AppendResultHead(dst, id, era)
	dst = append(dst, `"content":[{"type":"text","text":`...)
	dst = AppendString(dst, sentence)
	dst = append(dst, `}],"structuredContent":`...)
	dst = d.Append(dst)
	dst = append(dst, `,"isError":true`...)
	return AppendResultTail(dst)
}
