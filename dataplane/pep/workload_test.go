package pep_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/mcpvault/mcpvault/dataplane/authn"
	"github.com/mcpvault/mcpvault/dataplane/edge"
	"github.com/mcpvault/mcpvault/dataplane/pep"
	"github.com/mcpvault/mcpvault/kit/svid"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

const (
	workloads = "workloads.test"
	billing   = "spiffe://workloads.test/agent/billing"
	reports   = "spiffe://workloads.test/agent/reports"
)

// authority signs whatever a test wants.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, trustDomain string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), URIs: []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	a.cert = a.sign(a.cert, key)
	return a
}

func (a *authority) sign(tmpl *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// issue makes a certificate for the ids, which a test may change before it is signed.
func (a *authority) issue(change func(*x509.Certificate), ids ...string) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, id := range ids {
		u, err := url.Parse(id)
		if err != nil {
			a.t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, u)
	}
	if change != nil {
		change(tmpl)
	}
	cert := a.sign(tmpl, key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

func (a *authority) bundle() string {
	a.t.Helper()
	path := filepath.Join(a.t.TempDir(), "bundle.pem")
	raw := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// plant is a gateway with fronts that let the workloads of one trust domain in.
type plant struct {
	*gateway
	*fronts
	ca *authority
	// ahead is how far the node's clock is ahead.
	ahead *atomic.Int64
}

func newPlant(t *testing.T, tenants ...string) *plant {
	t.Helper()
	p := &plant{ca: newAuthority(t, workloads), ahead: &atomic.Int64{}}
	now := func() time.Time { return time.Now().Add(time.Duration(p.ahead.Load())) }
	clients, err := svid.OpenClients(map[string]string{workloads: p.ca.bundle()}, now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := authn.NewWorkloads(clients, []authn.Admission{{TrustDomain: workloads, Tenants: tenants}})
	up := newScripted(t)
	p.gateway = assembled(t, pep.Config{Now: now, KeepAlive: 20 * time.Millisecond}, func(p *pep.Parts) { p.Workloads = w }, nil,
		catalogueServer("pay", up.url, allEras(), plainTool("balance", read)))
	p.policy.Principals = append(p.policy.Principals,
		snapshot.Principal{Name: billing, Kind: snapshot.KindWorkload}, snapshot.Principal{Name: reports, Kind: snapshot.KindWorkload})
	p.policy.Grants = append(p.policy.Grants,
		snapshot.Grant{ID: "w1", Subject: "user:" + billing, Server: "pay"}, snapshot.Grant{ID: "w2", Subject: "user:" + reports, Server: "pay"})
	p.publish()
	up.script(func(w http.ResponseWriter, r *http.Request, body string) {
		if r.Method != http.MethodGet {
			up.answer(w, body)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, ": begun\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	p.fronts = before(t, p.gateway, edge.Config{VerifyClient: func(from net.Addr, host string, chain []*x509.Certificate) error {
		err := w.Check(chain)
		if err != nil {
			p.pep.RefuseCertificate(from, host, err)
		}
		return err
	}})
	return p
}

// client is the gateway as a workload sees it, that has nothing but a certificate, or not even that.
func (p *plant) client(t *testing.T, version int, certs ...tls.Certificate) *gateway {
	return p.as(t, p.gateway, version, certs...)
}

// alert is what a client is told that shows a certificate over TCP, which in TLS 1.3 it learns after its own handshake.
func (p *plant) alert(t *testing.T, cert tls.Certificate) error {
	t.Helper()
	conn, err := tls.Dial("tcp", strings.TrimPrefix(p.tcp, "https://"), &tls.Config{RootCAs: p.roots, Certificates: []tls.Certificate{cert}})
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = conn.Read(make([]byte, 1))
	return err
}

func (p *plant) reason(a *answer) string { return p.book.of(a.decision())[0].GetReason() }

func TestAWorkloadCallsWithItsCertificate(t *testing.T) {
	t.Parallel()
	inEach(t, func(t *testing.T, version int) {
		p := newPlant(t)
		c := p.client(t, version, p.ca.issue(nil, billing))
		a := c.call("/mcp/pay", "", "balance", "{}")
		if string(a.Result) != oddResult {
			t.Fatalf("%d %s", a.status, a.body)
		}
		who := p.book.of(a.decision())[0].GetPrincipal()
		if who.GetName() != billing || who.GetIssuer() != "spiffe://"+workloads || who.GetSubject() != billing || who.GetType() != "workload" {
			t.Errorf("recorded as %v", who)
		}
		// One that policy does not know sees nothing, as anybody else.
		stranger := p.client(t, version, p.ca.issue(nil, "spiffe://workloads.test/agent/unknown"))
		if a := stranger.call("/mcp/pay", "", "balance", "{}"); a.code() != -32602 || p.reason(a) != "unknown_principal" {
			t.Errorf("stranger: %d %s", a.status, a.body)
		}
		// Killed, by name or with all its trust domain.
		p.pdp.Kill(&snapshotv1.Kill{Kind: snapshotv1.KillKind_KILL_KIND_USER, TenantId: "0192-acme", Subject: reports})
		other := p.client(t, version, p.ca.issue(nil, reports))
		if a := other.call("/mcp/pay", "", "balance", "{}"); a.status != http.StatusUnauthorized || p.reason(a) != "token_user_killed" {
			t.Errorf("killed: %d %s", a.status, a.body)
		}
		if a := c.call("/mcp/pay", "", "balance", "{}"); string(a.Result) != oddResult {
			t.Errorf("not killed: %d %s", a.status, a.body)
		}
		p.pdp.Kill(&snapshotv1.Kill{Kind: snapshotv1.KillKind_KILL_KIND_ISSUER, TenantId: "0192-acme", Subject: "spiffe://" + workloads})
		if a := c.call("/mcp/pay", "", "balance", "{}"); a.status != http.StatusUnauthorized || p.reason(a) != "token_issuer_killed" {
			t.Errorf("trust domain killed: %d %s", a.status, a.body)
		}
	})
}

func TestAWorkloadsSessionIsItsOwn(t *testing.T) {
	t.Parallel()
	p := newPlant(t)
	first := p.client(t, 2, p.ca.issue(nil, billing))
	id := first.legacy("/mcp/pay", "")
	for who, c := range map[string]*gateway{"another workload": p.client(t, 3, p.ca.issue(nil, reports)), "a person": p.client(t, 2)} {
		user := ""
		if who == "a person" {
			user = "root"
		}
		if a := c.post("/mcp/pay", user, legacyCall, "Mcp-Session-Id", id); a.status != http.StatusNotFound || p.reason(a) != "session_hijack" {
			t.Errorf("%s: %d %s", who, a.status, a.body)
		}
	}
	// A renewed certificate, and another transport, are the same workload.
	if a := p.client(t, 3, p.ca.issue(nil, billing)).post("/mcp/pay", "", legacyCall, "Mcp-Session-Id", id); string(a.Result) != oddResult {
		t.Errorf("renewed: %d %s", a.status, a.body)
	}
}

func TestTheTenantDecidesWhichTrustDomainsMayCall(t *testing.T) {
	t.Parallel()
	for tenants, want := range map[string]int{"acme": 200, "0192-acme": 200, "globex": 401} {
		p := newPlant(t, tenants)
		a := p.client(t, 2, p.ca.issue(nil, billing)).call("/mcp/pay", "", "balance", "{}")
		if a.status != want || want == 401 && p.reason(a) != "svid_trust_domain" {
			t.Errorf("%s: %d %s", tenants, a.status, a.body)
		}
	}
}

func TestA25CertificatesThatAreNoWorkloads(t *testing.T) {
	t.Parallel()
	p := newPlant(t)
	other, impostor := newAuthority(t, "other.test"), newAuthority(t, workloads)
	for name, row := range map[string]struct {
		cert   tls.Certificate
		reason string
	}{
		"expired":                 {p.ca.issue(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, billing), "svid_expired"},
		"not yet":                 {p.ca.issue(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }, billing), "svid_expired"},
		"other trust domain":      {other.issue(nil, "spiffe://other.test/agent/billing"), "svid_trust_domain"},
		"other domain's signer":   {other.issue(nil, billing), "svid_untrusted"},
		"signer of the same name": {impostor.issue(nil, billing), "svid_untrusted"},
		"CA as leaf":              {tls.Certificate{Certificate: [][]byte{p.ca.cert.Raw}, PrivateKey: p.ca.key}, "svid_malformed"},
		"CA with an id":           {p.ca.issue(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }, billing), "svid_ca"},
		"leaf that may sign":      {p.ca.issue(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, billing), "svid_ca"},
		"two URI SANs":            {p.ca.issue(nil, billing, reports), "svid_malformed"},
		"a SPIFFE ID and a URL":   {p.ca.issue(nil, billing, "https://workloads.test/"), "svid_malformed"},
		"no URI SAN":              {p.ca.issue(func(c *x509.Certificate) { c.DNSNames = []string{workloads} }), "svid_malformed"},
		"dots":                    {p.ca.issue(nil, "spiffe://workloads.test/agent/../billing"), "svid_malformed"},
		"upper case":              {p.ca.issue(nil, "spiffe://Workloads.test/agent/billing"), "svid_malformed"},
		"query":                   {p.ca.issue(nil, billing+"?x=1"), "svid_malformed"},
		"fragment":                {p.ca.issue(nil, billing+"#x"), "svid_malformed"},
		"port":                    {p.ca.issue(nil, "spiffe://workloads.test:1/agent/billing"), "svid_malformed"},
		"trailing slash":          {p.ca.issue(nil, billing+"/"), "svid_malformed"},
		"other scheme":            {p.ca.issue(nil, "https://workloads.test/agent/billing"), "svid_malformed"},
	} {
		for _, version := range []int{2, 3} {
			p.book.forget()
			var alert bool
			var err error
			if version == 3 {
				// A good token does not help: whoever shows a certificate must show a good one.
				c := p.client(t, version, row.cert)
				_, err = c.client.Do(c.request(t.Context(), http.MethodPost, "/mcp/pay", "root", legacyCall))
				var crypto *quic.TransportError
				alert = errors.As(err, &crypto) && crypto.Remote && crypto.ErrorCode.IsCryptoError()
			} else {
				err = p.alert(t, row.cert)
				alert = err != nil && strings.Contains(err.Error(), "remote error: tls: bad certificate")
			}
			if !alert {
				t.Errorf("%s, HTTP %d: %v", name, version, err)
			}
			until(t, name+" is recorded", func() bool { return len(p.book.all()) > 0 })
			for _, r := range p.book.all() {
				if r.GetReason() != row.reason || r.GetMethod() != "tls/handshake" || r.GetClient().GetAddress() != "127.0.0.1" || r.GetDetail() == "" || r.GetTenant() != "acme" {
					t.Errorf("%s, HTTP %d: recorded as %v", name, version, r)
				}
			}
		}
	}
	inEach(t, func(t *testing.T, version int) {
		c := p.client(t, version)
		if a := c.call("/mcp/pay", "", "balance", "{}"); a.status != http.StatusUnauthorized || p.reason(a) != authn.TokenMissing {
			t.Errorf("none: %d %s", a.status, a.body)
		}
		if a := c.call("/mcp/pay", "root", "balance", "{}"); string(a.Result) != oddResult {
			t.Errorf("none, but a token: %d %s", a.status, a.body)
		}
	})
}

func TestAStreamEndsWithTheCertificate(t *testing.T) {
	t.Parallel()
	for _, version := range []int{2, 3} {
		p := newPlant(t)
		c := p.client(t, version, p.ca.issue(nil, billing))
		id := c.legacy("/mcp/pay", "")
		const left = 2 * time.Second
		p.ahead.Store(int64(time.Hour - left))
		resp, err := c.client.Do(c.request(t.Context(), http.MethodGet, "/mcp/pay", "", "", "Mcp-Session-Id", id, "Accept", "text/event-stream"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		r := bufio.NewReader(resp.Body)
		if line, err := r.ReadString('\n'); resp.StatusCode != http.StatusOK || err != nil {
			t.Fatalf("HTTP %d: %d %q %v", version, resp.StatusCode, line, err)
		}
		began := time.Now()
		_, _ = io.Copy(io.Discard, r)
		if took := time.Since(began); took > left+5*time.Second {
			t.Errorf("HTTP %d: the stream ended after %s", version, took)
		}
		// The connection lives on, the right to use it does not.
		if a := c.call("/mcp/pay", "", "balance", "{}"); a.status != http.StatusUnauthorized || p.reason(a) != "svid_expired" {
			t.Errorf("HTTP %d: %d %s", version, a.status, a.body)
		}
	}
}

func TestNoTLSSessionIsResumed(t *testing.T) {
	t.Parallel()
	p := newPlant(t)
	cfg := &tls.Config{
		RootCAs: p.roots, Certificates: []tls.Certificate{p.ca.issue(nil, billing)}, ClientSessionCache: tls.NewLRUClientSessionCache(4),
		NextProtos: []string{"http/1.1"},
	}
	for range 2 {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(p.tcp, "https://"), cfg)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, "GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
		if _, err := io.ReadAll(conn); err != nil {
			t.Fatal(err)
		}
		if conn.ConnectionState().DidResume {
			t.Fatal("resumed")
		}
		_ = conn.Close()
	}
}

func TestD18ATokenBoundToACertificateIsGoodOnlyBesideIt(t *testing.T) {
	t.Parallel()
	p := newPlant(t)
	mine, theirs := p.ca.issue(nil, billing), p.ca.issue(nil, reports)
	sum := sha256.Sum256(mine.Certificate[0])
	thumbprint := base64.RawURLEncoding.EncodeToString(sum[:])
	ask := func(version int, cnf any, certs ...tls.Certificate) *answer {
		t.Helper()
		claims := p.claims("root")
		if cnf != nil {
			claims["cnf"] = cnf
		}
		token, err := p.signer.Mint(claims)
		if err != nil {
			t.Fatal(err)
		}
		body := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"balance",` + meta + `}}`
		return p.client(t, version, certs...).post("/mcp/pay", "", body, "Authorization", "Bearer "+token,
			"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "balance")
	}
	bound := map[string]any{"x5t#S256": thumbprint}
	for _, version := range []int{1, 2, 3} {
		for name, row := range map[string]struct {
			cnf   any
			certs []tls.Certificate
			good  bool
		}{
			"its certificate":            {bound, []tls.Certificate{mine}, true},
			"another certificate":        {bound, []tls.Certificate{theirs}, false},
			"no certificate":             {bound, nil, false},
			"not bound, a certificate":   {nil, []tls.Certificate{theirs}, true},
			"bound to a DPoP key":        {map[string]any{"jkt": thumbprint}, []tls.Certificate{mine}, false},
			"bound to both":              {map[string]any{"x5t#S256": thumbprint, "jkt": thumbprint}, []tls.Certificate{mine}, false},
			"bound to nothing":           {map[string]any{}, []tls.Certificate{mine}, false},
			"bound to half a thumbprint": {map[string]any{"x5t#S256": thumbprint[:20]}, []tls.Certificate{mine}, false},
			"bound to no object":         {"x", []tls.Certificate{mine}, false},
		} {
			a := ask(version, row.cnf, row.certs...)
			rec := p.book.of(a.decision())[0]
			if row.good && (string(a.Result) != oddResult || rec.GetPrincipal().GetName() != "root") {
				t.Errorf("%s: the token did not decide: %d %s %v", name, a.status, a.body, rec.GetPrincipal())
			}
			if !row.good && (a.status != http.StatusUnauthorized || rec.GetReason() != authn.TokenBinding ||
				!strings.Contains(a.header.Get("Www-Authenticate"), `error="invalid_token"`)) {
				t.Errorf("%s: %d %s %s", name, a.status, a.body, rec.GetReason())
			}
		}
	}
}
