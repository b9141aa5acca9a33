package pep_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/pep"
)

// BenchmarkCall measures a call with everything on against a bare reverse proxy in front of the same upstream.
func BenchmarkCall(b *testing.B) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header()["Content-Type"] = []string{"application/json"}
		_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"`+strings.Repeat("a", 128)+`"}]}}`)
	}))
	defer up.Close()
	g := newGateway(b, pep.Config{}, nil, catalogueServer("pay", up.URL+"/mcp", allEras(), plainTool("balance", read)))
	target, _ := url.Parse(up.URL)
	rp := httputil.NewSingleHostReverseProxy(target)
	rp.Transport = &http.Transport{MaxIdleConnsPerHost: 128, DialContext: (&net.Dialer{}).DialContext}
	proxy := httptest.NewServer(rp)
	defer proxy.Close()
	body := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"balance","arguments":{"message":"` + strings.Repeat("b", 128) + `"},` + meta + `}}`
	req := g.request(b.Context(), http.MethodPost, "/mcp/pay", "root", body, "MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "balance")
	for name, base := range map[string]string{"gateway": g.url, "proxy": proxy.URL} {
		b.Run(name, func(b *testing.B) {
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 128}}
			u, _ := url.Parse(base + "/mcp/pay")
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					r := req.Clone(b.Context())
					r.URL, r.Host = u, u.Host
					r.Body = io.NopCloser(strings.NewReader(body))
					resp, err := client.Do(r)
					if err != nil || resp.StatusCode != http.StatusOK {
						b.Error(resp, err)
						return
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
			})
		})
	}
}
