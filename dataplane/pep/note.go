package pep

import (
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/replay"
)

// note keeps, for the record, what was decided: with the generation it is enough to decide again.
func (x *exchange) note(item index.ItemID, name string, d authz.Decision) {
	x.rec.StateHash = x.tenant.State[:]
	replay.Note(x.rec, &x.view, item, name, &x.ask, d, x.tenant.Rules(&x.view, item))
}

// noteOther notes a decision about a server as a whole.
func (x *exchange) noteOther() {
	x.note(x.server.Other, snapshot.ItemOther, authz.Decide(&x.view, x.server.Other, &x.ask))
}

// noteResource notes a decision about an address.
func (x *exchange) noteResource(uri string, d authz.Decision) {
	x.rec.StateHash = x.tenant.State[:]
	replay.NoteResource(x.rec, &x.view, uri, &x.ask, d)
}
