package mcp_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
)

func call(args string) string {
	return `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":` + args + `}}`
}

func TestHostileBodiesAreRefused(t *testing.T) {
	t.Parallel()
	wide := func(n int) string {
		var b strings.Builder
		b.WriteByte('{')
		for i := range n {
			fmt.Fprintf(&b, `"k%d":1,`, i)
		}
		return b.String() + `"z":1}`
	}
	for _, tc := range []struct {
		row, body string
		code      int
		reason    string
		noID      bool
	}{
		{"B04 empty", "", -32700, "bad_json", true},
		{"B04 spaces", " \n", -32700, "bad_json", true},
		{"B04 null", "null", -32600, "not_object", true},
		{"B04 one", "1", -32600, "not_object", true},
		{"B04 string", `"x"`, -32600, "not_object", true},
		{"B04 true", "true", -32600, "not_object", true},
		{"B05 cut", `{"jsonrpc":"2.0","id":1`, -32700, "bad_json", true},
		{"B05 trailing comma", `{"jsonrpc":"2.0","id":1,"method":"ping",}`, -32700, "bad_json", true},
		{"B05 comment", `{"jsonrpc":"2.0",/**/"id":1,"method":"ping"}`, -32700, "bad_json", true},
		{"B05 NaN", call(`{"a":NaN}`), -32700, "bad_json", true},
		{"B05 quotes", `{'jsonrpc':'2.0'}`, -32700, "bad_json", true},
		{"B05 BOM", "\xef\xbb\xbf" + call(`{}`), -32700, "bad_json", true},
		{"B05 garbage", call(`{}`) + "x", -32700, "bad_json", true},
		{"B05 two", call(`{}`) + call(`{}`), -32700, "bad_json", true},
		{"B05 leading zero", call(`{"a":01}`), -32700, "bad_json", true},
		{"B05 plus", call(`{"a":+1}`), -32700, "bad_json", true},
		{"B05 dot", call(`{"a":1.}`), -32700, "bad_json", true},
		{"B05 raw control", call("{\"a\":\"\x01\"}"), -32700, "bad_json", true},
		{"B05 bad escape", call(`{"a":"\x"}`), -32700, "bad_json", true},
		{"B06 ff", call("{\"a\":\"\xff\"}"), -32700, "invalid_utf8", true},
		{"B06 overlong", call("{\"a\":\"\xc0\xaf\"}"), -32700, "invalid_utf8", true},
		{"B06 surrogate bytes", call("{\"a\":\"\xed\xa0\x80\"}"), -32700, "invalid_utf8", true},
		{"B06 in key", call("{\"\xff\":1}"), -32700, "invalid_utf8", true},
		{"B07 high", call(`{"a":"\ud800"}`), -32700, "lone_surrogate", true},
		{"B07 low", call(`{"a":"\udc00"}`), -32700, "lone_surrogate", true},
		{"B07 two high", call(`{"a":"\ud800\ud800"}`), -32700, "lone_surrogate", true},
		{"B08 name", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a\u0000b"}}`, -32600, "name_invalid", false},
		{"B08 method", `{"jsonrpc":"2.0","id":1,"method":"to\u0000ols"}`, -32600, "method_invalid", false},
		{"B09 method twice", `{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}`, -32600, "duplicate_key", true},
		{"B09 id twice", `{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}`, -32600, "duplicate_key", true},
		{"B09 escaped twice", `{"jsonrpc":"2.0","id":1,"method":"ping","m\u0065thod":"x"}`, -32600, "duplicate_key", true},
		{"B09 name twice", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}`, -32600, "duplicate_key", false},
		{"B09 Method", `{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call"}`, -32600, "case_variant_key", false},
		{"B09 Name", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"denied","Name":"allowed"}}`, -32600, "case_variant_key", false},
		{"B09 Params", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a"},"PARAMS":{"name":"b"}}`, -32600, "case_variant_key", false},
		{"B09 long s", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a"},"paramſ":{"name":"b"}}`, -32600, "case_variant_key", false},
		{"B09 escaped variant", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","\u004eame":"b"}}`, -32600, "case_variant_key", false},
		{"B09 meta", `{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_meta":{"IO.modelcontextprotocol/protocolVersion":"x"}}}`, -32600, "case_variant_key", false},
		{"B09 _META", `{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_META":{}}}`, -32600, "case_variant_key", false},
		{"B09 argument twice", call(`{"amount":1,"amount":500}`), -32600, "duplicate_key", false},
		{"B09 deep twice", call(`{"a":[{"b":1,"b":2}]}`), -32600, "duplicate_key", false},
		{"B10 65", call(strings.Repeat("[", 63) + strings.Repeat("]", 63)), -32600, "too_deep", true},
		{"B10 100000", strings.Repeat("[", 100_000), -32600, "too_deep", true},
		{"B11 keys", call(wide(2048)), -32600, "too_many_keys", true},
		{"B11 array", call(`{"a":[` + strings.Repeat("1,", 100_000) + `1]}`), -32600, "too_many_tokens", true},
		{"B12 id 1.0", `{"jsonrpc":"2.0","id":1.0,"method":"ping"}`, -32600, "id_invalid", true},
		{"B12 id 1e400", `{"jsonrpc":"2.0","id":1e400,"method":"ping"}`, -32600, "id_invalid", true},
		{"B13 null", `{"jsonrpc":"2.0","id":null,"method":"ping"}`, -32600, "id_invalid", true},
		{"B13 object", `{"jsonrpc":"2.0","id":{},"method":"ping"}`, -32600, "id_invalid", true},
		{"B13 array", `{"jsonrpc":"2.0","id":[],"method":"ping"}`, -32600, "id_invalid", true},
		{"B13 true", `{"jsonrpc":"2.0","id":true,"method":"ping"}`, -32600, "id_invalid", true},
		{"B13 long", `{"jsonrpc":"2.0","id":"` + strings.Repeat("a", 4097) + `","method":"ping"}`, -32600, "id_invalid", true},
		{"B14 missing", `{"id":1,"method":"ping"}`, -32600, "jsonrpc_version", false},
		{"B14 1.0", `{"jsonrpc":"1.0","id":1,"method":"ping"}`, -32600, "jsonrpc_version", false},
		{"B14 number", `{"jsonrpc":2,"id":1,"method":"ping"}`, -32600, "jsonrpc_version", false},
		{"B15 batch", `[` + call(`{}`) + `,` + call(`{}`) + `]`, -32600, "batch", true},
		{"B15 empty", `[]`, -32600, "batch", true},
		{"B19 notification", `{"jsonrpc":"2.0","method":"tools/call","params":{"name":"a"}}`, -32600, "id_missing", true},
		{"B22 long string", call(`{"a":"` + strings.Repeat("a", 1<<20+1) + `"}`), -32602, "string_too_long", true},
		{"name a number", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":1}}`, -32602, "name_missing", false},
		{"no name", `{"jsonrpc":"2.0","id":1,"method":"tools/call"}`, -32602, "name_missing", false},
		{"arguments a list", call(`[]`), -32602, "arguments_not_object", false},
		{"params a list", `{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}`, -32600, "params_not_object", false},
		{"meta a list", `{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_meta":[]}}`, -32602, "meta_not_object", false},
		{"result and method", `{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}`, -32600, "not_a_message", false},
		{"result and error", `{"jsonrpc":"2.0","id":1,"error":{},"result":{}}`, -32600, "not_a_message", false},
	} {
		t.Run(tc.row, func(t *testing.T) {
			t.Parallel()
			m, r := mcp.NewFramer(mcp.DefaultLimits()).Frame([]byte(tc.body))
			if r == nil {
				t.Fatalf("accepted as %v %q", m.Kind, m.Method)
			}
			if r.Code != tc.code || r.Reason != tc.reason || r.Status != 400 {
				t.Fatalf("got %d %s (%d), want %d %s", r.Code, r.Reason, r.Status, tc.code, tc.reason)
			}
			if tc.noID != (m.ID == nil) {
				t.Fatalf("id in the answer: %q", m.ID)
			}
		})
	}
}

func TestGoodBodiesKeepTheirBytes(t *testing.T) {
	t.Parallel()
	f := mcp.NewFramer(mcp.DefaultLimits())
	for _, tc := range []struct{ row, body, id, method, name, args string }{
		{"B12 numbers", call(`{"a":1e400,"b":-0,"c":12345678901234567890.10}`), "1", "tools/call", "echo", `{"a":1e400,"b":-0,"c":12345678901234567890.10}`},
		{"B12 big id", `{"jsonrpc":"2.0","id":9007199254740993,"method":"ping"}`, "9007199254740993", "ping", "", ""},
		{"B17 prototype keys", call(`{"__proto__":{"a":1},"constructor":1}`), "1", "tools/call", "echo", `{"__proto__":{"a":1},"constructor":1}`},
		{"escaped method", `{"jsonrpc":"2.0","id":"\u0061","method":"tools\/call","params":{"name":"a\u00e9\ud83d\ude00"}}`, `"\u0061"`, "tools/call", "aé😀", ""},
		{"escaped key", `{"jsonrpc":"2.0","id":1,"m\u0065thod":"ping"}`, "1", "ping", "", ""},
		{"depth 64", call(strings.Repeat(`{"a":`, 62) + "1" + strings.Repeat("}", 62)), "1", "tools/call", "echo", strings.Repeat(`{"a":`, 62) + "1" + strings.Repeat("}", 62)},
		{"null arguments", call(`null`), "1", "tools/call", "echo", ""},
		{"uri", `{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"x://y"}}`, "1", "resources/read", "x://y", ""},
		{"task", `{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{"taskId":"t"}}`, "1", "tasks/get", "t", ""},
		{"same key in two objects", call(`{"name":1,"b":{"name":2},"c":{"name":3}}`), "1", "tools/call", "echo", `{"name":1,"b":{"name":2},"c":{"name":3}}`},
	} {
		t.Run(tc.row, func(t *testing.T) {
			t.Parallel()
			m, r := f.Frame([]byte(tc.body))
			if r != nil {
				t.Fatal(r)
			}
			if string(m.ID) != tc.id || m.Method != tc.method || m.Name != tc.name || string(m.Raw(m.Arguments)) != tc.args {
				t.Fatalf("got id %s method %s name %s arguments %s", m.ID, m.Method, m.Name, m.Raw(m.Arguments))
			}
		})
	}
}

func TestMetaAndClientAreFound(t *testing.T) {
	t.Parallel()
	body := []byte(`{"params":{"_meta":{"progressToken":7,"traceparent":"00-a","io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"x":{}},"io.modelcontextprotocol/clientInfo":{"name":"c","version":"1"}},"cursor":"q","requestState":"s"},"id":"a","method":"tools/list","jsonrpc":"2.0"}`)
	m, r := mcp.NewFramer(mcp.DefaultLimits()).Frame(body)
	if r != nil {
		t.Fatal(r)
	}
	name, version := m.Client()
	v, _ := m.Text(m.Version)
	cur, _ := m.Text(m.Cursor)
	if name != "c" || version != "1" || v != mcp.Rev20260728 || cur != "q" || string(m.Raw(m.ProgressToken)) != "7" ||
		string(m.Raw(m.Capabilities)) != `{"x":{}}` || string(m.Raw(m.RequestState)) != `"s"` {
		t.Fatalf("%+v", m)
	}
}

func TestAnswersAreReadLeniently(t *testing.T) {
	t.Parallel()
	f := mcp.NewFramer(mcp.DefaultLimits())
	m, r := f.FrameAnswer([]byte(`{"jsonrpc":"2.0","id":1,"result":{"resultType":"complete","isError": true,"content":[{"a":1,"a":"\ud800"}]}}`))
	if r != nil || !m.IsError || m.Kind != mcp.KindResponse || string(m.Raw(m.ResultType)) != `"complete"` {
		t.Fatalf("%+v %v", m, r)
	}
	for _, bad := range []string{`[]`, `{"jsonrpc":"2.0","id":1}`, `{"jsonrpc":"2.0","id":1,"id":2,"result":{}}`, `{"jsonrpc":"2.0","id":1,"result":{}}{}`, "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":\"\xff\"}"} {
		if _, r := f.FrameAnswer([]byte(bad)); r == nil {
			t.Errorf("accepted %s", bad)
		}
	}
}

// FuzzFrame holds the gate's reading against the standard library's: whatever is accepted here is valid there, with the
// same method, id and name, although that reader folds case and takes the last of two keys.
func FuzzFrame(f *testing.F) {
	for _, seed := range []string{
		call(`{"a":[1,2,{"b":"\u00e9"}]}`), `{"jsonrpc":"2.0","method":"notifications/x"}`, `[]`, `{"jsonrpc":"2.0","id":1,"result":{}}`,
		`{"jsonrpc":"2.0","id":"x","method":"resources/read","params":{"uri":"a","_meta":{"progressToken":1}}}`,
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","Name":"b"}}`, `{"paramſ":1}`,
	} {
		f.Add([]byte(seed))
	}
	framer := mcp.NewFramer(mcp.DefaultLimits())
	f.Fuzz(func(t *testing.T, body []byte) {
		m, r := framer.Frame(body)
		if r != nil {
			return
		}
		var std struct {
			ID     json.RawMessage
			Method string
			Params struct {
				Name, URI, TaskID any
				Arguments         json.RawMessage
			}
		}
		if err := json.Unmarshal(body, &std); err != nil {
			t.Fatalf("accepted %q: %v", body, err)
		}
		if std.Method != m.Method || !bytes.Equal(std.ID, m.ID) {
			t.Fatalf("method %q id %q, the library reads %q %q", m.Method, m.ID, std.Method, std.ID)
		}
		var want any
		switch mcp.Named(m.Method) {
		case "name":
			want = std.Params.Name
		case "uri":
			want = std.Params.URI
		case "taskId":
			want = std.Params.TaskID
		default:
			return
		}
		if want != m.Name {
			t.Fatalf("name %q, the library reads %q", m.Name, want)
		}
		if m.Arguments.Present() && !bytes.Equal(std.Params.Arguments, m.Raw(m.Arguments)) {
			t.Fatalf("arguments %s, the library reads %s", m.Raw(m.Arguments), std.Params.Arguments)
		}
	})
}

func BenchmarkFrame(b *testing.B) {
	f := mcp.NewFramer(mcp.DefaultLimits())
	for _, size := range []int{128, 4 << 10, 64 << 10} {
		body := []byte(call(`{"message":"` + strings.Repeat("abcdefg ", size/8) + `"}`))
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, r := f.Frame(body); r != nil {
					b.Fatal(r)
				}
			}
		})
	}
}
