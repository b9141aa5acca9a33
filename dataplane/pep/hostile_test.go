package pep_test

import (
	"bufio"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/authn"
	"github.com/mcpvault/mcpvault/dataplane/pep"
	"github.com/mcpvault/mcpvault/kit/jose"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// refused checks a refusal: its status and code, one record with the reason, nothing upstream, and a gate that still
// serves.
func (g *gateway) refused(t *testing.T, up *scripted, row string, a *answer, status, code int, reason string) {
	t.Helper()
	if a.status != status || a.code() != code {
		t.Errorf("%s: %d %s", row, a.status, a.body)
	}
	rec := g.book.of(a.decision())
	if len(rec) != 1 || rec[0].GetReason() != reason || rec[0].GetDecision() != auditv1.Decision_DECISION_DENY {
		t.Errorf("%s: recorded as %v", row, rec)
	}
	if a.header.Get("Cache-Control") != "no-store" || a.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%s: headers %v", row, a.header)
	}
	if up.calls() != 0 {
		t.Errorf("%s: something was executed", row)
	}
}

func TestHostileRequestsAreRefused(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	good := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"balance",` + meta + `}}`
	h := []string{"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "balance"}
	with := func(kv ...string) []string { return append(h[:len(h):len(h)], kv...) }
	many := h[:len(h):len(h)]
	for i := range 101 {
		many = append(many, fmt.Sprintf("X-%d", i), "1")
	}
	for _, tc := range []struct {
		row, path, body string
		header          []string
		status, code    int
		reason          string
	}{
		{"A01", "/mcp/pay", strings.Repeat(" ", 4<<20) + good, h, 413, -32600, "body_too_large"},
		{"A11", "/mcp/pay", good, many, 431, -32600, "too_many_headers"},
		{"A12", "/mcp/pay", good, with("Host", "attacker.example"), 421, -32600, "host_denied"},
		{"A13", "/mcp/pay", good, with("Origin", "https://evil.example"), 403, -32600, "origin_denied"},
		{"A14 null", "/mcp/pay", good, with("Origin", "null"), 403, -32600, "origin_denied"},
		{"A14 suffix", "/mcp/pay", good, with("Origin", "http://localhost.evil.example"), 403, -32600, "origin_denied"},
		{"A26", "/mcp/pay", good, with("Content-Encoding", "gzip"), 415, -32600, "content_encoding"},
		{"A29 cased", "/MCP/pay", good, h, 404, -32600, "path_unknown"},
		{"A29 encoded", "/mcp%2fpay", good, h, 404, -32600, "path_unknown"},
		{"A29 dots", "/mcp/..", good, h, 404, -32600, "path_unknown"},
		{"A29 double", "//mcp", good, h, 404, -32600, "path_unknown"},
		{"A29 semicolon", "/mcp;x", good, h, 404, -32600, "path_unknown"},
		{"A29 percent", "/%6dcp/pay%00", good, h, 404, -32600, "path_unknown"},
		{"A31", "/mcp/pay", good, with("Connection", "Authorization, Mcp-Method"), 400, -32600, "connection_header"},
		{"B01", "/mcp/pay", good, with("Content-Type", "text/plain"), 415, -32600, "content_type"},
		{"B01 missing", "/mcp/pay", good, with("Content-Type", ""), 415, -32600, "content_type"},
		{"B02", "/mcp/pay", good, with("Content-Type", "application/json; charset=utf-16"), 415, -32600, "content_type"},
		{"B03", "/mcp/pay", good, with("Accept", "application/json"), 406, -32600, "accept"},
		{"B05", "/mcp/pay", good + "{}", h, 400, -32700, "bad_json"},
		{"B09", "/mcp/pay", strings.Replace(good, `"name"`, `"Name":"secret","name"`, 1), h, 400, -32600, "case_variant_key"},
		{"B15", "/mcp/pay", "[" + good + "]", h, 400, -32600, "batch"},
		{"C02", "/mcp/pay", good, with("Mcp-Name", "odd"), 400, -32020, "header_mismatch"},
		{"C09", "/mcp/pay", good, with("MCP-Protocol-Version", "1999-01-01"), 400, -32022, "unsupported_version"},
		{"C12", "/mcp/pay", strings.Replace(good, ","+meta, "", 1), []string{"MCP-Protocol-Version", "2025-11-25"}, 400, -32000, "session_missing"},
		{"C13", "/mcp/pay", strings.Replace(good, ","+meta, "", 1), []string{"Mcp-Session-Id", "AAAA"}, 404, -32000, "session_unknown"},
		{"C16", "/mcp/pay", strings.Replace(good, ","+meta, "", 1), []string{"Mcp-Session-Id", "a b"}, 400, -32000, "session_malformed"},
		{"C16 long", "/mcp/pay", strings.Replace(good, ","+meta, "", 1), []string{"Mcp-Session-Id", strings.Repeat("a", 4096)}, 400, -32000, "session_malformed"},
		{"D01", "/mcp/pay", good, with("Authorization", ""), 401, -32000, "token_missing"},
		{"D02 basic", "/mcp/pay", good, with("Authorization", "Basic YTpi"), 401, -32000, "token_malformed"},
		{"D02 query", "/mcp/pay?access_token=x", good, h, 400, -32000, "token_in_query"},
	} {
		g.refused(t, up, tc.row, g.post(tc.path, "alice", tc.body, tc.header...), tc.status, tc.code, tc.reason)
	}
	if a := g.call("/mcp/pay", "alice", "balance", "{}"); string(a.Result) != oddResult {
		t.Errorf("the gate no longer serves: %s", a.body)
	}
}

func TestVerbsAreLimited(t *testing.T) {
	t.Parallel()
	g, _ := payments(t)
	for _, tc := range []struct {
		row, method, version string
		status               int
		allow                string
	}{
		{"A28", http.MethodPut, "", 405, "POST, GET, DELETE"},
		{"A28", http.MethodPatch, "2026-07-28", 405, "POST, GET, DELETE"},
		{"C19", http.MethodGet, "2026-07-28", 405, "POST"},
		{"C19", http.MethodDelete, "2026-07-28", 405, "POST"},
		{"C12", http.MethodGet, "2025-11-25", 400, ""},
		{"C09", http.MethodGet, "1999-01-01", 400, ""},
	} {
		a := g.do(g.request(t.Context(), tc.method, "/mcp/pay", "alice", "", "MCP-Protocol-Version", tc.version))
		if a.status != tc.status || a.header.Get("Allow") != tc.allow {
			t.Errorf("%s %s: %d %v %s", tc.row, tc.method, a.status, a.header, a.body)
		}
	}
}

func TestIDsAreEchoedExactly(t *testing.T) {
	t.Parallel()
	g, _ := payments(t)
	for _, id := range []string{"9007199254740993", `"x"`, "-5", `"\u00e9"`} {
		a := g.post("/mcp/pay", "alice", `{"jsonrpc":"2.0","id":`+id+`,"method":"tools/call","params":{"name":"balance",`+meta+`}}`,
			"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "balance")
		if string(a.ID) != id || string(a.Result) != oddResult {
			t.Errorf("B12 %s: %s", id, a.body)
		}
	}
}

func TestBadTokensGetOneAnswer(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	_, otherKey, _ := ed25519.GenerateKey(nil)
	other, _ := jose.NewSigner(otherKey, "k1")
	mint := func(s *jose.Signer, change func(map[string]any)) string {
		c := g.claims("alice")
		change(c)
		tok, err := s.Mint(c)
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	b64 := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	claims, _ := json.Marshal(g.claims("alice"))
	keep := func(map[string]any) {}
	good := mint(g.signer, keep)
	var bodies []string
	for _, tc := range []struct{ row, token, reason string }{
		{"D03 none", b64(`{"alg":"none","typ":"at+jwt","kid":"k1"}`) + "." + b64(string(claims)) + ".", authn.TokenAlgorithm},
		{"D03 nOnE", b64(`{"alg":"nOnE","typ":"at+jwt","kid":"k1"}`) + "." + b64(string(claims)) + ".AA", authn.TokenAlgorithm},
		{"D04 HS256", b64(`{"alg":"HS256","typ":"at+jwt","kid":"k1"}`) + "." + b64(string(claims)) + ".AAAA", authn.TokenAlgorithm},
		{"D03 changed", good[:len(good)-4] + "AAAA", authn.TokenSignature},
		{"other key", mint(other, keep), authn.TokenSignature},
		{"D11", mint(g.signer, func(c map[string]any) { c["exp"] = time.Now().Add(-61 * time.Second).Unix() }), authn.TokenExpired},
		{"D12", mint(g.signer, func(c map[string]any) { c["nbf"] = time.Now().Add(90 * time.Second).Unix() }), authn.TokenNotYet},
		{"D13", mint(g.signer, func(c map[string]any) { c["aud"] = "https://cell.example/mcp.evil" }), authn.TokenAudience},
		{"D14", mint(g.signer, func(c map[string]any) { c["iss"] = "urn:mcpvault:issuer:acme/" }), authn.TokenIssuer},
		{"D15", mint(g.signer, func(c map[string]any) { c["tenant"] = "globex" }), authn.TokenTenant},
	} {
		a := g.post("/mcp/pay", "", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"balance",`+meta+`}}`,
			"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "balance", "Authorization", "Bearer "+tc.token)
		if want := `Bearer error="invalid_token", resource_metadata="` + g.url + `/.well-known/oauth-protected-resource/mcp/pay"`; a.header.Get("Www-Authenticate") != want {
			t.Errorf("%s: challenge %q", tc.row, a.header.Get("Www-Authenticate"))
		}
		g.refused(t, up, tc.row, a, 401, -32000, tc.reason)
		bodies = append(bodies, a.body)
	}
	for _, b := range bodies {
		if b != bodies[0] {
			t.Errorf("bodies differ: %s / %s", b, bodies[0])
		}
	}
	noToken := g.post("/mcp/pay", "", `{"jsonrpc":"2.0","id":1,"method":"ping"}`, "Authorization", "")
	if strings.Contains(noToken.header.Get("Www-Authenticate"), "error=") {
		t.Error("D01: an error where there was no token")
	}
}

