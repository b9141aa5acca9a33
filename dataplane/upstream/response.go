package upstream

import "github.com/mcpvault/mcpvault/dataplane/mcp"

// Streamed is the answer of a transport of another kind that comes in events; end is called by Close.
func Streamed(events *mcp.EventReader, end func()) *Response {
	return &Response{Status: 200, Events: events, close: end}
}
