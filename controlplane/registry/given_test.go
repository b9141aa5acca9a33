package registry_test

import (
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/server"

	"github.com/mcpvault/mcpvault/controlplane/registry"
	"github.com/mcpvault/mcpvault/kit/egress"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

const givenSurface = `{"url":"stdio:files","protocolVersions":["2025-06-18","2024-11-05"],"capabilities":{"tools":{}},` +
	`"tools":[{"name":"read","inputSchema":{"type":"object"}}]}`

func TestAServerBesideANodeIsRegisteredWithWhatTheNodeScanned(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if _, err := b.reg.AddServer(b.ctx, &adminv1.AddServerRequest{Name: "files", Url: "stdio:files"}); problem.CodeOf(err) != problem.Invalid {
		t.Errorf("without a surface: %v", err)
	}
	res, err := b.reg.AddServer(b.ctx, &adminv1.AddServerRequest{Name: "files", Url: "stdio:files", Surface: []byte(givenSurface)})
	if err != nil {
		t.Fatal(err)
	}
	if v := res.GetVersion(); len(v.GetTools()) != 1 || !slices.Equal(v.GetProtocolVersions(), []string{"2025-06-18", "2024-11-05"}) {
		t.Errorf("%v", v)
	}
	again, err := b.reg.ScanServer(b.ctx, &adminv1.ScanServerRequest{Name: "files", Surface: []byte(strings.Replace(givenSurface, `"read"`, `"write"`, 1))})
	if err != nil || !again.GetIsNew() {
		t.Errorf("%v %v", again, err)
	}
	if _, err := b.reg.ScanServer(b.ctx, &adminv1.ScanServerRequest{Name: "files"}); problem.CodeOf(err) != problem.Invalid {
		t.Errorf("scanned again without a surface: %v", err)
	}
	if _, err := b.reg.AddServer(b.ctx, &adminv1.AddServerRequest{Name: "pay", Url: b.srv.URL + "/mcp", Surface: []byte(givenSurface)}); problem.CodeOf(err) != problem.Invalid {
		t.Errorf("a surface for a server that can be asked: %v", err)
	}
}

func TestAGivenSurfaceIsHeldToWhatAScanIsHeldTo(t *testing.T) {
	t.Parallel()
	for _, change := range [][2]string{
		{`stdio:files`, `stdio:other`},
		{`"2025-06-18","2024-11-05"`, `"2024-11-05"`},
		{`"2025-06-18"`, `"2025-06-19"`},
		{`"name":"read"`, `"name":"read","Name":"write"`},
		{`"name":"read"`, `"name":"re ad"`},
		{`"tools":[`, `"tools":[7,`},
		{`"tools":[`, `"tools":[],"tools":[`},
		{`{"tools":{}}`, `[]`},
	} {
		bad := strings.Replace(givenSurface, change[0], change[1], 1)
		if _, err := registry.ParseSurface("stdio:files", []byte(bad)); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("accepted, or %v: %s", err, bad)
		}
	}
}

func FuzzParseSurface(f *testing.F) {
	f.Add([]byte(givenSurface))
	f.Add([]byte(`{"url":"stdio:files","tools":[null]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := registry.ParseSurface("stdio:files", b)
		if err != nil {
			return
		}
		enc, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := registry.DecodeSurface(enc)
		if err != nil {
			t.Fatal(err)
		}
		was, _ := s.Digest()
		if now, err := back.Digest(); err != nil || now != was {
			t.Errorf("what was accepted is another surface when it is read back: %v", err)
		}
	})
}

func TestAServerOfTheLegacyTransportIsScanned(t *testing.T) {
	t.Parallel()
	b := setup(t)
	live := httptest.NewServer(server.NewSSEServer(b.mcp, server.WithUseFullURLForMessageEndpoint(false)))
	t.Cleanup(live.Close)
	transport, err := egress.NewTransport([]string{"127.0.0.0/8:*"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(transport.CloseIdleConnections)
	s, err := registry.NewScanner(transport, nil, "test", slog.New(slog.DiscardHandler)).Scan(t.Context(), "sse+"+live.URL+"/sse")
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Tools) != 3 || len(s.ProtocolVersions) == 0 || slices.Contains(s.ProtocolVersions, "2026-07-28") {
		t.Errorf("%d tools, %v", len(s.Tools), s.ProtocolVersions)
	}
}
