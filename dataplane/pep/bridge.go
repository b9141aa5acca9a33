package pep

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/mcpvault/mcpvault/dataplane/bridge"
	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
)

// bridge makes a request where the gateway leads the dialogue: with the upstream's own name of what it is about, and in an
// era that the upstream speaks. The caller's era is used when it can be.
func (x *exchange) bridge() *answer {
	switch {
	case !bridge.Crosses(x.msg.Method) && x.task == nil:
		return x.unknownMethod("unknown_method")
	case x.sessionID != "":
		x.outlive()
		defer x.dialogue().Run(x.msg.ID, x.life.end)()
	}
	if x.speaksModern(x.server) {
		return x.conclude(x.bridgeModern())
	}
	return x.conclude(x.bridgeLegacy())
}

// speaksModern reports whether the modern era is the one to speak with a server for this caller.
func (x *exchange) speaksModern(s *pdp.Server) bool {
	if len(s.ProtocolVersions) == 0 {
		return x.era == mcp.EraModern
	}
	modern := s.Speaks(mcp.Rev20260728)
	return modern && (x.era == mcp.EraModern || legacyRevision(s) == "")
}

// offers is what the caller can do for a server that asks.
func (x *exchange) offers() bridge.Offers {
	if x.era == mcp.EraModern {
		return bridge.ParseOffers(x.msg.Raw(x.msg.Capabilities))
	}
	return bridge.ParseWord(x.claims.Offers)
}

// dialogue is what this node remembers of the caller's session.
func (x *exchange) dialogue() *bridge.Dialogue {
	return x.p.dialogues.Of(session.Hash(x.sessionID))
}

// level is the log level that the caller wants to hear of, "" for none.
func (x *exchange) level() string {
	level := ""
	if x.era == mcp.EraModern {
		level = textOf(x.msg.Raw(x.msg.Meta), mcp.MetaLogLevel)
	} else if d := x.p.dialogues.Find(session.Hash(x.sessionID)); d != nil {
		level = d.Level()
	}
	if !bridge.Level(level) {
		return ""
	}
	return level
}

// caller is whom answers are translated for.
func (x *exchange) caller() *bridge.Caller {
	return &bridge.Caller{
		Era: x.era, ID: x.msg.ID, Token: x.msg.Raw(x.msg.ProgressToken), Method: x.msg.Method, Level: x.level(),
	}
}

// upstreamName is the name of what the request is about, as the upstream knows it.
func (x *exchange) upstreamName() string {
	if x.renamed.At.Present() {
		return x.renamed.Name
	}
	return x.msg.Name
}

// bridgeModern asks a modern upstream; for a legacy caller in as many rounds as it takes.
func (x *exchange) bridgeModern() *answer {
	merge(x.set, http.Header{
		mcp.HeaderVersion: {mcp.Rev20260728}, mcp.HeaderMethod: {x.msg.Method}, mcp.HeaderSession: nil, mcp.HeaderName: nil,
	})
	if mcp.Named(x.msg.Method) != "" {
		x.set[mcp.HeaderName] = []string{mcp.EncodeHeader(x.upstreamName())}
	}
	caller := x.caller()
	if x.era == mcp.EraModern {
		m, a := x.put(bridge.Renamed(&x.msg, x.renamed))
		if a != nil {
			return a
		}
		if a := x.forbidsRound(m); a != nil {
			return a
		}
		return x.served(m, m.Body)
	}
	if x.msg.RequestState.Present() || mcp.Member(x.msg.Raw(x.msg.Params), "inputResponses").Present() {
		return x.reject(http.StatusBadRequest, mcp.CodeInvalidParams, "input_unasked", "a request of this revision has no rounds")
	}
	if x.tool != nil {
		merge(x.set, mcp.Mirror(x.tool.Params, x.msg.Raw(x.msg.Arguments)))
	}
	q := bridge.ModernRequest{Rename: x.renamed, ClientInfo: x.clientInfo(), Offers: x.offers(), Level: caller.Level}
	for round, idle := 1, 0; ; round++ {
		m, a := x.put(q.Body(&x.msg))
		switch {
		case a != nil:
			return a
		case !bridge.AsksForInput(m):
			if a := x.forbidsLink(m); a != nil {
				return a
			}
			return x.served(m, caller.Answer(m))
		case round == maxRounds:
			return x.fail(mcp.CodeServer, "too_many_rounds", "the server asked for more input again and again", false)
		}
		if a := x.forbidsRound(m); a != nil {
			return a
		}
		asked, state, err := bridge.Questions(m)
		if err != nil || !bridge.MayAsk(x.msg.Method) {
			return x.upstreamFailed(upstream.ErrProtocol)
		}
		if len(asked) == 0 {
			if idle++; idle == maxIdleRounds {
				return x.fail(mcp.CodeServer, "upstream_busy", "the server puts the request off again and again", true)
			}
		}
		if q.Responses, a = x.askClient(asked); a != nil {
			return a
		}
		q.State = state
		// Each round is a request of its own, with an id of its own.
		x.wireID = mcp.AppendString(nil, x.p.audit.NewID())
		q.ID = x.wireID
	}
}

