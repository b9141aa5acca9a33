// Package tele is what a process says about itself: logs through slog, metrics for Prometheus, traces for OpenTelemetry.
// It promises one spelling of every attribute key, and that a process without any telemetry settings opens no connection.
// Audit records are not telemetry; they have a room of their own.
package tele

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/mcpvault/mcpvault/kit/problem"
)

// The keys of attributes in logs, traces and metrics. A fact has one key everywhere.
const (
	KeyTenant     = "tenant"
	KeyCell       = "cell"
	KeyNode       = "node"
	KeyEpoch      = "epoch"
	KeyGeneration = "generation"
	KeyRevision   = "revision"
	KeyPrincipal  = "principal"
	KeyServer     = "server"
	KeyTool       = "tool"
	KeyRequestID  = "request_id"
	KeyDecisionID = "decision_id"
	KeyReason     = "reason"
	KeyPeer       = "peer"
	KeyDuration   = "duration"
	KeyError      = "error"
)

// The attributes of spans by OpenTelemetry's conventions, those of the Model Context Protocol among them: these moved from
// the semantic conventions after 1.41 to open-telemetry/semantic-conventions-genai.
const (
	KeyMCPMethod      = "mcp.method.name"
	KeyMCPSession     = "mcp.session.id"
	KeyMCPProtocol    = "mcp.protocol.version"
	KeyMCPResource    = "mcp.resource.uri"
	KeyGenAITool      = "gen_ai.tool.name"
	KeyGenAIPrompt    = "gen_ai.prompt.name"
	KeyGenAIOperation = "gen_ai.operation.name"
	KeyJSONRPCID      = "jsonrpc.request.id"
	KeyRPCStatus      = "rpc.response.status_code"
	KeyErrorType      = "error.type"
	KeyTransport      = "network.transport"
	KeyProtocol       = "network.protocol.name"
	KeyProtocolVer    = "network.protocol.version"
	KeyClientAddress  = "client.address"
	KeyServerAddress  = "server.address"
	KeyServerPort     = "server.port"
)

// LogConfig says what is logged and how.
type LogConfig struct {
	// Level is debug, info, warn or error; empty means info.
	Level string `yaml:"level"`
	// Format is text or json; empty means text.
	Format string `yaml:"format"`
}

// Problems judges the configuration section.
func (c LogConfig) Problems() []string {
	var out []string
	if _, err := c.level(); err != nil {
		out = append(out, fmt.Sprintf("level: must be debug, info, warn or error, not %q", c.Level))
	}
	if c.Format != "" && c.Format != "text" && c.Format != "json" {
		out = append(out, fmt.Sprintf("format: must be text or json, not %q", c.Format))
	}
	return out
}

func (c LogConfig) level() (slog.Level, error) {
	var l slog.Level
	switch c.Level {
	case "":
		return slog.LevelInfo, nil
	case "debug", "info", "warn", "error":
		return l, l.UnmarshalText([]byte(c.Level))
	}
	return l, problem.Newf(problem.Invalid, "use debug, info, warn or error", "there is no log level %q", c.Level)
}

// Logger writes to w. The attributes given, as key and value pairs, are on every line.
func Logger(w io.Writer, c LogConfig, attrs ...any) (*slog.Logger, error) {
	level, err := c.level()
	if err != nil {
		return nil, err
	}
	opts := &slog.HandlerOptions{Level: level}
	var h slog.Handler
	switch c.Format {
	case "", "text":
		h = slog.NewTextHandler(w, opts)
	case "json":
		h = slog.NewJSONHandler(w, opts)
	default:
		return nil, problem.Newf(problem.Invalid, "use text or json", "there is no log format %q", c.Format)
	}
	return slog.New(h).With(attrs...), nil
}
