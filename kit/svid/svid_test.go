package svid_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/kit/svid"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const domain = "mcpvault.test"

var (
	_ x509svid.Source   = (*svid.Source)(nil)
	_ x509bundle.Source = (*svid.Source)(nil)
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newCA(t testing.TB) *svid.CA {
	t.Helper()
	ca, err := svid.CreateCA(t.TempDir(), domain)
	must(t, err)
	return ca
}

func nodeID(t testing.TB, cell, node string) svid.ID {
	t.Helper()
	id, err := svid.NodeID(domain, cell, node)
	must(t, err)
	return id
}

func issue(t testing.TB, ca *svid.CA, dir string, id svid.ID) {
	t.Helper()
	certPEM, keyPEM, err := ca.IssueNode(id, time.Hour)
	must(t, err)
	must(t, svid.WriteIdentity(dir, certPEM, keyPEM, ca.Bundle()))
}

func source(t testing.TB, ca *svid.CA, id svid.ID) *svid.Source {
	t.Helper()
	dir := t.TempDir()
	issue(t, ca, dir, id)
	src, err := svid.Open(t.Context(), svid.Config{Dir: dir})
	must(t, err)
	t.Cleanup(func() { _ = src.Close() })
	return src
}

// serve answers each TLS connection with one byte and returns its address.
func serve(t testing.TB, cfg *tls.Config) string {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
				_, _ = conn.Write([]byte{1})
				_, _ = io.Copy(io.Discard, conn)
			}()
		}
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		<-done
	})
	return ln.Addr().String()
}

// dial completes a handshake and reads the byte: in TLS 1.3 a server refuses only after the client has finished.
func dial(addr string, cfg *tls.Config) (tls.ConnectionState, error) {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", addr, cfg)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = io.ReadFull(conn, make([]byte, 1))
	return conn.ConnectionState(), err
}

func TestMembersOfOneCellMeetOverTLS13(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	a, b := source(t, ca, nodeID(t, "eu", "n1")), source(t, ca, nodeID(t, "eu", "n2"))
	addr := serve(t, svid.ServerTLS(a, svid.CellMembers(domain, "eu"), "mcpvault-test"))
	cs, err := dial(addr, svid.ClientTLS(b, svid.Exactly(nodeID(t, "eu", "n1")), "mcpvault-test"))
	must(t, err)
	if cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol != "mcpvault-test" {
		t.Fatalf("got version %x, protocol %q", cs.Version, cs.NegotiatedProtocol)
	}
	peer, err := svid.PeerID(cs)
	must(t, err)
	if cell, node, ok := svid.ParseNode(peer); !ok || cell != "eu" || node != "n1" {
		t.Fatalf("the peer is %s", peer)
	}
}

func TestStrangersAreRefused(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	member := svid.CellMembers(domain, "eu", "n1", "n2")
	server := source(t, ca, nodeID(t, "eu", "n1"))
	addr := serve(t, svid.ServerTLS(server, member, "mcpvault-test"))
	toN1 := svid.Exactly(nodeID(t, "eu", "n1"))
	controlPlane, err := svid.ControlPlaneID(domain, "cp-1")
	must(t, err)
	good := source(t, ca, nodeID(t, "eu", "n2"))

	tls12 := svid.ClientTLS(good, toN1, "mcpvault-test")
	tls12.MinVersion, tls12.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	noCert := svid.ClientTLS(good, toN1, "mcpvault-test")
	noCert.GetClientCertificate = nil
	plainCert, plainKey, err := ca.IssueServer([]string{"localhost"}, nil, time.Hour)
	must(t, err)
	pair, err := tls.X509KeyPair(plainCert, plainKey)
	must(t, err)
	noSVID := svid.ClientTLS(good, toN1, "mcpvault-test")
	noSVID.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }

	for name, cfg := range map[string]*tls.Config{
		"a node of another CA":         svid.ClientTLS(source(t, newCA(t), nodeID(t, "eu", "n2")), toN1, "mcpvault-test"),
		"a node of another cell":       svid.ClientTLS(source(t, ca, nodeID(t, "us", "n2")), toN1, "mcpvault-test"),
		"a node that is not named":     svid.ClientTLS(source(t, ca, nodeID(t, "eu", "n3")), toN1, "mcpvault-test"),
		"a control plane":              svid.ClientTLS(source(t, ca, controlPlane), toN1, "mcpvault-test"),
		"TLS 1.2":                      tls12,
		"no certificate":               noCert,
		"a certificate that is no ID":  noSVID,
		"another protocol":             svid.ClientTLS(good, toN1, "h2"),
		"no protocol":                  svid.ClientTLS(good, toN1),
		"a server that is not the one": svid.ClientTLS(good, svid.Exactly(nodeID(t, "eu", "n2")), "mcpvault-test"),
		"a server of another CA": func() *tls.Config {
			other := newCA(t)
			dir := t.TempDir()
			certPEM, keyPEM, err := ca.IssueNode(nodeID(t, "eu", "n2"), time.Hour)
			must(t, err)
			must(t, svid.WriteIdentity(dir, certPEM, keyPEM, append(ca.Bundle(), other.Bundle()...)))
			src, err := svid.Open(t.Context(), svid.Config{Dir: dir})
			must(t, err)
			must(t, svid.WriteIdentity(dir, certPEM, keyPEM, other.Bundle()))
			_ = src
			return svid.ClientTLS(bundleOf{src, other}, toN1, "mcpvault-test")
		}(),
	} {
		if _, err := dial(addr, cfg); err == nil {
			t.Errorf("%s got in", name)
		}
	}
	_, err = dial(addr, svid.ClientTLS(good, toN1, "mcpvault-test"))
	must(t, err)
}

