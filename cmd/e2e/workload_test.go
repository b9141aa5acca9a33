package e2e_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quic-go/quic-go/http3"
)

// TestAWorkloadCallsOverHTTP3WithItsCertificate: what mcpvault dev writes is enough to call each node without a token.
func TestAWorkloadCallsOverHTTP3WithItsCertificate(t *testing.T) {
	t.Parallel()
	d := start(t)
	const id = "spiffe://local.workloads.mcpvault.dev/agent/demo"
	must(t, d, 0, "workload", "create", id)
	must(t, d, 0, "grant", id, "demo/echo")
	ca, err := os.ReadFile(d.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	own, err := tls.LoadX509KeyPair(filepath.Join(d.Dir, "workload", "svid.pem"), filepath.Join(d.Dir, "workload", "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	node, err := tls.LoadX509KeyPair(filepath.Join(d.Dir, "identity", "local-n1", "svid.pem"), filepath.Join(d.Dir, "identity", "local-n1", "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	call := func(url string, certs ...tls.Certificate) (int, string, error) {
		t.Helper()
		tr := &http3.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: certs}}
		defer tr.Close()
		const body = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"message":"over QUIC"},` +
			`"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/demo", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range map[string]string{
			"Content-Type": "application/json", "Accept": "application/json, text/event-stream",
			"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "echo",
		} {
			req.Header.Set(k, v)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			return 0, "", err
		}
		b, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b), err
	}
	for _, url := range d.MCPTLSURLs {
		if status, body, err := call(url, own); err != nil || status != http.StatusOK || !strings.Contains(body, "over QUIC") {
			t.Errorf("%s: %d %s %v", url, status, body, err)
		}
		if status, body, err := call(url); err != nil || status != http.StatusUnauthorized {
			t.Errorf("%s, nobody: %d %s %v", url, status, body, err)
		}
		if status, body, err := call(url, node); err == nil {
			t.Errorf("%s, a node's own identity: %d %s", url, status, body)
		}
	}
	eventually(t, "the refused certificate is on record", func() bool {
		out, _ := must(t, d, 0, "audit", "tail")
		return strings.Contains(out, "svid_trust_domain") && strings.Contains(out, id)
	})
	must(t, d, 0, "kill", "user", id, "--reason", "test")
	if status, body, err := call(d.MCPTLSURLs[0], own); err != nil || status != http.StatusUnauthorized {
		t.Errorf("killed: %d %s %v", status, body, err)
	}
}
