package mcp_test

import (
	"encoding/json"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
)

func TestMembersAreFoundAtTheirOwnDepth(t *testing.T) {
	t.Parallel()
	raw := []byte(` { "a":{"name":1},"n\u0061me" : "x" ,"name":"y"}`)
	if at := mcp.Member(raw, "name"); string(raw[at.Start:at.End]) != `"x"` {
		t.Fatal(at)
	}
	for _, bad := range []string{``, `{`, `{"`, `{"a"`, `{"a":`, `[]`, `{"a":1,`, `{}`} {
		if mcp.Member([]byte(bad), "name").Present() {
			t.Errorf("found in %s", bad)
		}
	}
}

func TestModernMetaIsTakenOut(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"progressToken" : 9007199254740993,"io.modelcontextprotocol/protocolVersion":"v","x":{"a":[1, 2]}}`:    `{"progressToken" : 9007199254740993,"x":{"a":[1, 2]}}`,
		`{"io.modelcontextprotocol/clientInfo":{},"io.modelcontextprotocol/clientCapabilities":{"a":{"b":"}"}}}`: `{}`,
	} {
		if got := mcp.WithoutModernMeta([]byte(in)); string(got) != want {
			t.Errorf("%s", got)
		}
	}
}

func FuzzMember(f *testing.F) {
	f.Add([]byte(`{"a":[{"name":1}],"name":2}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		at := mcp.Member(raw, "name")
		if at.Present() && json.Valid(raw) && !json.Valid(raw[at.Start:at.End]) {
			t.Fatalf("%q gave %q", raw, raw[at.Start:at.End])
		}
	})
}
