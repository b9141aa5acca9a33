package pep

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/mcpvault/mcpvault/dataplane/bridge"
	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/dataplane/veneer"
)

// own answers what this node answers by itself: lists and discovery always, and the whole dialogue where it leads it (on
// the aggregate, and where the upstream does not speak the caller's era).
func (x *exchange) own() *answer {
	if x.r.Method == http.MethodDelete && x.owned {
		return x.endOwned()
	}
	if x.r.Method != http.MethodPost {
		return nil
	}
	if x.owned {
		switch x.msg.Kind {
		case mcp.KindNotification:
			return x.notified()
		case mcp.KindResponse:
			return x.answered()
		case mcp.KindRequest, mcp.KindInvalid:
		}
	}
	switch x.msg.Method {
	case mcp.MethodToolsList:
		return x.list(veneer.Tools, x.visibleTools())
	case mcp.MethodPromptsList, mcp.MethodResourcesList, mcp.MethodTemplatesList:
		if surface := surfaceOf(x.msg.Method); x.owned || !x.whole(surface) {
			return x.list(surface, x.listed(surface))
		}
	case mcp.MethodPing:
		return ok(mcp.AppendEmptyResult(nil, x.msg.ID, x.era))
	case mcp.MethodDiscover:
		if x.era == mcp.EraLegacy {
			return x.unknownMethod("unknown_method")
		}
		return x.discover()
	case mcp.MethodInitialize:
		if x.owned {
			return x.initialize()
		}
	case mcp.MethodSetLevel:
		if x.owned {
			return x.setLevel()
		}
	case mcp.MethodSubscribe, mcp.MethodUnsubscribe:
		if x.owned {
			return x.subscribe()
		}
	}
	return nil
}

// notified takes a notification in a dialogue that the gateway leads. Only that a request is cancelled means anything there.
func (x *exchange) notified() *answer {
	if x.msg.Method == mcp.MethodCancelled {
		if d := x.p.dialogues.Find(session.Hash(x.sessionID)); d != nil && x.sessionID != "" {
			params := mcp.Message{Body: x.msg.Raw(x.msg.Params)}
			d.Cancel(params.Raw(mcp.Member(params.Body, "requestId")), errCancelled)
		}
	}
	return &answer{status: http.StatusAccepted, outcome: "ok"}
}

// answered takes a client's response to what was asked in its session, and in no other.
func (x *exchange) answered() *answer {
	d := x.p.dialogues.Find(session.Hash(x.sessionID))
	id, isText := x.msg.Text(x.msg.IDSpan())
	if d != nil && isText {
		if reply, asked := d.Answered(id); asked {
			reply(x.ctx, &x.msg)
			return &answer{status: http.StatusAccepted, outcome: "ok"}
		}
	}
	x.denied("response_unasked")
	return x.reject(http.StatusBadRequest, mcp.CodeInvalidRequest, "response_unasked", "nothing of that id was asked on this session, on this node")
}

// setLevel sets the log level of a session that the gateway leads.
func (x *exchange) setLevel() *answer {
	level := textOf(x.msg.Raw(x.msg.Params), "level")
	if !bridge.Level(level) {
		return x.reject(http.StatusOK, mcp.CodeInvalidParams, "level_invalid", "this is no log level")
	}
	x.dialogue().SetLevel(level)
	return ok(mcp.AppendEmptyResult(nil, x.msg.ID, x.era))
}

// serverInfo is the raw object by which the endpoint names itself.
func (x *exchange) serverInfo() []byte {
	if x.server != nil && len(x.server.ServerInfo) > 0 {
		return x.server.ServerInfo
	}
	name := "mcpvault"
	if x.server != nil {
		name = x.server.Name
	}
	b := mcp.AppendString([]byte(`{"name":`), name)
	b = mcp.AppendString(append(b, `,"version":`...), x.p.cfg.Version)
	return append(b, '}')
}

// capabilities are what the caller may make use of: those of the upstream, or of them what the caller can see something of.
func (x *exchange) capabilities() []byte {
	switch {
	case x.server == nil:
		// What the caller sees may change while the session lives.
		all := `{"tools":{"listChanged":true},"prompts":{"listChanged":true},"resources":{"listChanged":true,"subscribe":true},"completions":{},"logging":{}`
		if x.era == mcp.EraModern && slices.ContainsFunc(x.tenant.Servers, func(s *pdp.Server) bool { return bridge.FollowsTasks(s.Capabilities) }) {
			all += extensionTasks
		}
		return []byte(all + "}")
	case len(x.server.Capabilities) == 0:
		return []byte(`{"tools":{"listChanged":true}}`)
	}
	if x.owned || !x.mayOther() {
		return x.narrow(x.server.Capabilities)
	}
	return x.server.Capabilities
}

