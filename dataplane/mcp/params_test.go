package mcp

import (
	"net/http"
	"slices"
	"testing"
)

const regional = `{"name":"t","inputSchema":{"type":"object","properties":{
	"region":{"type":"string","x-mcp-header":"Region"},
	"count":{"type":"integer","x-mcp-header":"count"},
	"dry":{"type":"boolean","x-mcp-header":"Dry"},
	"where":{"type":"object","properties":{"zone":{"type":"string","x-mcp-header":"Zone"}}},
	"list":{"type":"array","x-mcp-header":"List","items":{"type":"object","properties":{"x":{"type":"string","x-mcp-header":"Item"}}}},
	"bad":{"type":"string","x-mcp-header":"a b"},"none":{"type":"string","x-mcp-header":""},"number":{"type":"string","x-mcp-header":5},
	"one":{"type":"string","x-mcp-header":"Twice"},"two":{"type":"string","x-mcp-header":"twice"}}}}`

func TestOnlyWhatTheRevisionAllowsIsMirrored(t *testing.T) {
	t.Parallel()
	var got []string
	for _, p := range Params([]byte(regional)) {
		got = append(got, p.Header)
	}
	if want := []string{"Mcp-Param-Count", "Mcp-Param-Dry", "Mcp-Param-Region", "Mcp-Param-Zone"}; !slices.Equal(got, want) {
		t.Fatalf("%q, want %q", got, want)
	}
	if Params([]byte(`{"inputSchema":{"type":"object"}}`)) != nil || Params([]byte(`{"x-mcp-header"`)) != nil {
		t.Error("a tool that wants nothing")
	}
}

func TestHeadersSayWhatTheArgumentsSay(t *testing.T) {
	t.Parallel()
	params := Params([]byte(regional))
	for _, tc := range []struct {
		args   string
		header http.Header
		ok     bool
	}{
		{`{"region":"eu"}`, http.Header{"Mcp-Param-Region": {"eu"}}, true},
		{`{"region":"eu"}`, http.Header{"Mcp-Param-Region": {"us"}}, false},
		{`{"region":"eu"}`, http.Header{"Mcp-Param-Region": {"EU"}}, false},
		{`{"region":"eu"}`, http.Header{}, false},
		{`{"region":"eu"}`, http.Header{"Mcp-Param-Region": {"eu", "eu"}}, false},
		{`{"region":null}`, http.Header{}, true},
		{`{}`, http.Header{}, true},
		{``, http.Header{}, true},
		{`{}`, http.Header{"Mcp-Param-Region": {"eu"}}, false},
		{`{}`, http.Header{"Mcp-Param-Foo": {"eu"}}, true},
		{`{"region":"\u0065u"}`, http.Header{"Mcp-Param-Region": {"eu"}}, true},
		{`{"region":"Zürich"}`, http.Header{"Mcp-Param-Region": {"=?base64?WsO8cmljaA==?="}}, true},
		{`{"region":"Zürich"}`, http.Header{"Mcp-Param-Region": {"=?base64?WsO8cmljaA?="}}, false},
		{`{"region":"eu"}`, http.Header{"Mcp-Param-Region": {"=?BASE64?ZXU=?="}}, false},
		{`{"count":42}`, http.Header{"Mcp-Param-Count": {"42.0"}}, true},
		{`{"count":4.2e1}`, http.Header{"Mcp-Param-Count": {"42"}}, true},
		{`{"count":42}`, http.Header{"Mcp-Param-Count": {"43"}}, false},
		{`{"count":42}`, http.Header{"Mcp-Param-Count": {"0x2a"}}, false},
		{`{"count":42}`, http.Header{"Mcp-Param-Count": {"84/2"}}, false},
		{`{"count":9007199254740993}`, http.Header{"Mcp-Param-Count": {"9007199254740992"}}, false},
		{`{"count":1e999999999}`, http.Header{"Mcp-Param-Count": {"1e999999998"}}, false},
		{`{"dry":true}`, http.Header{"Mcp-Param-Dry": {"true"}}, true},
		{`{"dry":true}`, http.Header{"Mcp-Param-Dry": {"1"}}, false},
		{`{"where":{"zone":"a"}}`, http.Header{"Mcp-Param-Zone": {"a"}}, true},
		{`{"where":{"zone":"a"}}`, http.Header{"Mcp-Param-Zone": {"b"}}, false},
		{`{"where":"a"}`, http.Header{}, true},
	} {
		r := CheckParams(params, tc.header, []byte(tc.args))
		if (r == nil) != tc.ok || r != nil && (r.Code != CodeHeaderMismatch || r.Status != http.StatusBadRequest) {
			t.Errorf("%s with %v: %+v", tc.args, tc.header, r)
		}
		if tc.ok && len(tc.header["Mcp-Param-Foo"]) == 0 {
			if r := CheckParams(params, Mirror(params, []byte(tc.args)), []byte(tc.args)); r != nil {
				t.Errorf("%s: what Mirror makes does not pass: %+v", tc.args, r)
			}
		}
	}
}

func FuzzCheckParams(f *testing.F) {
	params := Params([]byte(regional))
	f.Add(`{"region":"eu"}`, "eu")
	f.Add(`{"count":1e5,"where":{"zone":"x"}}`, "100000")
	f.Fuzz(func(t *testing.T, args, value string) {
		framer := NewFramer(DefaultLimits())
		if _, refusal := framer.FrameAnswer([]byte(`{"jsonrpc":"2.0","id":1,"result":` + args + `}`)); refusal != nil || len(args) == 0 || args[0] != '{' {
			return
		}
		CheckParams(params, http.Header{"Mcp-Param-Region": {value}, "Mcp-Param-Count": {value}}, []byte(args))
		if r := CheckParams(params, Mirror(params, []byte(args)), []byte(args)); r != nil {
			t.Fatalf("what Mirror makes does not pass: %+v", r)
		}
	})
}
