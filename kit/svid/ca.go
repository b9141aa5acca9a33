package svid

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
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
	// maxIntermediate bounds the life of an authority below the root.
	maxIntermediate = 2 * 365 * 24 * time.Hour
	// backdate lets a peer whose clock is a little behind accept a fresh certificate.
	backdate = 5 * time.Minute
)

// CA is the built-in certificate authority of one trust domain. Its key lives in one file, mode 0600.
type CA struct {
	domain spiffeid.TrustDomain
	cert   *x509.Certificate
	// chain goes along with what it signs: its own certificate, unless that is what peers believe in anyway.
	chain []*x509.Certificate
	// bundle are the authorities of the trust domain, the old and the new one while they are changed, in PEM.
	bundle []byte
	key    *ecdsa.PrivateKey
	now    func() time.Time
}

// CreateCA makes a P-256 authority for the trust domain that signs SVIDs itself, and writes ca.pem and ca.key into dir. The
// error wraps ErrCAExists when there is one.
func CreateCA(dir, trustDomain string) (*CA, error) { return createRoot(dir, trustDomain, 0) }

// CreateRoot makes an authority, to be kept offline, for those that sign SVIDs (see CreateIntermediate).
func CreateRoot(dir, trustDomain string) (*CA, error) { return createRoot(dir, trustDomain, 1) }

func createRoot(dir, trustDomain string, below int) (*CA, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain %q: %w", trustDomain, err)
	}
	key, tmpl, err := newAuthority(td, time.Now(), caLifetime)
	if err != nil {
		return nil, err
	}
	tmpl.MaxPathLen, tmpl.MaxPathLenZero = below, below == 0
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign CA certificate: %w", err)
	}
	if err := writeCA(dir, key, encodeCert(der), nil); err != nil {
		return nil, err
	}
	return LoadCA(dir)
}

// CreateIntermediate makes an authority below the root that lives for ttl, at most two years, and writes ca.pem, ca.key and
// bundle.pem into dir: what a control plane signs SVIDs with. The error wraps ErrCAExists when there is one.
func (ca *CA) CreateIntermediate(dir string, ttl time.Duration) (*CA, error) {
	if ca.cert.MaxPathLenZero {
		return nil, errors.New("this authority signs SVIDs itself and has none below it")
	}
	if ttl <= 0 || ttl > maxIntermediate {
		return nil, fmt.Errorf("an authority below the root lives for at most %s, not %s", maxIntermediate, ttl)
	}
	key, tmpl, err := newAuthority(ca.domain, ca.now(), ttl)
	if err != nil {
		return nil, err
	}
	tmpl.MaxPathLenZero = true
	if tmpl.NotAfter.After(ca.cert.NotAfter) {
		tmpl.NotAfter = ca.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign CA certificate: %w", err)
	}
	if err := writeCA(dir, key, encodeCert(der), ca.bundle); err != nil {
		return nil, err
	}
	return LoadCA(dir)
}

func newAuthority(td spiffeid.TrustDomain, now time.Time, ttl time.Duration) (*ecdsa.PrivateKey, *x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate CA key: %w", err)
	}
	serial := newSerial()
	return key, &x509.Certificate{
		SerialNumber: serial,
		// The serial number keeps the names of two authorities of a trust domain apart.
		Subject:               pkix.Name{Organization: []string{"MCPVault"}, CommonName: td.Name(), SerialNumber: serial.Text(16)},
		URIs:                  []*url.URL{td.ID().URL()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(ttl),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}, nil
}

func writeCA(dir string, key *ecdsa.PrivateKey, certPEM, bundlePEM []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create CA directory: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return err
	}
	// The certificate is written last: a CA is there when its certificate is.
	if _, err := os.Lstat(filepath.Join(dir, caCertFile)); err == nil {
		return fmt.Errorf("%s: %w", dir, ErrCAExists)
	}
	if bundlePEM != nil {
		if err := writeFile(dir, bundleFile, bundlePEM); err != nil {
			return err
		}
	}
	if err := writeFile(dir, caKeyFile, keyPEM); err != nil {
		return err
	}
	return writeFile(dir, caCertFile, certPEM)
}

