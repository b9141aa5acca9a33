package pep

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/dataplane/veneer"
)

// bridge makes a tool call where the gateway leads the dialogue: with the upstream's own name of the tool, and in an era
// that the upstream speaks. The caller's era is used when it can be.
func (x *exchange) bridge() *answer {
	if x.msg.Method != mcp.MethodToolsCall {
		return x.unknownMethod("unknown_method")
	}
	if x.speaksModern() {
		return x.bridgeModern()
	}
	return x.bridgeLegacy()
}

func (x *exchange) speaksModern() bool {
	if len(x.server.ProtocolVersions) == 0 {
		return x.era == mcp.EraModern
	}
	modern := x.server.Speaks(mcp.Rev20260728)
	return modern && (x.era == mcp.EraModern || legacyRevision(x.server) == "")
}

// rename is the splice that puts the upstream's name in, none when it is the same.
func (x *exchange) rename() []veneer.Splice {
	if x.tool.Name == x.msg.Name {
		return nil
	}
	return []veneer.Splice{{At: x.msg.NameValue, With: mcp.AppendString(nil, x.tool.Name)}}
}

func (x *exchange) bridgeModern() *answer {
	splices := x.rename()
	merge(x.set, http.Header{
		mcp.HeaderVersion: {mcp.Rev20260728}, mcp.HeaderMethod: {mcp.MethodToolsCall},
		mcp.HeaderName: {mcp.EncodeHeader(x.tool.Name)},
	})
	how := streaming{translate: func(raw []byte, _ *mcp.Message) ([]byte, *answer) { return raw, nil }}
	if x.era == mcp.EraLegacy {
		splices = inOrder(append(splices, x.modernMeta()))
		merge(x.set, mcp.Mirror(x.tool.Params, x.msg.Raw(x.msg.Arguments)))
		how.translate = x.toLegacy
	}
	return x.bridged(veneer.Apply(x.msg.Body, splices...), how)
}

func inOrder(s []veneer.Splice) []veneer.Splice {
	slices.SortFunc(s, func(a, b veneer.Splice) int { return a.At.Start - b.At.Start })
	return s
}

// modernMeta is the splice that adds what a modern request says of itself.
func (x *exchange) modernMeta() veneer.Splice {
	own := []byte(`"` + mcp.MetaVersion + `":"` + mcp.Rev20260728 + `","` + mcp.MetaCapabilities + `":{},"` + mcp.MetaClientInfo + `":`)
	own = append(own, x.clientInfo()...)
	m := &x.msg
	if !m.Meta.Present() {
		own = append(append([]byte(`"_meta":{`), own...), '}', ',')
		at := m.Params.Start + 1
		return veneer.Splice{At: mcp.Span{Start: at, End: at}, With: own}
	}
	if rest := bytes.TrimLeft(m.Body[m.Meta.Start+1:m.Meta.End], " \t\r\n"); rest[0] != '}' {
		own = append(own, ',')
	}
	at := m.Meta.Start + 1
	return veneer.Splice{At: mcp.Span{Start: at, End: at}, With: own}
}

func (x *exchange) clientInfo() []byte {
	b := mcp.AppendString([]byte(`{"name":"mcpvault","version":`), x.p.cfg.Version)
	return append(b, '}')
}

// toLegacy refuses what a legacy client cannot be told.
func (x *exchange) toLegacy(raw []byte, m *mcp.Message) ([]byte, *answer) {
	if kind := m.Raw(m.ResultType); kind != nil && string(kind) != `"complete"` {
		return nil, x.fail(mcp.CodeServer, "era_mismatch", "the tool asks for something that a client of this revision cannot give: use revision "+mcp.Rev20260728, false)
	}
	return raw, nil
}

func (x *exchange) bridgeLegacy() *answer {
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
	splices := append(x.rename(), veneer.Splice{At: x.msg.IDSpan(), With: x.wireID})
	if x.era == mcp.EraModern {
		splices = append(splices, veneer.Splice{At: x.msg.Meta, With: mcp.WithoutModernMeta(x.msg.Raw(x.msg.Meta))})
	}
	how := streaming{translate: x.fromLegacy, asked: x.decline}
	a := x.bridged(veneer.Apply(x.msg.Body, inOrder(splices)...), how)
	if a != nil && a.reason == "upstream_session_lost" {
		x.p.table.Drop(key, up)
	}
	return a
}

