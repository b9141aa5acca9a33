package svid

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// IntroductionName is the server name (SNI) under which a client that has no SVID yet asks for a connection.
const IntroductionName = "enroll.mcpvault"

// ErrPin is in the chain of a refusal of a server whose authority is none of those that a client has the hashes of.
var ErrPin = errors.New("whoever answers is not of an authority whose hash is known")

// IntroductionTLS is the server's side of a connection to a client that has no SVID yet and knows the authorities by their
// hashes only: they are sent along. It asks for no certificate; who may do what on such a connection is for the caller.
func IntroductionTLS(id Identity, protocols ...string) *tls.Config {
	cfg := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		v, err := id.GetX509SVID()
		if err != nil {
			return nil, err
		}
		bundle, err := id.GetX509BundleForTrustDomain(v.ID.TrustDomain())
		if err != nil {
			return nil, err
		}
		cert := &tls.Certificate{PrivateKey: v.PrivateKey}
		for _, c := range slices.Concat(v.Certificates, bundle.X509Authorities()) {
			cert.Certificate = append(cert.Certificate, c.Raw)
		}
		return cert, nil
	}}
	harden(cfg, protocols)
	cfg.SessionTicketsDisabled = true
	return cfg
}

// PinnedTLS is the client's side: who answers must be of the trust domain, admitted by allow, and signed below an authority
// whose certificate has one of the hashes (SHA-256). The error of a handshake with anybody else is ErrPin or ErrRefused.
func PinnedTLS(trustDomain string, pins [][sha256.Size]byte, allow Authorizer, protocols ...string) (*tls.Config, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain %q: %w", trustDomain, err)
	}
	cfg := &tls.Config{
		ServerName: IntroductionName,
		// VerifyConnection does what is left out here: there is no host name to check, and the authorities come along.
		InsecureSkipVerify: true, //nolint:gosec // verified below, against hashes
	}
	harden(cfg, protocols)
	before := cfg.VerifyConnection
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := before(cs); err != nil {
			return err
		}
		var roots, chain []*x509.Certificate
		for i, c := range cs.PeerCertificates {
			if i > 0 && c.IsCA && slices.Contains(pins, sha256.Sum256(c.Raw)) {
				roots = append(roots, c)
			} else {
				chain = append(chain, c)
			}
		}
		if len(roots) == 0 {
			return ErrPin
		}
		peer, _, err := x509svid.Verify(chain, x509bundle.FromX509Authorities(td, roots))
		if err != nil {
			return fmt.Errorf("%w: %w", ErrPin, err)
		}
		return allow(peer)
	}
	return cfg, nil
}
