package adminapi_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/adminapi"
	"github.com/mcpvault/mcpvault/controlplane/directory"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	"github.com/mcpvault/mcpvault/controlplane/tokens"
	"github.com/mcpvault/mcpvault/kit/jose"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1/adminv1connect"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

// system answers as it is told: it is where tests put what a service might do.
type system struct {
	adminv1connect.UnimplementedSystemServiceHandler
	whoami func(context.Context) (*adminv1.WhoamiResponse, error)
}

func (s *system) Whoami(ctx context.Context, _ *adminv1.WhoamiRequest) (*adminv1.WhoamiResponse, error) {
	return s.whoami(ctx)
}

func echoCaller(ctx context.Context) (*adminv1.WhoamiResponse, error) {
	c := controlplane.CallerFrom(ctx)
	return &adminv1.WhoamiResponse{Principal: c.Principal, Tenant: c.Tenant, Roles: c.Roles}, nil
}

// log keeps what was logged.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type bundle struct {
	url          string
	store        *store.Store
	tokens       *tokens.Service
	signer       *jose.Signer
	system       *system
	log          *log
	registry     *prometheus.Registry
	acme, globex controlplane.Tenant
}

func setup(t *testing.T) *bundle {
	t.Helper()
	return setupAt(t, storetest.URL(t))
}

