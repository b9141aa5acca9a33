// Package demoserver holds the two MCP servers that `mcpvault dev` puts behind the cell: `demo`, with tools that are safe
// to try, and `payments`, with one tool that nobody should be able to call by accident. They are ordinary MCP servers on
// Streamable HTTP and know nothing of MCPVault: whoever reaches them directly may call everything, as is true of most
// servers that MCPVault stands in front of.
package demoserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"
)

// Server is one demo server.
type Server struct {
	Name    string
	mcp     *server.MCPServer
	trouble trouble
}

// Path is where a server answers.
const Path = "/mcp"

// stopGrace is how long a request that is under way may take when the server stops.
const stopGrace = 200 * time.Millisecond

// minStep is the shortest step of the slow tool.
const minStep = 10 * time.Millisecond

// Run serves on the listener until ctx ends, and closes it.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	srv := &http.Server{Handler: s.Handler(), ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("demo server %s: %w", s.Name, err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		_ = srv.Close() // Streams that clients hold open end here.
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("demo server %s: %w", s.Name, err)
	}
	return nil
}

// Handler is the server as HTTP.
func (s *Server) Handler() http.Handler {
	// The event store is what makes notifications of a request arrive on its stream in order before its answer.
	return s.trouble.held(server.NewStreamableHTTPServer(s.mcp,
		server.WithEndpointPath(Path),
		server.WithStateful(true),
		server.WithEventStore(server.NewInMemoryEventStore()),
		server.WithSessionIdleTTL(10*time.Minute),
	))
}

// Demo is the harmless server.
func Demo() *Server {
	s := server.NewMCPServer("demo", "1.0.0", server.WithToolCapabilities(true), server.WithRecovery(),
		server.WithInstructions("Tools that are safe to try."))
	s.AddTool(mcp.NewTool("echo",
		mcp.WithDescription("Answers with the message it was given."),
		mcp.WithString("message", mcp.Required(), mcp.Description("What to say.")),
		mcp.WithReadOnlyHintAnnotation(true), mcp.WithDestructiveHintAnnotation(false),
		mcp.WithIdempotentHintAnnotation(true), mcp.WithOpenWorldHintAnnotation(false),
	), echo)
	s.AddTool(mcp.NewTool("slow",
		mcp.WithDescription("Takes its time and reports progress."),
		mcp.WithNumber("steps", mcp.Description("How many steps, 1 to 100; 3 when not given."), mcp.Min(1), mcp.Max(100)),
		mcp.WithNumber("seconds", mcp.Description("How long in all, at most 60; 1 when not given."), mcp.Min(0), mcp.Max(60)),
		mcp.WithReadOnlyHintAnnotation(true), mcp.WithDestructiveHintAnnotation(false),
		mcp.WithIdempotentHintAnnotation(true), mcp.WithOpenWorldHintAnnotation(false),
	), slow)
	s.AddTool(mcp.NewTool("leak",
		mcp.WithDescription("Answers with something that has the shape of a secret, to try redaction."),
		mcp.WithReadOnlyHintAnnotation(true), mcp.WithDestructiveHintAnnotation(false),
		mcp.WithIdempotentHintAnnotation(true), mcp.WithOpenWorldHintAnnotation(false),
	), leak)
	return &Server{Name: "demo", mcp: s}
}

func echo(_ context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
	message, err := r.RequireString("message")
	if err != nil {
		return mcp.NewToolResultError(err.Error()), nil
	}
	return mcp.NewToolResultText(message), nil
}

func slow(ctx context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
	steps := int(min(max(r.GetFloat("steps", 3), 1), 100))
	seconds := min(max(r.GetFloat("seconds", 1), 0), 60)
	// A step begins with its report and then takes time: without sessions the library may lose a notification that is
	// sent in the same moment as the answer.
	pause := max(time.Duration(seconds*float64(time.Second)/float64(steps)), minStep)
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for i := range steps {
		if err := progress(ctx, r, i+1, steps); err != nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-timer.C:
			timer.Reset(pause)
		}
	}
	return mcp.NewToolResultText(fmt.Sprintf("done after %d steps", steps)), nil
}

func progress(ctx context.Context, r mcp.CallToolRequest, done, total int) error {
	s := server.ServerFromContext(ctx)
	if s == nil || r.Params.Meta == nil || r.Params.Meta.ProgressToken == nil {
		return nil
	}
	err := s.SendNotificationToClient(ctx, "notifications/progress", map[string]any{
		"progressToken": r.Params.Meta.ProgressToken, "progress": done, "total": total,
		"message": fmt.Sprintf("step %d of %d", done, total),
	})
	if err != nil {
		return fmt.Errorf("report progress: %w", err)
	}
	return nil
}

// leak's answer has the form of a cloud provider's access key and is the example from that provider's documentation.
func leak(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
	return mcp.NewToolResultText("aws_access_key_id = AKIA" + "IOSFODNN7EXAMPLE\n" +
		"aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY"), nil
}

// Payments is the server with a tool that matters. Its accounts live in memory.
func Payments() *Server {
	s := server.NewMCPServer("payments", "1.0.0", server.WithToolCapabilities(true), server.WithRecovery(),
		server.WithInstructions("Accounts of a shop that does not exist."))
	book := &book{balance: map[string]float64{"main": 10_000}}
	s.AddTool(mcp.NewTool("refund",
		mcp.WithDescription("Pays money back to a customer. It cannot be taken back."),
		mcp.WithNumber("amount", mcp.Required(), mcp.Description("How much, in euro."), mcp.Min(0)),
		mcp.WithString("order", mcp.Description("The order that it is for.")),
		mcp.WithReadOnlyHintAnnotation(false), mcp.WithDestructiveHintAnnotation(true),
		mcp.WithIdempotentHintAnnotation(false), mcp.WithOpenWorldHintAnnotation(true),
	), book.refund)
	s.AddTool(mcp.NewTool("balance",
		mcp.WithDescription("Says what an account holds."),
		mcp.WithString("account", mcp.Description("The account; main when not given.")),
		mcp.WithReadOnlyHintAnnotation(true), mcp.WithDestructiveHintAnnotation(false),
		mcp.WithIdempotentHintAnnotation(true), mcp.WithOpenWorldHintAnnotation(false),
	), book.show)
	return &Server{Name: "payments", mcp: s}
}

type book struct {
	mu      sync.Mutex // Guards what is below.
	balance map[string]float64
	refunds int
}

func (b *book) refund(_ context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
	amount, err := r.RequireFloat("amount")
	if err != nil {
		return mcp.NewToolResultError(err.Error()), nil
	}
	if amount < 0 {
		return mcp.NewToolResultError("amount must not be negative"), nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refunds++
	b.balance["main"] -= amount
	text := fmt.Sprintf("refund %d: %.2f EUR paid back", b.refunds, amount)
	if order := r.GetString("order", ""); order != "" {
		text += " for order " + order
	}
	return mcp.NewToolResultText(text), nil
}

func (b *book) show(_ context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
	account := r.GetString("account", "main")
	b.mu.Lock()
	defer b.mu.Unlock()
	balance, ok := b.balance[account]
	if !ok {
		return mcp.NewToolResultError(fmt.Sprintf("there is no account %q", account)), nil
	}
	return mcp.NewToolResultText(fmt.Sprintf("%s holds %.2f EUR", account, balance)), nil
}
