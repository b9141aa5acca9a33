package e2e_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/mcpvault/mcpvault/bench/devrun"
)

// library is an MCP server with prompts and resources, on loopback. It speaks the modern revision when it is stateless.
func library(t *testing.T, stateless bool) string {
	t.Helper()
	s := mcp.NewServer(&mcp.Implementation{Name: "library", Version: "1"}, nil)
	mcp.AddTool(s, &mcp.Tool{Name: "find"}, func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: "found"}}}, nil, nil
	})
	for _, name := range []string{"plan", "review"} {
		s.AddPrompt(&mcp.Prompt{Name: name}, func(context.Context, *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
			return &mcp.GetPromptResult{Messages: []*mcp.PromptMessage{{Role: "user", Content: &mcp.TextContent{Text: name}}}}, nil
		})
	}
	read := func(_ context.Context, r *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
		return &mcp.ReadResourceResult{Contents: []*mcp.ResourceContents{{URI: r.Params.URI, Text: "text of " + r.Params.URI}}}, nil
	}
	for _, uri := range []string{"file:///pub/a.md", "file:///secret/key.md"} {
		s.AddResource(&mcp.Resource{Name: uri[8:], URI: uri}, read)
	}
	s.AddResourceTemplate(&mcp.ResourceTemplate{Name: "public", URITemplate: "file:///pub/{+name}"}, read)
	srv := httptest.NewServer(mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return s }, &mcp.StreamableHTTPOptions{Stateless: stateless}))
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	return srv.URL
}

// TestPromptsAndResourcesOfAServerAreGrantedOneByOne: somebody else's client meets somebody else's server through a cell.
func TestPromptsAndResourcesOfAServerAreGrantedOneByOne(t *testing.T) {
	t.Parallel()
	d := start(t)
	servers := map[string]string{"old": "2025-11-25", "new": "2026-07-28"}
	for name, revision := range servers {
		must(t, d, 0, "server", "add", name, "--url", library(t, revision == "2026-07-28"))
		must(t, d, 0, "server", "approve", name, "--effect", "read")
		must(t, d, 0, "grant", "alice", name+"/prompt:plan")
		must(t, d, 0, "grant", "alice", name+"/resource:file:///pub/*")
	}
	for name, revision := range servers {
		t.Run(revision, func(t *testing.T) {
			useParts(t, d, name, revision)
			explainParts(t, d, name)
		})
	}
	// One denial on top of everything: the rest stays.
	for name, revision := range servers {
		must(t, d, 0, "grant", "bob", name)
		must(t, d, 0, "grant", "everyone", name+"/resource:file:///secret/*", "--deny")
		bob := session(t, d, "bob", name, revision)
		if got := offered(t, bob); got != "prompts plan review; resources file:///pub/a.md; templates file:///pub/{+name}; tools find" {
			t.Errorf("%s: bob is shown %s", revision, got)
		}
		if r, err := bob.ReadResource(t.Context(), &mcp.ReadResourceParams{URI: "file:///secret/key.md"}); err == nil {
			t.Errorf("%s: bob read what is denied to everyone: %v", revision, r.Contents)
		}
	}
}

// useParts is alice with one prompt and the public resources.
func useParts(t *testing.T, d *devrun.Dev, server, revision string) {
	alice := session(t, d, "alice", server, revision)
	if got := offered(t, alice); got != "prompts plan; resources file:///pub/a.md; templates file:///pub/{+name}; tools " {
		t.Errorf("alice is shown %s", got)
	}
	if r, err := alice.GetPrompt(t.Context(), &mcp.GetPromptParams{Name: "plan"}); err != nil || len(r.Messages) != 1 {
		t.Errorf("plan: %v %v", r, err)
	}
	if r, err := alice.ReadResource(t.Context(), &mcp.ReadResourceParams{URI: "file:///pub/b.md"}); err != nil || len(r.Contents) != 1 {
		t.Errorf("b.md: %v %v", r, err)
	}
	if _, err := alice.GetPrompt(t.Context(), &mcp.GetPromptParams{Name: "review"}); err == nil {
		t.Error("alice used a prompt that is not hers")
	}
	for _, uri := range []string{"file:///secret/key.md", "file:///pub/../secret/key.md", "file:///pub/%2e%2e/secret/key.md", "file:///pub//../../secret/key.md"} {
		if r, err := alice.ReadResource(t.Context(), &mcp.ReadResourceParams{URI: uri}); err == nil {
			t.Errorf("alice read %s: %v", uri, r.Contents)
		}
	}
}

func explainParts(t *testing.T, d *devrun.Dev, server string) {
	for _, c := range []struct {
		status    int
		who, what string
	}{
		{0, "alice", "/prompt:plan"},
		{4, "alice", "/prompt:review"},
		{0, "alice", "/resource:file:///pub/b.md"},
		{4, "alice", "/resource:file:///secret/key.md"},
		{4, "bob", "/prompt:plan"},
	} {
		must(t, d, c.status, "access", "explain", c.who, server+c.what)
	}
	out, _ := must(t, d, 0, "access", "who-can", server+"/resource:file:///pub/b.md", "-o", "csv")
	if !strings.Contains(out, "\r\nalice,person,always,user:alice,\r\n") || strings.Contains(out, "bob") {
		t.Errorf("%q", out)
	}
}

// session opens a session of the official client.
func session(t *testing.T, d *devrun.Dev, user, server, revision string) *mcp.ClientSession {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	client := mcp.NewClient(&mcp.Implementation{Name: "official", Version: "1"}, nil)
	s, err := client.Connect(ctx, &mcp.StreamableClientTransport{
		Endpoint: d.MCPURLs[0] + "/" + server, HTTPClient: &http.Client{Transport: bearer{d.Tokens[user], http.DefaultTransport}},
		DisableStandaloneSSE: true, MaxRetries: -1,
	}, &mcp.ClientSessionOptions{ProtocolVersion: revision})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// offered is everything that a session lists; what it is not offered at all is empty.
func offered(t *testing.T, s *mcp.ClientSession) string {
	t.Helper()
	var prompts, resources, templates, tools []string
	for p, err := range s.Prompts(t.Context(), nil) {
		if err == nil {
			prompts = append(prompts, p.Name)
		}
	}
	for r, err := range s.Resources(t.Context(), nil) {
		if err == nil {
			resources = append(resources, r.URI)
		}
	}
	for r, err := range s.ResourceTemplates(t.Context(), nil) {
		if err == nil {
			templates = append(templates, r.URITemplate)
		}
	}
	for tool, err := range s.Tools(t.Context(), nil) {
		if err == nil {
			tools = append(tools, tool.Name)
		}
	}
	for _, list := range [][]string{prompts, resources, templates, tools} {
		slices.Sort(list)
	}
	return "prompts " + strings.Join(prompts, " ") + "; resources " + strings.Join(resources, " ") + "; templates " + strings.Join(templates, " ") +
		"; tools " + strings.Join(tools, " ")
}
