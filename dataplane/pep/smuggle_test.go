package pep_test

import (
	"context"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	mg "github.com/mark3labs/mcp-go/mcp"
	mgserver "github.com/mark3labs/mcp-go/server"
	gosdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	"github.com/mcpvault/mcpvault/snapshot"
)

// smuggled reads the bodies of testdata/smuggle.txt.
func smuggled(t *testing.T) (passes, refused []string) {
	t.Helper()
	raw, err := os.ReadFile("testdata/smuggle.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		verdict, quoted, _ := strings.Cut(line, " ")
		body, err := strconv.Unquote(quoted)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		switch verdict {
		case "pass":
			passes = append(passes, body)
		case "refuse":
			refused = append(refused, body)
		default:
			t.Fatal(line)
		}
	}
	if len(passes) < 10 || len(refused) < 60 {
		t.Fatalf("%d and %d bodies", len(passes), len(refused))
	}
	return passes, refused
}

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
	passes, refused := smuggled(t)
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
