package authn

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/mcpvault/mcpvault/kit/svid"
)

// Admission lets the workloads of a trust domain call.
type Admission struct {
	TrustDomain string
	// Tenants are those that the workloads may call, by name or id; all when empty.
	Tenants []string
}

// Workloads turns the certificates that callers show into principals. It may be used by many goroutines.
type Workloads struct {
	clients *svid.Clients
	admit   map[string][]string
}

// NewWorkloads makes Workloads of what judges certificates and of who may call whom. A trust domain that is not admitted
// may call nobody.
func NewWorkloads(clients *svid.Clients, admissions []Admission) *Workloads {
	w := &Workloads{clients: clients, admit: map[string][]string{}}
	for _, a := range admissions {
		w.admit[a.TrustDomain] = a.Tenants
	}
	return w
}

// Workload returns the principal that the chain names, leaf first, or an *Error. It is named by its SPIFFE ID; its issuer
// is its trust domain, and its JTI the thumbprint of the certificate. ExpiresAt is exact.
func (w *Workloads) Workload(chain []*x509.Certificate, t *TenantKeys) (Principal, error) {
	c, err := w.clients.Verify(chain)
	var refused *svid.ClientError
	switch {
	case errors.As(err, &refused):
		return Principal{}, refuse(refused.Reason, err)
	case err != nil:
		return Principal{}, refuse(svid.ClientUntrusted, err)
	}
	tenants, admitted := w.admit[c.TrustDomain]
	if !admitted || len(tenants) > 0 && !slices.Contains(tenants, t.Tenant) && !slices.Contains(tenants, t.TenantID) {
		return Principal{}, refuse(svid.ClientTrustDomain, fmt.Errorf("%s may not call tenant %s", c.TrustDomain, t.Tenant))
	}
	return Principal{
		Name: c.ID, Issuer: "spiffe://" + c.TrustDomain, Subject: c.ID, JTI: c.Thumbprint, Type: TypeWorkload,
		ExpiresAt: c.NotAfter, Exact: true,
	}, nil
}

// Holds reports whether the chain that a caller has shown is the one that a token is bound to (RFC 8705, 3.1). It must be
// good at this moment, whatever tenants it may call by itself.
func (w *Workloads) Holds(chain []*x509.Certificate, thumbprint string) bool {
	if len(chain) == 0 {
		return false
	}
	c, err := w.clients.Verify(chain)
	return err == nil && c.Thumbprint == thumbprint
}

// Check judges a chain before it is known whom it will call: what a listener asks during the handshake. The error is an
// *Error.
func (w *Workloads) Check(chain []*x509.Certificate) error {
	_, err := w.clients.Verify(chain)
	var refused *svid.ClientError
	if errors.As(err, &refused) {
		return refuse(refused.Reason, err)
	}
	return err
}
