package enroll_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/mcpvault/mcpvault/dataplane/cell"
	"github.com/mcpvault/mcpvault/dataplane/enroll"
	"github.com/mcpvault/mcpvault/kit/conf"
	"github.com/mcpvault/mcpvault/kit/jointoken"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1/cellv1connect"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

const domain = "mcpvault.test"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// controlPlane answers Enroll on a listener like the real one's.
type controlPlane struct {
	cellv1connect.UnimplementedCellServiceHandler
	ca    *svid.CA
	auth  *snapshottest.Authority
	token jointoken.Token
	url   string

	mu   sync.Mutex // guards what follows
	csrs [][]byte
	// cut has the next answer lost on its way; bend changes it.
	cut  bool
	bend func(*cellv1.EnrollResponse)
	err  error
}

func (c *controlPlane) Enroll(_ context.Context, req *cellv1.EnrollRequest) (*cellv1.EnrollResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.csrs = append(c.csrs, req.GetCsr())
	if c.err != nil {
		return nil, c.err
	}
	if !bytes.Equal(req.GetSecret(), c.token.Secret.Reveal()) {
		return nil, connect.NewError(connect.CodePermissionDenied, "this is no join token")
	}
	id, err := svid.NodeID(domain, req.GetCell(), req.GetNode())
	if err != nil {
		return nil, err
	}
	chain, err := c.ca.SignRequest(req.GetCsr(), id, 7*24*time.Hour)
	if err != nil {
		return nil, err
	}
	if c.cut {
		c.cut = false
		panic(http.ErrAbortHandler)
	}
	res := &cellv1.EnrollResponse{
		Identity: &cellv1.MachineIdentity{Svid: chain, Bundle: c.ca.Bundle(), WorkloadBundle: c.ca.Bundle(), WorkloadTrustDomain: "eu.workloads." + domain},
		Roots:    c.auth.Roots,
		Members:  []*cellv1.CellMember{{Node: "n3", Raft: "n3.test:8411", Peer: "n3.test:8412"}, {Node: "n1", Raft: "n1.test:8411", Peer: "n1.test:8412"}},
	}
	if c.bend != nil {
		c.bend(res)
	}
	return res, nil
}

func (c *controlPlane) asked() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.csrs)
}

func (c *controlPlane) set(change func(*controlPlane)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c)
}

// start serves with a CA below a root.
func start(t *testing.T) *controlPlane {
	t.Helper()
	root, err := svid.CreateRoot(t.TempDir(), domain)
	must(t, err)
	ca, err := root.CreateIntermediate(filepath.Join(t.TempDir(), "ca"), 30*24*time.Hour)
	must(t, err)
	c := &controlPlane{ca: ca, auth: snapshottest.NewAuthority(t)}
	id, err := svid.ControlPlaneID(domain, "cp")
	must(t, err)
	cert, key, err := ca.IssueNode(id, time.Hour)
	must(t, err)
	dir := t.TempDir()
	must(t, svid.WriteIdentity(dir, cert, key, ca.Bundle()))
	src, err := svid.Open(t.Context(), svid.Config{Dir: dir})
	must(t, err)
	server := connect.NewServer()
	cellv1connect.RegisterCellServiceHandler(server, c)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server)
	var p http.Protocols
	p.SetHTTP2(true)
	srv := &http.Server{
		Handler: mux, Protocols: &p, TLSConfig: svid.IntroductionTLS(src, "h2"), ReadHeaderTimeout: time.Second,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.ServeTLS(ln, "", "") }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	c.url = "https://" + ln.Addr().String()
	pins, err := svid.Pins(ca.Bundle())
	must(t, err)
	digest, err := seal.RootsDigest(c.auth.Roots)
	must(t, err)
	c.token = jointoken.Token{
		Secret: jointoken.NewSecret(), ControlPlane: c.url, TrustDomain: domain, Cell: "eu", Node: "n2", Authorities: pins, Roots: digest,
		Expires: time.Now().Add(10 * time.Minute).Truncate(time.Second),
	}
	return c
}

// order is what a person types on the machine.
func (c *controlPlane) order(t *testing.T, token jointoken.Token) enroll.Order {
	t.Helper()
	text, err := token.Text()
	must(t, err)
	cert, key, err := c.ca.IssueServer([]string{"mcp.test"}, nil, time.Hour)
	must(t, err)
	dir := t.TempDir()
	o := enroll.Order{
		Token: text, DataDir: filepath.Join(t.TempDir(), "data"), Raft: "n2.test:8411", Peer: "127.0.0.1:8412", TLS: "0.0.0.0:443",
		TLSCert: filepath.Join(dir, "tls.crt"), TLSKey: filepath.Join(dir, "tls.key"), PublicURLs: []string{"https://mcp.test/mcp"},
	}
	must(t, os.WriteFile(o.TLSCert, cert, 0o600))
	must(t, os.WriteFile(o.TLSKey, key, 0o600))
	return o
}

