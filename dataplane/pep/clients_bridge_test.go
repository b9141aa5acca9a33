package pep_test

//lint:file-ignore SA1019 roots, sampling and logging are deprecated in the newest revision and must work until they are gone.

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/client/transport"
	mg "github.com/mark3labs/mcp-go/mcp"
	gosdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// curious is a go-sdk server of either era that asks for everything it can before it answers, has prompts, resources and
// completions, and says when its resource has changed. updates makes it say so.
func curious(t *testing.T, stateless bool) (url string, updates func()) {
	t.Helper()
	accept := func(context.Context, *gosdk.SubscribeRequest) error { return nil }
	s := gosdk.NewServer(&gosdk.Implementation{Name: "curious", Version: "1"}, &gosdk.ServerOptions{
		SubscribeHandler:   accept,
		UnsubscribeHandler: func(context.Context, *gosdk.UnsubscribeRequest) error { return nil },
		CompletionHandler: func(_ context.Context, req *gosdk.CompleteRequest) (*gosdk.CompleteResult, error) {
			return &gosdk.CompleteResult{Completion: gosdk.CompletionResultDetails{Values: []string{req.Params.Ref.Name + req.Params.Argument.Value}}}, nil
		},
	})
	gosdk.AddTool(s, &gosdk.Tool{Name: "deploy"}, func(ctx context.Context, req *gosdk.CallToolRequest, _ struct{}) (*gosdk.CallToolResult, any, error) {
		if tok := req.Params.GetProgressToken(); tok != nil {
			_ = req.Session.NotifyProgress(ctx, &gosdk.ProgressNotificationParams{ProgressToken: tok, Progress: 1})
		}
		if len(req.Params.InputResponses) == 0 {
			return &gosdk.CallToolResult{RequestState: "where I was", InputRequests: gosdk.InputRequestMap{
				"form": &gosdk.ElicitParams{Message: "sure?", RequestedSchema: map[string]any{"type": "object", "properties": map[string]any{"word": map[string]any{"type": "string"}}}},
				"url":  &gosdk.ElicitParams{Mode: "url", Message: "go there", URL: "https://x.example/", ElicitationID: "e1"},
				"home": &gosdk.ListRootsParams{},                                                                                                              //nolint:staticcheck // deprecated, and carried all the same
				"mind": &gosdk.CreateMessageParams{Messages: []*gosdk.SamplingMessage{{Role: "user", Content: &gosdk.TextContent{Text: "hi"}}}, MaxTokens: 9}, //nolint:staticcheck // deprecated, and carried all the same
			}}, nil, nil
		}
		b, err := json.Marshal(req.Params.InputResponses)
		return &gosdk.CallToolResult{Content: []gosdk.Content{&gosdk.TextContent{Text: req.Params.RequestState + string(b)}}}, nil, err
	})
	s.AddPrompt(&gosdk.Prompt{Name: "greet"}, func(context.Context, *gosdk.GetPromptRequest) (*gosdk.GetPromptResult, error) {
		return &gosdk.GetPromptResult{Messages: []*gosdk.PromptMessage{{Role: "user", Content: &gosdk.TextContent{Text: "hello"}}}}, nil
	})
	s.AddResource(&gosdk.Resource{Name: "a", URI: "file:///a.md"}, func(context.Context, *gosdk.ReadResourceRequest) (*gosdk.ReadResourceResult, error) {
		return &gosdk.ReadResourceResult{Contents: []*gosdk.ResourceContents{{URI: "file:///a.md", Text: "A"}}}, nil
	})
	h := gosdk.NewStreamableHTTPHandler(func(*http.Request) *gosdk.Server { return s }, &gosdk.StreamableHTTPOptions{Stateless: stateless})
	return listen(t, h), func() {
		_ = s.ResourceUpdated(context.Background(), &gosdk.ResourceUpdatedNotificationParams{URI: "file:///a.md"})
	}
}

func curiousEntry(name, url string, versions []string) *snapshotv1.CatalogueServer {
	s := catalogueServer(name, url, versions, tool{"deploy", `{"name":"deploy","inputSchema":{"type":"object"}}`, destructive})
	s.Capabilities = []byte(`{"tools":{"listChanged":true},"prompts":{"listChanged":true},"resources":{"subscribe":true,"listChanged":true},"completions":{}}`)
	s.Prompts = append(s.Prompts, &snapshotv1.CatalogueEntry{Name: "greet", Raw: []byte(`{"name":"greet"}`)})
	s.Resources = append(s.Resources, &snapshotv1.CatalogueEntry{Name: "file:///a.md", Raw: []byte(`{"name":"a","uri":"file:///a.md"}`)})
	return s
}

