// Package bridge knows the dialogues of both protocol eras and translates between them: what a legacy peer says with a
// session, server-to-client requests and notifications, and what a modern one says with _meta, multi-round-trip results
// and subscriptions/listen. It knows no policy, opens no connection and decodes no payload: messages are cut at the offsets
// of their members and spliced, so that fields, numbers and content that nobody here knows pass as they came.
package bridge

import (
	"bytes"
	"slices"
	"strconv"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/veneer"
)

// Crosses reports whether a request of this method can be asked of an upstream of the other era.
func Crosses(method string) bool {
	switch method {
	case mcp.MethodToolsCall, mcp.MethodPromptsGet, mcp.MethodResourcesRead, mcp.MethodComplete:
		return true
	}
	return false
}

// MayAsk reports whether the answer to the method may be that more input is needed (multi-round-trip requests).
func MayAsk(method string) bool { return Crosses(method) && method != mcp.MethodComplete }

// Rename is the splice of the upstream's own name for what a request is about.
type Rename struct {
	// At is where the name stands in the body; absent when the request names nothing.
	At   mcp.Span
	Name string
}

// splices is none when the name stays.
func (r Rename) splices(m *mcp.Message) []veneer.Splice {
	if !r.At.Present() {
		return nil
	}
	if was, _ := m.Text(r.At); was == r.Name {
		return nil
	}
	return []veneer.Splice{{At: r.At, With: mcp.AppendString(nil, r.Name)}}
}

// Renamed is the body with the upstream's name in it.
func Renamed(m *mcp.Message, r Rename) []byte { return veneer.Apply(m.Body, r.splices(m)...) }

// ModernRequest is how a legacy client's request is put to a modern upstream.
type ModernRequest struct {
	Rename Rename
	// ID takes the place of the caller's; nil leaves that.
	ID []byte
	// ClientInfo is the raw object by which the gateway names itself.
	ClientInfo []byte
	Offers     Offers
	// Level is the log level that the client set, "" for none.
	Level string
	// Responses and State are those of a further round, raw: the answers to what the upstream asked, and its own state.
	Responses, State []byte
}

// Body is the modern body of the legacy message, which must have params with at least one member.
func (q *ModernRequest) Body(m *mcp.Message) []byte {
	splices := q.Rename.splices(m)
	if q.ID != nil {
		splices = append(splices, veneer.Splice{At: m.IDSpan(), With: q.ID})
	}
	own := []byte(`"` + mcp.MetaVersion + `":"` + mcp.Rev20260728 + `","` + mcp.MetaCapabilities + `":`)
	own = append(own, q.Offers.Capabilities()...)
	own = append(append(own, `,"`+mcp.MetaClientInfo+`":`...), q.ClientInfo...)
	if q.Level != "" {
		own = mcp.AppendString(append(own, `,"`+mcp.MetaLogLevel+`":`...), q.Level)
	}
	var first []byte
	if q.Responses != nil {
		first = append(append(append(first, `"inputResponses":`...), q.Responses...), ',')
	}
	if q.State != nil {
		first = append(append(append(first, `"requestState":`...), q.State...), ',')
	}
	at := m.Params.Start + 1
	if !m.Meta.Present() {
		first = append(append(append(first, `"_meta":{`...), own...), '}', ',')
	} else {
		meta := m.Meta.Start + 1
		if rest := bytes.TrimLeft(m.Body[meta:m.Meta.End], " \t\r\n"); rest[0] != '}' {
			own = append(own, ',')
		}
		splices = append(splices, veneer.Splice{At: mcp.Span{Start: meta, End: meta}, With: own})
	}
	if first != nil {
		splices = append(splices, veneer.Splice{At: mcp.Span{Start: at, End: at}, With: first})
	}
	return veneer.Apply(m.Body, inOrder(splices)...)
}

// LegacyRequest is how a request is put into a legacy session that the gateway leads.
type LegacyRequest struct {
	Rename Rename
	// ID takes the place of the caller's, and of its progress token: several programs may share the session, and each
	// counts from one.
	ID []byte
}

// Body is the legacy body of a message of either era.
func (q *LegacyRequest) Body(m *mcp.Message) []byte {
	splices := append(q.Rename.splices(m), veneer.Splice{At: m.IDSpan(), With: q.ID})
	params := m.Raw(m.Params)
	for _, gone := range mcp.Cuts(params, "inputResponses", "requestState") {
		splices = append(splices, veneer.Splice{At: shift(gone, m.Params.Start)})
	}
	if m.Meta.Present() {
		meta := mcp.WithoutModernMeta(m.Raw(m.Meta))
		if at := mcp.Member(meta, "progressToken"); at.Present() {
			meta = veneer.Apply(meta, veneer.Splice{At: at, With: q.ID})
		}
		splices = append(splices, veneer.Splice{At: m.Meta, With: meta})
	}
	return veneer.Apply(m.Body, inOrder(splices)...)
}

