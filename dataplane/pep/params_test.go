package pep_test

import (
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	"github.com/mcpvault/mcpvault/snapshot"
)

// withHeaders calls balance of pay with headers of its own.
func (g *gateway) withHeaders(user, args string, header ...string) *answer {
	g.t.Helper()
	body := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"balance","arguments":` + args + `,` + meta + `}}`
	return g.post("/mcp/pay", user, body, append(header, "MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "balance")...)
}

func TestAHeaderThatContradictsAnArgumentIsRefused(t *testing.T) {
	t.Parallel()
	up := newScripted(t)
	regional := tool{"balance", `{"name":"balance","inputSchema":{"type":"object","properties":{"region":{"type":"string","x-mcp-header":"Region"},"n":{"type":"integer","x-mcp-header":"N"}}}}`, read}
	grants := []snapshot.Grant{{ID: "g1", Subject: "user:alice", Server: "pay"}}
	g := newGateway(t, pep.Config{}, grants, catalogueServer("pay", up.url, allEras(), regional))
	call := func(args string, header ...string) *answer {
		t.Helper()
		return g.withHeaders("alice", args, header...)
	}
	for name, a := range map[string]*answer{
		"another value": call(`{"region":"eu"}`, "Mcp-Param-Region", "us"),
		"missing":       call(`{"region":"eu"}`),
		"another count": call(`{"n":42}`, "Mcp-Param-N", "42.5"),
		"no argument":   call(`{}`, "Mcp-Param-Region", "eu"),
	} {
		t.Run("C06/"+name, func(t *testing.T) { g.refused(t, up, "C06", a, 400, -32020, "header_mismatch") })
	}
	for _, a := range []*answer{
		call(`{"region":"eu","n":42}`, "Mcp-Param-Region", "eu", "Mcp-Param-N", "42.0"),
		call(`{"region":null}`), call(`{}`, "Mcp-Param-Foo", "ignored"),
	} {
		if a.Result == nil {
			t.Errorf("C06/C07: %s", a.body)
		}
	}
	// Whoever may not see the tool learns nothing of its headers.
	if a := g.withHeaders("bob", `{"region":"eu"}`, "Mcp-Param-Region", "us"); a.code() != -32602 {
		t.Errorf("a hidden tool: %s", a.body)
	}
}
