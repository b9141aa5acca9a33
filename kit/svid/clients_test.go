package svid_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mcpvault/mcpvault/kit/svid"
)

func parsed(t testing.TB, raw []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(raw)
	cert, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	return cert
}

func agent(t testing.TB, ca *svid.CA, ttl time.Duration) *x509.Certificate {
	t.Helper()
	id, err := svid.ParseID("spiffe://" + domain + "/agent/billing")
	must(t, err)
	raw, _, err := ca.IssueNode(id, ttl)
	must(t, err)
	return parsed(t, raw)
}

func clients(t testing.TB, path string) *svid.Clients {
	t.Helper()
	c, err := svid.OpenClients(map[string]string{domain: path}, time.Now, slog.New(slog.DiscardHandler))
	must(t, err)
	return c
}

func bundleFile(t testing.TB, cas ...*svid.CA) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bundle.pem")
	write(t, path, cas...)
	return path
}

func write(t testing.TB, path string, cas ...*svid.CA) {
	t.Helper()
	var raw []byte
	for _, ca := range cas {
		raw = append(raw, ca.Bundle()...)
	}
	must(t, os.WriteFile(path, raw, 0o600))
}

func reason(err error) string {
	var refused *svid.ClientError
	if errors.As(err, &refused) {
		return refused.Reason
	}
	return ""
}

func TestAClientIsWhoItsCertificateProves(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	cert := agent(t, ca, time.Hour)
	c, err := clients(t, bundleFile(t, ca)).Verify([]*x509.Certificate{cert})
	must(t, err)
	sum := sha256.Sum256(cert.Raw)
	if c.ID != "spiffe://"+domain+"/agent/billing" || c.TrustDomain != domain || !c.NotAfter.Equal(cert.NotAfter) ||
		c.Thumbprint != base64.RawURLEncoding.EncodeToString(sum[:]) {
		t.Errorf("%+v", c)
	}
}

func TestAClientsCertificateEndsAndItsAuthorityIsWithdrawn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		first, second := newCA(t), newCA(t)
		path := bundleFile(t, first)
		c := clients(t, path)
		old := []*x509.Certificate{agent(t, first, time.Hour)}
		renewed := []*x509.Certificate{agent(t, second, 2*time.Hour)}
		step := func(what string, wantOld, wantRenewed string) {
			t.Helper()
			for range 2 { // the second from memory
				if _, err := c.Verify(old); reason(err) != wantOld {
					t.Errorf("%s: the old one: %v", what, err)
				}
				if _, err := c.Verify(renewed); reason(err) != wantRenewed {
					t.Errorf("%s: the renewed one: %v", what, err)
				}
			}
			time.Sleep(1500 * time.Millisecond)
		}
		step("one authority", "", svid.ClientUntrusted)
		write(t, path, first, second)
		step("both", "", "")
		write(t, path, second)
		step("the first is withdrawn", svid.ClientUntrusted, "")
		must(t, os.WriteFile(path, []byte("half a file"), 0o600))
		step("the file is broken", svid.ClientUntrusted, "")
		write(t, path, first, second)
		step("both again", "", "")
		time.Sleep(time.Hour)
		step("the old one is over", svid.ClientExpired, "")
	})
}

func TestAClientMayShowIntermediates(t *testing.T) {
	t.Parallel()
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		return key
	}
	sign := func(tmpl, parent *x509.Certificate, key, by *ecdsa.PrivateKey) *x509.Certificate {
		tmpl.SerialNumber, tmpl.BasicConstraintsValid = big.NewInt(1), true
		if tmpl.NotAfter.IsZero() {
			tmpl.NotAfter = time.Now().Add(time.Hour)
		}
		tmpl.NotBefore = time.Now().Add(-time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), by)
		must(t, err)
		cert, err := x509.ParseCertificate(der)
		must(t, err)
		return cert
	}
	uri := func(path string) []*url.URL { return []*url.URL{{Scheme: "spiffe", Host: domain, Path: path}} }
	rootKey, midKey, leafKey := newKey(), newKey(), newKey()
	root := &x509.Certificate{URIs: uri(""), IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	root = sign(root, root, rootKey, rootKey)
	ends := time.Now().Add(time.Minute).Truncate(time.Second).UTC()
	mid := sign(&x509.Certificate{URIs: uri(""), IsCA: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: ends}, root, midKey, rootKey)
	leaf := sign(&x509.Certificate{URIs: uri("/agent/billing"), KeyUsage: x509.KeyUsageDigitalSignature}, mid, leafKey, midKey)
	path := filepath.Join(t.TempDir(), "bundle.pem")
	must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}), 0o600))
	c := clients(t, path)
	got, err := c.Verify([]*x509.Certificate{leaf, mid})
	must(t, err)
	if !got.NotAfter.Equal(ends) {
		t.Errorf("it ends at %s, its chain at %s", got.NotAfter, ends)
	}
	if _, err := c.Verify([]*x509.Certificate{leaf}); reason(err) != svid.ClientUntrusted {
		t.Errorf("without the intermediate: %v", err)
	}
	if _, err := c.Verify(slices.Repeat([]*x509.Certificate{leaf}, 5)); reason(err) != svid.ClientMalformed {
		t.Errorf("a long chain: %v", err)
	}
	if _, err := c.Verify(nil); reason(err) != svid.ClientMalformed {
		t.Errorf("no chain: %v", err)
	}
}

func TestBundlesOfClientsMustBeUsableAtTheStart(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty.pem")
	must(t, os.WriteFile(empty, nil, 0o600))
	good := bundleFile(t, newCA(t))
	for name, files := range map[string]map[string]string{
		"absent": {domain: empty + ".not"}, "empty": {domain: empty}, "no trust domain": {"Not A Domain": good},
	} {
		if _, err := svid.OpenClients(files, time.Now, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

// FuzzClients: nothing but the certificate that the authority signed is ever found good.
func FuzzClients(f *testing.F) {
	ca := newCA(f)
	good := agent(f, ca, time.Hour)
	c := clients(f, bundleFile(f, ca))
	f.Add(good.Raw)
	f.Add(parsed(f, ca.Bundle()).Raw)
	f.Fuzz(func(t *testing.T, der []byte) {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		got, err := c.Verify([]*x509.Certificate{cert})
		if err == nil && (!cert.Equal(good) || got.ID != "spiffe://"+domain+"/agent/billing") {
			t.Fatalf("%x was found good: %+v", der, got)
		}
		if err != nil && reason(err) == "" {
			t.Fatalf("no reason: %v", err)
		}
	})
}

func BenchmarkVerifyClient(b *testing.B) {
	ca := newCA(b)
	chain := []*x509.Certificate{agent(b, ca, time.Hour)}
	c := clients(b, bundleFile(b, ca))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Verify(chain); err != nil {
			b.Fatal(err)
		}
	}
}