// bundleOf is an identity that believes another authority.
type bundleOf struct {
	*svid.Source
	ca *svid.CA
}

func (b bundleOf) GetX509BundleForTrustDomain(td svid.TrustDomain) (*x509bundle.Bundle, error) {
	return x509bundle.Parse(td, b.ca.Bundle())
}

// A client that keeps sessions must still be asked for its certificate, and the authorizer with it, each time.
func TestSessionsAreNeverResumed(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	var asked atomic.Int32
	var banned atomic.Bool
	addr := serve(t, svid.ServerTLS(source(t, ca, nodeID(t, "eu", "n1")), func(svid.ID) error {
		asked.Add(1)
		if banned.Load() {
			return svid.ErrRefused
		}
		return nil
	}))
	client := svid.ClientTLS(source(t, ca, nodeID(t, "eu", "n2")), svid.CellMembers(domain, "eu"))
	client.SessionTicketsDisabled = false
	client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	client.ServerName = "n1"
	for i := range int32(3) {
		cs, err := dial(addr, client)
		must(t, err)
		if cs.DidResume || asked.Load() != i+1 {
			t.Fatalf("connection %d: resumed %v, authorizer asked %d times", i, cs.DidResume, asked.Load())
		}
	}
	banned.Store(true)
	if _, err := dial(addr, client); err == nil {
		t.Fatal("a client that was refused since came back")
	}
}

func TestARenewedIdentityIsUsedWithoutARestart(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	dir := t.TempDir()
	issue(t, ca, dir, nodeID(t, "eu", "n1"))
	now := time.Now()
	src, err := svid.Open(t.Context(), svid.Config{Dir: dir, Now: func() time.Time { return now }})
	must(t, err)
	serial := func() string {
		v, err := src.GetX509SVID()
		must(t, err)
		return v.Certificates[0].SerialNumber.String()
	}
	first := serial()
	issue(t, ca, dir, nodeID(t, "eu", "n1"))
	now = now.Add(2 * time.Second)
	second := serial()
	if first == second {
		t.Fatal("the renewed files are not read")
	}
	must(t, os.WriteFile(filepath.Join(dir, "svid.pem"), []byte("half"), 0o600))
	now = now.Add(2 * time.Second)
	if serial() != second {
		t.Fatal("a broken file replaced a good identity")
	}
}

// A crash in the middle of a renewal leaves two keys in key.pem and either SVID.
func TestAHalfWrittenRenewalStillOpens(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	oldCert, oldKey, err := ca.IssueNode(nodeID(t, "eu", "n1"), time.Hour)
	must(t, err)
	newCert, newKey, err := ca.IssueNode(nodeID(t, "eu", "n1"), time.Hour)
	must(t, err)
	both := append(append([]byte{}, newKey...), oldKey...)
	for name, cert := range map[string][]byte{"old": oldCert, "new": newCert} {
		dir := t.TempDir()
		must(t, svid.WriteIdentity(dir, cert, both, ca.Bundle()))
		src, err := svid.Open(t.Context(), svid.Config{Dir: dir})
		if err != nil {
			t.Fatalf("with the %s SVID: %v", name, err)
		}
		v, err := src.GetX509SVID()
		must(t, err)
		block, _ := pem.Decode(cert)
		if string(v.Certificates[0].Raw) != string(block.Bytes) {
			t.Fatalf("with the %s SVID: another one was read", name)
		}
	}
}

func TestFilesThatDoNotFitAreRefused(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	certPEM, keyPEM, err := ca.IssueNode(nodeID(t, "eu", "n1"), time.Hour)
	must(t, err)
	_, otherKey, err := ca.IssueNode(nodeID(t, "eu", "n1"), time.Hour)
	must(t, err)
	serverCert, serverKey, err := ca.IssueServer(nil, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour)
	must(t, err)
	for name, write := range map[string]func(dir string) error{
		"another key":    func(d string) error { return svid.WriteIdentity(d, certPEM, otherKey, ca.Bundle()) },
		"another bundle": func(d string) error { return svid.WriteIdentity(d, certPEM, keyPEM, newCA(t).Bundle()) },
		"no bundle":      func(d string) error { return svid.WriteIdentity(d, certPEM, keyPEM, nil) },
		"no SPIFFE ID":   func(d string) error { return svid.WriteIdentity(d, serverCert, serverKey, ca.Bundle()) },
		"nothing":        func(string) error { return nil },
		"an open key": func(d string) error {
			return errors.Join(svid.WriteIdentity(d, certPEM, keyPEM, ca.Bundle()), os.Chmod(filepath.Join(d, "key.pem"), 0o644))
		},
	} {
		dir := t.TempDir()
		must(t, write(dir))
		if _, err := svid.Open(t.Context(), svid.Config{Dir: dir}); err == nil {
			t.Errorf("%s: the identity opens", name)
		}
	}
}

func TestTheCAIsMadeOnceAndKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := svid.LoadCA(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("got %v", err)
	}
	ca, err := svid.OpenCA(dir, domain)
	must(t, err)
	again, err := svid.OpenCA(dir, domain)
	must(t, err)
	if string(ca.Bundle()) != string(again.Bundle()) {
		t.Fatal("another CA was made")
	}
	if _, err := svid.CreateCA(dir, domain); !errors.Is(err, svid.ErrCAExists) {
		t.Fatalf("got %v", err)
	}
	if _, err := svid.OpenCA(dir, "other.test"); err == nil {
		t.Fatal("the CA of another trust domain opens")
	}
	info, err := os.Stat(filepath.Join(dir, "ca.key"))
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Fatalf("the CA's key has mode %v", info.Mode())
	}
	foreign, err := svid.NodeID("other.test", "eu", "n1")
	must(t, err)
	if _, _, err := ca.IssueNode(foreign, time.Hour); err == nil {
		t.Fatal("the CA signs for another trust domain")
	}
}

func TestTheServerCertificateIsGoodForBrowsersOnly(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	certPEM, keyPEM, err := ca.IssueServer([]string{"acme.localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour)
	must(t, err)
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	must(t, err)
	addr := serve(t, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.Bundle())
	for _, name := range []string{"acme.localhost", "127.0.0.1"} {
		cs, err := dial(addr, &tls.Config{RootCAs: roots, ServerName: name, MinVersion: tls.VersionTLS13})
		must(t, err)
		if _, err := svid.PeerID(cs); !errors.Is(err, svid.ErrNoPeer) {
			t.Fatalf("it passes for an SVID: %v", err)
		}
	}
}

func TestAuthorizersAdmitByTheWholeID(t *testing.T) {
	t.Parallel()
	id := func(s string) svid.ID {
		v, err := svid.ParseID(s)
		must(t, err)
		return v
	}
	cases := []struct {
		name  string
		allow svid.Authorizer
		peer  string
		want  bool
	}{
		{"member", svid.CellMembers(domain, "eu"), "spiffe://mcpvault.test/cell/eu/node/n9", true},
		{"longer path", svid.CellMembers(domain, "eu"), "spiffe://mcpvault.test/cell/eu/node/n9/x", false},
		{"other domain", svid.CellMembers(domain, "eu"), "spiffe://evil.test/cell/eu/node/n9", false},
		{"named", svid.CellMembers(domain, "eu", "n1"), "spiffe://mcpvault.test/cell/eu/node/n1", true},
		{"not named", svid.CellMembers(domain, "eu", "n1"), "spiffe://mcpvault.test/cell/eu/node/n2", false},
		{"any cell", svid.AnyCellNode(domain), "spiffe://mcpvault.test/cell/us/node/n2", true},
		{"no node", svid.AnyCellNode(domain), "spiffe://mcpvault.test/controlplane/a", false},
		{"control plane", svid.ControlPlanes(domain), "spiffe://mcpvault.test/controlplane/a", true},
		{"like one", svid.ControlPlanes(domain), "spiffe://mcpvault.test/controlplane-x/a", false},
		{"foreign one", svid.ControlPlanes(domain), "spiffe://evil.test/controlplane/a", false},
		{"either", svid.AnyOf(svid.ControlPlanes(domain), svid.AnyCellNode(domain)), "spiffe://mcpvault.test/cell/a/node/b", true},
		{"neither", svid.AnyOf(), "spiffe://mcpvault.test/cell/a/node/b", false},
	}
	for _, c := range cases {
		if err := c.allow(id(c.peer)); (err == nil) != c.want || err != nil && !errors.Is(err, svid.ErrRefused) {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
}

func FuzzOpenIdentity(f *testing.F) {
	ca := newCA(f)
	certPEM, keyPEM, err := ca.IssueNode(nodeID(f, "eu", "n1"), time.Hour)
	must(f, err)
	f.Add(certPEM, keyPEM, ca.Bundle())
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"), keyPEM, []byte{})
	f.Fuzz(func(t *testing.T, cert, key, bundle []byte) {
		dir := t.TempDir()
		must(t, svid.WriteIdentity(dir, cert, key, bundle))
		src, err := svid.Open(context.Background(), svid.Config{Dir: dir})
		if err == nil {
			if _, err := src.ID(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
