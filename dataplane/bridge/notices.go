package bridge

import (
	"bytes"
	"encoding/json"
	"slices"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/veneer"
)

// Wanted is what a client wants to be told of: that lists have changed, by what is listed, and that resources have.
type Wanted struct {
	Tools, Prompts, Resources bool
	URIs                      []string
}

// ParseWanted reads the raw params of subscriptions/listen; false when they are malformed or name too many resources.
func ParseWanted(params []byte) (Wanted, bool) {
	var w Wanted
	at := mcp.Member(params, "notifications")
	if !at.Present() || params[at.Start] != '{' {
		return w, false
	}
	wanted := params[at.Start:at.End]
	for key, to := range map[string]*bool{"toolsListChanged": &w.Tools, "promptsListChanged": &w.Prompts, "resourcesListChanged": &w.Resources} {
		if at := mcp.Member(wanted, key); at.Present() {
			*to = string(wanted[at.Start:at.End]) == "true"
		}
	}
	if at := mcp.Member(wanted, "resourceSubscriptions"); at.Present() {
		raw := wanted[at.Start:at.End]
		if raw[0] != '[' || json.Unmarshal(raw, &w.URIs) != nil || len(w.URIs) > MaxURIs || slices.Contains(w.URIs, "") {
			return w, false
		}
	}
	return w, true
}

// Lists reports whether changes of a list are wanted, by the member that the list is under.
func (w *Wanted) Lists(of string) bool {
	switch of {
	case veneer.Tools:
		return w.Tools
	case veneer.Prompts:
		return w.Prompts
	case veneer.Resources:
		return w.Resources
	}
	return false
}

func (w *Wanted) append(dst []byte) []byte {
	dst = append(dst, '{')
	for _, l := range []struct {
		key string
		on  bool
	}{{"toolsListChanged", w.Tools}, {"promptsListChanged", w.Prompts}, {"resourcesListChanged", w.Resources}} {
		if l.on {
			dst = append(append(append(dst, '"'), l.key...), `":true,`...)
		}
	}
	if len(w.URIs) > 0 {
		dst = append(dst, `"resourceSubscriptions":[`...)
		for _, uri := range w.URIs {
			dst = append(mcp.AppendString(dst, uri), ',')
		}
		dst = append(dst[:len(dst)-1], "],"...)
	}
	return append(bytes.TrimSuffix(dst, []byte(",")), '}')
}

const tag = `"_meta":{"` + mcp.MetaSubscription + `":`

// AppendAcknowledged appends the first message of a modern stream: what of the wanted will be told.
func AppendAcknowledged(dst, id []byte, w *Wanted) []byte {
	dst = append(append(dst, `{"jsonrpc":"2.0","method":"`+mcp.MethodAcknowledged+`","params":{`+tag...), id...)
	return append(w.append(append(dst, `},"notifications":`...)), '}', '}')
}

// AppendListChanged appends the notice that a list is another one now; id is that of the modern stream, nil for a legacy one.
func AppendListChanged(dst, id []byte, of string) []byte {
	dst = append(append(append(dst, `{"jsonrpc":"2.0","method":"notifications/`...), of...), `/list_changed"`...)
	if id != nil {
		dst = append(append(append(dst, `,"params":{`+tag...), id...), '}', '}')
	}
	return append(dst, '}')
}

// AppendListenEnd appends the result with which a server ends a modern stream.
func AppendListenEnd(dst, id []byte) []byte {
	dst = append(append(dst, `{"jsonrpc":"2.0","id":`...), id...)
	dst = append(append(dst, `,"result":{"resultType":"complete",`+tag...), id...)
	return append(dst, '}', '}', '}')
}

// AppendListen appends the modern request for updates of resources.
func AppendListen(dst, id, clientInfo []byte, uris []string) []byte {
	dst = append(append(dst, `{"jsonrpc":"2.0","id":`...), id...)
	dst = append(dst, `,"method":"`+mcp.MethodListen+`","params":{"_meta":{"`+mcp.MetaVersion+`":"`+mcp.Rev20260728+`","`+
		mcp.MetaCapabilities+`":{},"`+mcp.MetaClientInfo+`":`...)
	w := Wanted{URIs: uris}
	return append(w.append(append(append(dst, clientInfo...), `},"notifications":`...)), '}', '}')
}

// AppendSubscribe appends the legacy request for updates of one resource.
func AppendSubscribe(dst, id []byte, uri string) []byte {
	dst = append(append(dst, `{"jsonrpc":"2.0","id":`...), id...)
	return append(mcp.AppendString(append(dst, `,"method":"`+mcp.MethodSubscribe+`","params":{"uri":`...), uri), '}', '}')
}

// Tagged is a notice as it goes on the modern stream of that id, or on a legacy one when id is nil.
func Tagged(m *mcp.Message, id []byte) []byte {
	params := m.Raw(m.Params)
	if params == nil {
		if id == nil {
			return m.Body
		}
		at := bytes.LastIndexByte(m.Body, '}')
		return veneer.Apply(m.Body, veneer.Splice{At: mcp.Span{Start: at, End: at}, With: append(append([]byte(`,"params":{`+tag), id...), '}', '}')})
	}
	meta := m.Raw(m.Meta)
	if meta == nil {
		if id == nil {
			return m.Body
		}
		with := append(append([]byte(tag), id...), '}')
		if rest := bytes.TrimLeft(params[1:], " \t\r\n"); rest[0] != '}' {
			with = append(with, ',')
		}
		at := m.Params.Start + 1
		return veneer.Apply(m.Body, veneer.Splice{At: mcp.Span{Start: at, End: at}, With: with})
	}
	var splices []veneer.Splice
	for _, gone := range mcp.Cuts(meta, mcp.MetaSubscription) {
		splices = append(splices, veneer.Splice{At: gone})
	}
	plain := veneer.Apply(meta, splices...)
	if id != nil {
		with := append([]byte(`"`+mcp.MetaSubscription+`":`), id...)
		if rest := bytes.TrimLeft(plain[1:], " \t\r\n"); rest[0] != '}' {
			with = append(with, ',')
		}
		plain = veneer.Apply(plain, veneer.Splice{At: mcp.Span{Start: 1, End: 1}, With: with})
	}
	return veneer.Apply(m.Body, veneer.Splice{At: m.Meta, With: plain})
}

// UpdatedURI is the address of the resource that a notice says has changed; false for any other notice.
func UpdatedURI(m *mcp.Message) (string, bool) {
	if m.Kind != mcp.KindNotification || m.Method != mcp.MethodUpdated {
		return "", false
	}
	p := mcp.Message{Body: m.Raw(m.Params)}
	return p.Text(mcp.Member(p.Body, "uri"))
}

// AppendUpdated appends the notice that a resource has changed; id is that of the modern stream, nil for a legacy one.
func AppendUpdated(dst, id []byte, uri string) []byte {
	dst = append(dst, `{"jsonrpc":"2.0","method":"`+mcp.MethodUpdated+`","params":{`...)
	if id != nil {
		dst = append(append(append(dst, tag...), id...), `},`...)
	}
	return append(mcp.AppendString(append(dst, `"uri":`...), uri), '}', '}')
}
