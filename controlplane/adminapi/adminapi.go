// Package adminapi is the front door of the control plane: every admin service over Connect, gRPC and gRPC-Web on one
// port, HTTP/1.1 and HTTP/2, beside the health and metrics pages.
//
// It promises that a request reaches a service only after the same steps in the same order: an id and a deadline, a token
// that is good now, the permission table, the rules written in the protos, and the tenant it is about. What a service
// returns as a problem arrives as one; anything else becomes "internal error" with the request's id, and the log has the
// rest. The services themselves belong to other rooms.
package adminapi

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/otelconnect"
	"connectrpc.com/validate"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1/adminv1connect"
)

// maxBody bounds a request, before and after decompression, in bytes.
const maxBody = 4 << 20

// Authenticator says who holds a token. The error is a problem: unauthenticated, or unavailable when nobody can tell.
type Authenticator interface {
	Authenticate(ctx context.Context, token string) (controlplane.Caller, error)
}

// Tenants finds a tenant by name, or not_found.
type Tenants interface {
	TenantByName(ctx context.Context, name string) (controlplane.Tenant, error)
}

// Services answer the calls. They find out who asks with controlplane.CallerFrom. One that is nil is not served.
type Services struct {
	Organisation adminv1connect.OrganisationServiceHandler
	Directory    adminv1connect.DirectoryServiceHandler
	Tokens       adminv1connect.TokenServiceHandler
	Registry     adminv1connect.RegistryServiceHandler
	Endpoints    adminv1connect.EndpointServiceHandler
	Settings     adminv1connect.SettingsServiceHandler
	Access       adminv1connect.AccessServiceHandler
	Policies     adminv1connect.PolicyServiceHandler
	Issuers      adminv1connect.IssuerServiceHandler
	Identity     adminv1connect.IdentityServiceHandler
	Snapshots    adminv1connect.SnapshotServiceHandler
	Cells        adminv1connect.CellAdminServiceHandler
	Sessions     adminv1connect.SessionServiceHandler
	Audit        adminv1connect.AuditServiceHandler
	System       adminv1connect.SystemServiceHandler
}

// Config is what the API stands on. Services, Auth and Tenants are required.
type Config struct {
	Services
	Auth    Authenticator
	Tenants Tenants
	Logger  *slog.Logger
	// Ready are the checks of /readyz.
	Ready []Check
	// Build is what /version shows, as JSON.
	Build any
	// MetricsPage is /metrics; nil serves none.
	MetricsPage http.Handler
	// CellsPage says at nearest.Path where the cells are; nil serves none.
	CellsPage http.Handler
	// Metrics takes this room's own metrics; nil keeps none.
	Metrics prometheus.Registerer
	// Tracer and Propagator trace the calls; nil traces none.
	Tracer     trace.TracerProvider
	Propagator propagation.TextMapPropagator
}

// New builds the handler. It does no IO.
func New(cfg Config) (http.Handler, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	interceptors, err := chain(cfg)
	if err != nil {
		return nil, err
	}
	server := connect.NewServer(interceptors...)
	server.SetUnknownHandler(func(_ context.Context, spec connect.Spec, _ connect.ServerStream) error { return noProcedure(spec) })
	register(server, cfg.Services)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server, connecthttp.WithReadMaxBytes(maxBody))
	mountPages(mux, cfg)
	// A browser page of another origin cannot call, token or not.
	guarded := http.NewCrossOriginProtection().Handler(mux)
	return identify(http.MaxBytesHandler(guarded, maxBody)), nil
}

// chain is the order of the steps, outermost first.
func chain(cfg Config) ([]connect.ServerInterceptor, error) {
	var list []connect.ServerInterceptor
	if cfg.Tracer != nil {
		opts := []otelconnect.Option{otelconnect.WithTracerProvider(cfg.Tracer), otelconnect.WithoutMetrics()}
		if cfg.Propagator != nil {
			opts = append(opts, otelconnect.WithPropagator(cfg.Propagator))
		}
		tracing, err := otelconnect.NewServerInterceptor(opts...)
		if err != nil {
			return nil, fmt.Errorf("trace the admin API: %w", err)
		}
		list = append(list, tracing)
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("register the admin API's metrics: %w", err)
	}
	rules := permissions()
	e := &edge{log: cfg.Logger, metrics: m, rules: rules}
	g := &gate{auth: cfg.Auth, tenants: cfg.Tenants, rules: rules}
	return append(list, e.intercept, g.admit, validate.NewServerInterceptor(), g.scope), nil
}

func register(server *connect.Server, s Services) {
	if s.Organisation != nil {
		adminv1connect.RegisterOrganisationServiceHandler(server, s.Organisation)
	}
	if s.Directory != nil {
		adminv1connect.RegisterDirectoryServiceHandler(server, s.Directory)
	}
	if s.Tokens != nil {
		adminv1connect.RegisterTokenServiceHandler(server, s.Tokens)
	}
	if s.Registry != nil {
		adminv1connect.RegisterRegistryServiceHandler(server, s.Registry)
	}
	if s.Endpoints != nil {
		adminv1connect.RegisterEndpointServiceHandler(server, s.Endpoints)
	}
	if s.Settings != nil {
		adminv1connect.RegisterSettingsServiceHandler(server, s.Settings)
	}
	if s.Access != nil {
		adminv1connect.RegisterAccessServiceHandler(server, s.Access)
	}
	if s.Policies != nil {
		adminv1connect.RegisterPolicyServiceHandler(server, s.Policies)
	}
	if s.Issuers != nil {
		adminv1connect.RegisterIssuerServiceHandler(server, s.Issuers)
	}
	if s.Identity != nil {
		adminv1connect.RegisterIdentityServiceHandler(server, s.Identity)
	}
	if s.Snapshots != nil {
		adminv1connect.RegisterSnapshotServiceHandler(server, s.Snapshots)
	}
	if s.Cells != nil {
		adminv1connect.RegisterCellAdminServiceHandler(server, s.Cells)
	}
	if s.Sessions != nil {
		adminv1connect.RegisterSessionServiceHandler(server, s.Sessions)
	}
	if s.Audit != nil {
		adminv1connect.RegisterAuditServiceHandler(server, s.Audit)
	}
	if s.System != nil {
		adminv1connect.RegisterSystemServiceHandler(server, s.System)
	}
}

// NewServer is an HTTP server with the limits that the handler needs: HTTP/1.1 and HTTP/2, also without TLS. Whoever
// starts it gives it a listener and stops it.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           h,
		Protocols:         &p,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      longest + 10*time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}
