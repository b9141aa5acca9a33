package mcpclient_test

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/mcpclient"
	"github.com/mcpvault/mcpvault/kit/problem"
)

func TestArgumentsGetTheTypeThatTheSchemaNames(t *testing.T) {
	t.Parallel()
	schema := json.RawMessage(`{"properties":{"s":{"type":"string"},"n":{"type":"number"},"i":{"type":"integer"},"b":{"type":"boolean"},
		"a":{"type":"array"},"o":{"type":"object"},"u":{"type":["integer","null"]},"m":{"type":["string","integer"]},"any":{}}}`)
	for word, want := range map[string]string{
		"s=5": `{"s":"5"}`, "s=": `{"s":""}`, "s=a=b<": `{"s":"a=b<"}`, "s=true": `{"s":"true"}`,
		"n=5": `{"n":5}`, "n=1e3": `{"n":1e3}`, "n=0.10": `{"n":0.10}`, "i=9007199254740993": `{"i":9007199254740993}`,
		"b=true": `{"b":true}`, "a=[1,2]": `{"a":[1,2]}`, `o={"k":"v"}`: `{"o":{"k":"v"}}`,
		"u=null": `{"u":null}`, "u=7": `{"u":7}`, "m=7": `{"m":7}`, "m=x": `{"m":"x"}`,
		"any=5": `{"any":5}`, "any=hi": `{"any":"hi"}`, "unknown=5": `{"unknown":5}`, "unknown=5 EUR": `{"unknown":"5 EUR"}`,
		`unknown="5"`: `{"unknown":"\"5\""}`,
	} {
		got, err := mcpclient.Arguments([]string{word}, schema)
		if err != nil || string(got) != want {
			t.Errorf("%s: got %s, %v, want %s", word, got, err, want)
		}
	}
}

func TestAnArgumentThatDoesNotFitIsRefusedHere(t *testing.T) {
	t.Parallel()
	schema := json.RawMessage(`{"properties":{"n":{"type":"number"},"i":{"type":"integer"},"b":{"type":"boolean"},"a":{"type":"array"}}}`)
	for _, words := range [][]string{{"n=five"}, {"n=5 6"}, {"i=1.5"}, {"b=yes"}, {"a={}"}, {"n"}, {"=5"}, {"n=1", "n=2"}} {
		if _, err := mcpclient.Arguments(words, schema); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("%v: got %v", words, err)
		}
	}
}

func TestTheNameOfAToolHasTwoParts(t *testing.T) {
	t.Parallel()
	if s, tool, err := mcpclient.SplitTool("jira/issues/create"); s != "jira" || tool != "issues/create" || err != nil {
		t.Fatal(s, tool, err)
	}
	for _, bad := range []string{"", "demo", "/echo", "demo/"} {
		if _, _, err := mcpclient.SplitTool(bad); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzArguments(f *testing.F) {
	f.Add("amount=5", `{"properties":{"amount":{"type":"number"}}}`)
	f.Add("o={\"a\":[1]}", `{"properties":{"o":{"type":["object","null"]}}}`)
	f.Fuzz(func(t *testing.T, word, schema string) {
		raw, err := mcpclient.Arguments([]string{word}, json.RawMessage(schema))
		if err == nil && !json.Valid(raw) {
			t.Fatalf("%q makes %q", word, raw)
		}
	})
}

// FuzzAnswer feeds the client what a hostile server may send.
func FuzzAnswer(f *testing.F) {
	f.Add("text/event-stream", "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n\n")
	f.Add("application/json", `{"jsonrpc":"2.0","id":1,"error":{"code":-32022,"message":"","data":{"supported":["2025-11-25"]}}}`)
	f.Add("application/json", `{"id":1,"result":{"isError":true,"structuredContent":{"decisionId":"x"}}}`)
	f.Fuzz(func(t *testing.T, media, body string) {
		a, err := client(answering(t, http.StatusOK, map[string]string{"Content-Type": media}, body), mcpclient.Modern).CallTool(t.Context(), "x", nil, nil)
		if err != nil {
			return
		}
		a.Denied()
		a.ToolError()
		a.Text()
	})
}
