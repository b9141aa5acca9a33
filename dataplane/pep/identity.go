package pep

import (
	"encoding/hex"
	"errors"
	"net/http"
	"strings"

	"github.com/mcpvault/mcpvault/dataplane/authn"
	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/session"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// authenticate finds out who calls. There is one body for all that can be wrong with a token or a certificate.
func (x *exchange) authenticate() *answer {
	reason := x.know()
	if reason == "" {
		reason = x.killedIdentity()
	}
	if reason != "" {
		return x.challenge(reason)
	}
	return nil
}

// know makes the caller the principal that they are under the tenant's policy of this moment. It returns why they are none, "" when
// they are one.
func (x *exchange) know() string {
	var err error
	if x.who, err = x.identify(); err != nil {
		var ae *authn.Error
		if errors.As(err, &ae) {
			return ae.Reason
		}
		return "token_invalid"
	}
	x.owner = session.OwnerOf(x.who.Issuer, x.who.Subject)
	x.pid, x.known = x.tenant.Index.Principal(x.who.Name)
	who := x.rec.GetPrincipal()
	if who == nil {
		who = &x.parts.principal
	}
	who.Name, who.Issuer, who.Subject, who.Type = x.who.Name, x.who.Issuer, x.who.Subject, x.who.Type
	x.rec.Principal = who
	if x.who.Actor != "" {
		x.ask.Actor = x.who.Actor
		x.rec.Actor = &auditv1.Person{Name: x.who.Actor, Subject: x.who.Actor}
		if x.who.Actors > maxActing || x.who.Actor == x.who.Subject || x.who.Actor == x.who.Name {
			return impersonationDenied
		}
	}
	return ""
}

// maxActing is how many may act for one another in one call (RFC 8693, 4.1): a supervisor, and a program of theirs. Who may
// act for whom is otherwise the policy's, whose conditions know the actor.
const maxActing = 2

// impersonationDenied is why a caller who acts for another is refused; the record names both.
const impersonationDenied = "impersonation_denied"

// killedIdentity looks the caller up in the deny-only records; it is asked again before anything is forwarded.
func (x *exchange) killedIdentity() string {
	s, t := x.state, x.tenant.ID
	switch {
	case s.Kills() == 0:
		return ""
	case s.Killed(snapshotv1.KillKind_KILL_KIND_USER, t, x.who.Name), s.Killed(snapshotv1.KillKind_KILL_KIND_USER, t, x.who.Subject):
		return "token_user_killed"
	case x.who.Actor != "" && s.Killed(snapshotv1.KillKind_KILL_KIND_USER, t, x.who.Actor):
		return "token_actor_killed"
	case x.who.JTI != "" && s.Killed(snapshotv1.KillKind_KILL_KIND_TOKEN, t, x.who.JTI):
		return "token_killed"
	case s.Killed(snapshotv1.KillKind_KILL_KIND_ISSUER, t, x.who.Issuer):
		return "token_issuer_killed"
	case x.who.KeyID != "" && s.Killed(snapshotv1.KillKind_KILL_KIND_KEY, t, x.who.KeyID):
		return "token_key_killed"
	}
	return ""
}

// challenge answers 401 and says where to learn how to log in, and for which scopes (RFC 9728, 5.1; RFC 6750, 3).
func (x *exchange) challenge(reason string) *answer {
	status := http.StatusUnauthorized
	word := "invalid_token"
	switch reason {
	case impersonationDenied:
		return x.reject(http.StatusForbidden, mcp.CodeServer, reason, "nobody acts for themselves, nor for somebody who acts for somebody who acts for another")
	case authn.TokenMissing:
		word = ""
	case authn.TokenInQuery:
		status, word = http.StatusBadRequest, "invalid_request"
	}
	a := x.reject(status, mcp.CodeServer, reason, "a valid access token of this tenant is needed")
	a.header = x.authenticateWith(word, x.tenant.Keys.First(x.route.server))
	return a
}

// stepUp answers 403 to a caller whom policy lets do this, and whose token's issuer must first put more scopes into it.
// There is no other answer with that challenge: where no scope helps, a client that asked for more would ask for ever.
func (x *exchange) stepUp() *answer {
	issuer := x.tenant.Keys.Issuer(x.who.Issuer)
	if issuer == nil || len(issuer.ScopeRules) == 0 || x.r.Method == http.MethodDelete || x.msg.Kind != mcp.KindRequest && x.r.Method == http.MethodPost {
		return nil
	}
	op := authn.Operation{Call: x.calls(), Effect: x.rec.GetEffect()}
	if x.server != nil {
		op.Server = x.server.Name
	}
	need, enough := issuer.Scopes(op, x.who.Scope)
	if enough {
		return nil
	}
	x.denied("insufficient_scope")
	d := mcp.ErrorData{DecisionID: x.rec.GetId(), Reason: "insufficient_scope", Hint: "log in again for the scopes that the WWW-Authenticate header names"}
	return &answer{
		status: http.StatusForbidden, reason: "insufficient_scope", outcome: "refused",
		header: x.authenticateWith("insufficient_scope", need),
		body:   mcp.AppendError(nil, x.msg.ID, mcp.CodeServer, "the access token needs more scopes for this", d.Append(nil)),
	}
}

// calls reports whether the request does something that has an effect class of its own.
func (x *exchange) calls() bool {
	if x.r.Method != http.MethodPost {
		return false
	}
	switch x.msg.Method {
	case mcp.MethodInitialize, mcp.MethodDiscover, mcp.MethodPing, mcp.MethodToolsList, mcp.MethodPromptsList, mcp.MethodResourcesList,
		mcp.MethodTemplatesList, mcp.MethodListen, mcp.MethodSetLevel:
		return false
	}
	return true
}

// authenticateWith is the challenge: word is RFC 6750's, "" for a request without a token.
func (x *exchange) authenticateWith(word string, scopes []string) http.Header {
	v := "Bearer "
	if word != "" {
		v += `error="` + word + `", `
	}
	if len(scopes) > 0 {
		v += `scope="` + strings.Join(scopes, " ") + `", `
	}
	v += `resource_metadata="` + x.p.baseURL(x.r) + wellKnownPath + x.r.URL.Path + `"`
	return http.Header{"Www-Authenticate": {v}}
}

// baseURL is the URL that the client used, up to the path. Its host passed the allow-list.
func (p *PEP) baseURL(r *http.Request) string {
	host := strings.ToLower(r.Host)
	if base, public := p.bases[host]; public {
		return base
	}
	scheme := "http://"
	if r.TLS != nil {
		scheme = "https://"
	}
	return scheme + host
}

const wellKnownPath = "/.well-known/oauth-protected-resource"

// wellKnown serves the protected resource metadata of RFC 9728, to anybody, at the root and below it for each endpoint.
// Whether a server is published is not for everybody to know: each path that one could have gets its document.
func (p *PEP) wellKnown(w http.ResponseWriter, r *http.Request) bool {
	rest, found := strings.CutPrefix(r.URL.Path, "/.well-known/")
	if !found {
		return false
	}
	x := &exchange{p: p, r: r, state: p.policy.Current()}
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	path, known := strings.CutPrefix(rest, "oauth-protected-resource")
	if path == "" {
		path = "/mcp"
	}
	u := *r.URL
	u.Path = path
	switch {
	case !p.hostAllowed(r.Host, x):
		w.WriteHeader(http.StatusMisdirectedRequest)
		return true
	case !known || !routeOf(&u).known:
		w.WriteHeader(http.StatusNotFound)
		return true
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		h.Set("Allow", "GET, HEAD")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return true
	}
	tenant := x.state.TenantByHost(r.Host)
	if tenant == nil {
		h.Set("Retry-After", "2")
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	body := append([]byte(nil), `{"resource":`...)
	body = mcp.AppendString(body, p.baseURL(r)+path)
	body = appendList(body, `,"authorization_servers":`, x.authorizationServers(tenant))
	body = appendList(body, `,"scopes_supported":`, tenant.Keys.Supported(routeOf(&u).server))
	body = append(body, `,"bearer_methods_supported":["header"],"resource_name":"MCPVault"}`...)
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("Access-Control-Allow-Origin", "*")
	_, _ = w.Write(body) //nolint:gosec // JSON, never HTML
	return true
}

// authorizationServers are where the tenant's callers may log in.
func (x *exchange) authorizationServers(t *pdp.Tenant) []string {
	var urls []string
	for i := range t.Keys.Issuers {
		s := &t.Keys.Issuers[i]
		if s.External && !x.state.Killed(snapshotv1.KillKind_KILL_KIND_ISSUER, t.ID, s.Issuer) {
			urls = append(urls, s.Issuer)
		}
	}
	return urls
}

// appendList appends a member that is a list of texts, and nothing when there are none (RFC 9728, 3.2).
func appendList(b []byte, name string, list []string) []byte {
	if len(list) == 0 {
		return b
	}
	b = append(append(b, name...), '[')
	for i, s := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = mcp.AppendString(b, s)
	}
	return append(b, ']')
}

// resume opens the session of a legacy request. Modern requests have none, whatever their headers say.
func (x *exchange) resume() *answer {
	if x.era == mcp.EraModern || x.msg.Method == mcp.MethodInitialize {
		return nil
	}
	ids := x.r.Header[mcp.HeaderSession]
	switch {
	case len(ids) == 0:
		return x.reject(http.StatusBadRequest, mcp.CodeServer, "session_missing", "the Mcp-Session-Id header is missing: send initialize first")
	case len(ids) > 1 || !session.WellFormed(ids[0]):
		return x.reject(http.StatusBadRequest, mcp.CodeServer, "session_malformed", "the Mcp-Session-Id header is malformed")
	}
	x.sessionID = ids[0]
	x.describeSession()
	claims, err := x.p.sessions.Open(x.sessionID)
	switch {
	case err != nil || claims.Tenant != x.tenant.ID || claims.Server != x.route.server:
		return x.sessionUnknown("session_unknown")
	case claims.Owner != x.owner:
		return x.sessionUnknown("session_hijack")
	case x.sessionKilled():
		return x.sessionUnknown("session_killed")
	case x.p.leases.Use(session.LeaseIDOf(x.sessionID, claims.Created), x.tenant.Settings) != nil:
		return x.sessionUnknown("session_ended")
	}
	x.claims, x.owned = claims, claims.Owned
	if x.revision == "" {
		x.revision = claims.Revision
		x.rec.ProtocolVersion = x.revision
	}
	return nil
}

func (x *exchange) sessionKilled() bool {
	if x.sessionID == "" || x.state.Kills() == 0 {
		return false
	}
	h := session.Hash(x.sessionID)
	return x.state.Killed(snapshotv1.KillKind_KILL_KIND_SESSION, x.tenant.ID, hex.EncodeToString(h[:]))
}

// sessionUnknown tells the client to initialize again; it looks the same for every reason.
func (x *exchange) sessionUnknown(reason string) *answer {
	return x.reject(http.StatusNotFound, mcp.CodeServer, reason, "session not found: send initialize again")
}
