package admin_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1/adminv1connect"
)

type system struct {
	adminv1connect.UnimplementedSystemServiceHandler
	whoami func(ctx context.Context) (*adminv1.WhoamiResponse, error)
}

func (s system) Whoami(ctx context.Context, _ *adminv1.WhoamiRequest) (*adminv1.WhoamiResponse, error) {
	return s.whoami(ctx)
}

func whoami(t *testing.T, tlsServer bool, f func(ctx context.Context) (*adminv1.WhoamiResponse, error)) *httptest.Server {
	t.Helper()
	server := connect.NewServer()
	adminv1connect.RegisterSystemServiceHandler(server, system{whoami: f})
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server)
	hs := httptest.NewUnstartedServer(mux)
	if tlsServer {
		hs.StartTLS()
	} else {
		hs.Start()
	}
	t.Cleanup(hs.Close)
	return hs
}

func ask(ctx context.Context, cfg admin.Config) (*adminv1.WhoamiResponse, error) {
	c, err := admin.Dial(cfg)
	if err != nil {
		return nil, err
	}
	resp, err := c.System.Whoami(ctx, &adminv1.WhoamiRequest{})
	return resp, admin.Problem(err, cfg.URL)
}

func TestTheTokenIsSentAndTheAnswerComes(t *testing.T) {
	t.Parallel()
	hs := whoami(t, false, func(ctx context.Context) (*adminv1.WhoamiResponse, error) {
		info, _ := connect.CallInfoForServerContext(ctx)
		return &adminv1.WhoamiResponse{Principal: info.RequestHeader().Get("Authorization")}, nil
	})
	resp, err := ask(t.Context(), admin.Config{URL: hs.URL + "/", Token: "t"})
	if err != nil || resp.GetPrincipal() != "Bearer t" {
		t.Fatal(resp, err)
	}
}

func TestTheNextStepComesFromTheServer(t *testing.T) {
	t.Parallel()
	hs := whoami(t, false, func(context.Context) (*adminv1.WhoamiResponse, error) {
		d, err := connectproto.NewErrorDetail(&errdetails.ErrorInfo{Reason: "not_found", Metadata: map[string]string{"fix": "register it"}})
		if err != nil {
			return nil, err
		}
		return nil, connect.NewError(connect.CodeNotFound, "server jira does not exist").WithDetail(d)
	})
	_, err := ask(t.Context(), admin.Config{URL: hs.URL})
	p, ok := problem.As(err)
	if !ok || p.Code != problem.NotFound || p.What != "server jira does not exist" || p.Fix != "register it" {
		t.Fatalf("%+v", err)
	}
}

func TestEveryRefusalHasANextStep(t *testing.T) {
	t.Parallel()
	for rpc, want := range map[connect.Code]problem.Code{
		connect.CodeUnauthenticated: problem.Unauthenticated, connect.CodePermissionDenied: problem.Denied,
		connect.CodeInternal: problem.Internal, connect.CodeUnavailable: problem.Unavailable,
	} {
		hs := whoami(t, false, func(context.Context) (*adminv1.WhoamiResponse, error) { return nil, connect.NewError(rpc, "") })
		_, err := ask(t.Context(), admin.Config{URL: hs.URL})
		if p, ok := problem.As(err); !ok || p.Code != want || p.Fix == "" || p.What == "" {
			t.Errorf("%s: %+v", rpc, err)
		}
	}
}

func TestASilentControlPlaneIsTold(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := "http://" + l.Addr().String()
	_ = l.Close()
	if _, err := ask(t.Context(), admin.Config{URL: gone}); problem.CodeOf(err) != problem.Unavailable || !strings.Contains(err.Error(), gone) {
		t.Errorf("gone: %v", err)
	}
	hs := whoami(t, false, func(ctx context.Context) (*adminv1.WhoamiResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := ask(ctx, admin.Config{URL: hs.URL}); problem.CodeOf(err) != problem.Timeout {
		t.Errorf("silent: %v", err)
	}
}

func TestAServerIsTrustedByTheGivenCertificatesOnly(t *testing.T) {
	t.Parallel()
	hs := whoami(t, true, func(context.Context) (*adminv1.WhoamiResponse, error) { return &adminv1.WhoamiResponse{}, nil })
	if _, err := ask(t.Context(), admin.Config{URL: hs.URL}); problem.CodeOf(err) != problem.Unavailable || !strings.Contains(err.Error(), "--cacert") {
		t.Errorf("unknown authority: %v", err)
	}
	for name, body := range map[string]string{"absent": "", "empty": "nothing"} {
		path := filepath.Join(t.TempDir(), "ca.pem")
		if body != "" {
			if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := admin.Dial(admin.Config{URL: hs.URL, CAFile: path}); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := admin.Dial(admin.Config{URL: "vault.example.com"}); problem.CodeOf(err) != problem.Invalid {
		t.Errorf("no scheme: %v", err)
	}
}
