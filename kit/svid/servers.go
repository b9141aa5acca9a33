package svid

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
)

// SplitAddress takes the SPIFFE ID off an address that says who must answer there: https://pay.internal/mcp#spiffe://corp/pay.
// Address and identity are one text, so that nothing that carries the one can lose the other. id is "" when the address
// names nobody.
func SplitAddress(address string) (rest, id string) {
	rest, id, _ = strings.Cut(address, "#")
	return rest, id
}

// JoinAddress is the inverse of SplitAddress. It fails when the id is none, or when the address is not one that can prove it.
func JoinAddress(address, id string) (string, error) {
	if id == "" {
		return address, nil
	}
	parsed, err := ParseID(id)
	switch {
	case err != nil:
		return "", err
	case parsed.Path() == "":
		return "", fmt.Errorf("%q names a trust domain and no server", id)
	case !strings.HasPrefix(address, "https://") && !strings.HasPrefix(address, "sse+https://"):
		return "", fmt.Errorf("%q: only a server with https can prove a SPIFFE ID", address)
	case strings.Contains(address, "#"):
		return "", fmt.Errorf("%q names somebody already", address)
	}
	return address + "#" + parsed.String(), nil
}

// Servers makes the configurations of connections to servers that prove a SPIFFE ID: of the own trust domain, or of one whose
// bundle is in a file here. Our own SVID is shown to them.
type Servers struct {
	Identity
	others *Clients
}

// OpenServers reads the bundle files, by trust domain; they are read again when they change.
func OpenServers(own Identity, files map[string]string, log *slog.Logger) (*Servers, error) {
	others, err := OpenClients(files, time.Now, log)
	if err != nil {
		return nil, err
	}
	return &Servers{own, others}, nil
}

// TLS is the configuration of a connection to the server with that SPIFFE ID, and to no other.
func (s *Servers) TLS(id string) (*tls.Config, error) {
	peer, err := ParseID(id)
	if err != nil {
		return nil, err
	}
	if _, err := s.GetX509BundleForTrustDomain(peer.TrustDomain()); err != nil {
		return nil, fmt.Errorf("there is no bundle of the trust domain of %s: %w", id, err)
	}
	return ClientTLS(s, Exactly(peer)), nil
}

// GetX509BundleForTrustDomain finds the authorities of a trust domain (x509bundle.Source).
func (s *Servers) GetX509BundleForTrustDomain(td TrustDomain) (*x509bundle.Bundle, error) {
	if b := s.others.current(td); b != nil {
		return b, nil
	}
	return s.Identity.GetX509BundleForTrustDomain(td)
}

// BundleFile says where the authorities of a trust domain are, in PEM.
type BundleFile struct {
	TrustDomain string `yaml:"trust_domain"`
	Bundle      string `yaml:"bundle"`
}

// BundleFiles are the files by trust domain.
func BundleFiles(list []BundleFile) map[string]string {
	m := make(map[string]string, len(list))
	for _, b := range list {
		m[b.TrustDomain] = b.Bundle
	}
	return m
}

// BundleProblems is what is wrong with such a list in the configuration under that key.
func BundleProblems(key string, list []BundleFile) []string {
	var p []string
	seen := map[string]bool{}
	for i, b := range list {
		at := fmt.Sprintf("%s[%d]", key, i)
		id, err := ParseID("spiffe://" + b.TrustDomain + "/x")
		switch {
		case b.TrustDomain == "" || b.Bundle == "":
			p = append(p, at+": trust_domain and bundle are both required")
		case err != nil || id.TrustDomain().Name() != b.TrustDomain:
			p = append(p, fmt.Sprintf("%s: %.80q is no trust domain", at, b.TrustDomain))
		case seen[b.TrustDomain]:
			p = append(p, fmt.Sprintf("%s: trust domain %s is there twice", at, b.TrustDomain))
		}
		seen[b.TrustDomain] = true
	}
	return p
}