func TestRealClientsAreAskedByRealServersAcrossTheEras(t *testing.T) {
	t.Parallel()
	for _, server := range []string{"old", "young"} {
		for _, revision := range []string{"2026-07-28", "2025-11-25"} {
			for _, path := range []string{"/mcp/" + server, "/mcp"} {
				t.Run(server+"/"+revision+path, func(t *testing.T) {
					t.Parallel()
					versions := []string{"2025-11-25", "2025-06-18"}
					if server == "young" {
						versions = []string{"2026-07-28"}
					}
					url, updates := curious(t, server == "young")
					g := curiousGateway(t, server, url, versions)
					prefix := ""
					if path == "/mcp" {
						prefix = server + "__"
					}
					beAskedWithGoSDK(t, g, path, prefix, revision, updates)
				})
			}
		}
	}
}

// curiousGateway lets the server lead clients to where it wants.
func curiousGateway(t *testing.T, server, url string, versions []string) *gateway {
	t.Helper()
	g := newGateway(t, pep.Config{}, nil, curiousEntry(server, url, versions))
	g.cat.Settings.Guards = &snapshotv1.Guards{Origins: []string{"https://x.example"}}
	g.publish()
	return g
}

func beAskedWithGoSDK(t *testing.T, g *gateway, path, prefix, revision string, updates func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	progress, updated, relisted := make(chan any, 8), make(chan string, 64), make(chan struct{}, 8)
	c := gosdk.NewClient(&gosdk.Implementation{Name: "outside", Version: "1"}, &gosdk.ClientOptions{
		ProgressNotificationHandler: func(_ context.Context, r *gosdk.ProgressNotificationClientRequest) {
			progress <- r.Params.ProgressToken
		},
		ElicitationHandler: func(_ context.Context, r *gosdk.ElicitRequest) (*gosdk.ElicitResult, error) {
			if r.Params.Mode == "url" {
				return &gosdk.ElicitResult{Action: "decline"}, nil
			}
			return &gosdk.ElicitResult{Action: "accept", Content: map[string]any{"word": "yes"}}, nil
		},
		CreateMessageHandler: func(context.Context, *gosdk.CreateMessageRequest) (*gosdk.CreateMessageResult, error) { //nolint:staticcheck // deprecated, and carried all the same
			return &gosdk.CreateMessageResult{Role: "assistant", Model: "m", Content: &gosdk.TextContent{Text: "thought"}}, nil //nolint:staticcheck // deprecated, and carried all the same
		},
		Capabilities: &gosdk.ClientCapabilities{
			Elicitation: &gosdk.ElicitationCapabilities{Form: &gosdk.FormElicitationCapabilities{}, URL: &gosdk.URLElicitationCapabilities{}},
			RootsV2:     &gosdk.RootCapabilities{}, //nolint:staticcheck // deprecated, and carried all the same
		},
		ResourceUpdatedHandler: func(_ context.Context, r *gosdk.ResourceUpdatedNotificationRequest) { updated <- r.Params.URI },
		ToolListChangedHandler: func(context.Context, *gosdk.ToolListChangedRequest) { relisted <- struct{}{} },
	})
	c.AddRoots(&gosdk.Root{URI: "file:///home"}) //nolint:staticcheck // deprecated, and carried all the same
	s, err := c.Connect(ctx, &gosdk.StreamableClientTransport{
		Endpoint: g.url + path, HTTPClient: &http.Client{Transport: bearer{g.token("root")}}, MaxRetries: -1,
	}, &gosdk.ClientSessionOptions{ProtocolVersion: revision})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p := &gosdk.CallToolParams{Name: prefix + "deploy", Arguments: map[string]any{}}
	p.SetProgressToken("tok")
	r, err := s.CallTool(ctx, p)
	if err != nil || r.IsError {
		t.Fatal(r, err)
	}
	text := r.Content[0].(*gosdk.TextContent).Text
	for _, want := range []string{"where I was", `"word":"yes"`, `"action":"decline"`, "file:///home", "thought"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is not in %s", want, text)
		}
	}
	if tok := <-progress; tok != "tok" {
		t.Errorf("progress of %v", tok)
	}
	prompts, err := s.ListPrompts(ctx, nil)
	if err != nil || len(prompts.Prompts) != 1 || prompts.Prompts[0].Name != prefix+"greet" {
		t.Fatal(prompts, err)
	}
	if got, err := s.GetPrompt(ctx, &gosdk.GetPromptParams{Name: prefix + "greet"}); err != nil || len(got.Messages) != 1 {
		t.Fatal(got, err)
	}
	if list, err := s.ListResources(ctx, nil); err != nil || len(list.Resources) != 1 {
		t.Fatal(list, err)
	}
	if got, err := s.ReadResource(ctx, &gosdk.ReadResourceParams{URI: "file:///a.md"}); err != nil || got.Contents[0].Text != "A" {
		t.Fatal(got, err)
	}
	got, err := s.Complete(ctx, &gosdk.CompleteParams{
		Ref: &gosdk.CompleteReference{Type: "ref/prompt", Name: prefix + "greet"}, Argument: gosdk.CompleteParamsArgument{Name: "a", Value: "!"},
	})
	if err != nil || !slices.Equal(got.Completion.Values, []string{"greet!"}) {
		t.Fatal(got, err)
	}
	if err := s.Subscribe(ctx, &gosdk.SubscribeParams{URI: "file:///a.md"}); err != nil {
		t.Fatal(err)
	}
	// The subscription reaches the server in its own time.
	until(t, "the resource's update", func() bool {
		updates()
		select {
		case uri := <-updated:
			return uri == "file:///a.md"
		case <-time.After(20 * time.Millisecond):
			return false
		}
	})
	g.policy.Grants = append(g.policy.Grants, snapshot.Grant{ID: "deny", Subject: "user:root", Server: g.policy.Servers[0].Name, Tool: "deploy", Deny: true})
	g.publish()
	select {
	case <-relisted:
	case <-ctx.Done():
		t.Error("the list changed and the client was not told")
	}
}

