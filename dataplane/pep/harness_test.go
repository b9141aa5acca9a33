package pep_test

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/authn"
	"github.com/mcpvault/mcpvault/dataplane/edge"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/pep"
	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/dataplane/session/sessiontest"
	"github.com/mcpvault/mcpvault/dataplane/store"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/kit/egress"
	"github.com/mcpvault/mcpvault/kit/jose"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"google.golang.org/protobuf/proto"
)

// book is an audit log in memory that can be made to fail.
type book struct {
	mu      sync.Mutex
	n       int
	records []*auditv1.Record
	broken  bool
	// onIntent runs while an intent is on its way to the disk.
	onIntent func()
	// noIntents is how a disk is that has room left for outcomes only.
	noIntents bool
}

var errDisk = errors.New("no space left on device")

func (b *book) NewID() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n++
	return fmt.Sprintf("01TEST%020d", b.n)
}

func (b *book) Append(r *auditv1.Record) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken {
		return errDisk
	}
	b.records = append(b.records, proto.Clone(r).(*auditv1.Record))
	return nil
}

func (b *book) Intent(_ context.Context, r *auditv1.Record) error {
	if b.onIntent != nil {
		b.onIntent()
	}
	if b.noIntents {
		return errDisk
	}
	return b.Append(r)
}

func (b *book) Outcome(_ context.Context, r *auditv1.Record) error { return b.Append(r) }
func (b *book) MAC(args []byte) []byte                             { return []byte{byte(len(args))} }

func (b *book) breakDisk(broken bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.broken = broken
}

// of returns the records of one decision id, its outcome included.
func (b *book) of(id string) []*auditv1.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*auditv1.Record
	for _, r := range b.records {
		if r.GetId() == id || r.GetIntentId() == id {
			out = append(out, r)
		}
	}
	return out
}

// all returns every record, and forget drops them.
func (b *book) all() []*auditv1.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.records)
}

func (b *book) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.records = nil
}

// gateway is a whole pipeline in this process: real policy, real tokens, real sockets.
type gateway struct {
	t      testing.TB
	url    string
	pdp    *pdp.PDP
	pep    *pep.PEP
	book   *book
	signer *jose.Signer
	policy *snapshot.Policy
	cat    *snapshotv1.Catalogue
	gen    uint64
	client *http.Client
	cell   *sessiontest.Cell
}

type tool struct {
	name, raw string
	effect    snapshotv1.Effect
}

func plainTool(name string, effect snapshotv1.Effect) tool {
	return tool{name, `{"name":"` + name + `","description":"d","inputSchema":{"type":"object"}}`, effect}
}

func catalogueServer(name, url string, versions []string, tools ...tool) *snapshotv1.CatalogueServer {
	d := snapshot.DigestOf([]byte(name))
	s := &snapshotv1.CatalogueServer{
		Id: name, Name: name, Url: url, ProtocolVersions: versions, VersionDigest: d[:],
		ServerInfo:   []byte(`{"name":"` + name + `","version":"1"}`),
		Capabilities: []byte(`{"tools":{"listChanged":true},"prompts":{},"resources":{}}`),
	}
	for _, t := range tools {
		s.Tools = append(s.Tools, &snapshotv1.CatalogueTool{Name: t.name, Raw: []byte(t.raw), Effect: t.effect})
	}
	slices.SortFunc(s.Tools, func(a, b *snapshotv1.CatalogueTool) int { return strings.Compare(a.GetName(), b.GetName()) })
	return s
}

func newGateway(t testing.TB, cfg pep.Config, grants []snapshot.Grant, servers ...*snapshotv1.CatalogueServer) *gateway {
	t.Helper()
	return injecting(t, cfg, nil, grants, servers...)
}

// injecting is newGateway with something that adds credentials.
func injecting(t testing.TB, cfg pep.Config, injector pep.Injector, grants []snapshot.Grant, servers ...*snapshotv1.CatalogueServer) *gateway {
	t.Helper()
	return assembled(t, cfg, func(p *pep.Parts) { p.Injector = injector }, grants, servers...)
}