// LoadCA reads what CreateCA or CreateIntermediate wrote. A bundle.pem in the directory holds the authorities that peers are
// to believe; without one it is the CA's own certificate. The error wraps fs.ErrNotExist when there is no CA.
func LoadCA(dir string) (*CA, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, caCertFile))
	if err != nil {
		return nil, fmt.Errorf("read CA certificate: %w", err)
	}
	keyPEM, err := readPrivate(filepath.Join(dir, caKeyFile))
	if err != nil {
		return nil, fmt.Errorf("read CA key: %w", err)
	}
	certs, err := parseCerts(certPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, caCertFile), err)
	}
	cert := certs[0]
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
	ca := &CA{domain: td, cert: cert, key: key, now: time.Now}
	if err := ca.believe(dir, certs); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, bundleFile), err)
	}
	return ca, nil
}

// believe reads the bundle and holds the CA to it: what it signs would be believed by nobody else.
func (ca *CA) believe(dir string, certs []*x509.Certificate) error {
	bundlePEM, err := os.ReadFile(filepath.Join(dir, bundleFile))
	if errors.Is(err, fs.ErrNotExist) {
		bundlePEM, err = encodeCert(ca.cert.Raw), nil
	}
	if err != nil {
		return err
	}
	roots, err := parseCerts(bundlePEM)
	if err != nil {
		return err
	}
	opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: ca.cert.NotAfter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	ca.chain = certs
	for _, r := range roots {
		opts.Roots.AddCert(r)
		if r.Equal(ca.cert) {
			ca.chain = nil
		}
	}
	for _, c := range certs[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := ca.cert.Verify(opts); err != nil {
		return fmt.Errorf("the CA is not of an authority in it: %w", err)
	}
	ca.bundle = bundlePEM
	return nil
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
		return nil, otherDomain(dir, ca, trustDomain)
	}
	return ca, err
}

func otherDomain(dir string, ca *CA, want string) error {
	return fmt.Errorf("the CA in %s is for trust domain %s, not %s", dir, ca.domain.Name(), want)
}

// WithClock returns a copy that dates its certificates by now.
func (ca *CA) WithClock(now func() time.Time) *CA {
	c := *ca
	c.now = now
	return &c
}

// TrustDomain is the name of the trust domain.
func (ca *CA) TrustDomain() string { return ca.domain.Name() }

// Bundle are the authorities in PEM that peers need in order to verify its SVIDs.
func (ca *CA) Bundle() []byte { return bytes.Clone(ca.bundle) }

// NotAfter is when the CA ends; nothing that it signs lives longer.
func (ca *CA) NotAfter() time.Time { return ca.cert.NotAfter }

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
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	if certPEM, err = ca.sign(tmpl, &key.PublicKey, ttl); err != nil {
		return nil, nil, err
	}
	keyPEM, err = encodeKey(key)
	if err != nil {
		return nil, nil, err
	}
	return certPEM, keyPEM, nil
}

// sign fills in what every certificate has, and returns it with what is between it and the bundle.
func (ca *CA) sign(tmpl *x509.Certificate, public *ecdsa.PublicKey, ttl time.Duration) (chainPEM []byte, err error) {
	now := ca.now()
	if ttl <= 0 || !now.Before(ca.cert.NotAfter) {
		return nil, fmt.Errorf("a certificate cannot live for %s: the CA itself ends at %s", ttl, stamp(ca.cert.NotAfter))
	}
	tmpl.SerialNumber = newSerial()
	tmpl.NotBefore, tmpl.NotAfter = now.Add(-backdate), now.Add(ttl)
	if tmpl.NotAfter.After(ca.cert.NotAfter) {
		tmpl.NotAfter = ca.cert.NotAfter
	}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, public, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	chainPEM = encodeCert(der)
	for _, c := range ca.chain {
		chainPEM = append(chainPEM, encodeCert(c.Raw)...)
	}
	return chainPEM, nil
}

// newSerial has 127 random bits; crypto/rand does not fail.
func newSerial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}
