package svid

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Why the certificate of a client is refused. The words are for audit records.
const (
	ClientMalformed   = "svid_malformed"    // not one well-formed SPIFFE ID, or a chain too long
	ClientTrustDomain = "svid_trust_domain" // of a trust domain that is not admitted
	ClientAuthority   = "svid_ca"           // the certificate of an authority, shown as a client's own
	ClientExpired     = "svid_expired"      // over, or not begun
	ClientUntrusted   = "svid_untrusted"    // not of an authority in the bundle
)

// ClientError says why the certificate of a client is refused.
type ClientError struct {
	Reason string
	cause  error
}

func (e *ClientError) Error() string { return e.Reason + ": " + e.cause.Error() }

func (e *ClientError) Unwrap() error { return e.cause }

// Client is who has shown a certificate that was found good.
type Client struct {
	ID          string // spiffe://TRUST-DOMAIN/PATH
	TrustDomain string
	// NotAfter is when the first certificate of the chain ends.
	NotAfter time.Time
	// Thumbprint is base64url(SHA-256(leaf)), the x5t#S256 of RFC 8705.
	Thumbprint string

	notBefore time.Time
}

const (
	// maxChain bounds the certificates that a client may show: each costs a signature.
	maxChain = 4
	// maxClients bounds the verdicts that are remembered.
	maxClients = 4096
)

// Clients judges the certificates that clients show, by one bundle of authorities for each trust domain. Bundles are files in
// PEM that are read again when they change. It is safe for concurrent use.
type Clients struct {
	now func() time.Time
	log *slog.Logger

	mu      sync.Mutex // guards what follows
	files   map[spiffeid.TrustDomain]*clientBundle
	checked time.Time
	// known are the signatures that were right under the bundles as they are.
	known map[[sha256.Size]byte]*Client
	round int // counts the changes of bundles
}

type clientBundle struct {
	path  string
	stamp fileStamp
	at    *x509bundle.Bundle
}

// OpenClients reads the bundle files, by trust domain. now is the clock that certificates are held to.
func OpenClients(files map[string]string, now func() time.Time, log *slog.Logger) (*Clients, error) {
	c := &Clients{now: now, log: log, files: map[spiffeid.TrustDomain]*clientBundle{}, known: map[[sha256.Size]byte]*Client{}}
	for name, path := range files {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return nil, fmt.Errorf("trust domain %q: %w", name, err)
		}
		b := &clientBundle{path: path}
		if _, err := b.read(td); err != nil {
			return nil, fmt.Errorf("bundle of %s: %w", td, err)
		}
		c.files[td] = b
	}
	return c, nil
}

// Verify judges a chain, leaf first: one SPIFFE ID, of a trust domain that has a bundle here, signed by an authority in it,
// and good at this moment. The error is a *ClientError. A chain that was verified before costs one hash.
func (c *Clients) Verify(certs []*x509.Certificate) (Client, error) {
	if len(certs) == 0 || len(certs) > maxChain {
		return Client{}, &ClientError{ClientMalformed, fmt.Errorf("%d certificates", len(certs))}
	}
	now, key := c.now(), chainHash(certs)
	known, round := c.recall(key)
	if known == nil {
		// Not under the lock: strangers can have this done, and friends must not wait for it.
		var err error
		if known, err = c.verify(certs, now); err != nil {
			return Client{}, err
		}
		c.remember(key, known, round)
	}
	if now.Before(known.notBefore) || !now.Before(known.NotAfter) {
		return Client{}, &ClientError{ClientExpired, fmt.Errorf("%s is good from %s to %s", known.ID, stamp(known.notBefore), stamp(known.NotAfter))}
	}
	return *known, nil
}

// recall looks for a verdict of the present bundles, whose number it returns.
func (c *Clients) recall(key [sha256.Size]byte) (*Client, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	return c.known[key], c.round
}

