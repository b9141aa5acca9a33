package svid_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/kit/svid"
)

func request(t testing.TB, id svid.ID) (csr, keyPEM []byte) {
	t.Helper()
	keyPEM, err := svid.NewKey()
	must(t, err)
	csr, err = svid.NewRequest(keyPEM, id)
	must(t, err)
	return csr, keyPEM
}

// twoTiers is a root as it lies offline, and what a control plane has.
func twoTiers(t testing.TB) (root, online *svid.CA, dir string) {
	t.Helper()
	root, err := svid.CreateRoot(t.TempDir(), domain)
	must(t, err)
	dir = filepath.Join(t.TempDir(), "ca")
	online, err = root.CreateIntermediate(dir, 90*24*time.Hour)
	must(t, err)
	return root, online, dir
}

func TestAnSVIDBelowAnIntermediateIsBelievedByTheRoot(t *testing.T) {
	t.Parallel()
	root, online, dir := twoTiers(t)
	id := nodeID(t, "eu", "n2")
	csr, key := request(t, id)
	chain, err := online.SignRequest(csr, id, 7*24*time.Hour)
	must(t, err)
	until, err := svid.Issued(chain, key, root.Bundle(), id, time.Now())
	must(t, err)
	if left := time.Until(until); left < 6*24*time.Hour || left > 7*24*time.Hour {
		t.Fatalf("it lives for %s", left)
	}
	if _, err := os.Stat(filepath.Join(dir, "ca.key")); err != nil {
		t.Fatal(err)
	}
	own := t.TempDir()
	must(t, svid.WriteIdentity(own, chain, key, online.Bundle()))
	src, err := svid.Open(t.Context(), svid.Config{Dir: own})
	must(t, err)
	addr := serve(t, svid.ServerTLS(source(t, root, nodeID(t, "eu", "n1")), svid.CellMembers(domain, "eu"), "x"))
	_, err = dial(addr, svid.ClientTLS(src, svid.Exactly(nodeID(t, "eu", "n1")), "x"))
	must(t, err)
	if _, err := online.CreateIntermediate(t.TempDir(), time.Hour); err == nil {
		t.Fatal("an intermediate makes authorities of its own")
	}
}

func TestAnSVIDNeverOutlivesItsAuthority(t *testing.T) {
	t.Parallel()
	root, err := svid.CreateRoot(t.TempDir(), domain)
	must(t, err)
	online, err := root.CreateIntermediate(t.TempDir(), time.Hour)
	must(t, err)
	id := nodeID(t, "eu", "n2")
	csr, key := request(t, id)
	chain, err := online.SignRequest(csr, id, 7*24*time.Hour)
	must(t, err)
	until, err := svid.Issued(chain, key, root.Bundle(), id, time.Now())
	must(t, err)
	if until.After(online.NotAfter()) {
		t.Fatalf("it lives until %s, its authority until %s", until, online.NotAfter())
	}
	if _, err := online.WithClock(func() time.Time { return time.Now().Add(2 * time.Hour) }).SignRequest(csr, id, time.Hour); err == nil {
		t.Fatal("an authority that has ended signs")
	}
}

func TestARequestForAnythingElseIsRefused(t *testing.T) {
	t.Parallel()
	_, online, _ := twoTiers(t)
	id := nodeID(t, "eu", "n2")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	uri := func(s string) *url.URL { u, err := url.Parse(s); must(t, err); return u }
	own := []*url.URL{id.URL()}
	isCA, err := asn1.Marshal(struct{ IsCA bool }{true})
	must(t, err)
	build := func(c x509.CertificateRequest, key any) []byte {
		t.Helper()
		der, err := x509.CreateCertificateRequest(rand.Reader, &c, key)
		must(t, err)
		return der
	}
	good := build(x509.CertificateRequest{URIs: own}, key)
	forged := append([]byte{}, good...)
	forged[len(forged)-1] ^= 1
	for name, csr := range map[string][]byte{
		"another node":         build(x509.CertificateRequest{URIs: []*url.URL{nodeID(t, "eu", "n1").URL()}}, key),
		"another cell":         build(x509.CertificateRequest{URIs: []*url.URL{nodeID(t, "us", "n2").URL()}}, key),
		"the control plane":    build(x509.CertificateRequest{URIs: []*url.URL{uri("spiffe://" + domain + "/controlplane/a")}}, key),
		"another trust domain": build(x509.CertificateRequest{URIs: []*url.URL{uri("spiffe://evil.test/cell/eu/node/n2")}}, key),
		"two ids":              build(x509.CertificateRequest{URIs: []*url.URL{id.URL(), nodeID(t, "eu", "n1").URL()}}, key),
		"no id":                build(x509.CertificateRequest{Subject: pkix.Name{CommonName: "n2"}}, key),
		"a host name":          build(x509.CertificateRequest{URIs: own, DNSNames: []string{"mcp.example.com"}}, key),
		"an address":           build(x509.CertificateRequest{URIs: own, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, key),
		"to be an authority": build(x509.CertificateRequest{URIs: own, ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: isCA},
		}}, key),
		"another curve":   build(x509.CertificateRequest{URIs: own}, p384),
		"another kind":    build(x509.CertificateRequest{URIs: own}, ed),
		"a key not held":  forged,
		"nothing":         nil,
		"more than fits":  make([]byte, 9<<10),
		"trailing data":   append(append([]byte{}, good...), 0),
		"no request":      []byte("hello"),
		"a short request": good[:len(good)/2],
	} {
		if _, err := online.SignRequest(csr, id, time.Hour); !errors.Is(err, svid.ErrRequest) {
			t.Errorf("a request for %s: %v", name, err)
		}
	}
	_, err = online.SignRequest(good, id, time.Hour)
	must(t, err)
}

