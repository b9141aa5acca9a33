// Package server is the whole control plane: it reads top to bottom what is built of what, what runs, and in which order
// it stops.
//
// It promises to start and to stay up without PostgreSQL: it is then not ready, says why, and goes on by itself when
// PostgreSQL is there. Cells never wait for it.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/access"
	"github.com/mcpvault/mcpvault/controlplane/adminapi"
	"github.com/mcpvault/mcpvault/controlplane/cellapi"
	"github.com/mcpvault/mcpvault/controlplane/directory"
	"github.com/mcpvault/mcpvault/controlplane/endpoint"
	"github.com/mcpvault/mcpvault/controlplane/issuers"
	"github.com/mcpvault/mcpvault/controlplane/keyring"
	"github.com/mcpvault/mcpvault/controlplane/ledger"
	"github.com/mcpvault/mcpvault/controlplane/machines"
	"github.com/mcpvault/mcpvault/controlplane/policies"
	"github.com/mcpvault/mcpvault/controlplane/publish"
	"github.com/mcpvault/mcpvault/controlplane/registry"
	"github.com/mcpvault/mcpvault/controlplane/settings"
	"github.com/mcpvault/mcpvault/controlplane/snapshots"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/tokens"
	"github.com/mcpvault/mcpvault/controlplane/whereabouts"
	"github.com/mcpvault/mcpvault/kit/egress"
	"github.com/mcpvault/mcpvault/kit/jose"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/run"
	"github.com/mcpvault/mcpvault/kit/svid"
	"github.com/mcpvault/mcpvault/kit/tele"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// How long a part may take to stop.
const (
	stopServing = 5 * time.Second
	openRetry   = 300 * time.Millisecond
)

// Run is a control plane until ctx ends. Bad settings, keys and identities are errors at once; everything else that is
// missing is waited for.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	ring, err := keyring.Open(cfg.KeysDir, log, tokenName)
	if err != nil {
		return err
	}
	token, err := openToken(cfg.KeysDir)
	if err != nil {
		return err
	}
	authority, err := openAuthority(cfg, log)
	if err != nil {
		return err
	}
	identity, err := svid.Open(ctx, svid.Config{Dir: cfg.IdentityDir, Logger: log})
	if err != nil {
		return problem.New(problem.Invalid, "the control plane has no identity", "issue an SVID into identity_dir, or set ca_dir").Because(err)
	}
	defer func() { _ = identity.Close() }()
	traces, err := tele.NewTraces(ctx, tele.TraceConfig{Service: "mcpvault-controlplane", Version: run.Version().Version, Getenv: os.Getenv})
	if err != nil {
		return err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopServing)
		defer cancel()
		_ = traces.Shutdown(end)
	}()
	s := &server{cfg: cfg, log: log, keys: ring, token: token, identity: identity, traces: traces, authority: authority, guard: svid.NewGuard(identity, log, nil)}
	// The ports are taken first: a second control plane on this machine must not touch the database before it fails.
	if err := s.listen(ctx); err != nil {
		return err
	}
	defer s.closeListeners()
	g := run.New(log)
	g.Add("keys", run.Func(s.watchKeys), time.Second)
	g.Add("identity", run.Func(s.keepIdentity), time.Second)
	g.Add("connections", s.guard, time.Second)
	// The admin port answers from the first moment on, so that a person or a supervisor can see what is being waited for.
	g.Add("admin api", run.Func(s.serveAdmin), stopServing+time.Second)
	g.Add("control plane", run.Func(s.runOnDatabase), stopServing+5*time.Second)
	return g.Run(ctx)
}

type server struct {
	cfg      Config
	log      *slog.Logger
	keys     *keyring.Ring
	token    *tokenKey
	identity *svid.Source
	// authority signs SVIDs; nil where somebody else does. guard ends the connections of those that are worth nothing any more.
	authority *svid.Authority
	guard     *svid.Guard
	traces    *tele.Traces

	admin, cells net.Listener
	// handler answers on the admin port; before PostgreSQL is there it only says so.
	handler atomic.Pointer[http.Handler]
	// bootstrapped is set when somebody can log in.
	bootstrapped atomic.Bool
}

func (s *server) listen(ctx context.Context) error {
	var lc net.ListenConfig
	var err error
	if s.admin, err = lc.Listen(ctx, "tcp", s.cfg.Listen); err != nil {
		return problem.Newf(problem.Conflict, "stop what uses it, or change listen", "the admin API cannot listen on %s", s.cfg.Listen).Because(err)
	}
	if s.cells, err = lc.Listen(ctx, "tcp", s.cfg.CellListen); err != nil {
		_ = s.admin.Close()
		return problem.Newf(problem.Conflict, "stop what uses it, or change cell_listen", "the cells' API cannot listen on %s", s.cfg.CellListen).Because(err)
	}
	return nil
}

// closeListeners is for those that were never served.
func (s *server) closeListeners() {
	_ = s.admin.Close()
	_ = s.cells.Close()
}