// fromLegacy gives an answer the caller's id, and a modern caller what a modern result must say.
func (x *exchange) fromLegacy(raw []byte, m *mcp.Message) ([]byte, *answer) {
	splices := []veneer.Splice{{At: m.IDSpan(), With: x.msg.ID}}
	if x.era == mcp.EraModern && m.Result.Present() && !m.ResultType.Present() && raw[m.Result.Start] == '{' {
		word := `"resultType":"complete",`
		if rest := bytes.TrimLeft(raw[m.Result.Start+1:m.Result.End], " \t\r\n"); rest[0] == '}' {
			word = word[:len(word)-1]
		}
		at := m.Result.Start + 1
		splices = append(splices, veneer.Splice{At: mcp.Span{Start: at, End: at}, With: []byte(word)})
	}
	return veneer.Apply(raw, inOrder(splices)...), nil
}

// tableKey names the upstream session: one for each caller, whatever the number of their own sessions.
func (x *exchange) tableKey() session.TableKey {
	return session.TableKey{Owner: ownerKey(x.era, x.tenant.ID, x.owner), Server: x.server.Name + "\x00" + x.server.VersionDigest.String()}
}

// phrase is an error that already has its words.
type phrase struct {
	reason, message string
	retryable       bool
}

func (p *phrase) Error() string { return p.message }

// openUpstream initializes a session of the gateway's own.
func (x *exchange) openUpstream(context.Context) (session.Upstream, error) {
	revision := legacyRevision(x.server)
	if revision == "" {
		revision = mcp.Rev20251125
	}
	body := append([]byte(`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"`+revision+`","capabilities":{},"clientInfo":`), x.clientInfo()...)
	body = append(body, '}', '}')
	set := http.Header{mcp.HeaderVersion: nil}
	merge(set, x.set)
	resp, err := x.p.up.Do(x.ctx, &upstream.Request{URL: x.server.URL, Method: http.MethodPost, Body: body, Set: set})
	if err != nil {
		return session.Upstream{}, err
	}
	defer resp.Close()
	first := exchange{p: x.p, ctx: x.ctx, msg: mcp.Message{ID: []byte("1")}}
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
	up := x.upstreamSession(resp.Session, got)
	return up, x.announce(up)
}

// upstreamSession is a session at the exchange's server.
func (x *exchange) upstreamSession(id, revision string) session.Upstream {
	return session.Upstream{Tenant: string(x.tenant.ID), Server: x.server.Name, URL: x.server.URL, ID: id, Revision: revision}
}

// announce says that the session is ready to be used.
func (x *exchange) announce(up session.Upstream) error {
	set := http.Header{}
	merge(set, x.set)
	merge(set, sessionHeader(up.ID, up.Revision))
	resp, err := x.p.up.Do(x.ctx, &upstream.Request{
		URL: up.URL, Method: http.MethodPost, Set: set, Body: []byte(`{"jsonrpc":"2.0","method":"` + mcp.MethodInitialized + `"}`),
	})
	if err != nil {
		return err
	}
	resp.Close()
	return nil
}

// decline answers a server's request on a session of the gateway's own: it offers nothing but life signs.
func (x *exchange) decline(m *mcp.Message) {
	body := mcp.AppendError(nil, m.ID, mcp.CodeMethodNotFound, "not offered", nil)
	if m.Method == mcp.MethodPing {
		body = mcp.AppendEmptyResult(nil, m.ID, mcp.EraLegacy)
	}
	resp, err := x.p.up.Do(x.ctx, &upstream.Request{URL: x.server.URL, Method: http.MethodPost, Set: x.set, Body: body})
	if err == nil {
		resp.Close()
	}
}

// bridged sends a translated call and translates its answer.
func (x *exchange) bridged(body []byte, how streaming) *answer {
	resp, a := x.send(&upstream.Request{Method: http.MethodPost, Body: body, Header: x.r.Header})
	if a != nil {
		return a
	}
	defer resp.Close()
	if resp.Events != nil {
		return x.stream(resp, how)
	}
	m, refusal := x.p.framer.FrameAnswer(resp.Body)
	if refusal != nil || !x.answers(&m) {
		if resp.Status == http.StatusNotFound {
			a := x.fail(mcp.CodeServer, "upstream_session_lost", "the server no longer knows the session; the call was not made, try again", true)
			a.outcome = "refused"
			return a
		}
		return x.upstreamFailed(upstream.ErrProtocol)
	}
	out, a := how.translate(resp.Body, &m)
	if a != nil {
		return a
	}
	served := ok(out)
	served.outcome = outcomeOf(&m)
	if x.era == mcp.EraModern && (resp.Status == http.StatusBadRequest || resp.Status == http.StatusNotFound) {
		served.status = resp.Status
	}
	return served
}
