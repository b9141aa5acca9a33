package pep

import (
	"net/http"
	"strings"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/dataplane/veneer"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// list answers out of the snapshot with a page of what the caller may be shown.
func (x *exchange) list(of string, all []veneer.Entry) *answer {
	list := veneer.List{Of: of, ID: x.msg.ID, Era: x.era, TTLMS: x.p.cfg.ListTTL.Milliseconds(), ServerInfo: x.serverInfo()}
	here := session.Cursor{Owner: x.owner, List: of + " " + x.route.server, Version: x.tenant.Version}
	offset := 0
	if x.msg.Cursor.Present() {
		text, isText := x.msg.Text(x.msg.Cursor)
		var err error
		if offset, err = x.p.sessions.OpenCursor(text, here); !isText || err != nil {
			a := x.reject(http.StatusOK, mcp.CodeInvalidParams, "cursor_invalid", "this cursor is not of this list")
			return a
		}
	}
	all = all[min(offset, len(all)):]
	if len(all) > x.p.cfg.PageSize {
		all = all[:x.p.cfg.PageSize]
		here.Offset = offset + len(all)
		list.Next = x.p.sessions.SealCursor(here)
	}
	size := 256
	for i := range all {
		size += len(all[i].Raw) + len(all[i].Name) + 1
	}
	a := ok(list.Append(make([]byte, 0, size), all))
	a.event = x.prefersEvents()
	return a
}

// prefersEvents reports whether the caller names event streams first among what it takes.
func (x *exchange) prefersEvents() bool {
	accept := x.r.Header["Accept"]
	return len(accept) > 0 && strings.HasPrefix(strings.ToLower(strings.TrimSpace(accept[0])), "text/event-stream")
}

// visibleTools are the tools that the caller may be shown, in the order of servers and names.
func (x *exchange) visibleTools() []veneer.Entry {
	if x.route.server != "" {
		return x.visibleOn(nil, x.server, &x.view, nil)
	}
	var all []veneer.Entry
	names := x.aggregateNames()
	for _, s := range x.tenant.Servers {
		v := x.viewOf(s)
		all = x.visibleOn(all, s, &v, names)
	}
	return all
}

func (x *exchange) visibleOn(all []veneer.Entry, s *pdp.Server, v *index.View, names *veneer.Names) []veneer.Entry {
	kills, age := x.state.Kills() > 0, x.state.Age(x.tenant, x.ask.NowMS)
	for i := range s.Tools {
		tool := &s.Tools[i]
		if !authz.Visible(v, tool.Item, &x.ask) || age > tool.Listed.MS || kills && x.killedTool(s, tool.Name) {
			continue
		}
		e := veneer.Entry{Raw: tool.Raw}
		if names != nil {
			e.Name = names.Shown(veneer.Tool{Server: s.Name, Name: tool.Name})
		}
		all = append(all, e)
	}
	return all
}
