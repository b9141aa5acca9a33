package pep

import (
	"net/http"
	"strconv"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/bridge"
	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/replay"
)

// locate finds the server of the path, if the caller may know of it: one that does not exist and one of which the caller
// can see nothing look the same.
func (x *exchange) locate() *answer {
	x.readClock()
	if x.route.server == "" {
		x.owned = true
		return nil
	}
	s, exists := x.tenant.Server(x.route.server)
	if !exists {
		return x.unknownServer("unknown_server")
	}
	x.choose(s)
	if x.sessionID == "" {
		x.owned = !x.speaks(s)
	}
	if x.msg.Method != mcp.MethodToolsCall && !x.seesAny(s, &x.view) {
		return x.unknownServer(x.blind())
	}
	return nil
}

// choose makes s the server of the request.
func (x *exchange) choose(s *pdp.Server) {
	x.server = s
	x.view = x.viewOf(s)
	x.describeServer()
}

func (x *exchange) viewOf(s *pdp.Server) index.View {
	if !x.known {
		return index.View{}
	}
	return x.tenant.Index.View(x.pid, s.ID)
}

// speaks reports whether the upstream offers the caller's era. A server that was never asked is taken at the caller's
// word.
func (x *exchange) speaks(s *pdp.Server) bool {
	if len(s.ProtocolVersions) == 0 {
		return true
	}
	if x.era == mcp.EraModern {
		return s.Speaks(mcp.Rev20260728)
	}
	return legacyRevision(s) != ""
}

// legacyRevision is the newest legacy revision that the upstream was seen to speak, "" for none.
func legacyRevision(s *pdp.Server) string {
	for _, rev := range []string{mcp.Rev20251125, mcp.Rev20250618} {
		if s.Speaks(rev) {
			return rev
		}
	}
	return ""
}

// readClock sets the time that the next decision is made at.
func (x *exchange) readClock() { x.ask.NowMS = x.p.cfg.Now().UnixMilli() }

// seesAny reports whether anything of a server is visible to the caller.
func (x *exchange) seesAny(s *pdp.Server, v *index.View) bool {
	if x.killedServer(s) {
		return false
	}
	for page := range v.Pages() {
		if authz.VisibleMask(v, page, &x.ask) != 0 {
			return true
		}
	}
	return false
}

func (x *exchange) killedServer(s *pdp.Server) bool {
	return x.state.Kills() > 0 && (x.state.Killed(snapshotv1.KillKind_KILL_KIND_SERVER, x.tenant.ID, s.Name) ||
		x.state.Killed(snapshotv1.KillKind_KILL_KIND_VERSION, x.tenant.ID, s.VersionDigest.String()))
}

func (x *exchange) killedTool(s *pdp.Server, tool string) bool {
	return x.state.Kills() > 0 && (x.killedServer(s) ||
		x.state.Killed(snapshotv1.KillKind_KILL_KIND_TOOL, x.tenant.ID, s.Name+"/"+tool))
}

// blind is why a caller sees nothing at all.
func (x *exchange) blind() string {
	switch {
	case !x.known:
		return "unknown_principal"
	case x.view.Disabled():
		return "disabled"
	case x.killedServer(x.server):
		return "killed"
	}
	return "no_grant"
}

func (x *exchange) unknownServer(reason string) *answer {
	x.denied(reason)
	d := mcp.ErrorData{DecisionID: x.rec.GetId(), Hint: accessHint}
	return &answer{
		status: http.StatusNotFound, reason: reason, outcome: "refused",
		body: mcp.AppendError(nil, x.msg.ID, mcp.CodeInvalidParams, "unknown server", d.Append(nil)),
	}
}

const accessHint = "ask an administrator for access and quote the decision id"

// limit bounds the streams and sessions that a caller holds open.
func (x *exchange) limit() *answer {
	if x.msg.Method == mcp.MethodInitialize {
		return x.roomForSession()
	}
	if x.r.Method != http.MethodGet && x.msg.Method != mcp.MethodListen {
		return nil
	}
	if a := x.tooManyResumes(); a != nil {
		return a
	}
	free, within := x.p.streams.Acquire(string(x.tenant.ID) + "\x00" + string(x.owner[:]))
	if !within {
		return x.tooMany("streams", "too_many_streams", "one caller may have "+strconv.Itoa(x.p.cfg.MaxStreams)+" streams open on a node: close one, then try again", "5")
	}
	x.free = free
	return nil
}

// decide asks the policy. Tools, prompts and resources are decided one by one; everything else of a server needs a grant on
// the whole of it.
func (x *exchange) decide() *answer {
	began := time.Now()
	x.readClock()
	x.tool, x.visible, x.renamed = nil, false, bridge.Rename{}
	replay.Forget(x.rec)
	a := x.judge()
	if a == nil {
		a = x.stepUp()
	}
	x.decided = time.Since(began)
	x.traceDecision(began)
	return a
}