func TestWhatIsIssuedIsHeldToTheRequest(t *testing.T) {
	t.Parallel()
	root, online, _ := twoTiers(t)
	id, other := nodeID(t, "eu", "n2"), nodeID(t, "eu", "n1")
	csr, key := request(t, id)
	chain, err := online.SignRequest(csr, id, time.Hour)
	must(t, err)
	csr2, key2 := request(t, other)
	chain2, err := online.SignRequest(csr2, other, time.Hour)
	must(t, err)
	now := time.Now()
	for name, err := range map[string]error{
		"another key":       second(svid.Issued(chain, key2, root.Bundle(), id, now)),
		"another id":        second(svid.Issued(chain2, key2, root.Bundle(), id, now)),
		"another authority": second(svid.Issued(chain, key, newCA(t).Bundle(), id, now)),
		"over":              second(svid.Issued(chain, key, root.Bundle(), id, now.Add(2*time.Hour))),
		"nothing":           second(svid.Issued(nil, key, root.Bundle(), id, now)),
	} {
		if err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestAnAuthorityIsReplacedWhileItsOwnerRuns(t *testing.T) {
	t.Parallel()
	root, online, dir := twoTiers(t)
	a, err := svid.OpenAuthority(dir, domain, slog.New(slog.DiscardHandler))
	must(t, err)
	before := a.CA().Authority()
	if string(before) != string(online.Authority()) {
		t.Fatal("the same files are another authority")
	}
	// Step one: the new root beside the old one.
	newRoot, err := svid.CreateRoot(t.TempDir(), domain)
	must(t, err)
	both := append(root.Bundle(), newRoot.Bundle()...)
	must(t, os.WriteFile(filepath.Join(dir, "bundle.pem"), both, 0o600))
	if string(a.CA().Bundle()) != string(both) || string(a.CA().Authority()) == string(before) {
		t.Fatal("the new root is not noticed")
	}
	id := nodeID(t, "eu", "n2")
	csr, key := request(t, id)
	old, err := a.CA().SignRequest(csr, id, time.Hour)
	must(t, err)
	_, err = svid.Issued(old, key, both, id, time.Now())
	must(t, err)
	if string(svid.AuthorityOf(old, both)) != string(a.CA().Authority()) {
		t.Fatal("a node finds another authority than the one that signed")
	}
	// A half of the new one changes nothing.
	next := filepath.Join(t.TempDir(), "next")
	_, err = newRoot.CreateIntermediate(next, time.Hour)
	must(t, err)
	copyFile(t, filepath.Join(next, "ca.pem"), filepath.Join(dir, "ca.pem"))
	again, err := a.CA().SignRequest(csr, id, time.Hour)
	must(t, err)
	_, err = svid.Issued(again, key, root.Bundle(), id, time.Now())
	must(t, err)
	// Step two: the new one signs, and both believe it who know the new root.
	copyFile(t, filepath.Join(next, "ca.key"), filepath.Join(dir, "ca.key"))
	after, err := a.CA().SignRequest(csr, id, time.Hour)
	must(t, err)
	_, err = svid.Issued(after, key, both, id, time.Now())
	must(t, err)
	if err := second(svid.Issued(after, key, root.Bundle(), id, time.Now())); err == nil {
		t.Fatal("the old root is believed to have signed it")
	}
	// An authority that is not in the bundle signs for nobody.
	must(t, os.WriteFile(filepath.Join(dir, "bundle.pem"), root.Bundle(), 0o600))
	if _, err := svid.LoadCA(dir); err == nil {
		t.Fatal("an authority whose root is not believed is loaded")
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, b, 0o600))
	// The dates of files may be coarse, and the size the same.
	now := time.Now().Add(time.Duration(len(b)) * time.Second)
	must(t, os.Chtimes(to, now, now))
}

func TestAnIntroductionNeedsTheHashOfTheAuthority(t *testing.T) {
	t.Parallel()
	root, online, _ := twoTiers(t)
	controlPlane, err := svid.ControlPlaneID(domain, "cp-1")
	must(t, err)
	pins, err := svid.Pins(root.Bundle())
	must(t, err)
	addr := serve(t, svid.IntroductionTLS(source(t, online, controlPlane), "x"))
	client := func(pins [][sha256.Size]byte, allow svid.Authorizer) *tls.Config {
		cfg, err := svid.PinnedTLS(domain, pins, allow, "x")
		must(t, err)
		return cfg
	}
	cs, err := dial(addr, client(pins, svid.ControlPlanes(domain)))
	must(t, err)
	if cs.Version != tls.VersionTLS13 {
		t.Fatalf("version %x", cs.Version)
	}
	other, err := svid.Pins(newCA(t).Bundle())
	must(t, err)
	if _, err := dial(addr, client(other, svid.ControlPlanes(domain))); !errors.Is(err, svid.ErrPin) {
		t.Errorf("another hash: %v", err)
	}
	if _, err := dial(addr, client(nil, svid.ControlPlanes(domain))); !errors.Is(err, svid.ErrPin) {
		t.Errorf("no hash: %v", err)
	}
	// Whoever stands in between has the root's certificate, which is no secret, and a chain of another's.
	evil := newCA(t)
	forged := source(t, evil, controlPlane)
	v, err := forged.GetX509SVID()
	must(t, err)
	rootDER, _ := pem.Decode(root.Bundle())
	liar := svid.IntroductionTLS(forged, "x")
	liar.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return &tls.Certificate{PrivateKey: v.PrivateKey, Certificate: [][]byte{v.Certificates[0].Raw, rootDER.Bytes}}, nil
	}
	if _, err := dial(serve(t, liar), client(pins, svid.ControlPlanes(domain))); !errors.Is(err, svid.ErrPin) {
		t.Errorf("a man in the middle: %v", err)
	}
	// A node of the right authority is no control plane.
	node := serve(t, svid.IntroductionTLS(source(t, online, nodeID(t, "eu", "n1")), "x"))
	if _, err := dial(node, client(pins, svid.ControlPlanes(domain))); !errors.Is(err, svid.ErrRefused) {
		t.Errorf("a node in the control plane's place: %v", err)
	}
}

