package cell

import (
	"crypto/x509"
	"fmt"
	"net"

	"github.com/mcpvault/mcpvault/dataplane/authn"
	"github.com/mcpvault/mcpvault/dataplane/edge"
	"github.com/mcpvault/mcpvault/kit/svid"
)

// openWorkloads makes what judges the certificates of callers, when there is a trust domain whose workloads may call.
func (n *Node) openWorkloads() error {
	if len(n.cfg.WorkloadBundles) == 0 {
		return nil
	}
	files := map[string]string{}
	var admissions []authn.Admission
	for _, b := range n.cfg.WorkloadBundles {
		files[b.TrustDomain] = b.Bundle
		admissions = append(admissions, authn.Admission{TrustDomain: b.TrustDomain, Tenants: b.Tenants})
	}
	clients, err := svid.OpenClients(files, n.clock.Now, n.log)
	if err != nil {
		return fmt.Errorf("workload_bundles: %w", err)
	}
	n.workloads = authn.NewWorkloads(clients, admissions)
	return nil
}

// verifyClient is what the TLS listeners ask of a client's certificate, nil when they are not to ask for one.
func (n *Node) verifyClient() edge.VerifyClient {
	if n.workloads == nil {
		return nil
	}
	return func(from net.Addr, host string, chain []*x509.Certificate) error {
		err := n.workloads.Check(chain)
		if err != nil {
			n.pep.RefuseCertificate(from, host, err)
		}
		return err
	}
}

func (c *Config) workloadProblems() []string {
	files := make([]svid.BundleFile, len(c.WorkloadBundles))
	var own []string
	for i, b := range c.WorkloadBundles {
		files[i] = svid.BundleFile{TrustDomain: b.TrustDomain, Bundle: b.Bundle}
		if b.TrustDomain != "" && b.TrustDomain == c.TrustDomain {
			own = append(own, fmt.Sprintf("workload_bundles[%d]: the trust domain of the nodes is not for workloads: give them one of their own", i))
		}
	}
	return append(svid.BundleProblems("workload_bundles", files), own...)
}