// maxRounds bounds the rounds of one request, maxIdleRounds those in which the upstream only puts it off.
const (
	maxRounds     = 10
	maxIdleRounds = 3
)

// put sends one body to the upstream and hears it out.
func (x *exchange) put(body []byte) (*mcp.Message, *answer) {
	c := x.converse()
	defer c.close()
	if a := c.send(x, body); a != nil {
		return nil, a
	}
	return x.hear(c)
}

// served is the answer of an upstream, translated.
func (x *exchange) served(m *mcp.Message, body []byte) *answer {
	body, refused := x.withTasks(m, body)
	if refused != nil {
		return refused
	}
	a := ok(body)
	a.outcome = outcomeOf(m)
	if bridge.AsksForInput(m) {
		a.outcome = outcomeInput
	}
	if x.era == mcp.EraModern {
		switch bridge.ErrorCode(m) {
		case mcp.CodeMethodNotFound:
			a.status = http.StatusNotFound
		case mcp.CodeHeaderMismatch, mcp.CodeMissingCapability, mcp.CodeUnsupportedVersion:
			a.status = http.StatusBadRequest
		}
	}
	return a
}

// outcomeInput is how a round ends that asks the client for more.
const outcomeInput = "input_required"

func (x *exchange) clientInfo() []byte {
	b := mcp.AppendString([]byte(`{"name":"mcpvault","version":`), x.p.cfg.Version)
	return append(b, '}')
}

// bridgeLegacy asks a legacy upstream, in a session that the gateway leads.
func (x *exchange) bridgeLegacy() *answer {
	if x.era == mcp.EraModern && (x.msg.RequestState.Present() || mcp.Member(x.msg.Raw(x.msg.Params), "inputResponses").Present()) {
		if a := x.nextRound(); a != nil {
			return a
		}
	}
	key := x.tableKey()
	up, err := x.p.table.Get(x.ctx, key, x.openUpstream)
	if err != nil {
		var p *phrase
		if errors.As(err, &p) {
			return x.fail(mcp.CodeServer, p.reason, p.message, p.retryable)
		}
		return x.upstreamFailed(err)
	}
	merge(x.set, sessionHeader(up.ID, up.Revision))
	// Several callers' programs may share the session, and each counts its ids from one.
	x.wireID = mcp.AppendString(nil, x.rec.GetId())
	q := bridge.LegacyRequest{Rename: x.renamed, ID: x.wireID}
	c := x.converse()
	c.up = up
	if x.offers() != 0 && bridge.MayAsk(x.msg.Method) {
		x.p.ears.join(x.ctx, c)
	}
	a := c.send(x, q.Body(&x.msg))
	if a == nil {
		a = x.hearLegacy(c)
	} else {
		x.end(c)
	}
	if a != nil && a.reason == "upstream_session_lost" {
		x.p.table.Drop(key, up)
		x.p.ears.end(up)
	}
	return a
}

// hearLegacy hears a legacy upstream out, or parks the conversation until the client comes back with what was asked.
func (x *exchange) hearLegacy(c *conversation) *answer {
	m, a := x.hear(c)
	if a == nil && m == nil {
		if a = x.park(c); a.outcome == outcomeInput {
			return a
		}
	}
	x.end(c)
	if a == nil {
		a = x.forbidsLink(m)
	}
	if a == nil {
		a = x.urlsRequired(m)
	}
	if a == nil {
		return x.served(m, x.caller().Answer(m))
	}
	return a
}

