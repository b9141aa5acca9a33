package bridge

import (
	"encoding/json"
	"errors"
	"strconv"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
)

// Question is something that a server asks a client in the middle of a request.
type Question struct {
	// Key is the name of a modern question, raw, as a JSON string.
	Key []byte
	// ID is the id of a legacy question, raw.
	ID     []byte
	Method string
	// Params is raw, nil for none.
	Params []byte
}

// Name is the question's key as text.
func (q *Question) Name() string {
	m := mcp.Message{Body: q.Key}
	name, _ := m.Text(mcp.Span{End: len(q.Key)})
	return name
}

// MaxQuestions bounds what one round may ask.
const MaxQuestions = 32

// ErrQuestions means that a server's questions cannot be read.
var ErrQuestions = errors.New("the questions of the server cannot be read")

// AsksForInput reports whether an answer says that more input is needed.
func AsksForInput(m *mcp.Message) bool {
	kind, _ := m.Text(m.ResultType)
	return m.Result.Present() && kind == "input_required"
}

// Questions reads what a modern answer asks for, and the raw state that is to come back with it, nil for none.
func Questions(m *mcp.Message) (asked []Question, state []byte, err error) {
	result := m.Raw(m.Result)
	if at := mcp.Member(result, "requestState"); at.Present() {
		if state = result[at.Start:at.End]; state[0] != '"' {
			return nil, nil, ErrQuestions
		}
	}
	at := mcp.Member(result, "inputRequests")
	if !at.Present() {
		if state == nil {
			return nil, nil, ErrQuestions
		}
		return nil, state, nil
	}
	requests := result[at.Start:at.End]
	if requests[0] != '{' {
		return nil, nil, ErrQuestions
	}
	for key, raw := range mcp.RawMembers(requests) {
		q := Question{Key: mcp.AppendString(nil, key)}
		body := mcp.Message{Body: raw}
		q.Method, _ = body.Text(mcp.Member(raw, "method"))
		q.Params = body.Raw(mcp.Member(raw, "params"))
		if q.Method == "" || len(asked) == MaxQuestions || q.Params != nil && q.Params[0] != '{' {
			return nil, nil, ErrQuestions
		}
		asked = append(asked, q)
	}
	return asked, state, nil
}

// URLQuestions reads the legacy error that a person has to go to some address before the request can be served (2025-11-25,
// elicitation: URL elicitation required). None means that it is another answer.
func URLQuestions(m *mcp.Message) ([]Question, error) {
	if ErrorCode(m) != mcp.CodeURLRequired {
		return nil, nil
	}
	raw := m.Raw(m.Error)
	data := mcp.Member(raw, "data")
	if !data.Present() || raw[data.Start] != '{' {
		return nil, ErrQuestions
	}
	raw = raw[data.Start:data.End]
	var all []json.RawMessage
	if at := mcp.Member(raw, "elicitations"); !at.Present() || json.Unmarshal(raw[at.Start:at.End], &all) != nil {
		return nil, ErrQuestions
	}
	if len(all) == 0 || len(all) > MaxQuestions {
		return nil, ErrQuestions
	}
	asked := make([]Question, len(all))
	for i, params := range all {
		p := mcp.Message{Body: params}
		if mode, _ := p.Text(mcp.Member(params, "mode")); params[0] != '{' || mode != "url" {
			return nil, ErrQuestions
		}
		asked[i] = Question{Key: mcp.AppendString(nil, URLKey(i)), Method: mcp.MethodElicit, Params: params}
	}
	return asked, nil
}

// URLKey is the name of one of the URLQuestions.
func URLKey(i int) string { return "u" + strconv.Itoa(i+1) }

// AppendInputRequired appends the modern answer that puts questions to the client; state is its text.
func AppendInputRequired(dst, id []byte, asked []Question, state string) []byte {
	dst = append(append(dst, `{"jsonrpc":"2.0","id":`...), id...)
	dst = append(dst, `,"result":{"resultType":"input_required","inputRequests":{`...)
	for i, q := range asked {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(append(dst, q.Key...), `:{"method":`...)
		dst = mcp.AppendString(dst, q.Method)
		if q.Params != nil {
			dst = append(append(dst, `,"params":`...), q.Params...)
		}
		dst = append(dst, '}')
	}
	dst = mcp.AppendString(append(dst, `},"requestState":`...), state)
	return append(dst, '}', '}')
}

// AppendQuestion appends the legacy request that puts a question to the client.
func AppendQuestion(dst []byte, id string, q *Question) []byte {
	dst = mcp.AppendString(append(dst, `{"jsonrpc":"2.0","id":`...), id)
	dst = mcp.AppendString(append(dst, `,"method":`...), q.Method)
	if q.Params != nil {
		dst = append(append(dst, `,"params":`...), q.Params...)
	}
	return append(dst, '}')
}

// AppendResponses appends the object of answers, each raw, that goes with the questions.
func AppendResponses(dst []byte, asked []Question, answers [][]byte) []byte {
	dst = append(dst, '{')
	for i := range asked {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(append(append(dst, asked[i].Key...), ':'), answers[i]...)
	}
	return append(dst, '}')
}

// Refusal is what stands for the answer of a client that answered with an error: only a form has a word for that.
func Refusal(method string) ([]byte, bool) {
	if method == mcp.MethodElicit {
		return []byte(`{"action":"cancel"}`), true
	}
	return nil, false
}
