package mcpclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"
)

// JSON-RPC codes that say something about the era.
const (
	codeMethodNotFound     = -32601
	codeInvalidParams      = -32602
	codeHeaderMismatch     = -32020
	codeMissingCapability  = -32021
	codeUnsupportedVersion = -32022
)

// request is one JSON-RPC request, before an era has dressed it.
type request struct {
	method   string
	name     string
	params   map[string]any
	headers  map[string]string
	progress bool
}

// do sends one request in the era that the server speaks.
func (c *Client) do(ctx context.Context, r request) (*Answer, error) {
	if c.era != Legacy {
		a, err := c.modern(ctx, r)
		if err != nil || c.era == Modern || !notModern(a) {
			if err == nil {
				c.era = Modern
			}
			return a, err
		}
		c.era = Legacy
	}
	if c.version == "" {
		if a, err := c.initialize(ctx); err != nil || a != nil {
			return a, err
		}
	}
	return c.legacy(ctx, r)
}

// notModern reports whether the server refused to read the request because it does not speak the stateless revision:
// nothing has been executed then. A decision of a cell and the errors of that revision itself are answers.
func notModern(a *Answer) bool {
	if a.Decision.ID != "" || a.Status < 400 {
		return false
	}
	if a.Error == nil {
		return true
	}
	switch a.Error.Code {
	case codeHeaderMismatch, codeMissingCapability, codeInvalidParams:
		return false
	case codeUnsupportedVersion:
		var data struct {
			Supported []string `json:"supported"`
		}
		_ = json.Unmarshal(a.Error.Data, &data) // An empty list means no common revision.
		return slices.ContainsFunc(data.Supported, func(v string) bool { return v < Modern })
	}
	return true
}

// modern sends a request of the stateless revision.
func (c *Client) modern(ctx context.Context, r request) (*Answer, error) {
	meta := map[string]any{
		"io.modelcontextprotocol/protocolVersion":    Modern,
		"io.modelcontextprotocol/clientCapabilities": map[string]any{},
		"io.modelcontextprotocol/clientInfo":         c.clientInfo(),
	}
	headers := map[string]string{"MCP-Protocol-Version": Modern, "Mcp-Method": r.method}
	if r.name != "" {
		headers["Mcp-Name"] = headerValue(r.name)
	}
	maps.Copy(headers, r.headers)
	return c.send(ctx, r, meta, headers, Modern)
}

// legacy sends a request within the session.
func (c *Client) legacy(ctx context.Context, r request) (*Answer, error) {
	return c.send(ctx, r, map[string]any{}, c.sessionHeaders(), c.version)
}

func (c *Client) sessionHeaders() map[string]string {
	h := map[string]string{"MCP-Protocol-Version": c.version}
	if c.session != "" {
		h["Mcp-Session-Id"] = c.session
	}
	return h
}

// initialize opens a session. When the server refuses, its answer is returned instead.
func (c *Client) initialize(ctx context.Context) (*Answer, error) {
	c.nextID++
	body, err := json.Marshal(map[string]any{
		"jsonrpc": "2.0", "id": c.nextID, "method": "initialize",
		"params": map[string]any{"protocolVersion": Legacy, "capabilities": map[string]any{}, "clientInfo": c.clientInfo()},
	})
	if err != nil {
		return nil, fmt.Errorf("open a session: %w", err)
	}
	a, header, err := c.post(ctx, body, map[string]string{}, c.nextID)
	if err != nil || a.Error != nil || a.Status >= 400 {
		return a, err
	}
	var result struct {
		ProtocolVersion string `json:"protocolVersion"`
	}
	if err := json.Unmarshal(a.Result, &result); err != nil {
		return nil, fmt.Errorf("open a session: %w", err)
	}
	if result.ProtocolVersion == "" {
		return nil, errors.New("open a session: the server names no protocol revision")
	}
	c.version, c.session = result.ProtocolVersion, header.Get("Mcp-Session-Id")
	note := []byte(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	if a, _, err := c.post(ctx, note, c.sessionHeaders(), 0); err != nil {
		return nil, fmt.Errorf("open a session: %w", err)
	} else if a.Status >= 400 {
		return a, nil
	}
	return nil, nil
}

// Close ends the session, when there is one.
func (c *Client) Close(ctx context.Context) error {
	if c.session == "" {
		return nil
	}
	req, err := c.newRequest(ctx, http.MethodDelete, nil, c.sessionHeaders())
	if err != nil {
		return err
	}
	c.session, c.version = "", ""
	resp, err := c.cfg.HTTP.Do(req)
	if err != nil {
		return fmt.Errorf("end the session: %w", err)
	}
	return resp.Body.Close()
}

func (c *Client) clientInfo() map[string]string {
	return map[string]string{"name": "mcpvault", "version": c.cfg.ClientVersion}
}

func (c *Client) send(ctx context.Context, r request, meta map[string]any, headers map[string]string, version string) (*Answer, error) {
	c.nextID++
	params := maps.Clone(r.params)
	if r.progress {
		meta["progressToken"] = c.nextID
	}
	if len(meta) > 0 {
		params["_meta"] = meta
	}
	body, err := marshal(map[string]any{"jsonrpc": "2.0", "id": c.nextID, "method": r.method, "params": params})
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", r.method, err)
	}
	started := time.Now()
	a, _, err := c.post(ctx, body, headers, c.nextID)
	if err != nil {
		return nil, err
	}
	a.Protocol, a.Took = version, time.Since(started)
	return a, nil
}

// marshal leaves <, > and & in arguments as they are.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}
