package authn

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/mcpvault/mcpvault/kit/jose"
)

// Reason is a stable word for why a credential is refused. It is for audit records and metrics; the caller is told the
// same for all of them.
type Reason = string

// The reasons.
const (
	TokenMissing   Reason = "token_missing"
	TokenMalformed Reason = "token_malformed"
	TokenInQuery   Reason = "token_in_query"
	TokenTooLarge  Reason = "token_too_large"
	TokenAlgorithm Reason = "token_algorithm" //nolint:gosec // a reason, no credential
	TokenSignature Reason = "token_signature"
	TokenIssuer    Reason = "token_issuer"
	TokenAudience  Reason = "token_audience"
	TokenTenant    Reason = "token_tenant"
	TokenUser      Reason = "token_user"
	TokenExpired   Reason = "token_expired"
	TokenNotYet    Reason = "token_not_yet"
	TokenBinding   Reason = "token_binding"
)

// Error says why a credential is refused.
type Error struct {
	Reason Reason
	cause  error
}

func refuse(r Reason, cause error) *Error { return &Error{Reason: r, cause: cause} }

func (e *Error) Error() string {
	if e.cause != nil {
		return e.Reason + ": " + e.cause.Error()
	}
	return e.Reason
}

func (e *Error) Unwrap() error { return e.cause }

// FromHeader finds the one bearer token of a request (RFC 6750, 2.1). A token in the query is refused even when there is
// also one in the header: addresses end up in logs. The error is an *Error.
func FromHeader(h http.Header, rawQuery string) (string, error) {
	if rawQuery != "" && tokenInQuery(rawQuery) {
		return "", refuse(TokenInQuery, nil)
	}
	values := h["Authorization"]
	if len(values) == 0 {
		return "", refuse(TokenMissing, nil)
	}
	if len(values) > 1 {
		return "", refuse(TokenMalformed, nil)
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return "", refuse(TokenMalformed, nil)
	}
	token = strings.TrimLeft(token, " ")
	if len(token) > jose.MaxSize {
		return "", refuse(TokenTooLarge, nil)
	}
	if !isToken68(token) {
		return "", refuse(TokenMalformed, nil)
	}
	return token, nil
}

// isToken68 is the grammar of RFC 6750's b64token: with no comma and no space in it, a second credential cannot hide.
func isToken68(s string) bool {
	body := strings.TrimRight(s, "=")
	for i := range len(body) {
		if !token68[body[i]] {
			return false
		}
	}
	return body != ""
}

// token68 has the characters of a b64token.
var token68 = func() (t [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/") {
		t[c] = true
	}
	return t
}()

// tokenInQuery reads the query the way the most lenient server would: both separators, broken pairs too.
func tokenInQuery(raw string) bool {
	for pair := range strings.FieldsFuncSeq(raw, func(r rune) bool { return r == '&' || r == ';' }) {
		key, _, _ := strings.Cut(pair, "=")
		if name, err := url.QueryUnescape(key); err == nil {
			key = name
		}
		if strings.EqualFold(strings.TrimSpace(key), "access_token") {
			return true
		}
	}
	return false
}
