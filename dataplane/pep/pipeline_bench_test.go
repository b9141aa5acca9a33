package pep_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"

	"github.com/mcpvault/mcpvault/dataplane/upstream"
)

// echo is an upstream that answers at once.
type echo []byte

func (e echo) Do(context.Context, *upstream.Request) (*upstream.Response, error) {
	return &upstream.Response{Status: http.StatusOK, Body: e, JSON: true}, nil
}

// blank is an audit log that keeps nothing.
type blank struct{}

func (blank) NewID() string                                  { return "01TEST00000000000000000001" }
func (blank) Append(*auditv1.Record) error                   { return nil }
func (blank) Intent(context.Context, *auditv1.Record) error  { return nil }
func (blank) Outcome(context.Context, *auditv1.Record) error { return nil }
func (blank) MAC([]byte) []byte                              { return make([]byte, 32) }

// sink is a caller that reads nothing.
type sink struct {
	h http.Header
	n int
}

func (s *sink) Header() http.Header         { return s.h }
func (s *sink) WriteHeader(int)             {}
func (s *sink) Write(b []byte) (int, error) { s.n += len(b); return len(b), nil }

// BenchmarkPipeline is a call's way through the steps alone: no sockets, no log, an upstream that answers at once.
func BenchmarkPipeline(b *testing.B) {
	answer := `{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"` + strings.Repeat("a", 128) + `"}]}}`
	g := assembled(b, pep.Config{}, func(p *pep.Parts) { p.Upstream, p.Audit = echo(answer), blank{} }, nil, catalogueServer("pay", "http://127.0.0.1:1/mcp", allEras(), plainTool("balance", read)))
	body := []byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"balance","arguments":{"message":"` + strings.Repeat("b", 128) + `"},` + meta + `}}`)
	r := g.request(b.Context(), http.MethodPost, "/mcp/pay", "root", string(body), "MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "balance")
	r.RemoteAddr = "127.0.0.1:1"
	check := httptest.NewRecorder()
	g.pep.ServeHTTP(check, r.Clone(b.Context()))
	if check.Code != http.StatusOK || check.Body.String() != answer {
		b.Fatal(check.Code, check.Body)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		r := r.Clone(b.Context())
		rd := bytes.NewReader(body)
		r.Body = io.NopCloser(rd)
		s := &sink{h: http.Header{}}
		for pb.Next() {
			rd.Reset(body)
			clear(s.h)
			g.pep.ServeHTTP(s, r)
		}
	})
}
