// Package veneer is the view of a server that a principal is given. It answers lists out of the raw objects of the
// snapshot, filtered by what may be used, and translates names between that view and the upstream.
//
// Objects are never decoded and encoded again: what the upstream sent is what the client gets, but for the one
// name that the aggregate writes in front. Order is that of names, so that the same principal and the same snapshot give
// the same list. Hiding by visibility happens in List's filter; a later renaming belongs in a Names.
package veneer

import (
	"strconv"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
)

// Entry is one tool, prompt or resource as it is shown.
type Entry struct {
	// Name is shown; "" leaves the raw object as it is.
	Name string
	// Raw is the upstream's object.
	Raw []byte
}

// The members that lists are under.
const (
	Tools             = "tools"
	Prompts           = "prompts"
	Resources         = "resources"
	ResourceTemplates = "resourceTemplates"
)

// List is the frame of a list's answer.
type List struct {
	// Of is what is listed: Tools, Prompts, Resources or ResourceTemplates.
	Of  string
	ID  []byte
	Era mcp.Era
	// Next is the cursor of the next page, "" on the last.
	Next string
	// TTLMS says how long a modern client may keep the list, in milliseconds.
	TTLMS int64
	// ServerInfo is the raw object for a modern answer's _meta; nil leaves it out.
	ServerInfo []byte
}

// Append appends the whole answer.
func (l *List) Append(dst []byte, entries []Entry) []byte {
	dst = mcp.AppendResultHead(dst, l.ID, l.Era)
	dst = append(dst, '"')
	dst = append(dst, l.Of...)
	dst = append(dst, `":[`...)
	for i := range entries {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = entries[i].append(dst)
	}
	dst = append(dst, ']')
	if l.Next != "" {
		dst = append(dst, `,"nextCursor":`...)
		dst = mcp.AppendString(dst, l.Next)
	}
	if l.Era == mcp.EraModern {
		dst = AppendCaching(dst, l.TTLMS)
		dst = AppendServerMeta(dst, l.ServerInfo)
	}
	return mcp.AppendResultTail(dst)
}

// AppendCaching appends the members that say how a modern client may keep an answer: for a while, and for nobody else,
// because every list here is one principal's.
func AppendCaching(dst []byte, ttlMS int64) []byte {
	dst = append(dst, `,"ttlMs":`...)
	dst = strconv.AppendInt(dst, ttlMS, 10)
	return append(dst, `,"cacheScope":"private"`...)
}

// AppendServerMeta appends the _meta of a modern answer; nothing when info is nil.
func AppendServerMeta(dst, info []byte) []byte {
	if len(info) == 0 {
		return dst
	}
	dst = append(dst, `,"_meta":{"`+mcp.MetaServerInfo+`":`...)
	dst = append(dst, info...)
	return append(dst, '}')
}

func (e *Entry) append(dst []byte) []byte {
	if e.Name == "" {
		return append(dst, e.Raw...)
	}
	at := mcp.Member(e.Raw, "name")
	if !at.Present() {
		return append(dst, e.Raw...)
	}
	dst = append(dst, e.Raw[:at.Start]...)
	dst = mcp.AppendString(dst, e.Name)
	return append(dst, e.Raw[at.End:]...)
}

// Splice is one replacement in a body.
type Splice struct {
	At   mcp.Span // Start == End inserts
	With []byte
}

// Apply copies body with the splices applied; they must be in order and must not overlap.
func Apply(body []byte, splices ...Splice) []byte {
	n := len(body)
	for _, s := range splices {
		n += len(s.With)
	}
	out := make([]byte, 0, n)
	from := 0
	for _, s := range splices {
		out = append(out, body[from:s.At.Start]...)
		out = append(out, s.With...)
		from = s.At.End
	}
	return append(out, body[from:]...)
}