// narrow leaves of a capabilities object the surfaces that the caller sees something of. That their lists change is told by
// the gateway; updates of resources are carried in dialogues that it leads, and in the modern era.
func (x *exchange) narrow(raw []byte) []byte {
	var caps map[string]json.RawMessage
	if json.Unmarshal(raw, &caps) != nil {
		return []byte(`{}`)
	}
	out := []byte{'{'}
	for _, surface := range []string{veneer.Tools, veneer.Prompts, veneer.Resources} {
		if caps[surface] == nil || surface != veneer.Tools && !x.offersAny(surface) {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(append(out, '"'), surface...), `":{"listChanged":true`...)
		if at := mcp.Member(caps[surface], "subscribe"); at.Present() && (x.owned || x.era == mcp.EraModern) {
			out = append(append(out, `,"subscribe":`...), caps[surface][at.Start:at.End]...)
		}
		out = append(out, '}')
	}
	switch {
	case x.owned:
	case x.era == mcp.EraLegacy && caps["tasks"] != nil:
		out = append(append(out, `,"tasks":`...), caps["tasks"]...)
	case x.era == mcp.EraModern && bridge.FollowsTasks(raw):
		out = append(out, extensionTasks...)
	}
	if x.owned && x.mayOther() {
		for _, more := range []string{"completions", "logging"} {
			if caps[more] != nil {
				out = append(append(append(out, `,"`...), more...), `":{}`...)
			}
		}
	}
	if len(out) > 1 && out[1] == ',' {
		out = append(out[:1], out[2:]...)
	}
	return append(out, '}')
}

// extensionTasks is a member of modern capabilities.
const extensionTasks = `,"extensions":{"` + mcp.ExtensionTasks + `":{}}`

func (x *exchange) discover() *answer {
	b := mcp.AppendResultHead(nil, x.msg.ID, x.era)
	b = append(b, `"supportedVersions":[`...)
	for i, rev := range mcp.Revisions() {
		if i > 0 {
			b = append(b, ',')
		}
		b = mcp.AppendString(b, rev)
	}
	b = append(b, `],"capabilities":`...)
	b = append(b, x.capabilities()...)
	if x.server != nil && x.server.Instructions != "" {
		b = mcp.AppendString(append(b, `,"instructions":`...), x.server.Instructions)
	}
	b = veneer.AppendCaching(b, x.p.cfg.ListTTL.Milliseconds())
	b = veneer.AppendServerMeta(b, x.serverInfo())
	return ok(mcp.AppendResultTail(b))
}

// initialize opens a session that has no upstream session behind it yet.
func (x *exchange) initialize() *answer {
	revision, _ := x.msg.Text(x.msg.InitVersion)
	if !mcp.IsLegacy(revision) {
		revision = mcp.Rev20251125
	}
	x.revision, x.rec.ProtocolVersion = revision, revision
	b := mcp.AppendResultHead(nil, x.msg.ID, mcp.EraLegacy)
	b = mcp.AppendString(append(b, `"protocolVersion":`...), revision)
	b = append(append(b, `,"capabilities":`...), x.capabilities()...)
	b = append(b, `,"serverInfo":`...)
	b = append(b, x.serverInfo()...)
	if x.server != nil && x.server.Instructions != "" {
		b = mcp.AppendString(append(b, `,"instructions":`...), x.server.Instructions)
	}
	a := ok(mcp.AppendResultTail(b))
	return x.seal(a, session.Claims{Owned: true, Offers: bridge.ParseOffers(x.msg.Raw(x.msg.InitCapabilities)).String()})
}

// killedSecret answers a request that would send a secret which was killed: a call as a denial that the model can read, all
// else as an error. It does not say which secret that is.
func (x *exchange) killedSecret() *answer {
	if x.server == nil || !x.secretKilled(x.server) {
		return nil
	}
	if x.tool != nil {
		return x.deniedTool("secret_killed")
	}
	x.denied("secret_killed")
	return x.fail(mcp.CodeServer, "secret_killed", secretSentence, false)
}

func (x *exchange) secretKilled(s *pdp.Server) bool {
	return x.p.injector != nil && x.p.secretKilled(x.state, x.tenant, s)
}

const secretSentence = "the credential that this server needs was stopped by an administrator" //nolint:gosec // a sentence

// inject lets the destination's credential be added.
func (x *exchange) inject() *answer {
	if x.p.injector == nil || x.server == nil {
		return nil
	}
	if a := x.killedSecret(); a != nil {
		return a
	}
	var err error
	if x.leaks, err = x.p.injector.Inject(x.ctx, x.tenant, x.server, x.set); err != nil {
		x.p.log.Error("injection failed", "server", x.server.Name, "error", err, "request_id", x.rec.GetId())
		return x.fail(mcp.CodeServer, "injection_failed", "the credential for this server is not available", true)
	}
	return nil
}

// sessionHeader are the headers that a request in an upstream's legacy session needs.
func sessionHeader(id, revision string) http.Header {
	h := http.Header{mcp.HeaderMethod: nil, mcp.HeaderName: nil}
	if id != "" {
		h[mcp.HeaderSession] = []string{id}
	}
	if revision != "" {
		h[mcp.HeaderVersion] = []string{revision}
	}
	return h
}

func merge(into, from http.Header) {
	for k, v := range from {
		into[k] = v
	}
}

// clean makes an upstream's words fit to be shown.
func clean(s string) string { return strings.TrimSpace(mcp.Echo(s)) }