func (x *exchange) judge() *answer {
	switch {
	case x.r.Method == http.MethodDelete:
		x.allowed(snapshotv1.Effect_EFFECT_READ)
		return nil
	case x.r.Method == http.MethodGet:
		return x.decideListen()
	case x.msg.Kind == mcp.KindResponse, x.msg.Kind == mcp.KindNotification:
		x.allowed(snapshotv1.Effect_EFFECT_READ)
		return nil
	}
	switch x.msg.Method {
	case mcp.MethodInitialize, mcp.MethodDiscover, mcp.MethodPing:
		x.allowed(snapshotv1.Effect_EFFECT_READ)
		return nil
	case mcp.MethodToolsList:
		if !x.state.Fresh(x.tenant, x.tenant.Bound(snapshotv1.Effect_EFFECT_READ), x.ask.NowMS) {
			x.denied("stale")
			return x.fail(mcp.CodeServer, "stale", staleSentence, true)
		}
		x.allowed(snapshotv1.Effect_EFFECT_READ)
		return nil
	case mcp.MethodToolsCall:
		return x.decideTool()
	case mcp.MethodPromptsList, mcp.MethodResourcesList, mcp.MethodTemplatesList:
		return x.decideList(surfaceOf(x.msg.Method))
	case mcp.MethodPromptsGet:
		return x.decidePrompt()
	case mcp.MethodResourcesRead:
		return x.decideResource(x.msg.Name)
	case mcp.MethodSubscribe, mcp.MethodUnsubscribe:
		return x.decideResource(textOf(x.msg.Raw(x.msg.Params), "uri"))
	case mcp.MethodComplete:
		return x.decideCompletion()
	case mcp.MethodListen:
		if x.era == mcp.EraModern {
			return x.decideNotices()
		}
	case mcp.MethodSetLevel:
		if x.owned { // it only concerns what the caller is told of their own calls
			x.allowed(snapshotv1.Effect_EFFECT_READ)
			return nil
		}
	case mcp.MethodTasksList:
		if x.era == mcp.EraLegacy {
			return x.decideTaskList()
		}
	}
	if bridge.TaskMethod(x.era, x.msg.Method) {
		return x.decideTask()
	}
	return x.decideOther()
}

// mayOther reports whether the caller has the whole server.
func (x *exchange) mayOther() bool {
	d := authz.Decide(&x.view, x.server.Other, &x.ask)
	return d.Allow && !x.killedServer(x.server)
}

func (x *exchange) decideOther() *answer {
	effect := effectOf(x.msg.Method)
	switch {
	case x.owned && !bridge.Crosses(x.msg.Method):
		return x.unknownMethod("unknown_method")
	case !x.mayOther():
		x.noteOther()
		return x.unknownMethod("no_grant")
	case !x.state.Fresh(x.tenant, x.server.Bound(effect), x.ask.NowMS):
		x.denied("stale")
		return x.fail(mcp.CodeServer, "stale", staleSentence, true)
	}
	x.noteOther()
	x.allowed(effect)
	return nil
}

// unknownMethod looks as if nobody implemented the method, which is also how one looks that the caller may not use.
func (x *exchange) unknownMethod(reason string) *answer {
	x.denied(reason)
	a := x.refuse(mcp.NotFound())
	a.reason = reason
	if x.era == mcp.EraLegacy {
		a.status = http.StatusOK
	}
	return a
}

// effectOf classes the methods that are not tool calls. What is not known to read counts as destructive.
func effectOf(method string) snapshotv1.Effect {
	switch method {
	case mcp.MethodComplete, mcp.MethodListen, mcp.MethodSetLevel, mcp.MethodTasksGet, mcp.MethodTasksResult:
		return snapshotv1.Effect_EFFECT_READ
	}
	return snapshotv1.Effect_EFFECT_UNSPECIFIED
}

func (x *exchange) decideTool() *answer {
	name := x.msg.Name
	x.shown = name
	if x.server == nil {
		at, _ := x.aggregateNames().Find(name)
		s, exists := x.tenant.Server(at.Server)
		if !exists {
			return x.unknownTool("unknown_tool")
		}
		name = at.Name
		x.choose(s)
		x.rec.Target = bounded(name, 256)
	}
	tool, exists := x.server.Tool(name)
	if !exists {
		return x.hiddenTool("unknown_tool")
	}
	x.ask.Args = x.msg.Raw(x.msg.Arguments)
	d := authz.Decide(&x.view, tool.Item, &x.ask)
	x.rec.Effect = tool.Effect
	x.note(tool.Item, tool.Name, d)
	switch {
	case !x.known:
		return x.hiddenTool("unknown_principal")
	case !d.Visible:
		return x.hiddenTool(d.Reason.String())
	case !d.Allow:
		return x.deniedTool(d.Reason.String())
	case x.killedTool(x.server, tool.Name):
		return x.deniedTool("killed")
	case !x.state.Fresh(x.tenant, tool.Called, x.ask.NowMS):
		return x.deniedTool("stale")
	case x.changedTool(tool.Name):
		return x.deniedTool(toolChanged)
	}
	if x.era == mcp.EraModern && len(tool.Params) > 0 {
		if r := mcp.CheckParams(tool.Params, x.r.Header, x.ask.Args); r != nil {
			x.denied(r.Reason)
			return x.refuse(r)
		}
	}
	if err := tool.CheckArguments(x.ask.Args); err != nil {
		return x.badArguments(err)
	}
	x.tool = tool
	x.renamed = bridge.Rename{At: x.msg.NameValue, Name: tool.Name}
	x.allowed(tool.Effect)
	return nil
}

