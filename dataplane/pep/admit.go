package pep

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/mcpvault/mcpvault/dataplane/limit"
	"github.com/mcpvault/mcpvault/dataplane/mcp"
)

// route is where a path leads.
type route struct {
	known bool
	// server is "" for the aggregate.
	server string
}

// routeOf reads a path exactly as it was sent: no cleaning, no decoding, no redirect.
func routeOf(u *url.URL) route {
	if u.RawPath != "" && u.RawPath != u.Path {
		return route{}
	}
	name, under := strings.CutPrefix(u.Path, "/mcp")
	switch {
	case !under:
		return route{}
	case name == "" || name == "/":
		return route{known: name == ""}
	case name[0] != '/':
		return route{}
	}
	name = name[1:]
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		default:
			return route{}
		}
	}
	if name == "." || name == ".." || len(name) > 128 {
		return route{}
	}
	return route{known: true, server: name}
}

// admit refuses what is not for this endpoint at all.
func (x *exchange) admit() *answer {
	r := x.r
	x.route = routeOf(r.URL)
	switch {
	case !limit.FieldsOK(r.Header):
		return x.reject(http.StatusRequestHeaderFieldsTooLarge, mcp.CodeInvalidRequest, "too_many_headers", "too many header fields")
	case hostContradicted(r):
		return x.reject(http.StatusBadRequest, mcp.CodeInvalidRequest, "host_mismatch", "the request names two hosts")
	case !x.p.hostAllowed(r.Host, x):
		return x.reject(http.StatusMisdirectedRequest, mcp.CodeInvalidRequest, "host_denied", "this host name is not served here")
	case !x.p.originAllowed(r.Header["Origin"]):
		return x.reject(http.StatusForbidden, mcp.CodeInvalidRequest, "origin_denied", "this origin may not call")
	case !x.route.known:
		return x.reject(http.StatusNotFound, mcp.CodeInvalidRequest, "path_unknown", "there is nothing at this path")
	case connectionAbused(r.Header):
		return x.reject(http.StatusBadRequest, mcp.CodeInvalidRequest, "connection_header", "the Connection header names end-to-end fields")
	}
	if r.Method != http.MethodPost && r.Method != http.MethodGet && r.Method != http.MethodDelete {
		return x.notAllowed("POST, GET, DELETE")
	}
	if x.tenant = x.state.TenantByHost(r.Host); x.tenant == nil {
		return x.fail(mcp.CodeServer, "no_policy", "this node has no verified policy yet; try again or use another node", true)
	}
	x.describeTenant()
	return nil
}

func (x *exchange) notAllowed(allow string) *answer {
	a := x.reject(http.StatusMethodNotAllowed, mcp.CodeInvalidRequest, "verb", "this verb is not offered here")
	a.header = http.Header{"Allow": {allow}}
	return a
}

// hostContradicted finds a Host header beside another :authority (RFC 9113, 8.3.1), which net/http lets pass in HTTP/2.
func hostContradicted(r *http.Request) bool {
	for _, host := range r.Header["Host"] {
		if host != r.Host {
			return true
		}
	}
	return false
}

func (p *PEP) hostAllowed(host string, x *exchange) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if p.cfg.Loopback && loopback(name) {
		return true
	}
	if _, public := p.bases[strings.ToLower(host)]; public {
		return true
	}
	return slices.Contains(p.cfg.Hosts, name) || slices.Contains(p.cfg.Hosts, strings.ToLower(host)) || x.state.MapsHost(name)
}

// loopback reports whether a host name, without port, can only mean this machine.
func loopback(name string) bool {
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return err == nil && ip.Unmap().IsLoopback()
}

func (p *PEP) originAllowed(origins []string) bool {
	if len(origins) == 0 {
		return true
	}
	if len(origins) > 1 {
		return false
	}
	if slices.Contains(p.cfg.Origins, origins[0]) {
		return true
	}
	u, err := url.Parse(origins[0])
	return p.cfg.Loopback && err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Path == "" && loopback(u.Hostname())
}

// connectionAbused finds a Connection header that would have a proxy remove what policy goes by.
func connectionAbused(h http.Header) bool {
	for _, v := range h["Connection"] {
		for item := range strings.SplitSeq(v, ",") {
			item = strings.ToLower(strings.TrimSpace(item))
			if item == "authorization" || item == "host" || strings.HasPrefix(item, "mcp-") {
				return true
			}
		}
	}
	return false
}

// frame reads and judges a posted message.
func (x *exchange) frame() *answer {
	h := x.r.Header
	if x.r.Method != http.MethodPost {
		return x.frameVerb()
	}
	switch {
	case len(h["Content-Encoding"]) > 0:
		return x.reject(http.StatusUnsupportedMediaType, mcp.CodeInvalidRequest, "content_encoding", "request bodies are taken as they are, without encoding")
	case !mcp.ContentTypeOK(h["Content-Type"]):
		return x.reject(http.StatusUnsupportedMediaType, mcp.CodeInvalidRequest, "content_type", "the Content-Type must be application/json")
	case !mcp.Accepts(h["Accept"], "application/json") || !mcp.Accepts(h["Accept"], "text/event-stream"):
		return x.reject(http.StatusNotAcceptable, mcp.CodeInvalidRequest, "accept", "the Accept header must list application/json and text/event-stream")
	}
	body, err := x.p.body.Read(x.w, x.r)
	switch {
	case errors.Is(err, limit.ErrTooLarge):
		return x.reject(http.StatusRequestEntityTooLarge, mcp.CodeInvalidRequest, "body_too_large", "the body is too large")
	case errors.Is(err, limit.ErrTooSlow):
		return x.reject(http.StatusRequestTimeout, mcp.CodeInvalidRequest, "body_too_slow", "the body took too long")
	case err != nil:
		return x.reject(http.StatusBadRequest, mcp.CodeParse, "body_cut", "the body ended early")
	}
	var refusal *mcp.Refusal
	x.msg, refusal = x.p.framer.Frame(body)
	if refusal == nil {
		var j mcp.Judgement
		j, refusal = mcp.Judge(h, &x.msg)
		x.era, x.revision = j.Era, j.Revision
	}
	x.describe()
	if refusal != nil {
		return x.refuse(refusal)
	}
	x.extend(x.p.cfg.CallTimeout)
	return nil
}

// frameVerb judges GET and DELETE, which only the legacy revisions have.
func (x *exchange) frameVerb() *answer {
	x.rec.Method = "http/" + strings.ToLower(x.r.Method)
	versions := x.r.Header[mcp.HeaderVersion]
	if len(versions) > 1 {
		return x.reject(http.StatusBadRequest, mcp.CodeHeaderMismatch, "header_mismatch", "the request has more than one MCP-Protocol-Version")
	}
	if len(versions) == 1 {
		x.revision = versions[0]
		if x.revision == mcp.Rev20260728 {
			x.era = mcp.EraModern
			return x.notAllowed("POST")
		}
		if !mcp.IsLegacy(x.revision) {
			return x.refuse(mcp.Unsupported(x.revision))
		}
	}
	if x.r.Method == http.MethodGet && !mcp.Accepts(x.r.Header["Accept"], "text/event-stream") {
		return x.reject(http.StatusNotAcceptable, mcp.CodeInvalidRequest, "accept", "the Accept header must list text/event-stream")
	}
	return nil
}
