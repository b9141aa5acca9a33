package stdio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/dataplane/upstream/mux"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// Surface is what a server says of itself and of what it offers, each object as it was sent but for white space. The control plane, which
// cannot start the server, is given this instead of an address that it could ask.
type Surface struct {
	URL string `json:"url"`
	// ProtocolVersions are the revisions that it was seen to speak, newest first.
	ProtocolVersions  []string          `json:"protocolVersions"`
	ServerInfo        json.RawMessage   `json:"serverInfo,omitempty"`
	Capabilities      json.RawMessage   `json:"capabilities,omitempty"`
	Instructions      string            `json:"instructions,omitempty"`
	Tools             []json.RawMessage `json:"tools"`
	Prompts           []json.RawMessage `json:"prompts,omitempty"`
	Resources         []json.RawMessage `json:"resources,omitempty"`
	ResourceTemplates []json.RawMessage `json:"resourceTemplates,omitempty"`
}

// maxPages bounds the pages of one list.
const maxPages = 100

// Scan starts the server as it would be started for a call and asks it, in the modern form and in the legacy one, what it is
// and what it offers. Its errors are problems.
func Scan(ctx context.Context, name string, servers map[string]Server, version string, log *slog.Logger) (*Surface, error) {
	cfg, ok := servers[name]
	if !ok {
		return nil, problem.Newf(problem.NotFound, "name one of the servers under stdio in the configuration", "this node's configuration has no stdio server %s", name)
	}
	s := &Surface{URL: Scheme + name, Tools: []json.RawMessage{}}
	modern, modernErr := probe(ctx, cfg, version, log, s.modern)
	legacy, legacyErr := probe(ctx, cfg, version, log, func(ctx context.Context, c *mux.Conn) error { return s.legacy(ctx, c, modern) })
	if !modern && !legacy {
		return nil, problem.Newf(problem.Unavailable, "run its command by hand and see what it says", "%s does not speak MCP on its standard output", name).
			Because(errors.Join(modernErr, legacyErr))
	}
	return s, nil
}

// probe runs f on a process of its own: a server may refuse to be asked in two forms.
func probe(ctx context.Context, cfg Server, version string, log *slog.Logger, f func(context.Context, *mux.Conn) error) (bool, error) {
	if cfg.MaxLine == 0 {
		cfg.MaxLine = 8 << 20
	}
	p, err := start(cfg, version, log)
	if err != nil {
		return false, err
	}
	defer p.stop()
	if err := f(ctx, p.conn); err != nil {
		return false, err
	}
	return true, nil
}

func request(method, params string) []byte {
	return []byte(`{"jsonrpc":"2.0","id":1,"method":"` + method + `","params":{` + params + `}}`)
}

const modernMeta = `"_meta":{"` + mcp.MetaVersion + `":"` + mcp.Rev20260728 + `","` + mcp.MetaCapabilities + `":{},"` + mcp.MetaClientInfo + `":{"name":"mcpvault-scanner","version":"1"}}`

func (s *Surface) modern(ctx context.Context, c *mux.Conn) error {
	raw, err := c.Ask(ctx, request(mcp.MethodDiscover, modernMeta))
	if err != nil {
		return err
	}
	var res struct {
		SupportedVersions []string                   `json:"supportedVersions"`
		Capabilities      json.RawMessage            `json:"capabilities"`
		ServerInfo        json.RawMessage            `json:"serverInfo"`
		Instructions      string                     `json:"instructions"`
		Meta              map[string]json.RawMessage `json:"_meta"`
	}
	if err := json.Unmarshal(raw, &res); err != nil {
		return err
	}
	if !slices.Contains(res.SupportedVersions, mcp.Rev20260728) {
		return errors.New("it does not list " + mcp.Rev20260728)
	}
	if s.ServerInfo = res.Meta[mcp.MetaServerInfo]; s.ServerInfo == nil {
		s.ServerInfo = res.ServerInfo
	}
	s.Capabilities, s.Instructions = res.Capabilities, res.Instructions
	if err := s.lists(ctx, c, modernMeta); err != nil {
		return err
	}
	s.ProtocolVersions = append(s.ProtocolVersions, mcp.Rev20260728)
	return nil
}

func (s *Surface) legacy(ctx context.Context, c *mux.Conn, known bool) error {
	raw, err := c.Initialize(ctx)
	if err != nil {
		return err
	}
	var res struct {
		ProtocolVersion string          `json:"protocolVersion"`
		Capabilities    json.RawMessage `json:"capabilities"`
		ServerInfo      json.RawMessage `json:"serverInfo"`
		Instructions    string          `json:"instructions"`
	}
	if err := json.Unmarshal(raw, &res); err != nil {
		return err
	}
	if !known {
		s.ServerInfo, s.Capabilities, s.Instructions = res.ServerInfo, res.Capabilities, res.Instructions
		if err := s.lists(ctx, c, ""); err != nil {
			return err
		}
	}
	switch {
	case mcp.IsLegacy(res.ProtocolVersion):
	case mux.Older(res.ProtocolVersion):
		// The node tells callers of the oldest revision that it speaks.
		s.ProtocolVersions = append(s.ProtocolVersions, mcp.Rev20250618)
	default:
		return fmt.Errorf("it answers in revision %.40q", res.ProtocolVersion)
	}
	s.ProtocolVersions = append(s.ProtocolVersions, res.ProtocolVersion)
	return nil
}

func (s *Surface) lists(ctx context.Context, c *mux.Conn, meta string) error {
	var caps map[string]json.RawMessage
	if err := json.Unmarshal(s.Capabilities, &caps); err != nil {
		return errors.New("its capabilities are no object")
	}
	for _, l := range []struct {
		capability, method, member string
		into                       *[]json.RawMessage
		optional                   bool
	}{
		{"tools", mcp.MethodToolsList, "tools", &s.Tools, false},
		{"prompts", mcp.MethodPromptsList, "prompts", &s.Prompts, false},
		{"resources", mcp.MethodResourcesList, "resources", &s.Resources, false},
		{"resources", mcp.MethodTemplatesList, "resourceTemplates", &s.ResourceTemplates, true},
	} {
		if caps[l.capability] == nil {
			continue
		}
		// The capability does not promise templates.
		if err := list(ctx, c, l.method, l.member, meta, l.into); err != nil && !(l.optional && errors.Is(err, upstream.ErrProtocol)) {
			return err
		}
	}
	return nil
}

func list(ctx context.Context, c *mux.Conn, method, member, meta string, into *[]json.RawMessage) error {
	cursor := ""
	for range maxPages {
		var parts []string
		if meta != "" {
			parts = append(parts, meta)
		}
		if cursor != "" {
			parts = append(parts, `"cursor":`+string(mcp.AppendString(nil, cursor)))
		}
		raw, err := c.Ask(ctx, request(method, strings.Join(parts, ",")))
		if err != nil {
			return err
		}
		var res map[string]json.RawMessage
		var page []json.RawMessage
		cursor = ""
		if json.Unmarshal(raw, &res) != nil || json.Unmarshal(res[member], &page) != nil ||
			res["nextCursor"] != nil && json.Unmarshal(res["nextCursor"], &cursor) != nil {
			return errors.New("its answer to " + method + " does not parse")
		}
		*into = append(*into, page...)
		if cursor == "" {
			return nil
		}
	}
	return errors.New("its answers to " + method + " never end")
}
