package pep

import (
	"net/http"

	"github.com/mcpvault/mcpvault/dataplane/bridge"
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

// offersAny reports whether the caller may use anything of a surface.
func (x *exchange) offersAny(surface string) bool {
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
	case x.server == nil: // the aggregate leaves out what it has no grant for, or is stale
	case !x.offersAny(surface):
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
	given, exists := x.choosePrompt(x.msg.Name)
	if !exists {
		return x.unknownEntry("prompt", x.msg.Name, "unknown_prompt")
	}
	x.renamed = bridge.Rename{At: x.msg.NameValue, Name: given}
	name := snapshot.PromptItem(given)
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
	if !x.chooseResource(uri) {
		return x.unknownEntry("resource", uri, "unknown_resource")
	}
	x.ask.Args = nil
	d := authz.DecideResource(&x.view, uri, &x.ask)
	x.noteResource(uri, d)
	return x.used(veneer.Resources, "resource", uri, d)
}

// decideCompletion judges the completion of an argument: it needs the whole server, and the prompt that it is about.
func (x *exchange) decideCompletion() *answer {
	params := mcp.Message{Body: x.msg.Raw(x.msg.Params)}
	ref := mcp.Member(params.Body, "ref")
	name := textOf(params.Raw(ref), "name")
	if x.owned {
		if a := x.chooseReference(params.Raw(ref), &name); a != nil {
			return a
		}
		if at := mcp.Member(params.Raw(ref), "name"); at.Present() {
			by := x.msg.Params.Start + ref.Start
			x.renamed = bridge.Rename{At: mcp.Span{Start: at.Start + by, End: at.End + by}, Name: name}
		}
	}
	if a := x.decideOther(); a != nil {
		return a
	}
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
	case !d.Visible && x.route.server != "" && !x.offersAny(surface):
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
	if x.server == nil {
		return x.listedOnAll(surface)
	}
	var all []veneer.Entry
	for _, e := range x.shownOn(x.server, &x.view, surface) {
		all = append(all, veneer.Entry{Raw: e.Raw})
	}
	return all
}

// shownOn are the entries of a server's surface that the caller may be shown.
func (x *exchange) shownOn(s *pdp.Server, v *index.View, surface string) []*pdp.Entry {
	var all []*pdp.Entry
	list := entriesOf(s, surface)
	for i := range list {
		e := &list[i]
		visible := surface == veneer.Prompts && authz.Visible(v, e.Item, &x.ask)
		for _, uri := range e.URIs {
			visible = visible || authz.VisibleResource(v, uri, &x.ask)
		}
		if visible {
			all = append(all, e)
		}
	}
	return all
}

func entriesOf(s *pdp.Server, surface string) []pdp.Entry {
	switch surface {
	case veneer.Prompts:
		return s.Prompts
	case veneer.Resources:
		return s.Resources
	}
	return s.Templates
}