func setupAt(t *testing.T, databaseURL string) *bundle {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(key, "k1")
	if err != nil {
		t.Fatal(err)
	}
	b := &bundle{store: storetest.OpenAt(t, databaseURL, nil), signer: signer, system: &system{whoami: echoCaller}, log: &log{}, registry: prometheus.NewRegistry()}
	b.tokens = tokens.New(tokens.Config{Store: b.store, Signer: signer, Keys: []jose.Key{signer.Key()}})
	dir := directory.New(directory.Config{Store: b.store})
	h, err := adminapi.New(adminapi.Config{
		Services: adminapi.Services{Organisation: dir, Directory: dir, Tokens: b.tokens, System: b.system},
		Auth:     b.tokens, Tenants: b.store, Metrics: b.registry,
		Logger: slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Ready:  []adminapi.Check{{Name: "postgres", Run: b.store.Ping}, {Name: "calm", Run: func(context.Context) error { return nil }}},
		Build:  map[string]string{"version": "test"},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.serve(t, h)
	b.acme, b.globex = storetest.Tenant(t, b.store, "acme"), storetest.Tenant(t, b.store, "globex")
	for _, role := range []string{"owner", "admin", "auditor", "member"} {
		for _, tenant := range []controlplane.Tenant{b.acme, b.globex} {
			u := controlplane.User{Name: role, Kind: controlplane.Person, AdminRoles: []string{role}}
			if err := dir.EnsureUser(t.Context(), tenant, "setup", u); err != nil {
				t.Fatal(err)
			}
		}
	}
	return b
}

// serve runs the handler on the server that production uses.
func (b *bundle) serve(t *testing.T, h http.Handler) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := adminapi.NewServer(h, slog.New(slog.DiscardHandler))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	b.url = "http://" + l.Addr().String()
}

// token mints one for the user of that name, which is also their role.
func (b *bundle) token(t *testing.T, tenant controlplane.Tenant, name string) string {
	t.Helper()
	_, value, err := b.tokens.Mint(t.Context(), tokens.Order{TenantID: tenant.ID, Tenant: tenant.Name, Principal: name, TTL: time.Hour, Actor: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return string(value.Reveal())
}

type client struct {
	org    adminv1connect.OrganisationServiceClient
	dir    adminv1connect.DirectoryServiceClient
	tokens adminv1connect.TokenServiceClient
	system adminv1connect.SystemServiceClient
}

func (b *bundle) client(token string, opts ...connecthttp.Option) client {
	return b.clientOn(http.DefaultClient, token, opts...)
}

func (b *bundle) clientOn(h *http.Client, token string, opts ...connecthttp.Option) client {
	c := connect.NewClient(connecthttp.NewTransport(h, b.url, opts...), func(next connect.ClientFunc) connect.ClientFunc {
		return func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
			if info, ok := connect.CallInfoForClientContext(ctx); ok && token != "" {
				info.RequestHeader().Set("Authorization", "Bearer "+token)
			}
			return next(ctx, spec)
		}
	})
	return client{
		adminv1connect.NewOrganisationServiceClient(c), adminv1connect.NewDirectoryServiceClient(c),
		adminv1connect.NewTokenServiceClient(c), adminv1connect.NewSystemServiceClient(c),
	}
}

// refused checks what a person would read of the error.
func refused(t *testing.T, err error, code problem.Code, words string) {
	t.Helper()
	if err == nil {
		t.Errorf("want %s, got no error", code)
		return
	}
	p := adminapi.ProblemOf(err)
	if p.Code != code || !strings.Contains(p.What, words) || p.Fix == "" {
		t.Errorf("want %s with %q and a fix, got %s: %q, %q", code, words, p.Code, p.What, p.Fix)
	}
}

func TestWithoutAGoodTokenNobodyComesIn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ask := func(token string) error {
		_, err := b.client(token).system.Whoami(t.Context(), &adminv1.WhoamiRequest{})
		return err
	}
	if err := ask(b.token(t, b.acme, "member")); err != nil {
		t.Fatalf("a good token: %v", err)
	}
	refused(t, ask(""), problem.Unauthenticated, "no bearer token")
	refused(t, ask("rubbish"), problem.Unauthenticated, "not accepted")
	mcpOnly, err := b.signer.Mint(map[string]any{
		"iss": tokens.IssuerOf("acme"), "sub": "admin", "tenant": "acme", "jti": "x", "aud": []string{tokens.AudienceOf("acme")},
		"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
	})
	if err != nil {
		t.Fatal(err)
	}
	refused(t, ask(mcpOnly), problem.Unauthenticated, "not one for the admin API")

	res, err := http.Post(b.url+adminv1connect.SystemServiceWhoamiProcedure, "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusUnauthorized || res.Header.Get("WWW-Authenticate") == "" || res.Header.Get("X-Request-Id") == "" {
		t.Errorf("status %d, headers %v", res.StatusCode, res.Header)
	}
}

func TestEachRoleMayDoWhatTheTableSays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	type deed struct {
		name string
		do   func(client) error
		from string // the least role that may
	}
	n := 0
	deeds := []deed{
		{"whoami", func(c client) error { _, err := c.system.Whoami(t.Context(), &adminv1.WhoamiRequest{}); return err }, "member"},
		{"list users", func(c client) error { _, err := c.dir.ListUsers(t.Context(), &adminv1.ListUsersRequest{}); return err }, "auditor"},
		{"create user", func(c client) error {
			n++
			_, err := c.dir.CreateUser(t.Context(), &adminv1.CreateUserRequest{Name: "u" + string(rune('a'+n))})
			return err
		}, "admin"},
		{"list tenants", func(c client) error {
			_, err := c.org.ListTenants(t.Context(), &adminv1.ListTenantsRequest{})
			return err
		}, "owner"},
	}
	roles := []string{"member", "auditor", "admin", "owner"}
	for _, d := range deeds {
		allowed := false
		for _, role := range roles {
			allowed = allowed || role == d.from
			err := d.do(b.client(b.token(t, b.acme, role)))
			if allowed && err != nil {
				t.Errorf("%s as %s: %v", d.name, role, err)
			}
			if !allowed {
				refused(t, err, problem.Denied, "needs the admin role "+d.from)
			}
		}
	}
}