// assembled is newGateway with parts of the test's own.
func assembled(t testing.TB, cfg pep.Config, change func(*pep.Parts), grants []snapshot.Grant, servers ...*snapshotv1.CatalogueServer) *gateway {
	t.Helper()
	_, key, _ := ed25519.GenerateKey(nil)
	signer, err := jose.NewSigner(key, "k1")
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{
		t: t, pdp: pdp.New("acme"), book: &book{}, signer: signer, client: http.DefaultClient,
		policy: &snapshot.Policy{
			Tenant:     "0192-acme",
			Principals: []snapshot.Principal{{Name: "alice"}, {Name: "bob"}, {Name: "root"}, {Name: "gone", Disabled: true}},
			Grants:     append(grants, snapshot.Grant{ID: "root", Subject: "user:root", Server: "*"}),
		},
		cat: &snapshotv1.Catalogue{
			TenantId: "0192-acme", Tenant: "acme", Servers: servers,
			Settings: &snapshotv1.Settings{MaxStalenessReadMs: 72 * 3600e3, MaxStalenessWriteMs: 24 * 3600e3},
			Issuers: []*snapshotv1.Issuer{{
				Issuer: "urn:mcpvault:issuer:acme", Audiences: []string{"urn:mcpvault:acme"},
				Keys: []*snapshotv1.IssuerKey{{Kid: "k1", Alg: "EdDSA", PublicKey: spki}},
			}},
		},
	}
	slices.SortFunc(servers, func(a, b *snapshotv1.CatalogueServer) int { return strings.Compare(a.GetName(), b.GetName()) })
	for _, s := range servers {
		ps := snapshot.Server{Name: s.GetName(), Items: []string{snapshot.ItemOther}}
		for _, tool := range s.GetTools() {
			ps.Items = append(ps.Items, tool.GetName())
		}
		g.policy.Servers = append(g.policy.Servers, ps)
	}
	g.publish()
	g.pdp.RenewLease("0192-acme", time.Now().UnixMilli())
	auth, err := authn.New(authn.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(auth.Close)
	sessions, err := session.New(session.Config{Keys: []session.Key{{ID: 1, Secret: [32]byte{1}}}})
	if err != nil {
		t.Fatal(err)
	}
	cell := sessiontest.New(t, 1, session.LeasesConfig{Defaults: session.Limits{PerPrincipal: 1000}})
	g.cell = cell
	guard, err := egress.NewGuard([]string{"127.0.0.0/8:*"})
	if err != nil {
		t.Fatal(err)
	}
	up := upstream.New(upstream.Config{Dial: guard.DialContext, ConnectTimeout: 30 * time.Second, HandshakeTimeout: 30 * time.Second})
	cfg.Cell, cfg.Node, cfg.Loopback = "c1", "n1", true
	parts := pep.Parts{
		Log: slog.New(slog.DiscardHandler), Policy: g.pdp, Authn: auth, Audit: g.book, Upstream: up, Sessions: sessions, Leases: cell.Node(0).Leases,
	}
	change(&parts)
	g.pep = pep.New(cfg, parts)
	t.Cleanup(up.Close)
	cell.Node(0).Ended = func(e store.EndedLease) { g.pep.SessionEnded(e.Lease, e.Closed) }
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		_ = g.pep.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-ran
	})
	// More fields than in production: the bound of the pipeline is tested, which holds for every protocol.
	g.url = g.listen(edge.Config{MaxFields: 200})
	return g
}