// hiddenTool answers for a tool that does not exist for this caller: on a server of which they see nothing, neither does
// the server.
func (x *exchange) hiddenTool(reason string) *answer {
	if !x.seesAny(x.server, &x.view) && x.route.server != "" {
		return x.unknownServer(reason)
	}
	return x.unknownTool(reason)
}

func (x *exchange) unknownTool(reason string) *answer {
	x.denied(reason)
	d := mcp.ErrorData{DecisionID: x.rec.GetId(), Hint: accessHint}
	return &answer{
		status: http.StatusOK, reason: reason, outcome: "refused",
		body: mcp.AppendError(nil, x.msg.ID, mcp.CodeInvalidParams, `unknown tool "`+mcp.Echo(x.msg.Name)+`"`, d.Append(nil)),
	}
}

const staleSentence = "this node has not heard from its control plane for longer than the policy allows for this kind of call"

// deniedTool tells the caller, and the model, why a tool that they may know of was not called.
func (x *exchange) deniedTool(reason string) *answer {
	x.denied(reason)
	x.visible = true
	d := mcp.ErrorData{DecisionID: x.rec.GetId(), Reason: reason, Hint: explainHint, Retryable: reason == "stale"}
	sentence := "The call of " + mcp.Echo(x.shown) + " was refused: " + why(reason) + ". Decision " + d.DecisionID + "."
	return &answer{
		status: http.StatusOK, reason: reason, outcome: "refused",
		body: mcp.AppendToolDenial(nil, x.msg.ID, x.era, sentence, &d),
	}
}

const explainHint = "an administrator can explain it: mcpvault access explain"

// why is what a caller is told of a reason.
func why(reason string) string {
	switch reason {
	case "condition":
		return "your grant allows it only with other arguments, at another time or from elsewhere"
	case "argument_type":
		return "something that your grant depends on is missing, repeated or of another type"
	case "killed":
		return "it was stopped by an administrator"
	case "secret_killed":
		return secretSentence
	case "stale":
		return staleSentence
	case toolChanged:
		return "its server describes it otherwise than it was approved, and an administrator has not looked at the change yet"
	}
	return "the policy denies it"
}

// intend makes the intent of a call with effects durable before anything is sent.
func (x *exchange) intend() *answer {
	if x.rec.GetEffect() == snapshotv1.Effect_EFFECT_READ || x.msg.Kind != mcp.KindRequest {
		return nil
	}
	x.rec.Kind = auditv1.RecordKind_RECORD_KIND_INTENT
	if err := x.p.audit.Intent(x.ctx, x.rec); err != nil {
		x.p.log.Error("audit intent lost", "error", err, "request_id", x.rec.GetId())
		x.rec.Kind = auditv1.RecordKind_RECORD_KIND_CALL
		x.denied("audit_unavailable")
		return x.unaudited()
	}
	x.intended = true
	return nil
}

// recheck decides once more when the policy was replaced since, so that a revocation wins against a call that was
// waiting for the disk.
func (x *exchange) recheck() *answer {
	now := x.p.policy.Current()
	if now == x.state {
		return nil
	}
	t := now.Tenant(x.tenant.ID)
	if t == nil {
		return x.fail(mcp.CodeServer, "no_policy", "the policy of this tenant was withdrawn from this node", true)
	}
	anew := t.Keys.KeySet != x.tenant.Keys.KeySet
	x.state, x.tenant = now, t
	x.describeTenant()
	x.pid, x.known = t.Index.Principal(x.who.Name)
	if anew { // the issuer may be gone, its key withdrawn, or the caller another one
		if reason := x.know(); reason != "" {
			return x.challenge(reason)
		}
	}
	if reason := x.killedIdentity(); reason != "" {
		return x.challenge(reason)
	}
	if x.sessionKilled() {
		return x.sessionUnknown("session_killed")
	}
	if x.route.server == "" {
		x.server = nil
		if a := x.decide(); a != nil {
			return a
		}
		return x.killedSecret()
	}
	s, exists := t.Server(x.server.Name)
	if !exists {
		return x.unknownServer("unknown_server")
	}
	owned := x.owned
	x.choose(s)
	a := x.decide()
	x.owned = owned
	if a == nil {
		a = x.killedSecret()
	}
	return a
}
