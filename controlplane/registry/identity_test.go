package registry

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
)

func TestAServerThatProvesASPIFFEIDIsScannedOnlyWhenItIsTheOneThatTheAddressNames(t *testing.T) {
	t.Parallel()
	ca, err := svid.CreateCA(filepath.Join(t.TempDir(), "ca"), "mcpvault.test")
	if err != nil {
		t.Fatal(err)
	}
	open := func(name string) (*svid.Source, svid.ID) {
		id, err := svid.ParseID("spiffe://mcpvault.test/" + name)
		if err != nil {
			t.Fatal(err)
		}
		cert, key, err := ca.IssueNode(id, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := svid.WriteIdentity(dir, cert, key, ca.Bundle()); err != nil {
			t.Fatal(err)
		}
		src, err := svid.Open(context.Background(), svid.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = src.Close() })
		return src, id
	}
	pay, payID := open("pay")
	own, ownID := open("controlplane/cp1")
	srv := httptest.NewUnstartedServer(&upstream{modern: true, pages: []string{`[{"name":"balance","inputSchema":{"type":"object"}}]`}})
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Listener = tls.NewListener(srv.Listener, svid.ServerTLS(pay, svid.Exactly(ownID), "http/1.1"))
	srv.Start()
	t.Cleanup(srv.Close)
	servers, err := svid.OpenServers(own, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	scanner := NewScanner(http.DefaultTransport.(*http.Transport).Clone(), servers.TLS, "test", slog.New(slog.DiscardHandler))
	address := "https" + strings.TrimPrefix(srv.URL, "http") + "/mcp"

	got, err := scanner.Scan(t.Context(), address+"#"+payID.String())
	if err != nil || len(got.Tools) != 1 {
		t.Fatalf("the right one: %v %v", got, err)
	}
	for id, code := range map[string]problem.Code{
		"spiffe://mcpvault.test/refunds": problem.Unavailable,
		"spiffe://elsewhere.test/pay":    problem.Invalid,
	} {
		if _, err := scanner.Scan(t.Context(), address+"#"+id); problem.CodeOf(err) != code {
			t.Errorf("%s: %v", id, err)
		}
	}
	if err := checkURL(address + "#" + payID.String()); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{address + "#pay", "http://pay.internal/mcp#" + payID.String(), address + "#"} {
		if err := checkURL(bad); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