// serveAdmin serves whatever handler there is.
func (s *server) serveAdmin(ctx context.Context) error {
	s.setHandler(waiting())
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*s.handler.Load()).ServeHTTP(w, r) })
	srv := adminapi.NewServer(h, s.log)
	serve := srv.Serve
	if s.cfg.TLSCert != "" {
		serve = func(l net.Listener) error { return srv.ServeTLS(l, s.cfg.TLSCert, s.cfg.TLSKey) }
	}
	s.log.InfoContext(ctx, "admin api listens", "address", s.admin.Addr().String())
	return serveUntil(ctx, srv, func() error { return serve(s.admin) })
}

func (s *server) setHandler(h http.Handler) { s.handler.Store(&h) }

// waiting answers while PostgreSQL was not reached yet.
func waiting() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "not ready: PostgreSQL has not been reached yet; cells go on serving meanwhile", http.StatusServiceUnavailable)
	})
	return mux
}

// serveUntil serves until ctx ends, lets requests finish for a while, and cuts off the rest.
func serveUntil(ctx context.Context, srv *http.Server, serve func() error) error {
	// Requests live on a context of their own, so that they can finish; streams end with it.
	base, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	srv.BaseContext = func(net.Listener) context.Context { return base }
	ended := make(chan error, 1)
	go func() { ended <- serve() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopServing)
	defer cancel()
	shut := make(chan error, 1)
	go func() { shut <- srv.Shutdown(end) }()
	// Most requests are over in milliseconds; who waits for something is told that it is over.
	var err error
	select {
	case err = <-shut:
	case <-time.After(200 * time.Millisecond):
		cut()
		err = <-shut
	}
	if err != nil {
		_ = srv.Close()
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// runOnDatabase waits for PostgreSQL and then runs everything that stands on it.
func (s *server) runOnDatabase(ctx context.Context) error {
	st, err := s.openStore(ctx)
	if err != nil || st == nil {
		return err
	}
	defer st.Close()

	transport, err := egress.NewTransport(s.cfg.EgressAllow)
	if err != nil {
		return err
	}
	defer transport.CloseIdleConnections()
	servers, err := svid.OpenServers(s.identity, svid.BundleFiles(s.cfg.UpstreamBundles), s.log)
	if err != nil {
		return problem.Newf(problem.Invalid, "check upstream_bundles", "the bundles of upstreams cannot be read: %v", err)
	}
	metrics := tele.NewRegistry(tele.Build(run.Version()))
	fleet := cellapi.NewFleet()
	audit := ledger.New(ledger.Config{Store: st, Logger: s.log})
	publisher := publish.New(publish.Config{
		Store: st, Keys: s.keys, Cells: s.cfg.Cells, Issuers: s.issuers, Logger: s.log, Metrics: metrics,
		KeepFor: time.Duration(s.cfg.KeepGenerationsDays) * 24 * time.Hour,
	})
	grants := access.New(access.Config{Store: st, Keys: s.keys, Logger: s.log})
	issuer := tokens.New(tokens.Config{Store: st, Signer: s.token.signer, Keys: []jose.Key{s.token.signer.Key()}, Killer: grants})
	people := directory.New(directory.Config{Store: st})
	identities := machines.New(machines.Config{
		Store: st, Cells: publisher, Roots: s.keys, Authority: s.authority, WorkloadDir: s.cfg.workloadDir(), TrustDomain: s.cfg.TrustDomain,
		CellURL: s.cfg.CellURL, Logger: s.log,
	})
	trusted := issuers.New(issuers.Config{Store: st, Transport: transport, Logger: s.log})
	status := snapshots.New(snapshots.Config{
		Store: st, Publisher: publisher, Fleet: fleet, Logs: audit, Keys: s.keys, Version: run.Version().Version,
	})
	cells := whereabouts.New(whereabouts.Config{Store: st, Published: publisher, Logger: s.log})
	handler, err := adminapi.New(adminapi.Config{
		Services: adminapi.Services{
			Organisation: people, Directory: people, Tokens: issuer, Access: grants, Audit: audit,
			Policies:  policies.New(policies.Config{Store: st}),
			Issuers:   trusted,
			Identity:  identities,
			Registry:  registry.New(st, registry.NewScanner(transport, servers.TLS, run.Version().Version, s.log), s.log),
			Endpoints: endpoint.New(st), Settings: settings.New(st),
			Snapshots: status, Cells: status, Sessions: status, System: status,
		},
		Auth: issuer, Tenants: st, Logger: s.log, Ready: s.checks(st, publisher), Build: run.Version(),
		MetricsPage: metrics.Handler(s.log), CellsPage: cells, Metrics: metrics, Tracer: s.traces.TracerProvider, Propagator: s.traces.Propagator,
	})
	if err != nil {
		return err
	}
	nodes := cellapi.New(cellapi.Config{
		Store: st, Published: publisher, Witness: audit, Fleet: fleet, Machines: identities, Cells: cells, Logger: s.log,
	})
	s.setHandler(handler)
	defer s.setHandler(waiting())

	g := run.New(s.log)
	g.Add("publisher", publisher, stopServing)
	g.Add("issuers", trusted, stopServing)
	g.Add("cells' whereabouts", cells, stopServing)
	g.Add("bootstrap", run.Func(func(ctx context.Context) error { return s.bootstrap(ctx, people, issuer) }), stopServing)
	g.Add("cells' api", run.Func(func(ctx context.Context) error { return s.serveCells(ctx, nodes) }), stopServing+time.Second)
	return g.Run(ctx)
}

// openStore returns nil when ctx ends before PostgreSQL is there.
func (s *server) openStore(ctx context.Context) (*store.Store, error) {
	said := ""
	for {
		st, err := store.Open(ctx, store.Config{URL: s.cfg.DatabaseURL, Logger: s.log, MaxConns: 16})
		if err == nil {
			return st, nil
		}
		if ctx.Err() != nil {
			return nil, nil //nolint:nilerr // the end was asked for
		}
		if problem.CodeOf(err) == problem.Invalid {
			return nil, err
		}
		if err.Error() != said {
			said = err.Error()
			s.log.WarnContext(ctx, "waiting for PostgreSQL", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(openRetry):
		}
	}
}

// issuers are MCPVault's own, whose tokens a tenant's callers may always bring.
func (s *server) issuers(t controlplane.Tenant) []*snapshotv1.Issuer {
	return []*snapshotv1.Issuer{{
		Issuer: tokens.IssuerOf(t.Name), Audiences: []string{tokens.AudienceOf(t.Name)}, Keys: []*snapshotv1.IssuerKey{s.token.issuer},
	}}
}

func (s *server) checks(st *store.Store, p *publish.Publisher) []adminapi.Check {
	return []adminapi.Check{
		{Name: "postgres", Run: st.Ping},
		{Name: "publisher", Run: func(context.Context) error {
			if !p.Status().Loaded {
				return problem.New(problem.Unavailable, "the published generations have not been read yet", "")
			}
			return nil
		}},
		{Name: "keys", Run: func(context.Context) error { return s.keys.Problem() }},
		{Name: "bootstrap", Run: func(context.Context) error {
			if !s.bootstrapped.Load() {
				return problem.New(problem.Unavailable, "the first owner has not been made yet", "")
			}
			return nil
		}},
	}
}

func (s *server) serveCells(ctx context.Context, nodes *cellapi.Service) error {
	srv := cellapi.NewServer(nodes.Handler(), s.log)
	srv.TLSConfig = nodes.TLS(s.identity, s.guard, s.cfg.TrustDomain)
	s.log.InfoContext(ctx, "cells' api listens", "address", s.cells.Addr().String())
	return serveUntil(ctx, srv, func() error { return srv.ServeTLS(s.guard.Listen(s.cells), "", "") })
}

// bootstrap makes sure that somebody can log in.
func (s *server) bootstrap(ctx context.Context, people *directory.Service, issuer *tokens.Service) error {
	for s.cfg.BootstrapTokenFile != "" {
		err := s.bootstrapOnce(ctx, people, issuer)
		if err == nil || ctx.Err() != nil {
			break
		}
		if problem.CodeOf(err) == problem.Denied {
			// Somebody has disabled them on purpose: no reason to wait, nor to let them in again.
			s.log.ErrorContext(ctx, "no token was made for the first owner", "error", err)
			break
		}
		s.log.WarnContext(ctx, "the first owner cannot be made yet", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	s.bootstrapped.Store(ctx.Err() == nil)
	return nil //nolint:nilerr // the loop is over when it worked, or when the end was asked for
}

const (
	bootstrapActor = "bootstrap"
	bootstrapUser  = "admin"
	bootstrapTTL   = 24 * time.Hour
)

func (s *server) bootstrapOnce(ctx context.Context, people *directory.Service, issuer *tokens.Service) error {
	t, err := people.EnsureTenant(ctx, bootstrapActor, s.cfg.BootstrapTenant, s.cfg.BootstrapHosts)
	if err != nil {
		return err
	}
	owner := controlplane.User{Name: bootstrapUser, Kind: controlplane.Person, AdminRoles: []string{controlplane.RoleOwner}}
	if err := people.EnsureUser(ctx, t, bootstrapActor, owner); err != nil {
		return err
	}
	_, value, err := issuer.Mint(ctx, tokens.Order{TenantID: t.ID, Tenant: t.Name, Principal: bootstrapUser, TTL: bootstrapTTL, Actor: bootstrapActor})
	if err != nil {
		return err
	}
	if err := writeWhole(s.cfg.BootstrapTokenFile, append(value.Reveal(), '\n'), 0o600); err != nil {
		return fmt.Errorf("write the bootstrap token: %w", err)
	}
	return nil
}
