package veneer_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/veneer"
)

const odd = `{ "x-vendor":{"name":"inner"}, "inputSchema":{"type":"object","oneOf":[{"a":9007199254740993}],"$id":"x"},"name" : "echo" ,"icons":[]}`

func TestToolObjectsKeepTheirBytes(t *testing.T) {
	t.Parallel()
	l := veneer.List{Of: veneer.Tools, ID: []byte("1")}
	got := string(l.Append(nil, []veneer.Entry{{Raw: []byte(odd)}, {Raw: []byte(`{"name":"b"}`)}}))
	if got != `{"jsonrpc":"2.0","id":1,"result":{"tools":[`+odd+`,{"name":"b"}]}}` {
		t.Fatal(got)
	}
}

func TestThePrefixReplacesTheNameAlone(t *testing.T) {
	t.Parallel()
	l := veneer.List{Of: veneer.Tools, ID: []byte(`"a"`), Era: mcp.EraModern, Next: "c", TTLMS: 5, ServerInfo: []byte(`{"name":"v"}`)}
	got := l.Append(nil, []veneer.Entry{{Name: "demo__echo", Raw: []byte(odd)}})
	want := strings.Replace(odd, `"name" : "echo"`, `"name" : "demo__echo"`, 1)
	if string(got) != `{"jsonrpc":"2.0","id":"a","result":{"resultType":"complete","tools":[`+want+`],"nextCursor":"c","ttlMs":5,"cacheScope":"private","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"v"}}}}` {
		t.Fatalf("%s", got)
	}
	if !json.Valid(got) {
		t.Fatal("not JSON")
	}
}

func TestAggregateNamesAreUniqueShortAndPrefixedOnce(t *testing.T) {
	t.Parallel()
	tools := []veneer.Tool{
		{Server: "demo", Name: "echo"},
		{Server: "demo", Name: "demo__ping"},
		{Server: "a", Name: "b__c"},
		{Server: "a__b", Name: "c"},
		{Server: "s", Name: strings.Repeat("é", 100)},
		{Server: "s", Name: strings.Repeat("é", 99) + "x"},
	}
	n := veneer.NewNames(tools)
	if n.Shown(tools[0]) != "demo__echo" || n.Shown(tools[1]) != "demo__ping" {
		t.Fatal(n.Shown(tools[0]), n.Shown(tools[1]))
	}
	seen := map[string]bool{}
	for _, tool := range tools {
		name := n.Shown(tool)
		back, ok := n.Find(name)
		if !ok || back != tool || seen[name] || len(name) > veneer.MaxName {
			t.Errorf("%+v is shown as %q, which leads to %+v", tool, name, back)
		}
		seen[name] = true
	}
	if _, ok := n.Find("a__b__c"); ok {
		t.Error("a name of two tools leads to one of them")
	}
}

func TestSplicesChangeNothingElse(t *testing.T) {
	t.Parallel()
	got := veneer.Apply([]byte("abcdef"), veneer.Splice{At: mcp.Span{Start: 1, End: 1}, With: []byte("X")}, veneer.Splice{At: mcp.Span{Start: 2, End: 4}, With: []byte("YZW")})
	if string(got) != "aXbYZWef" {
		t.Fatal(string(got))
	}
}