func TestAWorkloadsTrustDomainIsNeverTheNodes(t *testing.T) {
	t.Parallel()
	id, err := svid.WorkloadID(domain, "eu", "acme", "billing")
	must(t, err)
	if id.String() != "spiffe://eu.workloads.mcpvault.test/org/acme/billing" {
		t.Fatalf("got %s", id)
	}
	if _, err := svid.WorkloadID(domain, "eu", "acme", "../globex/billing"); err == nil {
		t.Fatal("a name leads into another organisation")
	}
	if _, err := newCA(t).SignRequest(second2(request(t, id)), id, time.Hour); err == nil {
		t.Fatal("the nodes' authority signs for a workload")
	}
}

func second2(csr, _ []byte) []byte { return csr }

func FuzzSignRequest(f *testing.F) {
	_, online, _ := twoTiers(f)
	id := nodeID(f, "eu", "n2")
	csr, _ := request(f, id)
	f.Add(csr)
	f.Add(csr[:len(csr)-1])
	f.Fuzz(func(t *testing.T, der []byte) {
		chain, err := online.SignRequest(der, id, time.Hour)
		if err != nil {
			return
		}
		block, _ := pem.Decode(chain)
		leaf, err := x509.ParseCertificate(block.Bytes)
		must(t, err)
		if leaf.IsCA || len(leaf.URIs) != 1 || leaf.URIs[0].String() != id.String() || len(leaf.DNSNames) > 0 {
			t.Fatalf("issued %v", leaf)
		}
	})
}
