package svid

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ErrCAExists means that CreateCA found a CA in the directory; it never replaces one.
var ErrCAExists = errors.New("the directory holds a CA already")

const (
	caCertFile = "ca.pem"
	caKeyFile  = "ca.key"
	caLifetime = 10 * 365 * 24 * time.Hour
	// backdate lets a peer whose clock is a little behind accept a fresh certificate.
	backdate = 5 * time.Minute
)

// CA is the built-in certificate authority of one trust domain. Its key lives in one file, mode 0600.
type CA struct {
	domain spiffeid.TrustDomain
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	now    func() time.Time
}

// CreateCA makes a P-256 authority for the trust domain and writes ca.pem and ca.key into dir. The error wraps
// ErrCAExists when there is one.
func CreateCA(dir, trustDomain string) (*CA, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain %q: %w", trustDomain, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create CA directory: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate CA key: %w", err)
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{Organization: []string{"MCPVault"}, CommonName: td.Name()},
		URIs:                  []*url.URL{td.ID().URL()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign CA certificate: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	// The certificate is written last: a CA is there when its certificate is.
	if _, err := os.Lstat(filepath.Join(dir, caCertFile)); err == nil {
		return nil, fmt.Errorf("%s: %w", dir, ErrCAExists)
	}
	if err := writeFile(dir, caKeyFile, keyPEM); err != nil {
		return nil, err
	}
	if err := writeFile(dir, caCertFile, encodeCert(der)); err != nil {
		return nil, err
	}
	return LoadCA(dir)
}

// LoadCA reads what CreateCA wrote. The error wraps fs.ErrNotExist when there is none.
func LoadCA(dir string) (*CA, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, caCertFile))
	if err != nil {
		return nil, fmt.Errorf("read CA certificate: %w", err)
	}
	keyPEM, err := readPrivate(filepath.Join(dir, caKeyFile))
	if err != nil {
		return nil, fmt.Errorf("read CA key: %w", err)
	}
	block, _ := pem.Decode(certPEM)
	if block == nil || block.Type != pemCert {
		return nil, fmt.Errorf("%s holds no certificate", filepath.Join(dir, caCertFile))
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse CA certificate: %w", err)
	}
	if !cert.IsCA || len(cert.URIs) != 1 {
		return nil, fmt.Errorf("%s is no SPIFFE authority", filepath.Join(dir, caCertFile))
	}
	td, err := spiffeid.TrustDomainFromURI(cert.URIs[0])
	if err != nil {
		return nil, fmt.Errorf("trust domain of the CA: %w", err)
	}
	key, err := matchingKey(keyPEM, cert)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, caKeyFile), err)
	}
	return &CA{domain: td, cert: cert, key: key, now: time.Now}, nil
}

// CACert is the file in a CA's directory that holds its certificate: the bundle for those who are to verify its SVIDs.
func CACert(dir string) string { return filepath.Join(dir, caCertFile) }

// OpenCA loads the CA in dir, and creates it when there is none.
func OpenCA(dir, trustDomain string) (*CA, error) {
	ca, err := LoadCA(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return CreateCA(dir, trustDomain)
	}
	if err == nil && ca.domain.Name() != trustDomain {
		return nil, fmt.Errorf("the CA in %s is for trust domain %s, not %s", dir, ca.domain.Name(), trustDomain)
	}
	return ca, err
}

// WithClock returns a copy that dates its certificates by now.
func (ca *CA) WithClock(now func() time.Time) *CA {
	c := *ca
	c.now = now
	return &c
}

// TrustDomain is the name of the trust domain.
func (ca *CA) TrustDomain() string { return ca.domain.Name() }

// Bundle is the CA's certificate in PEM: what peers need in order to verify its SVIDs.
func (ca *CA) Bundle() []byte { return encodeCert(ca.cert.Raw) }

// IssueNode makes a new P-256 key and an SVID for it, both in PEM. The id must be of the CA's trust domain and have a
// path.
func (ca *CA) IssueNode(id ID, ttl time.Duration) (svidPEM, keyPEM []byte, err error) {
	if !id.MemberOf(ca.domain) || id.Path() == "" {
		return nil, nil, fmt.Errorf("%s is no identity of trust domain %s", id, ca.domain.Name())
	}
	return ca.issue(&x509.Certificate{
		Subject:     pkix.Name{Organization: []string{"MCPVault"}},
		URIs:        []*url.URL{id.URL()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, ttl)
}

// IssueServer makes a key and an ordinary server certificate for an HTTPS listener, both in PEM. It carries no SPIFFE ID,
// so it is never taken for an SVID.
func (ca *CA) IssueServer(dnsNames []string, ips []net.IP, ttl time.Duration) (certPEM, keyPEM []byte, err error) {
	if len(dnsNames)+len(ips) == 0 {
		return nil, nil, errors.New("a server certificate needs a name or an address")
	}
	return ca.issue(&x509.Certificate{
		Subject:     pkix.Name{Organization: []string{"MCPVault"}},
		DNSNames:    dnsNames,
		IPAddresses: ips,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ttl)
}

func (ca *CA) issue(tmpl *x509.Certificate, ttl time.Duration) (certPEM, keyPEM []byte, err error) {
	if ttl <= 0 {
		return nil, nil, fmt.Errorf("a certificate cannot live for %s", ttl)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	now := ca.now()
	tmpl.SerialNumber = newSerial()
	tmpl.NotBefore, tmpl.NotAfter = now.Add(-backdate), now.Add(ttl)
	if tmpl.NotAfter.After(ca.cert.NotAfter) {
		tmpl.NotAfter = ca.cert.NotAfter
	}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, nil, fmt.Errorf("sign certificate: %w", err)
	}
	keyPEM, err = encodeKey(key)
	if err != nil {
		return nil, nil, err
	}
	return encodeCert(der), keyPEM, nil
}

// newSerial has 127 random bits; crypto/rand does not fail.
func newSerial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}