func refused(t *testing.T, what string, err error, want problem.Code) {
	t.Helper()
	if p, ok := problem.As(err); !ok || p.Code != want || p.What == "" || p.Fix == "" {
		t.Errorf("%s: want a %s problem, got %v", what, want, err)
	}
}

// nothing holds that the machine is no node.
func nothing(t *testing.T, o enroll.Order) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(o.DataDir, "node")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the machine is a node in part: %v", err)
	}
}

func TestAMachineBecomesANodeThatCanStart(t *testing.T) {
	t.Parallel()
	c := start(t)
	o := c.order(t, c.token)
	j, err := enroll.Join(t.Context(), o)
	must(t, err)
	if j.Cell != "eu" || j.Node != "n2" || j.Config != filepath.Join(o.DataDir, "node", "cell.yaml") || strings.Join(j.Others, ",") != "n1,n3" {
		t.Errorf("joined %+v", j)
	}
	cfg, err := conf.Load[cell.Config](j.Config, "")
	must(t, err)
	if cfg.Cell != "eu" || cfg.Node != "n2" || cfg.ControlPlane != c.url || cfg.TrustDomain != domain || cfg.DataDir != o.DataDir || len(cfg.Members) != 3 {
		t.Errorf("the configuration is %+v", cfg)
	}
	if cfg.Listen.Raft != "0.0.0.0:8411" || cfg.Listen.Peer != "127.0.0.1:8412" {
		t.Errorf("it listens at %+v", cfg.Listen)
	}
	src, err := svid.Open(t.Context(), svid.Config{Dir: cfg.IdentityDir})
	must(t, err)
	if id, err := src.ID(); err != nil || id.String() != "spiffe://mcpvault.test/cell/eu/node/n2" {
		t.Errorf("it is %s, %v", id, err)
	}
	roots, err := os.ReadFile(cfg.Roots)
	must(t, err)
	if _, err := seal.OpenRoots(roots, c.token.Roots); err != nil {
		t.Error(err)
	}
	if w := cfg.WorkloadBundles; len(w) != 1 || w[0].TrustDomain != "eu.workloads.mcpvault.test" {
		t.Errorf("workloads %+v", w)
	} else if _, err := svid.OpenClients(map[string]string{w[0].TrustDomain: w[0].Bundle}, time.Now, slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
	must(t, filepath.WalkDir(o.DataDir, func(path string, d os.DirEntry, err error) error {
		info, ierr := d.Info()
		if err = errors.Join(err, ierr); err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("others may read %s (%v)", path, info.Mode())
		}
		return err
	}))
	if _, err := os.Stat(filepath.Join(o.DataDir, "node.joining")); !errors.Is(err, os.ErrNotExist) {
		t.Error("something is left over")
	}
	_, err = enroll.Join(t.Context(), o)
	refused(t, "joining again", err, problem.Conflict)
}

func TestWhatIsWrongWithTheOrderCostsNoToken(t *testing.T) {
	t.Parallel()
	c := start(t)
	for name, change := range map[string]func(*enroll.Order){
		"half a token":        func(o *enroll.Order) { o.Token = o.Token[:40] },
		"no certificate":      func(o *enroll.Order) { o.TLSCert = "/nonexistent" },
		"no public URL":       func(o *enroll.Order) { o.PublicURLs = nil },
		"no address":          func(o *enroll.Order) { o.Raft = "" },
		"no place for a disk": func(o *enroll.Order) { o.DataDir = "/dev/null/x" },
	} {
		o := c.order(t, c.token)
		change(&o)
		_, err := enroll.Join(t.Context(), o)
		refused(t, name, err, problem.Invalid)
	}
	if n := c.asked(); n != 0 {
		t.Errorf("the control plane was asked %d times", n)
	}
}

func TestWhoeverAnswersMustBeWhoTheTokenSays(t *testing.T) {
	t.Parallel()
	c, evil := start(t), start(t)
	tok := c.token
	tok.ControlPlane = evil.url // the network leads elsewhere
	o := c.order(t, tok)
	_, err := enroll.Join(t.Context(), o)
	refused(t, "a man in the middle", err, problem.Denied)
	if evil.asked() != 0 {
		t.Error("the secret was sent to it")
	}
	nothing(t, o)
}