// Caller is whom an upstream's answers and notices are translated for.
type Caller struct {
	Era mcp.Era
	// ID and Token are raw: the id of the caller's request, and its progress token, nil for none.
	ID, Token []byte
	// Method is that of the request.
	Method string
	// Level is the log level the caller wants to hear of, "" for nothing; it counts for modern callers only.
	Level string
}

// Answer gives an upstream's answer the caller's id, and a modern caller what a modern result must say.
func (c *Caller) Answer(m *mcp.Message) []byte {
	splices := []veneer.Splice{{At: m.IDSpan(), With: c.ID}}
	if c.Era == mcp.EraModern {
		splices = append(splices, c.modernize(m)...)
	}
	return veneer.Apply(m.Body, inOrder(splices)...)
}

func (c *Caller) modernize(m *mcp.Message) []veneer.Splice {
	if m.Error.Present() {
		e := m.Raw(m.Error)
		at := mcp.Member(e, "code")
		if c.Method == mcp.MethodResourcesRead && at.Present() && string(e[at.Start:at.End]) == strconv.Itoa(mcp.CodeNoResource) {
			return []veneer.Splice{{At: shift(at, m.Error.Start), With: strconv.AppendInt(nil, mcp.CodeInvalidParams, 10)}}
		}
		return nil
	}
	result := m.Raw(m.Result)
	if len(result) == 0 || result[0] != '{' || m.ResultType.Present() {
		return nil
	}
	words := []byte(`"resultType":"complete",`)
	if c.Method == mcp.MethodResourcesRead {
		// The legacy eras say nothing of how long a resource may be kept.
		if !mcp.Member(result, "ttlMs").Present() {
			words = append(words, `"ttlMs":0,`...)
		}
		if !mcp.Member(result, "cacheScope").Present() {
			words = append(words, `"cacheScope":"private",`...)
		}
	}
	if rest := bytes.TrimLeft(result[1:], " \t\r\n"); rest[0] == '}' {
		words = words[:len(words)-1]
	}
	at := m.Result.Start + 1
	return []veneer.Splice{{At: mcp.Span{Start: at, End: at}, With: words}}
}

// ErrorCode is the code of an error answer, 0 for none.
func ErrorCode(m *mcp.Message) int {
	e := m.Raw(m.Error)
	at := mcp.Member(e, "code")
	if !at.Present() {
		return 0
	}
	code, err := strconv.Atoi(string(e[at.Start:at.End]))
	if err != nil {
		return 0
	}
	return code
}

// Notice translates a notification that came on the stream of the caller's request; false means that it is not for them.
// wireID is what the upstream was given for an id and a progress token, nil for the caller's own.
func (c *Caller) Notice(m *mcp.Message, wireID []byte) ([]byte, bool) {
	switch m.Method {
	case mcp.MethodProgress:
		if wireID == nil {
			return m.Body, true
		}
		at := mcp.Member(m.Raw(m.Params), "progressToken")
		if !at.Present() || c.Token == nil || !bytes.Equal(m.Raw(m.Params)[at.Start:at.End], wireID) {
			return nil, false
		}
		return veneer.Apply(m.Body, veneer.Splice{At: shift(at, m.Params.Start), With: c.Token}), true
	case mcp.MethodMessage:
		return m.Body, c.Era == mcp.EraLegacy || c.Level != ""
	case mcp.MethodCancelled:
		return nil, false // of a question, which nobody sees any more
	}
	return m.Body, true
}

// AppendCancelled appends the legacy notice that a request is not waited for any more.
func AppendCancelled(dst, id []byte, reason string) []byte {
	dst = append(append(dst, `{"jsonrpc":"2.0","method":"`+mcp.MethodCancelled+`","params":{"requestId":`...), id...)
	dst = mcp.AppendString(append(dst, `,"reason":`...), reason)
	return append(dst, '}', '}')
}

// AppendReply appends a client's answer to a server's request; result is raw.
func AppendReply(dst, id, result []byte) []byte {
	dst = append(append(dst, `{"jsonrpc":"2.0","id":`...), id...)
	return append(append(append(dst, `,"result":`...), result...), '}')
}

// AppendSetLevel appends the legacy request that sets the log level of a session.
func AppendSetLevel(dst, id []byte, level string) []byte {
	dst = append(append(dst, `{"jsonrpc":"2.0","id":`...), id...)
	dst = mcp.AppendString(append(dst, `,"method":"`+mcp.MethodSetLevel+`","params":{"level":`...), level)
	return append(dst, '}', '}')
}

// Level reports whether a text is one of the protocol's log levels.
func Level(s string) bool {
	return slices.Contains([]string{"debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"}, s)
}

func shift(s mcp.Span, by int) mcp.Span { return mcp.Span{Start: s.Start + by, End: s.End + by} }

func inOrder(s []veneer.Splice) []veneer.Splice {
	slices.SortStableFunc(s, func(a, b veneer.Splice) int { return a.At.Start - b.At.Start })
	return s
}
