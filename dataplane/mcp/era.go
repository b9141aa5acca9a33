package mcp

import (
	"encoding/base64"
	"net/http"
	"strings"
	"unicode/utf8"
)

// Judgement is what the headers and the body together say about the protocol of one request.
type Judgement struct {
	Era Era
	// Revision is "" when a legacy request does not say: then its session does, or it is an initialize.
	Revision string
}

// Judge chooses the era of a posted message and, for the modern one, demands that headers and body say the same. The
// body is what is acted on; a header only ever makes a request fail.
func Judge(h http.Header, m *Message) (Judgement, *Refusal) {
	versions := h[HeaderVersion]
	if len(versions) > 1 {
		return Judgement{}, mismatch("the request has more than one MCP-Protocol-Version")
	}
	stated, inBody := m.Text(m.Version)
	if len(versions) == 0 || versions[0] == "" {
		if m.Version.Present() || m.Capabilities.Present() || m.Method == MethodDiscover || len(h[HeaderMethod]) > 0 {
			return Judgement{Era: EraModern}, mismatch("the MCP-Protocol-Version header is missing")
		}
		return Judgement{Era: EraLegacy}, nil
	}
	version := versions[0]
	switch {
	case version == Rev20260728:
		j := Judgement{Era: EraModern, Revision: version}
		if m.Version.Present() && (!inBody || stated != version) {
			return j, mismatch("the MCP-Protocol-Version header and _meta name different revisions")
		}
		return j, modern(h, m)
	case !IsLegacy(version):
		return Judgement{Era: EraModern}, Unsupported(version)
	case m.Version.Present() && (!inBody || stated != version):
		return Judgement{Era: EraModern}, mismatch("the MCP-Protocol-Version header and _meta name different revisions")
	}
	return Judgement{Era: EraLegacy, Revision: version}, nil
}

// Unsupported is the refusal of a revision that is not spoken here.
func Unsupported(version string) *Refusal {
	r := refuse(CodeUnsupportedVersion, "unsupported_version", "unsupported protocol version")
	data := append([]byte(nil), `{"supported":[`...)
	for i, rev := range Revisions() {
		if i > 0 {
			data = append(data, ',')
		}
		data = AppendString(data, rev)
	}
	data = append(data, `],"requested":`...)
	data = AppendString(data, Echo(version))
	data = append(data, '}')
	r.Data = data
	return r
}

// Gone reports whether the modern revision took a legacy method away.
func Gone(method string) bool {
	switch method {
	case MethodInitialize, MethodInitialized, MethodPing, MethodSetLevel, MethodSubscribe, MethodUnsubscribe:
		return true
	}
	return false
}

// NotFound is the modern refusal of a method that nobody implements.
func NotFound() *Refusal {
	r := refuse(CodeMethodNotFound, "unknown_method", "method not found")
	r.Status = http.StatusNotFound
	return r
}

func mismatch(message string) *Refusal {
	return refuse(CodeHeaderMismatch, "header_mismatch", message)
}

func modern(h http.Header, m *Message) *Refusal {
	if m.Kind == KindResponse {
		return refuse(CodeInvalidRequest, "response_posted", "responses are not posted in this revision")
	}
	if m.Kind == KindRequest {
		if !m.Version.Present() {
			return refuse(CodeInvalidParams, "meta_missing", "_meta must hold "+MetaVersion)
		}
		if !m.Capabilities.Present() || m.Body[m.Capabilities.Start] != '{' {
			return refuse(CodeInvalidParams, "meta_missing", "_meta must hold "+MetaCapabilities)
		}
	}
	methods := h[HeaderMethod]
	if len(methods) != 1 || methods[0] != m.Method {
		return mismatch("the Mcp-Method header must be there once and equal the method of the body")
	}
	if Gone(m.Method) {
		return NotFound()
	}
	if Named(m.Method) == "" {
		return nil
	}
	names := h[HeaderName]
	if len(names) != 1 {
		return mismatch("the Mcp-Name header must be there once")
	}
	if name, ok := DecodeHeader(names[0]); !ok || name != m.Name {
		return mismatch("the Mcp-Name header must equal the name in the body")
	}
	return nil
}

const (
	encodedPrefix = "=?base64?"
	encodedSuffix = "?="
)

// DecodeHeader decodes a value that may be wrapped as =?base64?...?=; the wrapping is case-sensitive.
func DecodeHeader(v string) (string, bool) {
	if len(v) < len(encodedPrefix)+len(encodedSuffix) || !strings.HasPrefix(v, encodedPrefix) ||
		!strings.HasSuffix(v, encodedSuffix) {
		return v, true
	}
	b, err := base64.StdEncoding.Strict().DecodeString(v[len(encodedPrefix) : len(v)-len(encodedSuffix)])
	if err != nil || !utf8.Valid(b) || strings.ContainsAny(v, "\r\n") {
		return "", false
	}
	return string(b), true
}

// EncodeHeader is the inverse: values that a header cannot carry, or that look wrapped, are wrapped.
func EncodeHeader(v string) string {
	plain := v == strings.TrimSpace(v) && !strings.HasPrefix(v, encodedPrefix)
	for i := 0; plain && i < len(v); i++ {
		plain = v[i] >= 0x20 && v[i] < 0x7f
	}
	if plain {
		return v
	}
	return encodedPrefix + base64.StdEncoding.EncodeToString([]byte(v)) + encodedSuffix
}

// ContentTypeOK reports whether a request's Content-Type is JSON in UTF-8, in any spelling.
func ContentTypeOK(values []string) bool {
	if len(values) != 1 {
		return false
	}
	media, params, _ := strings.Cut(values[0], ";")
	if !strings.EqualFold(strings.TrimSpace(media), "application/json") {
		return false
	}
	for p := range strings.SplitSeq(params, ";") {
		if p = strings.TrimSpace(p); p == "" {
			continue
		}
		k, v, _ := strings.Cut(p, "=")
		if !strings.EqualFold(strings.TrimSpace(k), "charset") ||
			!strings.EqualFold(strings.Trim(strings.TrimSpace(v), `"`), "utf-8") {
			return false
		}
	}
	return true
}

// What clients of MCP accept, as nearly all of them write it.
const (
	mediaJSON   = "application/json"
	mediaEvents = "text/event-stream"
	acceptBoth  = mediaJSON + ", " + mediaEvents
)

// Accepts reports whether the Accept headers take a media type.
func Accepts(values []string, media string) bool {
	if len(values) == 1 && values[0] == acceptBoth && (media == mediaJSON || media == mediaEvents) {
		return true
	}
	kind, _, _ := strings.Cut(media, "/")
	for _, v := range values {
		for item := range strings.SplitSeq(v, ",") {
			item, params, _ := strings.Cut(item, ";")
			item = strings.ToLower(strings.TrimSpace(item))
			if item != media && item != "*/*" && item != kind+"/*" {
				continue
			}
			q := strings.ReplaceAll(strings.ToLower(params), " ", "")
			if q != "q=0" && q != "q=0.0" && q != "q=0.00" && q != "q=0.000" {
				return true
			}
		}
	}
	return false
}