// end closes a conversation; a legacy server whose answer is not waited for any more is told so once the caller has theirs.
func (x *exchange) end(c *conversation) {
	c.close()
	if x.ctx.Err() != nil {
		x.after = func() { x.p.tellCancelled(c.up, x.set, c.wireID) }
	}
}

// tableKey names the upstream session: one for each caller, whatever the number of their own sessions; and another for each set
// of things that a client can do, and each log level, since those belong to a session.
func (x *exchange) tableKey() session.TableKey {
	return session.TableKey{
		Owner:  ownerKey(x.era, x.tenant.ID, x.owner),
		Server: strings.Join([]string{x.server.Name, x.server.VersionDigest.String(), x.offers().String(), x.level()}, "\x00"),
	}
}

// phrase is an error that already has its words.
type phrase struct {
	reason, message string
	retryable       bool
}

func (p *phrase) Error() string { return p.message }

// openUpstream initializes a session for the server of the exchange, in which the gateway offers what the caller does.
func (x *exchange) openUpstream(ctx context.Context) (session.Upstream, error) {
	return x.openSession(ctx, x.server, x.set, x.offers(), x.level())
}

// openSession initializes a session of the gateway's own with a legacy server.
func (x *exchange) openSession(ctx context.Context, s *pdp.Server, with http.Header, offers bridge.Offers, level string) (session.Upstream, error) {
	revision := legacyRevision(s)
	if revision == "" {
		revision = mcp.Rev20251125
	}
	body := append([]byte(`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"`+revision+`","capabilities":`), offers.Capabilities()...)
	body = append(append(body, `,"clientInfo":`...), x.clientInfo()...)
	body = append(body, '}', '}')
	set := http.Header{mcp.HeaderVersion: nil}
	merge(set, with)
	resp, err := x.p.up.Do(ctx, &upstream.Request{URL: s.URL, Method: http.MethodPost, Body: body, Set: set})
	if err != nil {
		return session.Upstream{}, err
	}
	defer resp.Close()
	if resp.Status >= http.StatusInternalServerError && !resp.JSON {
		return session.Upstream{}, &phrase{"upstream_unavailable", "the server could not open a session", true}
	}
	first := exchange{p: x.p, ctx: ctx, msg: mcp.Message{ID: []byte("1")}}
	_, m, err := first.collect(resp)
	if err != nil {
		return session.Upstream{}, err
	}
	if m.Error.Present() {
		return session.Upstream{}, &phrase{"upstream_protocol", "the server refused to open a session", false}
	}
	result := mcp.Message{Body: m.Raw(m.Result)}
	got, _ := result.Text(mcp.Member(result.Body, "protocolVersion"))
	if !mcp.IsLegacy(got) || len(resp.Session) > session.MaxUpstreamID || !session.Visible(resp.Session) {
		return session.Upstream{}, &phrase{"upstream_protocol", "the server offers no revision that is spoken here", false}
	}
	up := x.sessionAt(s, resp.Session, got)
	if err := x.p.tell(ctx, up, with, []byte(`{"jsonrpc":"2.0","method":"`+mcp.MethodInitialized+`"}`)); err != nil {
		return session.Upstream{}, err
	}
	logs := mcp.Member(result.Raw(mcp.Member(result.Body, "capabilities")), "logging").Present()
	if level != "" && logs {
		return up, x.p.tell(ctx, up, with, bridge.AppendSetLevel(nil, []byte("2"), level))
	}
	return up, nil
}

// upstreamSession is a session at the exchange's server.
func (x *exchange) upstreamSession(id, revision string) session.Upstream {
	return x.sessionAt(x.server, id, revision)
}

func (x *exchange) sessionAt(s *pdp.Server, id, revision string) session.Upstream {
	return session.Upstream{Tenant: string(x.tenant.ID), Server: s.Name, URL: s.URL, ID: id, Revision: revision}
}

// tell sends a message in an upstream session; what the upstream says to it is of no interest.
func (x *exchange) tell(up session.Upstream, body []byte) error {
	return x.p.tell(x.ctx, up, x.set, body)
}

func (p *PEP) tell(ctx context.Context, up session.Upstream, with http.Header, body []byte) error {
	set := http.Header{}
	merge(set, with)
	merge(set, sessionHeader(up.ID, up.Revision))
	resp, err := p.up.Do(ctx, &upstream.Request{URL: up.URL, Method: http.MethodPost, Set: set, Body: body})
	if err != nil {
		return err
	}
	resp.Close()
	return nil
}
