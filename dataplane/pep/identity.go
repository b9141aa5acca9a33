package pep

import (
	"encoding/hex"
	"errors"
	"net/http"
	"strings"

	"github.com/mcpvault/mcpvault/dataplane/authn"
	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/session"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// authenticate finds out who calls. There is one body for all that can be wrong with a token or a certificate.
func (x *exchange) authenticate() *answer {
	var err error
	if x.who, err = x.identify(); err != nil {
		reason := "token_invalid"
		var ae *authn.Error
		if errors.As(err, &ae) {
			reason = ae.Reason
		}
		return x.challenge(reason)
	}
	x.owner = session.OwnerOf(x.who.Issuer, x.who.Subject)
	x.pid, x.known = x.tenant.Index.Principal(x.who.Name)
	who := &x.parts.principal
	who.Name, who.Issuer, who.Subject, who.Type = x.who.Name, x.who.Issuer, x.who.Subject, x.who.Type
	x.rec.Principal = who
	if x.who.Actor != "" {
		x.ask.Actor = x.who.Actor
		x.rec.Actor = &auditv1.Person{Name: x.who.Actor, Subject: x.who.Actor}
	}
	if reason := x.killedIdentity(); reason != "" {
		return x.challenge(reason)
	}
	return nil
}

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

// challenge answers 401 and says where to learn how to log in.
func (x *exchange) challenge(reason string) *answer {
	status := http.StatusUnauthorized
	value := `Bearer resource_metadata="` + x.p.baseURL(x.r) + wellKnownPath + x.r.URL.Path + `"`
	switch reason {
	case authn.TokenMissing:
	case "token_in_query":
		status = http.StatusBadRequest
		value += `, error="invalid_request"`
	default:
		value += `, error="invalid_token"`
	}
	a := x.reject(status, mcp.CodeServer, reason, "a valid access token of this tenant is needed")
	a.header = http.Header{"Www-Authenticate": {value}}
	return a
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
	body := append([]byte(nil), `{"resource":`...)
	body = mcp.AppendString(body, p.baseURL(r)+path)
	if len(p.cfg.AuthorizationServers) > 0 {
		body = append(body, `,"authorization_servers":[`...)
		for i, s := range p.cfg.AuthorizationServers {
			if i > 0 {
				body = append(body, ',')
			}
			body = mcp.AppendString(body, s)
		}
		body = append(body, ']')
	}
	body = append(body, `,"bearer_methods_supported":["header"],"resource_name":"MCPVault"}`...)
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("Access-Control-Allow-Origin", "*")
	_, _ = w.Write(body) //nolint:gosec // JSON, never HTML
	return true
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
