// Package mcpclient is the small MCP client behind `mcpvault mcp`. It speaks Streamable HTTP in both eras, the stateless
// revision first, and hands the server's answer on as the bytes that came, together with what the cell said about its
// decision. It promises never to send a call twice: it turns to another era only when the server refused to read the
// request.
package mcpclient

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The protocol revisions that are spoken, newest first.
const (
	Modern = "2026-07-28"
	Legacy = "2025-11-25"
)

// maxPages bounds how long a list is followed.
const maxPages = 200

// Config says whom to call and as whom.
type Config struct {
	// URL is the endpoint: a cell's aggregate (…/mcp) or one server of it (…/mcp/NAME).
	URL string
	// Host is sent instead of the URL's host when it is set: it names the tenant on a cell reached by address.
	Host string
	// Token is the caller's access token; "" sends none.
	Token string
	// HTTP must not follow redirects with the token; see NewHTTP.
	HTTP *http.Client
	// Era is Modern or Legacy to speak only that one; "" finds out.
	Era string
	// ClientVersion is what the server is told about this program.
	ClientVersion string
	// Notify is called for each notification that comes before the answer; it may be nil.
	Notify func(method string, params json.RawMessage)
}

// Client talks to one endpoint. It is not safe for concurrent use.
type Client struct {
	cfg     Config
	era     string
	session string
	version string
	nextID  int
}

// New makes a client; it does no IO.
func New(cfg Config) *Client {
	return &Client{cfg: cfg, era: cfg.Era}
}

// Answer is what came back for one request: Result or Error, never both.
type Answer struct {
	Result json.RawMessage
	Error  *RPCError
	// Status is the HTTP status that carried it.
	Status   int
	Decision Decision
	// Protocol is the revision that was spoken.
	Protocol string
	// Took is the time from sending the request to the end of the answer.
	Took time.Duration
}

// RPCError is a JSON-RPC error.
type RPCError struct {
	Code    int             `json:"code"`
	Message string          `json:"message"`
	Data    json.RawMessage `json:"data,omitempty"`
}

// Decision is what a cell says about its decision in the headers of an answer. A server that is no cell says nothing.
type Decision struct {
	// ID is also the id of the audit record.
	ID string
	// Snapshot is epoch.generation of the policy that decided.
	Snapshot string
	// Cell is cell/node.
	Cell string
	// Millis is how long the decision took, 0 when the cell does not say.
	Millis float64
}

func decisionOf(h http.Header) Decision {
	return Decision{
		ID: h.Get("MCPVault-Decision-Id"), Snapshot: h.Get("MCPVault-Snapshot"), Cell: h.Get("MCPVault-Cell"),
		Millis: serverTiming(h.Values("Server-Timing"), "decision"),
	}
}

// serverTiming reads one metric of a Server-Timing header (W3C): `decision;dur=0.2, upstream;dur=3`.
func serverTiming(values []string, metric string) float64 {
	for _, v := range values {
		for entry := range strings.SplitSeq(v, ",") {
			parts := strings.Split(entry, ";")
			if strings.TrimSpace(parts[0]) != metric {
				continue
			}
			for _, p := range parts[1:] {
				if d, ok := strings.CutPrefix(strings.TrimSpace(p), "dur="); ok {
					ms, _ := strconv.ParseFloat(d, 64)
					return ms
				}
			}
		}
	}
	return 0
}

// Denied reports whether the cell refused the call by policy: an error or a tool result that carries the decision's own
// id. An upstream cannot pretend it, because the id is compared with the header that only the cell writes.
func (a *Answer) Denied() (reason, hint string, denied bool) {
	var body struct {
		DecisionID string `json:"decisionId"`
		Reason     string `json:"reason"`
		Hint       string `json:"hint"`
	}
	if a.Error != nil {
		_ = json.Unmarshal(a.Error.Data, &body) // Data of another shape is another error.
	} else {
		var result struct {
			IsError    bool            `json:"isError"`
			Structured json.RawMessage `json:"structuredContent"`
		}
		if json.Unmarshal(a.Result, &result) != nil || !result.IsError {
			return "", "", false
		}
		_ = json.Unmarshal(result.Structured, &body) // Likewise.
	}
	if body.DecisionID == "" || body.DecisionID != a.Decision.ID {
		return "", "", false
	}
	return body.Reason, body.Hint, true
}

// ToolError reports whether the tool itself said that it failed.
func (a *Answer) ToolError() bool {
	var result struct {
		IsError bool `json:"isError"`
	}
	return json.Unmarshal(a.Result, &result) == nil && result.IsError
}

// Text joins the text blocks of a tool's result.
func (a *Answer) Text() string {
	var result struct {
		Content []struct {
			Type string `json:"type"`
			Text string `json:"text"`
		} `json:"content"`
	}
	if json.Unmarshal(a.Result, &result) != nil {
		return ""
	}
	var parts []string
	for _, c := range result.Content {
		if c.Type == "text" {
			parts = append(parts, c.Text)
		}
	}
	return strings.Join(parts, "\n")
}

// Tool is one entry of a list; Raw is the entry as it came.
type Tool struct {
	Name        string          `json:"name"`
	Title       string          `json:"title"`
	Description string          `json:"description"`
	InputSchema json.RawMessage `json:"inputSchema"`
	Raw         json.RawMessage `json:"-"`
}

// ListTools returns every tool that the caller is shown. When the server answers with an error, that is in the answer
// and the list is nil.
func (c *Client) ListTools(ctx context.Context) ([]Tool, *Answer, error) {
	var tools []Tool
	cursor := ""
	for range maxPages {
		params := map[string]any{}
		if cursor != "" {
			params["cursor"] = cursor
		}
		a, err := c.do(ctx, request{method: "tools/list", params: params})
		if err != nil || a.Error != nil {
			return nil, a, err
		}
		var page struct {
			Tools      []json.RawMessage `json:"tools"`
			NextCursor string            `json:"nextCursor"`
		}
		if err := json.Unmarshal(a.Result, &page); err != nil {
			return nil, nil, fmt.Errorf("read the list of tools: %w", err)
		}
		for _, raw := range page.Tools {
			t := Tool{Raw: raw}
			if err := json.Unmarshal(raw, &t); err != nil {
				return nil, nil, fmt.Errorf("read the list of tools: %w", err)
			}
			tools = append(tools, t)
		}
		if page.NextCursor == "" {
			return tools, a, nil
		}
		cursor = page.NextCursor
	}
	return nil, nil, fmt.Errorf("read the list of tools: it has more than %d pages", maxPages)
}

// CallTool calls a tool. The schema, when it is known, says which arguments travel as headers too.
func (c *Client) CallTool(ctx context.Context, tool string, arguments, schema json.RawMessage) (*Answer, error) {
	if len(arguments) == 0 {
		arguments = json.RawMessage("{}")
	}
	return c.do(ctx, request{
		method: "tools/call", name: tool, progress: true,
		params: map[string]any{"name": tool, "arguments": arguments}, headers: paramHeaders(schema, arguments),
	})
}
