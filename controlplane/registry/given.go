package registry

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/mcpvault/mcpvault/controlplane/policy"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// Schemes of addresses besides http and https: a server that each node runs as its own configuration says, and one of the
// transport of 2024-11-05, an event stream with posts beside it.
const (
	stdioScheme = "stdio:"
	legacySSE   = "sse+"
)

func isStdio(url string) bool { return strings.HasPrefix(url, stdioScheme) }

func checkStdio(url string) error {
	name := strings.TrimPrefix(url, stdioScheme)
	if name == "" || len(name) > 63 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return problem.New(problem.Invalid, "the address names no server of a node's configuration", "give stdio:NAME, where NAME stands under stdio in the configuration of the nodes")
	}
	return nil
}

// ParseSurface reads what mcpvault-cell stdio scan printed, with the bounds and the checks of a scan. The error is a problem.
func ParseSurface(url string, b []byte) (*Surface, error) {
	if len(b) > MaxScanBytes {
		return nil, badSurface("it is too large")
	}
	if err := policy.StrictJSON(b); err != nil {
		return nil, badSurface("it is not one clear JSON object: " + err.Error())
	}
	var in struct {
		URL               string            `json:"url"`
		ProtocolVersions  []string          `json:"protocolVersions"`
		ServerInfo        json.RawMessage   `json:"serverInfo"`
		Capabilities      json.RawMessage   `json:"capabilities"`
		Instructions      string            `json:"instructions"`
		Tools             []json.RawMessage `json:"tools"`
		Prompts           []json.RawMessage `json:"prompts"`
		Resources         []json.RawMessage `json:"resources"`
		ResourceTemplates []json.RawMessage `json:"resourceTemplates"`
	}
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, badSurface("it does not parse")
	}
	if in.URL != url {
		return nil, problem.Newf(problem.Invalid, "scan the server that is meant", "the surface is of %.80q, not of %s", in.URL, url)
	}
	s := &Surface{URL: url, ServerInfo: in.ServerInfo, Capabilities: in.Capabilities, Instructions: in.Instructions}
	for _, v := range in.ProtocolVersions {
		if !slices.Contains([]string{modernRevision, newestLegacy, oldestLegacy, "2025-03-26", "2024-11-05"}, v) {
			return nil, badSurface("it names a protocol revision that does not exist")
		}
	}
	if !slices.ContainsFunc(in.ProtocolVersions, func(v string) bool { return v >= oldestLegacy }) {
		return nil, badSurface("it names no protocol revision that is spoken here")
	}
	s.ProtocolVersions = in.ProtocolVersions
	for _, raw := range [][]byte{s.ServerInfo, s.Capabilities} {
		if len(raw) > 0 && raw[0] != '{' {
			return nil, badSurface("its description of itself is no object")
		}
	}
	if len(in.Tools) > MaxTools {
		return nil, badSurface("it lists too many tools")
	}
	for _, raw := range in.Tools {
		if err := s.addTool(raw); err != nil {
			return nil, err
		}
	}
	for i, list := range [][]json.RawMessage{in.Prompts, in.Resources, in.ResourceTemplates} {
		if len(list) > MaxEntries {
			return nil, badSurface("it lists too much")
		}
		for _, raw := range list {
			if err := kinds()[i].add(s, raw); err != nil {
				return nil, err
			}
		}
	}
	if _, err := s.Digest(); err != nil {
		return nil, err
	}
	return s, nil
}