func TestOnlyAnOwnerActsInAnotherTenant(t *testing.T) {
	t.Parallel()
	b := setup(t)
	inGlobex := &adminv1.CreateUserRequest{Tenant: "globex", Name: "mallory"}
	_, err := b.client(b.token(t, b.acme, "admin")).dir.CreateUser(t.Context(), inGlobex)
	refused(t, err, problem.Denied, "may not act in globex")
	_, err = b.client(b.token(t, b.acme, "admin")).dir.ListUsers(t.Context(), &adminv1.ListUsersRequest{Tenant: "no-such"})
	refused(t, err, problem.Denied, "may not act in no-such")

	owner := b.client(b.token(t, b.acme, "owner"))
	if _, err := owner.dir.CreateUser(t.Context(), inGlobex); err != nil {
		t.Fatal(err)
	}
	if _, err := owner.dir.GetUser(t.Context(), &adminv1.GetUserRequest{Name: "mallory"}); adminapi.ProblemOf(err).Code != problem.NotFound {
		t.Errorf("mallory of globex is in acme: %v", err)
	}
	if _, err := b.client(b.token(t, b.globex, "admin")).dir.GetUser(t.Context(), &adminv1.GetUserRequest{Name: "mallory"}); err != nil {
		t.Error(err)
	}
	var last controlplane.Change
	err = b.store.Read(t.Context(), b.globex.ID, func(tx *store.Tx) error {
		list, err := tx.Changes(t.Context(), 10)
		for _, c := range list {
			if c.Object == "user:mallory" {
				last = c
			}
		}
		return err
	})
	if err != nil || last.Actor != "acme/owner" {
		t.Errorf("the ledger says %+v, %v", last, err)
	}
}

func TestTheProtosRulesAreToldFieldByField(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.client(b.token(t, b.acme, "admin")).dir.CreateUser(t.Context(), &adminv1.CreateUserRequest{Name: "no spaces", DisplayName: strings.Repeat("x", 300)})
	refused(t, err, problem.Invalid, "name")
	refused(t, err, problem.Invalid, "display_name")
	if connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("code %s", connect.CodeOf(err))
	}
}

func TestConflictAndNotFoundArriveWithTheirWords(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(b.token(t, b.acme, "admin"))
	_, err := c.dir.CreateUser(t.Context(), &adminv1.CreateUserRequest{Name: "member"})
	refused(t, err, problem.Conflict, "user member already exists")
	_, err = c.dir.GetUser(t.Context(), &adminv1.GetUserRequest{Name: "nobody"})
	if p := adminapi.ProblemOf(err); p.Code != problem.NotFound || p.What != "user nobody does not exist" {
		t.Errorf("got %v", p)
	}
}

func TestAnOrdinaryErrorShowsNothingButTheRequestID(t *testing.T) {
	t.Parallel()
	b := setup(t)
	token := b.token(t, b.acme, "member")
	for name, fail := range map[string]func(context.Context) (*adminv1.WhoamiResponse, error){
		"error": func(context.Context) (*adminv1.WhoamiResponse, error) { return nil, errors.New("canary-1234") },
		"panic": func(context.Context) (*adminv1.WhoamiResponse, error) { panic("canary-1234") },
		"cause": func(context.Context) (*adminv1.WhoamiResponse, error) {
			return nil, problem.New(problem.Internal, "internal error", "look at the log").Because(errors.New("canary-1234"))
		},
	} {
		b.system.whoami = fail
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+adminv1connect.SystemServiceWhoamiProcedure, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("X-Request-Id", "my-request-7")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusInternalServerError || res.Header.Get("X-Request-Id") != "my-request-7" || bytes.Contains(body, []byte("canary")) {
			t.Errorf("%s: status %d, body %s", name, res.StatusCode, body)
		}
		if name == "error" && !bytes.Contains(body, []byte("my-request-7")) {
			t.Errorf("%s: the body does not name the request: %s", name, body)
		}
	}
	if n := strings.Count(b.log.String(), "canary-1234"); n < 3 {
		t.Errorf("the log holds %d of 3 causes", n)
	}
	if strings.Contains(b.log.String(), token) {
		t.Error("the token is in the log")
	}
}

func TestARequestIDThatCouldForgeALogLineIsReplaced(t *testing.T) {
	t.Parallel()
	b := setup(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.url+"/livez", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Request-Id", "a b=c")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if id := res.Header.Get("X-Request-Id"); len(id) != 26 {
		t.Errorf("id %q", id)
	}
}

