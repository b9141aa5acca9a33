package pep

import (
	"crypto/x509"
	"errors"
	"net"

	"github.com/mcpvault/mcpvault/dataplane/authn"
)

// identify finds the principal by the token, and where there is none by the certificate that the caller has shown. A token
// that is bound to a certificate is good only beside it (RFC 8705, 3).
func (x *exchange) identify() (authn.Principal, error) {
	token, err := authn.FromHeader(x.r.Header, x.r.URL.RawQuery)
	if err != nil {
		var ae *authn.Error
		if chain := x.chain(); len(chain) > 0 && errors.As(err, &ae) && ae.Reason == authn.TokenMissing {
			return x.p.workload.Workload(chain, &x.tenant.Keys)
		}
		return authn.Principal{}, err
	}
	base := x.p.baseURL(x.r)
	used := base + x.r.URL.Path // which begins with /mcp
	who, err := x.p.authn.BearerFor(token, x.tenant.Keys, used[:len(base)+len("/mcp")], used)
	if err != nil {
		return authn.Principal{}, err
	}
	if who.Bound != "" && (x.p.workload == nil || !x.p.workload.Holds(x.chain(), who.Bound)) {
		return authn.Principal{}, &authn.Error{Reason: authn.TokenBinding}
	}
	return who, nil
}

// chain is what the caller has shown, leaf first; none where certificates are not asked for.
func (x *exchange) chain() []*x509.Certificate {
	if x.r.TLS == nil || x.p.workload == nil {
		return nil
	}
	return x.r.TLS.PeerCertificates
}

// RefuseCertificate records a caller whom a listener has turned away during the handshake, for the tenant of the host name
// that it asked for. err says why: it is an *authn.Error, whose reason the record has.
func (p *PEP) RefuseCertificate(from net.Addr, name string, err error) {
	rec := p.turnedAway(from, codeIdentity, "svid_untrusted")
	rec.Method, rec.Detail = "tls/handshake", bounded(err.Error(), 256)
	var ae *authn.Error
	if errors.As(err, &ae) {
		rec.Reason = ae.Reason
	}
	if t := p.policy.Current().TenantByHost(name); t != nil {
		rec.TenantId, rec.Tenant = string(t.ID), t.Name
	}
	p.keep(rec)
}
