package pep_test

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	mg "github.com/mark3labs/mcp-go/mcp"
	mgserver "github.com/mark3labs/mcp-go/server"
	gosdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	"github.com/mcpvault/mcpvault/snapshot"
)

// TestNoSpellingReachesADeniedTool sends bodies that two readers could read differently, and plain ones in odd spellings,
// to servers whose readers are not ours. Whatever the gate lets through must be the allowed tool to them too.
func TestNoSpellingReachesADeniedTool(t *testing.T) {
	t.Parallel()
	var denied, allowed atomic.Int64
	sdk := gosdk.NewServer(&gosdk.Implementation{Name: "s", Version: "1"}, nil)
	mcpGo := mgserver.NewMCPServer("m", "1", mgserver.WithToolCapabilities(true))
	for name, count := range map[string]*atomic.Int64{"denied": &denied, "allowed": &allowed} {
		gosdk.AddTool(sdk, &gosdk.Tool{Name: name}, func(context.Context, *gosdk.CallToolRequest, map[string]any) (*gosdk.CallToolResult, any, error) {
			count.Add(1)
			return &gosdk.CallToolResult{}, nil, nil
		})
		mcpGo.AddTool(mg.NewTool(name), func(context.Context, mg.CallToolRequest) (*mg.CallToolResult, error) {
			count.Add(1)
			return mg.NewToolResultText(""), nil
		})
	}
	sdkURL := listen(t, gosdk.NewStreamableHTTPHandler(func(*http.Request) *gosdk.Server { return sdk }, &gosdk.StreamableHTTPOptions{Stateless: true}))
	g := newGateway(t, pep.Config{}, []snapshot.Grant{{ID: "g", Subject: "user:alice", Server: "*", Tool: "allowed"}},
		catalogueServer("sdk", sdkURL, allEras(), plainTool("denied", read), plainTool("allowed", read)),
		catalogueServer("mg", listen(t, mgserver.NewStreamableHTTPServer(mcpGo)), allEras(), plainTool("denied", read), plainTool("allowed", read)),
	)
	frame := func(params string) string {
		return `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{` + params + `,"arguments":{},` + meta + `}}`
	}
	passes := []string{
		frame(`"name":"allowed"`), frame(`"n\u0061me":"\u0061llowed"`), frame(`"x":{"name":"denied","Name":"denied"},"name":"allowed"`),
		" \n" + frame(`"name" : "allowed"`) + "\r\n", frame(`"names":"denied","name":"allowed"`),
	}
	refused := []string{
		frame(`"name":"allowed","name":"denied"`), frame(`"name":"denied","name":"allowed"`), frame(`"name":"allowed","Name":"denied"`),
		frame(`"NAME":"denied","name":"allowed"`), frame(`"name":"allowed","n\u0061me":"denied"`), frame(`"name":"allowed","\u004eame":"denied"`),
		frame(`"name":["denied"]`), frame(`"name":"denied"`), frame(`"name":"den\u0069ed"`), frame(`"name":"allowed\u0000"`),
		frame(`"name":"allowed "`), frame(`"name":"ALLOWED"`), frame("\"name\":\"allowed\xff\""), frame(`"name":"allowed\ud800"`),
		strings.Replace(frame(`"name":"allowed"`), `"params":`, `"Params":{"name":"denied"},"params":`, 1),
		strings.Replace(frame(`"name":"allowed"`), `"params":`, `"paramſ":{"name":"denied"},"params":`, 1),
		strings.Replace(frame(`"name":"allowed"`), `"params":`, `"params":{"name":"denied"},"params":`, 1),
		strings.Replace(frame(`"name":"allowed"`), `"method":`, `"Method":"tools/call","method":`, 1),
		strings.Replace(frame(`"name":"allowed"`), `"tools/call"`, `"ping","method":"tools/call"`, 1),
		frame(`"name":"allowed"`) + frame(`"name":"denied"`), frame(`"name":"allowed"`) + "\x00", "\xef\xbb\xbf" + frame(`"name":"allowed"`),
		"[" + frame(`"name":"allowed"`) + "," + frame(`"name":"denied"`) + "]", frame(`"name":"allowed",/*"name":"denied",*/"z":1`),
		frame(`"name":"allowed",'name':"denied"`), frame(`"name":"allowed",name:"denied"`), frame(`"name":"allowed",`),
	}
	for _, server := range []string{"sdk", "mg"} {
		send := func(body, header string) *answer {
			return g.post("/mcp/"+server, "alice", body, "MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", header)
		}
		for _, body := range passes {
			if a := send(body, "allowed"); a.Result == nil {
				t.Errorf("%s: %q: %s", server, body, a.body)
			}
		}
		before := allowed.Load()
		for _, body := range refused {
			for _, header := range []string{"allowed", "denied"} {
				if a := send(body, header); a.Result != nil {
					t.Errorf("%s: %q passed: %s", server, body, a.body)
				}
			}
		}
		if allowed.Load() != before {
			t.Errorf("%s: a refused body was executed", server)
		}
	}
	if denied.Load() != 0 || allowed.Load() != int64(2*len(passes)) {
		t.Errorf("denied ran %d times, allowed %d", denied.Load(), allowed.Load())
	}
}
