package pep

import (
	"net/http"

	"github.com/mcpvault/mcpvault/dataplane/bridge"
	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
)

// urlsRequired turns a legacy server's answer that a person has to go to some address first into a modern one that needs input;
// nil for every other answer, and for a caller of the server's own era. No call waits meanwhile: it is made again in the next
// round, on whichever node that comes to.
func (x *exchange) urlsRequired(m *mcp.Message) *answer {
	if x.era != mcp.EraModern || !bridge.MayAsk(x.msg.Method) {
		return nil
	}
	asked, err := bridge.URLQuestions(m)
	switch {
	case err != nil:
		return x.upstreamFailed(upstream.ErrProtocol)
	case asked == nil:
		return nil
	case x.offers()&bridge.URL == 0:
		a := x.refuse(&mcp.Refusal{
			Reason: "client_cannot_go", Status: http.StatusBadRequest, Code: mcp.CodeMissingCapability,
			Message: "the server needs a person to go to an address first, which this client did not say it can ask for",
			Data:    []byte(`{"requiredCapabilities":{"elicitation":{"url":{}}}}`),
		})
		a.outcome = "rpc_error"
		return a
	}
	s := bridge.State{Until: x.p.cfg.Now().Add(x.p.cfg.InputWait), Owner: x.owner, Request: x.requestDigest(), Asked: byte(len(asked))}
	a := ok(bridge.AppendInputRequired(nil, x.msg.ID, asked, x.p.sessions.SealState(s.Append(nil))))
	a.outcome = outcomeInput
	return a
}

// afterURLs judges what a client says of the addresses that it was to go to; nil means that the call is to be made again, and
// whether everything is done there is for the server to say.
func (x *exchange) afterURLs(asked int, given map[string][]byte) *answer {
	refused := false
	for i := range asked {
		raw, was := given[bridge.URLKey(i)]
		switch {
		case !was:
			continue
		case raw[0] != '{':
			return x.inputUnasked()
		}
		delete(given, bridge.URLKey(i))
		refused = refused || textOf(raw, "action") != "accept"
	}
	switch {
	case len(given) > 0:
		return x.inputUnasked()
	case refused:
		return x.fail(mcp.CodeServer, "input_refused", "the server needs a person to go to an address first, which was declined; the call was not made again", false)
	}
	return nil
}