// listen serves the pipeline on one more address, as a node does.
func (g *gateway) listen(cfg edge.Config) (url string) {
	g.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		g.t.Fatal(err)
	}
	cfg.Grace, cfg.OnDrain, cfg.Refused, cfg.Dropped, cfg.Cut = 10*time.Millisecond, g.pep.Drain, g.pep.Malformed, g.pep.TurnedAway, pep.ErrStopping
	s, err := edge.New(cfg, ln, g.pep, slog.New(slog.DiscardHandler))
	if err != nil {
		g.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	g.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			g.t.Error(err)
		}
	})
	return "http://" + s.Addr().String()
}

// publish compiles the policy and the catalogue into the next generation and makes it live.
func (g *gateway) publish() {
	g.t.Helper()
	g.gen++
	b, err := builder.Build(g.policy)
	if err != nil {
		g.t.Fatal(err)
	}
	x, err := index.Open(b)
	if err != nil {
		g.t.Fatal(err)
	}
	head := &snapshotv1.Head{TenantId: "0192-acme", Tenant: "acme", Epoch: 1, Generation: g.gen}
	tenant, err := pdp.NewTenant(head, snapshot.DigestOf(fmt.Append(b, g.gen)), x, g.cat)
	if err != nil {
		g.t.Fatal(err)
	}
	g.pdp.Activate([]*pdp.Tenant{tenant}, nil)
}

func (g *gateway) claims(user string) map[string]any {
	now := time.Now()
	return map[string]any{
		"iss": "urn:mcpvault:issuer:acme", "aud": []string{"urn:mcpvault:acme"}, "sub": user, "tenant": "acme", "client_id": "test",
		"jti": "jti-" + user, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
}

func (g *gateway) token(user string) string {
	g.t.Helper()
	tok, err := g.signer.Mint(g.claims(user))
	if err != nil {
		g.t.Fatal(err)
	}
	return tok
}

// answer is what a client got.
type answer struct {
	status int
	header http.Header
	body   string
	Result json.RawMessage
	Error  *struct {
		Code    int
		Message string
		Data    json.RawMessage
	}
	ID json.RawMessage
}

func (a *answer) decision() string { return a.header.Get("MCPVault-Decision-Id") }

func (a *answer) code() int {
	if a.Error == nil {
		return 0
	}
	return a.Error.Code
}

// request is a POST to path as user; "" sends no token. Header pairs come in place of the defaults; an empty value
// removes one.
func (g *gateway) request(ctx context.Context, method, path, user, body string, header ...string) *http.Request {
	g.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, g.url+path, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	if user != "" {
		req.Header.Set("Authorization", "Bearer "+g.token(user))
	}
	for i := 0; i < len(header); i += 2 {
		switch {
		case header[i] == "Host":
			req.Host = header[i+1]
		case header[i+1] == "":
			req.Header.Del(header[i])
		default:
			req.Header.Set(header[i], header[i+1])
		}
	}
	return req
}

func (g *gateway) do(req *http.Request) *answer {
	g.t.Helper()
	resp, err := g.client.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	a := &answer{status: resp.StatusCode, header: resp.Header, body: string(b)}
	for line := range strings.SplitSeq(a.body, "\n") {
		line = strings.TrimPrefix(line, "data: ")
		if strings.Contains(line, `"result"`) || strings.Contains(line, `"error"`) {
			_ = json.Unmarshal([]byte(line), a)
		}
	}
	return a
}

func (g *gateway) post(path, user, body string, header ...string) *answer {
	g.t.Helper()
	return g.do(g.request(g.t.Context(), http.MethodPost, path, user, body, header...))
}

const meta = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}`

// modern posts a modern request. params are the members of params, without braces.
func (g *gateway) modern(path, user, method, name, params string) *answer {
	g.t.Helper()
	if params != "" {
		params += ","
	}
	body := `{"jsonrpc":"2.0","id":1,"method":"` + method + `","params":{` + params + meta + `}}`
	return g.post(path, user, body, "MCP-Protocol-Version", "2026-07-28", "Mcp-Method", method, "Mcp-Name", name)
}

func (g *gateway) call(path, user, name, args string) *answer {
	g.t.Helper()
	return g.modern(path, user, "tools/call", name, `"name":"`+name+`","arguments":`+args)
}

// legacy opens a session and returns its id.
func (g *gateway) legacy(path, user string) string {
	g.t.Helper()
	a := g.post(path, user, `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`)
	if a.status != http.StatusOK || a.header.Get("Mcp-Session-Id") == "" {
		g.t.Fatalf("initialize: %d %s", a.status, a.body)
	}
	return a.header.Get("Mcp-Session-Id")
}

// scripted is an upstream of all eras that answers as it is told and remembers what it saw.
type scripted struct {
	url string

	mu     sync.Mutex
	seen   []string
	header []http.Header
	reply  func(w http.ResponseWriter, r *http.Request, body string)
}

const oddResult = `{ "content":[{"type":"hologram","x":9007199254740993,"oneOf":[1]}],"isError":false,"vendor":{"b":1,"a":2.50},"resultType":"complete"}`

func newScripted(t *testing.T) *scripted {
	t.Helper()
	s := &scripted{}
	srv := httptest.NewServer(s)
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	s.url = srv.URL + "/mcp"
	return s
}

func (s *scripted) script(reply func(w http.ResponseWriter, r *http.Request, body string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reply = reply
}

func (s *scripted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	s.seen = append(s.seen, r.Method+" "+string(b))
	s.header = append(s.header, r.Header.Clone())
	reply := s.reply
	s.mu.Unlock()
	if reply != nil {
		reply(w, r, string(b))
		return
	}
	s.answer(w, string(b))
}

func (s *scripted) answer(w http.ResponseWriter, body string) {
	var m struct {
		ID     json.RawMessage
		Method string
	}
	_ = json.Unmarshal([]byte(body), &m)
	if m.ID == nil {
		w.WriteHeader(http.StatusAccepted)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	result := oddResult
	if m.Method == "initialize" {
		w.Header().Set("Mcp-Session-Id", "upstream-session")
		result = `{"protocolVersion":"2025-11-25","capabilities":{"tools":{"listChanged":true},"prompts":{}},"serverInfo":{"name":"scripted","version":"1"}}`
	}
	_, _ = fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":%s}`, m.ID, result)
}

