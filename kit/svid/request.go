package svid

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// ErrRequest is in the chain of every refusal of a certificate request.
var ErrRequest = errors.New("the certificate request is refused")

// maxRequest bounds a certificate request, in bytes of DER.
const maxRequest = 8 << 10

// NewKey makes a P-256 key, in PEM.
func NewKey() (keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	return encodeKey(key)
}

// NewRequest makes a certificate request (PKCS #10, DER) for the id with a key in PEM.
func NewRequest(keyPEM []byte, id ID) (csr []byte, err error) {
	block, _ := pem.Decode(keyPEM)
	if block == nil || block.Type != pemKey {
		return nil, errors.New("the file holds no private key")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse key: %w", err)
	}
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id.URL()}}, key)
}

// SignRequest issues an SVID to whoever holds the key of a certificate request (PKCS #10, DER). What the SVID says comes from
// here and not from the request; one that asks for anything but the id is refused (ErrRequest) rather than bent. The answer
// is the SVID and what is between it and the bundle, in PEM.
func (ca *CA) SignRequest(csr []byte, id ID, ttl time.Duration) (chainPEM []byte, err error) {
	if !id.MemberOf(ca.domain) || id.Path() == "" {
		return nil, fmt.Errorf("%s is no identity of trust domain %s", id, ca.domain.Name())
	}
	public, err := checkRequest(csr, id)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	return ca.sign(&x509.Certificate{
		Subject:     pkix.Name{Organization: []string{"MCPVault"}},
		URIs:        []*url.URL{id.URL()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, public, ttl)
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

func checkRequest(csr []byte, id ID) (*ecdsa.PublicKey, error) {
	req, err := parseRequest(csr)
	if err != nil {
		return nil, err
	}
	if len(req.URIs) != 1 || req.URIs[0].String() != id.String() || len(req.DNSNames)+len(req.IPAddresses)+len(req.EmailAddresses) > 0 {
		return nil, fmt.Errorf("it is not for %s alone", id)
	}
	for _, ext := range req.Extensions {
		if !ext.Id.Equal(oidSubjectAltName) {
			return nil, fmt.Errorf("it asks for the extension %s: an SVID gets its own", ext.Id)
		}
	}
	public, ok := req.PublicKey.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return nil, errors.New("its key is not of P-256")
	}
	return public, nil
}

func parseRequest(csr []byte) (*x509.CertificateRequest, error) {
	if len(csr) > maxRequest {
		return nil, fmt.Errorf("it is over %d bytes", maxRequest)
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, err
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("whoever sent it does not hold its key: %w", err)
	}
	return req, nil
}

// RequestKey is the SHA-256 of the public key (SubjectPublicKeyInfo) of a certificate request whose sender holds that key.
func RequestKey(csr []byte) ([sha256.Size]byte, error) {
	req, err := parseRequest(csr)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	return sha256.Sum256(req.RawSubjectPublicKeyInfo), nil
}

// Issued holds what came back for a certificate request to what it must be: an SVID of the id for the key, of an authority in
// the bundle, good now. It returns the SVID's end.
func Issued(chainPEM, keyPEM, bundlePEM []byte, id ID, now time.Time) (time.Time, error) {
	v, err := parseIdentity(chainPEM, keyPEM)
	if err != nil {
		return time.Time{}, err
	}
	if v.ID != id {
		return time.Time{}, fmt.Errorf("the SVID is of %s, not of %s", v.ID, id)
	}
	bundle, err := x509bundle.Parse(id.TrustDomain(), bundlePEM)
	if err != nil {
		return time.Time{}, err
	}
	if _, _, err := x509svid.Verify(v.Certificates, bundle, x509svid.WithTime(now)); err != nil {
		return time.Time{}, fmt.Errorf("the SVID is not of an authority in the bundle: %w", err)
	}
	return v.Certificates[0].NotAfter, nil
}

// Pins are the SHA-256 of each certificate of a bundle in PEM, in its order.
func Pins(bundlePEM []byte) ([][sha256.Size]byte, error) {
	certs, err := parseCerts(bundlePEM)
	if err != nil {
		return nil, err
	}
	pins := make([][sha256.Size]byte, len(certs))
	for i, c := range certs {
		pins[i] = sha256.Sum256(c.Raw)
	}
	return pins, nil
}

// AuthorityOf is a SHA-256 that changes when who signs, or who is believed, does: over a bundle and what is between it and an
// SVID, both in PEM.
func AuthorityOf(chainPEM, bundlePEM []byte) []byte {
	h := sha256.New()
	if block, rest := pem.Decode(chainPEM); block != nil {
		_, _ = h.Write(bytes.TrimSpace(rest))
	}
	_, _ = h.Write([]byte{0})
	_, _ = h.Write(bytes.TrimSpace(bundlePEM))
	return h.Sum(nil)
}

// Authority is AuthorityOf what this CA issues.
func (ca *CA) Authority() []byte {
	var chain []byte
	for _, c := range ca.chain {
		chain = append(chain, encodeCert(c.Raw)...)
	}
	return AuthorityOf(append(encodeCert(ca.cert.Raw), chain...), ca.bundle)
}

// WorkloadDomain is the trust domain of the workloads of a cell, never that of the nodes.
func WorkloadDomain(trustDomain, cell string) string { return cell + ".workloads." + trustDomain }

// WorkloadID is the identity of a workload of an organisation: spiffe://CELL.workloads.TD/org/ORG/NAME. The organisation is
// in it so that no other's administrator can have it issued.
func WorkloadID(trustDomain, cell, org, name string) (ID, error) {
	td, err := spiffeid.TrustDomainFromString(WorkloadDomain(trustDomain, cell))
	if err != nil {
		return ID{}, fmt.Errorf("trust domain of the workloads of cell %q: %w", cell, err)
	}
	return makeID(td.Name(), "org", org, name)
}

// Thumbprint is the x5t#S256 (RFC 8705) of the first certificate in PEM, as audit records of its calls have it; "" for none.
func Thumbprint(chainPEM []byte) string {
	block, _ := pem.Decode(chainPEM)
	if block == nil {
		return ""
	}
	sum := sha256.Sum256(block.Bytes)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