func TestALargeBodyIsRefusedUnread(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(b.token(t, b.acme, "admin"))
	_, err := c.dir.CreateUser(t.Context(), &adminv1.CreateUserRequest{Name: "x", DisplayName: strings.Repeat("x", 5<<20)})
	if code := connect.CodeOf(err); code != connect.CodeResourceExhausted {
		t.Errorf("got %v", err)
	}
}

func TestOnePortSpeaksEveryProtocol(t *testing.T) {
	t.Parallel()
	b := setup(t)
	token := b.token(t, b.acme, "member")
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	h2c := &http.Client{Transport: &http.Transport{Protocols: &p}}
	t.Cleanup(h2c.CloseIdleConnections)
	for name, c := range map[string]client{
		"connect":  b.client(token),
		"json":     b.client(token, connecthttp.WithProtoJSON()),
		"get":      b.client(token, connecthttp.WithHTTPGet()),
		"grpc-web": b.client(token, connecthttp.WithGRPCWeb()),
		"grpc":     b.clientOn(h2c, token, connecthttp.WithGRPC()),
	} {
		res, err := c.system.Whoami(t.Context(), &adminv1.WhoamiRequest{})
		if err != nil || res.GetPrincipal() != "member" || res.GetTenant() != "acme" {
			t.Errorf("%s: %v, %v", name, res, err)
		}
	}
}

func TestABrowserPageOfAnotherOriginCannotCall(t *testing.T) {
	t.Parallel()
	b := setup(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+adminv1connect.SystemServiceWhoamiProcedure, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+b.token(t, b.acme, "member"))
	req.Header.Set("Origin", "https://evil.example")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("status %d", res.StatusCode)
	}
}

func TestPostgresGoneInTheMiddleOfAnAdminWrite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	srv := storetest.Server(t, dir)
	b := setupAt(t, srv.URL())
	token := b.token(t, b.acme, "admin")
	create := func() (*adminv1.CreateUserResponse, error) {
		return b.client(token).dir.CreateUser(t.Context(), &adminv1.CreateUserRequest{Name: "alice"})
	}
	b.system.whoami = func(ctx context.Context) (*adminv1.WhoamiResponse, error) {
		_, err := b.store.Write(ctx, b.acme.ID, "test", func(tx *store.Tx) error {
			if _, err := tx.InsertUser(ctx, controlplane.User{Name: "alice", Kind: controlplane.Person}); err != nil {
				return err
			}
			srv.Kill()
			// A backend may outlive its postmaster for a moment, and would then commit in earnest.
			for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
				if _, err := tx.Units(ctx); err != nil {
					break
				}
			}
			return tx.Change(ctx, "user.create", "user:alice", nil)
		})
		return nil, err
	}
	_, err := b.client(token).system.Whoami(t.Context(), &adminv1.WhoamiRequest{})
	refused(t, err, problem.Unavailable, "PostgreSQL is not reachable")
	_, err = create()
	refused(t, err, problem.Unavailable, "PostgreSQL is not reachable")
	if body, status := get(t, b.url+"/livez"); status != http.StatusOK {
		t.Errorf("/livez: %d %s", status, body)
	}
	if body, status := get(t, b.url+"/readyz?verbose"); status != http.StatusServiceUnavailable || !strings.Contains(body, "[-]postgres failed: PostgreSQL is not reachable") || !strings.Contains(body, "[+]calm ok") {
		t.Errorf("/readyz: %d %s", status, body)
	}
	storetest.Server(t, dir)
	if _, err := create(); err != nil {
		t.Errorf("PostgreSQL is back and kept nothing of the broken write, and: %v", err)
	}
}

func TestCallsAreCountedUnderKnownNamesOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if _, err := b.client(b.token(t, b.acme, "member")).system.Whoami(t.Context(), &adminv1.WhoamiRequest{}); err != nil {
		t.Fatal(err)
	}
	res, err := http.Post(b.url+"/mcpvault.admin.v1.SystemService/Invented", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	families, err := b.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				got = append(got, l.GetValue())
			}
		}
	}
	all := strings.Join(got, " ")
	if !strings.Contains(all, adminv1connect.SystemServiceWhoamiProcedure) || strings.Contains(all, "Invented") {
		t.Errorf("labels: %s", all)
	}
}
