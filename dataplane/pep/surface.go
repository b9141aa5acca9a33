package pep

import (
	"net/http"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/veneer"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// surfaceOf says which surface, other than tools, a list method lists; "" for none.
func surfaceOf(method string) string {
	switch method {
	case mcp.MethodPromptsList:
		return veneer.Prompts
	case mcp.MethodResourcesList:
		return veneer.Resources
	case mcp.MethodTemplatesList:
		return veneer.ResourceTemplates
	}
	return ""
}

// itemsOf are the items by which the policy speaks of a surface.
func itemsOf(s *pdp.Server, surface string) []index.ItemID {
	if surface == veneer.Prompts {
		return s.PromptItems
	}
	return s.ResourceItems
}

// offers reports whether the caller may use anything of a surface.
func (x *exchange) offers(surface string) bool {
	if x.killedServer(x.server) {
		return false
	}
	for _, item := range itemsOf(x.server, surface) {
		if authz.Visible(&x.view, item, &x.ask) {
			return true
		}
	}
	return x.mayOther()
}

// whole reports whether a surface is the caller's without exception, so that the upstream's own answer about it hides
// nothing that it should.
func (x *exchange) whole(surface string) bool {
	for _, item := range itemsOf(x.server, surface) {
		if !authz.Visible(&x.view, item, &x.ask) {
			return false
		}
	}
	return x.mayOther()
}

// decideList judges a list of a surface.
func (x *exchange) decideList(surface string) *answer {
	switch {
	case x.owned:
		return x.unknownMethod("unknown_method")
	case !x.offers(surface):
		return x.unknownMethod("no_grant")
	case !x.state.Fresh(x.tenant, x.server.Bound(snapshotv1.Effect_EFFECT_READ), x.ask.NowMS):
		x.denied("stale")
		return x.fail(mcp.CodeServer, "stale", staleSentence, true)
	}
	x.allowed(snapshotv1.Effect_EFFECT_READ)
	return nil
}

// decidePrompt judges the use of one prompt with its arguments. One that the policy does not name is like the rest of its
// server.
func (x *exchange) decidePrompt() *answer {
	if x.owned {
		return x.unknownMethod("unknown_method")
	}
	name := snapshot.PromptItem(x.msg.Name)
	item, own := x.tenant.Index.Item(x.server.ID, name)
	if !own {
		item, name = x.server.Other, snapshot.ItemOther
	}
	x.ask.Args = x.msg.Raw(x.msg.Arguments)
	d := authz.Decide(&x.view, item, &x.ask)
	x.note(item, name, d)
	return x.used(veneer.Prompts, "prompt", x.msg.Name, d)
}

// decideResource judges the reading of, or a subscription to, one resource.
func (x *exchange) decideResource(uri string) *answer {
	if x.owned {
		return x.unknownMethod("unknown_method")
	}
	x.ask.Args = nil
	d := authz.DecideResource(&x.view, uri, &x.ask)
	x.noteResource(uri, d)
	return x.used(veneer.Resources, "resource", uri, d)
}

// decideCompletion judges the completion of an argument: it needs the whole server, and the prompt that it is about.
func (x *exchange) decideCompletion() *answer {
	if a := x.decideOther(); a != nil {
		return a
	}
	params := mcp.Message{Body: x.msg.Raw(x.msg.Params)}
	name := textOf(params.Raw(mcp.Member(params.Body, "ref")), "name")
	if item, own := x.tenant.Index.Item(x.server.ID, snapshot.PromptItem(name)); own {
		if d := authz.Decide(&x.view, item, &x.ask); !d.Allow {
			x.note(item, snapshot.PromptItem(name), d)
			return x.unknownEntry("prompt", name, d.Reason.String())
		}
	}
	return nil
}

// textOf is the text of a member of a raw object, "" when there is none.
func textOf(object []byte, member string) string {
	m := mcp.Message{Body: object}
	text, _ := m.Text(mcp.Member(object, member))
	return text
}

// used answers for a prompt or a resource as decided: nil when it may be used.
func (x *exchange) used(surface, noun, name string, d authz.Decision) *answer {
	x.rec.Effect = snapshotv1.Effect_EFFECT_READ
	switch {
	case !d.Visible && !x.offers(surface):
		return x.unknownMethod(d.Reason.String())
	case !d.Visible:
		return x.unknownEntry(noun, name, d.Reason.String())
	case !d.Allow:
		return x.deniedEntry(noun, name, d.Reason.String())
	case x.killedServer(x.server):
		return x.deniedEntry(noun, name, "killed")
	case !x.state.Fresh(x.tenant, x.server.Bound(snapshotv1.Effect_EFFECT_READ), x.ask.NowMS):
		return x.deniedEntry(noun, name, "stale")
	}
	x.allowed(snapshotv1.Effect_EFFECT_READ)
	return nil
}

// unknownEntry answers for what does not exist, or not for this caller.
func (x *exchange) unknownEntry(noun, name, reason string) *answer {
	x.denied(reason)
	code := mcp.CodeInvalidParams
	if noun == "resource" && x.era == mcp.EraLegacy {
		code = mcp.CodeNoResource
	}
	d := mcp.ErrorData{DecisionID: x.rec.GetId(), Hint: accessHint}
	return x.refused(reason, code, `unknown `+noun+` "`+mcp.Echo(name)+`"`, &d)
}

// deniedEntry says why a prompt or a resource that the caller may know of was not used.
func (x *exchange) deniedEntry(noun, name, reason string) *answer {
	x.denied(reason)
	x.visible = true
	d := mcp.ErrorData{DecisionID: x.rec.GetId(), Reason: reason, Hint: explainHint, Retryable: reason == "stale"}
	return x.refused(reason, mcp.CodeServer, "The "+noun+" "+mcp.Echo(name)+" was refused: "+why(reason)+". Decision "+d.DecisionID+".", &d)
}

// refused is a JSON-RPC error that a decision came to.
func (x *exchange) refused(reason string, code int, message string, d *mcp.ErrorData) *answer {
	return &answer{
		status: http.StatusOK, reason: reason, outcome: "refused", body: mcp.AppendError(nil, x.msg.ID, code, message, d.Append(nil)),
	}
}

// listed are the entries of a surface that the caller may be shown.
func (x *exchange) listed(surface string) []veneer.Entry {
	var all []veneer.Entry
	show := func(list []pdp.Entry, visible func(*pdp.Entry) bool) {
		for i := range list {
			if visible(&list[i]) {
				all = append(all, veneer.Entry{Raw: list[i].Raw})
			}
		}
	}
	readable := func(e *pdp.Entry) bool {
		for _, uri := range e.URIs {
			if authz.VisibleResource(&x.view, uri, &x.ask) {
				return true
			}
		}
		return false
	}
	switch surface {
	case veneer.Prompts:
		show(x.server.Prompts, func(e *pdp.Entry) bool { return authz.Visible(&x.view, e.Item, &x.ask) })
	case veneer.Resources:
		show(x.server.Resources, readable)
	case veneer.ResourceTemplates:
		show(x.server.Templates, readable)
	}
	return all
}
