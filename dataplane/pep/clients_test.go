package pep_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/client/transport"
	mg "github.com/mark3labs/mcp-go/mcp"
	mgserver "github.com/mark3labs/mcp-go/server"
	gosdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// bearer adds the token to every request of a client that is not ours.
type bearer struct{ token string }

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return http.DefaultTransport.RoundTrip(r)
}

type echoArgs struct {
	Message string `json:"message"`
}

func goSDKServer(t *testing.T, stateless bool) string {
	t.Helper()
	s := gosdk.NewServer(&gosdk.Implementation{Name: "go-sdk", Version: "1"}, nil)
	gosdk.AddTool(s, &gosdk.Tool{Name: "echo", Description: "d"}, func(ctx context.Context, req *gosdk.CallToolRequest, in echoArgs) (*gosdk.CallToolResult, any, error) {
		if tok := req.Params.GetProgressToken(); tok != nil {
			_ = req.Session.NotifyProgress(ctx, &gosdk.ProgressNotificationParams{ProgressToken: tok, Progress: 1})
		}
		return &gosdk.CallToolResult{Content: []gosdk.Content{&gosdk.TextContent{Text: in.Message}}}, nil, nil
	})
	s.AddPrompt(&gosdk.Prompt{Name: "greet"}, func(context.Context, *gosdk.GetPromptRequest) (*gosdk.GetPromptResult, error) {
		return &gosdk.GetPromptResult{Messages: []*gosdk.PromptMessage{{Role: "user", Content: &gosdk.TextContent{Text: "hello"}}}}, nil
	})
	h := gosdk.NewStreamableHTTPHandler(func(*http.Request) *gosdk.Server { return s }, &gosdk.StreamableHTTPOptions{Stateless: stateless})
	return listen(t, h)
}

func mcpGoServer(t *testing.T) string {
	t.Helper()
	s := mgserver.NewMCPServer("mcp-go", "1", mgserver.WithToolCapabilities(true), mgserver.WithPromptCapabilities(true))
	s.AddTool(mg.NewTool("echo", mg.WithString("message")), func(_ context.Context, req mg.CallToolRequest) (*mg.CallToolResult, error) {
		return mg.NewToolResultText(req.GetString("message", "")), nil
	})
	s.AddPrompt(mg.NewPrompt("greet"), func(context.Context, mg.GetPromptRequest) (*mg.GetPromptResult, error) {
		return mg.NewGetPromptResult("", []mg.PromptMessage{mg.NewPromptMessage(mg.RoleUser, mg.NewTextContent("hello"))}), nil
	})
	return listen(t, mgserver.NewStreamableHTTPServer(s))
}

func listen(t *testing.T, h http.Handler) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	return srv.URL + "/mcp"
}

func echoServer(name, url string, versions []string) *snapshotv1.CatalogueServer {
	return catalogueServer(name, url, versions, tool{"echo", `{"name":"echo","inputSchema":{"type":"object","properties":{"message":{"type":"string"}}}}`, read})
}

func TestRealClientsReachRealServersInEveryRevision(t *testing.T) {
	t.Parallel()
	legacy := []string{"2025-11-25", "2025-06-18"}
	g := newGateway(t, pep.Config{}, nil,
		echoServer("sdk-legacy", goSDKServer(t, false), legacy),
		echoServer("sdk-modern", goSDKServer(t, true), []string{"2026-07-28"}),
		echoServer("mcp-go", mcpGoServer(t), allEras()),
	)
	for _, server := range []string{"sdk-legacy", "sdk-modern", "mcp-go", ""} {
		path, toolName := "/mcp/"+server, "echo"
		if server == "" {
			path, toolName = "/mcp", "sdk-modern__echo"
		}
		for _, revision := range allEras() {
			t.Run("go-sdk/"+server+"/"+revision, func(t *testing.T) { useGoSDK(t, g, path, toolName, revision) })
			t.Run("mcp-go/"+server+"/"+revision, func(t *testing.T) { useMCPGo(t, g, path, toolName, revision) })
		}
	}
}

func useGoSDK(t *testing.T, g *gateway, path, toolName, revision string) {
	t.Parallel()
	ctx := t.Context()
	progress := make(chan struct{}, 8)
	c := gosdk.NewClient(&gosdk.Implementation{Name: "outside", Version: "1"}, &gosdk.ClientOptions{
		ProgressNotificationHandler: func(context.Context, *gosdk.ProgressNotificationClientRequest) { progress <- struct{}{} },
	})
	s, err := c.Connect(ctx, &gosdk.StreamableClientTransport{
		Endpoint: g.url + path, HTTPClient: &http.Client{Transport: bearer{g.token("root")}}, MaxRetries: -1,
	}, &gosdk.ClientSessionOptions{ProtocolVersion: revision})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	list, err := s.ListTools(ctx, nil)
	if err != nil || len(list.Tools) == 0 {
		t.Fatal(list, err)
	}
	r, err := s.CallTool(ctx, &gosdk.CallToolParams{Name: toolName, Arguments: map[string]any{"message": "hi"}})
	if err != nil || r.IsError || r.Content[0].(*gosdk.TextContent).Text != "hi" {
		t.Fatalf("%+v %v", r, err)
	}
	if _, err := s.CallTool(ctx, &gosdk.CallToolParams{Name: "nope", Arguments: map[string]any{}}); err == nil || !strings.Contains(err.Error(), "unknown tool") {
		t.Fatal(err)
	}
	if strings.HasPrefix(path, "/mcp/sdk-legacy") && revision != "2026-07-28" {
		p := &gosdk.CallToolParams{Name: toolName, Arguments: map[string]any{"message": "hi"}}
		p.SetProgressToken("tok")
		if _, err := s.CallTool(ctx, p); err != nil {
			t.Fatal(err)
		}
		<-progress
		got, err := s.GetPrompt(ctx, &gosdk.GetPromptParams{Name: "greet"})
		if err != nil || len(got.Messages) != 1 {
			t.Fatal(got, err)
		}
	}
}

func useMCPGo(t *testing.T, g *gateway, path, toolName, revision string) {
	t.Parallel()
	ctx := t.Context()
	c, err := client.NewStreamableHttpClient(g.url+path, transport.WithHTTPHeaders(map[string]string{"Authorization": "Bearer " + g.token("root")}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	init := mg.InitializeRequest{}
	init.Params.ProtocolVersion = revision
	init.Params.ClientInfo = mg.Implementation{Name: "outside", Version: "1"}
	if _, err := c.Initialize(ctx, init); err != nil {
		t.Fatal(err)
	}
	list, err := c.ListTools(ctx, mg.ListToolsRequest{})
	if err != nil || len(list.Tools) == 0 {
		t.Fatal(list, err)
	}
	req := mg.CallToolRequest{}
	req.Params.Name, req.Params.Arguments = toolName, map[string]any{"message": "hi"}
	r, err := c.CallTool(ctx, req)
	if err != nil || r.IsError {
		t.Fatal(r, err)
	}
	if b, _ := json.Marshal(r.Content); !strings.Contains(string(b), `"hi"`) {
		t.Fatalf("%s", b)
	}
	req.Params.Name = "nope"
	if _, err := c.CallTool(ctx, req); err == nil || !strings.Contains(err.Error(), "unknown tool") {
		t.Fatal(err)
	}
}
