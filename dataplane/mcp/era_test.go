package mcp_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
)

const modernMeta = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}`

func TestHeadersAndBodyMustAgree(t *testing.T) {
	t.Parallel()
	modernCall := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"safe_tool",` + modernMeta + `}}`
	h := func(kv ...string) http.Header {
		out := http.Header{}
		for i := 0; i < len(kv); i += 2 {
			out.Add(kv[i], kv[i+1])
		}
		return out
	}
	const v, me, na = "MCP-Protocol-Version", "Mcp-Method", "Mcp-Name"
	for _, tc := range []struct {
		row  string
		h    http.Header
		body string
		code int // 0 is accepted
		http int
		era  mcp.Era
	}{
		{"modern", h(v, "2026-07-28", me, "tools/call", na, "safe_tool"), modernCall, 0, 0, mcp.EraModern},
		{"modern base64", h(v, "2026-07-28", me, "tools/call", na, "=?base64?c2FmZV90b29s?="), modernCall, 0, 0, mcp.EraModern},
		{"C01 no method", h(v, "2026-07-28", na, "safe_tool"), modernCall, -32020, 400, mcp.EraModern},
		{"C01 no name", h(v, "2026-07-28", me, "tools/call"), modernCall, -32020, 400, mcp.EraModern},
		{"C02 method", h(v, "2026-07-28", me, "tools/list", na, "safe_tool"), modernCall, -32020, 400, mcp.EraModern},
		{"C02 name", h(v, "2026-07-28", me, "tools/call", na, "danger_tool"), modernCall, -32020, 400, mcp.EraModern},
		{"C03 two names", h(v, "2026-07-28", me, "tools/call", na, "safe_tool", na, "safe_tool"), modernCall, -32020, 400, mcp.EraModern},
		{"C03 list", h(v, "2026-07-28", me, "tools/call", na, "safe_tool, danger_tool"), modernCall, -32020, 400, mcp.EraModern},
		{"C04 bad base64", h(v, "2026-07-28", me, "tools/call", na, "=?base64?c2FmZV90b29?="), modernCall, -32020, 400, mcp.EraModern},
		{"C04 other", h(v, "2026-07-28", me, "tools/call", na, "=?base64?ZGFuZ2Vy?="), modernCall, -32020, 400, mcp.EraModern},
		{"C04 not UTF-8", h(v, "2026-07-28", me, "tools/call", na, "=?base64?/w==?="), modernCall, -32020, 400, mcp.EraModern},
		{"C05 sentinel case", h(v, "2026-07-28", me, "tools/call", na, "=?BASE64?c2FmZV90b29s?="), modernCall, -32020, 400, mcp.EraModern},
		{"C07 unknown param", h(v, "2026-07-28", me, "tools/call", na, "safe_tool", "Mcp-Param-Foo", "1"), modernCall, 0, 0, mcp.EraModern},
		{"C08 no version", h(me, "tools/call", na, "safe_tool"), modernCall, -32020, 400, mcp.EraModern},
		{"C09 unknown", h(v, "1999-01-01"), modernCall, -32022, 400, mcp.EraModern},
		{"C09 list", h(v, "2026-07-28,2025-11-25"), modernCall, -32022, 400, mcp.EraModern},
		{"C09 long", h(v, strings.Repeat("2", 1024)), modernCall, -32022, 400, mcp.EraModern},
		{"C09 2025-03-26", h(v, "2025-03-26"), call(`{}`), -32022, 400, mcp.EraModern},
		{"C10 legacy header", h(v, "2025-11-25"), modernCall, -32020, 400, mcp.EraModern},
		{"C10 other body", h(v, "2026-07-28", me, "ping"), strings.Replace(modernCall, "2026-07-28", "v999", 1), -32020, 400, mcp.EraModern},
		{"two versions", h(v, "2026-07-28", v, "2026-07-28"), modernCall, -32020, 400, mcp.EraLegacy},
		{"meta missing", h(v, "2026-07-28", me, "tools/call", na, "echo"), call(`{}`), -32602, 400, mcp.EraModern},
		{"capabilities missing", h(v, "2026-07-28", me, "tools/call", na, "echo"), `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}`, -32602, 400, mcp.EraModern},
		{"gone", h(v, "2026-07-28", me, "ping"), `{"jsonrpc":"2.0","id":1,"method":"ping","params":{` + modernMeta + `}}`, -32601, 404, mcp.EraModern},
		{"B18 response", h(v, "2026-07-28"), `{"jsonrpc":"2.0","id":1,"result":{}}`, -32600, 400, mcp.EraModern},
		{"legacy", h(v, "2025-11-25"), call(`{}`), 0, 0, mcp.EraLegacy},
		{"legacy without version", h(), call(`{}`), 0, 0, mcp.EraLegacy},
		{"discover without version", h(), `{"jsonrpc":"2.0","id":1,"method":"server/discover"}`, -32020, 400, mcp.EraModern},
	} {
		t.Run(tc.row, func(t *testing.T) {
			t.Parallel()
			m, r := mcp.NewFramer(mcp.DefaultLimits()).Frame([]byte(tc.body))
			if r != nil {
				t.Fatal(r)
			}
			j, r := mcp.Judge(tc.h, &m)
			switch {
			case tc.code == 0 && r != nil:
				t.Fatal(r)
			case tc.code != 0 && (r == nil || r.Code != tc.code || r.Status != tc.http):
				t.Fatalf("got %+v", r)
			case j.Era != tc.era:
				t.Fatalf("era %d", j.Era)
			}
		})
	}
}

func TestHeaderValuesSurviveEncoding(t *testing.T) {
	t.Parallel()
	for _, v := range []string{"echo", " echo", "é", "=?base64?x?=", "a\nb", ""} {
		if got, ok := mcp.DecodeHeader(mcp.EncodeHeader(v)); !ok || got != v {
			t.Errorf("%q became %q", v, got)
		}
	}
}

func TestContentTypes(t *testing.T) {
	t.Parallel()
	for v, want := range map[string]bool{
		"application/json": true, "Application/JSON; Charset=UTF-8": true, `application/json;charset="utf-8"`: true,
		"application/json; charset=utf-16": false, "text/plain": false, "application/jsonp": false, "": false,
		"application/json, text/plain": false,
	} {
		if mcp.ContentTypeOK([]string{v}) != want {
			t.Errorf("B01/B02 %q: want %v", v, want)
		}
	}
	for v, want := range map[string]bool{
		"application/json, text/event-stream": true, "*/*": true, "text/event-stream;q=0": false, "application/json": false,
	} {
		if mcp.Accepts([]string{v}, "text/event-stream") != want {
			t.Errorf("B03 %q: want %v", v, want)
		}
	}
}