// calls counts the tool calls that arrived.
func (s *scripted) calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, b := range s.seen {
		if strings.Contains(b, "tools/call") {
			n++
		}
	}
	return n
}

func (s *scripted) last() (string, http.Header) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[len(s.seen)-1], s.header[len(s.header)-1]
}

const (
	read        = snapshotv1.Effect_EFFECT_READ
	destructive = snapshotv1.Effect_EFFECT_DESTRUCTIVE
)

func allEras() []string { return []string{"2026-07-28", "2025-11-25", "2025-06-18"} }

// payments is the usual gateway: alice may see and use some of one scripted server.
func payments(t *testing.T) (*gateway, *scripted) {
	t.Helper()
	return paymentsWith(t, pep.Config{})
}

func paymentsWith(t *testing.T, cfg pep.Config) (*gateway, *scripted) {
	t.Helper()
	up := newScripted(t)
	odd := tool{"odd", `{"x-vendor":1, "name":"odd","inputSchema":{"oneOf":[{"type":"object"}],"$id":"q","n":9007199254740993}}`, read}
	g := newGateway(t, cfg, []snapshot.Grant{
		{ID: "g1", Subject: "user:alice", Server: "pay", Tool: "balance"},
		{ID: "g2", Subject: "user:alice", Server: "pay", Tool: "odd"},
		{ID: "g3", Subject: "user:alice", Server: "pay", Tool: "refund", When: &snapshot.Cond{
			Op: snapshot.OpLt, Arg: "amount", Value: snapshot.Value{Type: snapshot.TypeNumber, Int: 100},
		}},
	}, catalogueServer("pay", up.url, allEras(), plainTool("balance", read), plainTool("refund", destructive), plainTool("secret", read), odd))
	return g, up
}
