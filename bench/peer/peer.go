// Package peer holds the two processes that a cell is measured against: an MCP server that does next to nothing, so that
// the path to it is what is measured, and a bare httputil.ReverseProxy in front of it, the baseline.
package peer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"
)

// Tools is how many tools the server offers: t00 to t19, all alike.
const Tools = 20

// Credential is the bearer token without which the server answers no call.
const Credential = "what-only-the-gateway-knows"

// Serve runs one of them until ctx ends: "upstream", or "proxy" or "tls-proxy" to the target.
func Serve(ctx context.Context, kind, listen, target string) error {
	var h http.Handler
	var secure *tls.Config
	switch kind {
	case "upstream":
		h = http.HandlerFunc(upstream)
	case "proxy", "tls-proxy":
		u, err := url.Parse(target)
		if err != nil {
			return err
		}
		h = proxy(u)
		if kind == "tls-proxy" {
			if secure, err = selfSigned(); err != nil {
				return err
			}
		}
	default:
		return fmt.Errorf("unknown peer %q: upstream, proxy or tls-proxy", kind)
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	if secure != nil {
		l = tls.NewListener(l, secure)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); err != http.ErrServerClosed {
		return err
	}
	return nil
}

// proxy is what anybody would write in five lines; full duplex keeps it from losing answers (golang/go#40747).
func proxy(target *url.URL) http.Handler {
	rp := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.SetURL(target)
		p.Out.URL.Path = target.Path
	}}
	rp.Transport = &http.Transport{MaxIdleConnsPerHost: 512, MaxIdleConns: 512}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		rp.ServeHTTP(w, r)
	})
}

// selfSigned is a certificate of this process's own; whoever measures does not check it.
func selfSigned() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}, nil
}

type message struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
	Params struct {
		Arguments struct {
			Message string `json:"message"`
		} `json:"arguments"`
	} `json:"params"`
}

func upstream(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodGet && r.Header.Get("Mcp-Session-Id") != "":
		hold(w, r)
		return
	case r.Method == http.MethodDelete:
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", "POST")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 8<<20))
	if err != nil {
		return
	}
	var m message
	if err := json.Unmarshal(body, &m); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if len(m.ID) == 0 {
		w.WriteHeader(http.StatusAccepted)
		return
	}
	if m.Method == "tools/call" && r.Header.Get("Authorization") != "Bearer "+Credential {
		http.Error(w, "the credential is missing", http.StatusUnauthorized)
		return
	}
	if m.Method == "initialize" {
		w.Header().Set("Mcp-Session-Id", rand.Text())
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, `{"jsonrpc":"2.0","id":%s,`, m.ID)
	if result := answer(&m); result != "" {
		fmt.Fprintf(&out, `"result":%s}`, result)
	} else {
		out.WriteString(`"error":{"code":-32601,"message":"no such method"}}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(out.Len()))
	_, _ = w.Write(out.Bytes())
}

// hold keeps a stream open on which nothing is said.
func hold(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

const info = `{"name":"bench","version":"1"}`

func answer(m *message) string {
	switch m.Method {
	case "initialize":
		return `{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":` + info + `}`
	case "server/discover":
		return `{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"ttlMs":0,"cacheScope":"private","_meta":{"io.modelcontextprotocol/serverInfo":` + info + `}}`
	case "tools/list":
		var b bytes.Buffer
		b.WriteString(`{"resultType":"complete","ttlMs":0,"cacheScope":"private","tools":[`)
		for i := range Tools {
			if i > 0 {
				b.WriteByte(',')
			}
			// The first half reads, the second half writes.
			fmt.Fprintf(&b, `{"name":"t%02d","description":"echoes","inputSchema":{"type":"object","properties":{"message":{"type":"string"}},"required":["message"]},"annotations":{"readOnlyHint":%t,"destructiveHint":false}}`, i, i < Tools/2)
		}
		b.WriteString(`]}`)
		return b.String()
	case "tools/call":
		text, _ := json.Marshal(m.Params.Arguments.Message)
		return `{"resultType":"complete","content":[{"type":"text","text":` + string(text) + `}]}`
	case "ping":
		return `{}`
	}
	return ""
}