func TestMCPGoIsAskedAcrossTheEras(t *testing.T) {
	t.Parallel()
	for _, server := range []string{"old", "young"} {
		for _, revision := range []string{"2026-07-28", "2025-11-25"} {
			t.Run(server+"/"+revision, func(t *testing.T) {
				t.Parallel()
				versions := []string{"2025-11-25"}
				if server == "young" {
					versions = []string{"2026-07-28"}
				}
				url, _ := curious(t, server == "young")
				g := curiousGateway(t, server, url, versions)
				beAskedWithMCPGo(t, g, "/mcp", server+"__", revision)
			})
		}
	}
}

// patient gives a client of mcp-go what it says when it is asked.
type patient struct{}

func (patient) Elicit(_ context.Context, r mg.ElicitationRequest) (*mg.ElicitationResult, error) {
	if r.Params.Mode == "url" {
		return &mg.ElicitationResult{ElicitationResponse: mg.ElicitationResponse{Action: mg.ElicitationResponseActionDecline}}, nil
	}
	return &mg.ElicitationResult{ElicitationResponse: mg.ElicitationResponse{Action: mg.ElicitationResponseActionAccept, Content: map[string]any{"word": "yes"}}}, nil
}

func (patient) CreateMessage(context.Context, mg.CreateMessageRequest) (*mg.CreateMessageResult, error) {
	return &mg.CreateMessageResult{
		SamplingMessage: mg.SamplingMessage{Role: mg.RoleAssistant, Content: mg.NewTextContent("thought")}, Model: "m",
	}, nil
}

func (patient) ListRoots(context.Context, mg.ListRootsRequest) (*mg.ListRootsResult, error) {
	return &mg.ListRootsResult{Roots: []mg.Root{{URI: "file:///home"}}}, nil
}

func beAskedWithMCPGo(t *testing.T, g *gateway, path, prefix, revision string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tr, err := transport.NewStreamableHTTP(g.url+path, transport.WithHTTPHeaders(map[string]string{"Authorization": "Bearer " + g.token("root")}))
	if err != nil {
		t.Fatal(err)
	}
	c := client.NewClient(tr, client.WithElicitationHandler(patient{}), client.WithSamplingHandler(patient{}), client.WithRootsHandler(patient{}),
		client.WithProtocolVersion(revision))
	defer c.Close()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	init := mg.InitializeRequest{}
	init.Params.ProtocolVersion = revision
	init.Params.ClientInfo = mg.Implementation{Name: "outside", Version: "1"}
	init.Params.Capabilities.Elicitation = &mg.ElicitationCapability{Form: &struct{}{}, URL: &struct{}{}}
	if _, err := c.Initialize(ctx, init); err != nil {
		t.Fatal(err)
	}
	req := mg.CallToolRequest{}
	req.Params.Name, req.Params.Arguments = prefix+"deploy", map[string]any{}
	r, err := c.CallTool(ctx, req)
	if err != nil || r.IsError {
		t.Fatal(r, err)
	}
	b, _ := json.Marshal(r.Content)
	for _, want := range []string{"where I was", "yes", "decline", "file:///home", "thought"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s is not in %s", want, b)
		}
	}
}