func TestResourceMetadataIsPublic(t *testing.T) {
	t.Parallel()
	g := newGateway(t, pep.Config{}, nil)
	g.cat.Issuers = append(g.cat.Issuers, &snapshotv1.Issuer{Issuer: "https://login.example", External: true})
	g.publish()
	for path, resource := range map[string]string{
		"/.well-known/oauth-protected-resource":          "/mcp",
		"/.well-known/oauth-protected-resource/mcp":      "/mcp",
		"/.well-known/oauth-protected-resource/mcp/demo": "/mcp/demo",
	} {
		resp, err := http.Get(g.url + path)
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Resource string
			Servers  []string `json:"authorization_servers"`
		}
		err = json.NewDecoder(resp.Body).Decode(&doc)
		_ = resp.Body.Close()
		if err != nil || doc.Resource != g.url+resource || len(doc.Servers) != 1 {
			t.Errorf("%s: %+v %v", path, doc, err)
		}
	}
	resp, err := http.Get(g.url + "/.well-known/oauth-authorization-server")
	if err != nil || resp.StatusCode != http.StatusNotFound {
		t.Error("an unknown well-known document is not 404")
	}
	_ = resp.Body.Close()
}

func TestAShortBodyEndsTheConnection(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	c, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	head := "POST /mcp/pay HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: */*\r\nAuthorization: Bearer " + g.token("alice") + "\r\n"
	body := `{"jsonrpc":"2.0","id":1,"method":"ping"}`
	_, _ = fmt.Fprintf(c, "%sContent-Length: %d\r\n\r\n%s", head, len(body)+1, body)
	_, _ = fmt.Fprintf(c, "%sContent-Length: %d\r\n\r\n%s", head, len(body), body)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Fatalf("A33: %v %v", resp, err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	if up.calls() != 0 {
		t.Error("A33: the second request was run")
	}
}

func TestASlowBodyIsCutOff(t *testing.T) {
	t.Parallel()
	g := newGateway(t, pep.Config{BodyTimeout: 50 * time.Millisecond}, nil)
	c, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = fmt.Fprintf(c, "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: */*\r\nContent-Length: 100\r\n\r\n{")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusRequestTimeout || !resp.Close {
		t.Fatalf("A17: %v %v", resp, err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	if _, err := r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("A17: the connection lives on: %v", err)
	}
}

func TestLimitsHoldWhileOthersAreServed(t *testing.T) {
	t.Parallel()
	g, _ := payments(t)
	for row, args := range map[string]string{
		"B10": strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100),
		"B11": `{"a":[` + strings.Repeat("1,", 200_000) + "1]}",
		"B22": `{"a":"` + strings.Repeat("a", 1<<20+1) + `"}`,
	} {
		if a := g.call("/mcp/pay", "alice", "balance", args); a.status != http.StatusBadRequest {
			t.Errorf("%s: %d", row, a.status)
		}
		if a := g.call("/mcp/pay", "alice", "balance", "{}"); string(a.Result) != oddResult {
			t.Errorf("%s: the next call: %s", row, a.body)
		}
	}
	for _, name := range []string{"bal\u0430nce", "bal\u200bance", "../balance", strings.Repeat("a", 129)} {
		a := g.modern("/mcp/pay", "alice", "tools/call", "=?base64?"+base64.StdEncoding.EncodeToString([]byte(name))+"?=", `"name":"`+name+`"`)
		if a.status != http.StatusOK || a.code() != -32602 {
			t.Errorf("B23 %q: %d %s", name, a.status, a.body)
		}
	}
}