// remember keeps a verdict, if the bundles are still the ones that it was found with.
func (c *Clients) remember(key [sha256.Size]byte, client *Client, round int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if round != c.round {
		return
	}
	if len(c.known) >= maxClients {
		clear(c.known)
	}
	c.known[key] = client
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func chainHash(certs []*x509.Certificate) [sha256.Size]byte {
	if len(certs) == 1 {
		return sha256.Sum256(certs[0].Raw)
	}
	var all []byte
	for _, cert := range certs {
		sum := sha256.Sum256(cert.Raw)
		all = append(all, sum[:]...)
	}
	return sha256.Sum256(all)
}

// verify does what costs signatures.
func (c *Clients) verify(certs []*x509.Certificate, now time.Time) (*Client, error) {
	leaf := certs[0]
	id, err := x509svid.IDFromCert(leaf)
	if err == nil && id.Path() == "" {
		err = errors.New("a SPIFFE ID without a path names nobody")
	}
	if err != nil {
		return nil, &ClientError{ClientMalformed, err}
	}
	if leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return nil, &ClientError{ClientAuthority, fmt.Errorf("%s is an authority's certificate", id)}
	}
	bundle := c.bundle(id.TrustDomain())
	if bundle == nil {
		return nil, &ClientError{ClientTrustDomain, fmt.Errorf("%s is of a trust domain that is not admitted", id)}
	}
	_, chains, err := x509svid.Verify(certs, bundle, x509svid.WithTime(now))
	if err != nil {
		reason := ClientUntrusted
		var invalid x509.CertificateInvalidError
		if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
			reason = ClientExpired
		}
		return nil, &ClientError{reason, err}
	}
	sum := sha256.Sum256(leaf.Raw)
	client := &Client{
		ID: id.String(), TrustDomain: id.TrustDomain().Name(),
		Thumbprint: base64.RawURLEncoding.EncodeToString(sum[:]),
	}
	// All of the first chain must be good at the moment; another chain might be for longer, and is looked for when it is over.
	for _, cert := range chains[0] {
		if client.NotAfter.IsZero() || cert.NotAfter.Before(client.NotAfter) {
			client.NotAfter = cert.NotAfter
		}
		if cert.NotBefore.After(client.notBefore) {
			client.notBefore = cert.NotBefore
		}
	}
	return client, nil
}

func (c *Clients) bundle(td spiffeid.TrustDomain) *x509bundle.Bundle {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.have(td)
}

// current is the bundle of a trust domain as its file is now, nil when there is none.
func (c *Clients) current(td spiffeid.TrustDomain) *x509bundle.Bundle {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	return c.have(td)
}

// have is the bundle of a trust domain as it was last read. mu is held.
func (c *Clients) have(td spiffeid.TrustDomain) *x509bundle.Bundle {
	if b := c.files[td]; b != nil {
		return b.at
	}
	return nil
}

// refresh reads again what has changed. A file that cannot be read changes nothing. mu is held.
func (c *Clients) refresh() {
	now := time.Now() // the wall clock: the dates of files know no other
	if since := now.Sub(c.checked); since >= 0 && since < checkEvery {
		return
	}
	c.checked = now
	for td, b := range c.files {
		changed, err := b.read(td)
		if err != nil {
			c.log.Warn("bundle of workloads not usable; the previous one stays", "trust_domain", td.Name(), "error", err)
		}
		if changed {
			c.round++
			clear(c.known)
		}
	}
}

// read takes the file when it has changed.
func (b *clientBundle) read(td spiffeid.TrustDomain) (changed bool, err error) {
	f, err := os.Open(b.path)
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	now := fileStamp{info.ModTime().UnixNano(), info.Size()}
	if now == b.stamp {
		return false, nil
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err != nil {
		return false, err
	}
	if len(raw) > maxPEM {
		return false, fmt.Errorf("%s is larger than %d bytes", b.path, maxPEM)
	}
	next, err := x509bundle.Parse(td, raw)
	if err != nil {
		return false, err
	}
	if next.Empty() {
		return false, fmt.Errorf("%s holds no authority", b.path)
	}
	b.at, b.stamp = next, now
	return true, nil
}