func TestTheAnswerIsHeldToTheHashes(t *testing.T) {
	t.Parallel()
	c, other := start(t), start(t)
	// Roots that those of the token would follow, signed as they must be.
	next, err := seal.RootsBody(c.auth.Roots)
	must(t, err)
	next.Version++
	nextRoots, err := seal.SignRoots(next, c.auth.Root[:]...)
	must(t, err)
	n1, err := svid.NodeID(domain, "eu", "n1")
	must(t, err)
	cert1, _, err := c.ca.IssueNode(n1, time.Hour)
	must(t, err)
	for name, bend := range map[string]func(*cellv1.EnrollResponse){
		"an authority more":  func(r *cellv1.EnrollResponse) { r.Identity.Bundle = append(r.Identity.Bundle, other.ca.Bundle()...) },
		"another authority":  func(r *cellv1.EnrollResponse) { r.Identity.Bundle = other.ca.Bundle() },
		"no authority":       func(r *cellv1.EnrollResponse) { r.Identity.Bundle = nil },
		"other roots":        func(r *cellv1.EnrollResponse) { r.Roots = nextRoots },
		"no roots":           func(r *cellv1.EnrollResponse) { r.Roots = nil },
		"another node":       func(r *cellv1.EnrollResponse) { r.Identity.Svid = cert1 },
		"no SVID":            func(r *cellv1.EnrollResponse) { r.Identity.Svid = nil },
		"nothing whatsoever": func(r *cellv1.EnrollResponse) { r.Identity, r.Roots, r.Members = nil, nil, nil },
	} {
		c.set(func(c *controlPlane) { c.bend = bend })
		o := c.order(t, c.token)
		_, err := enroll.Join(t.Context(), o)
		refused(t, name, err, problem.Denied)
		nothing(t, o)
	}
}

func TestACutInTheMiddleIsMendedByTypingItAgain(t *testing.T) {
	t.Parallel()
	c := start(t)
	c.set(func(c *controlPlane) { c.cut = true })
	o := c.order(t, c.token)
	_, err := enroll.Join(t.Context(), o)
	refused(t, "a cut", err, problem.Unavailable)
	nothing(t, o)
	_, err = enroll.Join(t.Context(), o)
	must(t, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.csrs) != 2 {
		t.Fatalf("asked %d times", len(c.csrs))
	}
	first, err := svid.RequestKey(c.csrs[0])
	must(t, err)
	again, err := svid.RequestKey(c.csrs[1])
	must(t, err)
	if first != again {
		t.Error("it came back with another key: the token is used up for the first one")
	}
}

func TestNobodyJoinsWhileTheControlPlaneIsLost(t *testing.T) {
	t.Parallel()
	c := start(t)
	tok := c.token
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	tok.ControlPlane = "https://" + ln.Addr().String()
	must(t, ln.Close())
	o := c.order(t, tok)
	_, err = enroll.Join(t.Context(), o)
	refused(t, "away", err, problem.Unavailable)
	if !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("it says %v", err)
	}
	// It is there, and its database is not.
	c.set(func(c *controlPlane) {
		c.err = connect.NewError(connect.CodeUnavailable, "PostgreSQL is not reachable")
	})
	o = c.order(t, c.token)
	_, err = enroll.Join(t.Context(), o)
	refused(t, "without its database", err, problem.Unavailable)
	c.set(func(c *controlPlane) { c.err = nil })
	_, err = enroll.Join(t.Context(), o)
	must(t, err)
}

func TestNodesThatTheControlPlaneDoesNotKnowAreNamed(t *testing.T) {
	t.Parallel()
	c := start(t)
	c.set(func(c *controlPlane) { c.bend = func(r *cellv1.EnrollResponse) { r.Members = r.Members[:1] } })
	o := c.order(t, c.token)
	_, err := enroll.Join(t.Context(), o)
	refused(t, "two nodes", err, problem.Invalid)
	if p, _ := problem.As(err); !strings.Contains(p.Fix, "-member") {
		t.Errorf("it says %q", p.Fix)
	}
	nothing(t, o)
	o.Members = []cell.Member{{Node: "n1", Raft: "n1.test:1", Peer: "n1.test:2"}, {Node: "n3", Raft: "other.test:1", Peer: "other.test:2"}}
	j, err := enroll.Join(t.Context(), o)
	must(t, err)
	cfg, err := conf.Load[cell.Config](j.Config, "")
	must(t, err)
	for _, m := range cfg.Members {
		if m.Node == "n3" && m.Raft != "other.test:1" {
			t.Errorf("what was typed does not count: %+v", m)
		}
	}
}
