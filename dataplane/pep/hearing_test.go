package pep_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"

	mg "github.com/mark3labs/mcp-go/mcp"
	mgserver "github.com/mark3labs/mcp-go/server"

	"github.com/mcpvault/mcpvault/dataplane/pep"
)

// nosy is a server of mcp-go that asks for all it can, which in the legacy era it does on the session's own stream only.
func nosy(t *testing.T) (url string) {
	t.Helper()
	s := mgserver.NewMCPServer("nosy", "1", mgserver.WithElicitation(), mgserver.WithRoots())
	s.EnableSampling()
	s.AddTool(mg.NewTool("deploy"), func(ctx context.Context, _ mg.CallToolRequest) (*mg.CallToolResult, error) {
		form, err := s.RequestElicitation(ctx, mg.ElicitationRequest{Params: mg.ElicitationParams{
			Message: "sure?", RequestedSchema: map[string]any{"type": "object", "properties": map[string]any{"word": map[string]any{"type": "string"}}},
		}})
		if err != nil {
			return nil, err
		}
		url, err := s.RequestURLElicitation(ctx, mgserver.ClientSessionFromContext(ctx), "e1", "https://x.example/", "go there")
		if err != nil {
			return nil, err
		}
		roots, err := s.RequestRoots(ctx, mg.ListRootsRequest{})
		if err != nil {
			return nil, err
		}
		sample := mg.CreateMessageRequest{}
		sample.Messages, sample.MaxTokens = []mg.SamplingMessage{{Role: mg.RoleUser, Content: mg.NewTextContent("hi")}}, 9
		//lint:ignore SA1019 servers ask so today
		mind, err := s.RequestSampling(ctx, sample) //nolint:staticcheck // see above
		if err != nil {
			return nil, err
		}
		b, err := json.Marshal([]any{"where I was", form, url, roots, mind})
		return mg.NewToolResultText(string(b)), err
	})
	return listen(t, mgserver.NewStreamableHTTPServer(s))
}

func TestAServerThatAsksOnItsOwnStreamIsAnswered(t *testing.T) {
	t.Parallel()
	for _, revision := range []string{"2026-07-28", "2025-11-25"} {
		t.Run(revision, func(t *testing.T) {
			t.Parallel()
			g := curiousGateway(t, "nosy", nosy(t), []string{"2025-11-25"})
			beAskedWithMCPGo(t, g, "/mcp", "nosy__", revision)
		})
	}
}

// own is a legacy server that counts the streams that are open on its sessions.
type own struct {
	*scripted
	mu          sync.Mutex
	open, asked int
}

func ownStream(t *testing.T, status int) *own {
	t.Helper()
	o := &own{scripted: newScripted(t)}
	o.script(func(w http.ResponseWriter, r *http.Request, body string) {
		if r.Method != http.MethodGet {
			o.answer(w, body)
			return
		}
		o.count(1)
		defer o.count(-1)
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(status)
		_ = http.NewResponseController(w).Flush()
		if status == http.StatusOK {
			<-r.Context().Done()
		}
	})
	return o
}

func (o *own) count(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open += n
	if n > 0 {
		o.asked++
	}
}

func (o *own) streams() (open, asked int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.open, o.asked
}

func TestAServersOwnStreamIsHeardOncePerSessionAndOnlyForThoseWhoCanAnswer(t *testing.T) {
	t.Parallel()
	up := ownStream(t, http.StatusOK)
	g := newGateway(t, pep.Config{}, nil, catalogueServer("pay", up.url, []string{"2025-11-25"}, plainTool("refund", read)))
	for range 3 {
		if a := g.call("/mcp/pay", "root", "refund", "{}"); string(a.Result) != oddResult {
			t.Fatal(a.body)
		}
	}
	if _, asked := up.streams(); asked != 0 {
		t.Fatalf("%d streams for a client that cannot be asked", asked)
	}
	for range 3 {
		if a := g.round("root", ""); string(a.Result) != oddResult {
			t.Fatal(a.body)
		}
	}
	if open, asked := up.streams(); open != 1 || asked != 1 {
		t.Fatalf("%d streams open, %d were opened", open, asked)
	}
	// Both sessions are over; so is the stream.
	up.script(func(w http.ResponseWriter, _ *http.Request, _ string) {
		http.Error(w, "no session", http.StatusNotFound)
	})
	if a := g.round("root", ""); !strings.Contains(a.body, "upstream_session_lost") {
		t.Fatal(a.body)
	}
	until(t, "the end of the stream", func() bool {
		open, _ := up.streams()
		return open == 0
	})
}

func TestAServerWithoutAStreamOfItsOwnIsNotAskedForItEachTime(t *testing.T) {
	t.Parallel()
	up := ownStream(t, http.StatusMethodNotAllowed)
	g := newGateway(t, pep.Config{}, nil, catalogueServer("pay", up.url, []string{"2025-11-25"}, plainTool("refund", read)))
	for range 3 {
		if a := g.round("root", ""); string(a.Result) != oddResult {
			t.Fatal(a.body)
		}
	}
	if _, asked := up.streams(); asked != 1 {
		t.Fatalf("asked %d times", asked)
	}
}
