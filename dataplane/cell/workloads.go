package cell

import (
	"crypto/x509"
	"fmt"
	"net"
	"strings"

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
	var p []string
	seen := map[string]bool{}
	for i, b := range c.WorkloadBundles {
		at := fmt.Sprintf("workload_bundles[%d]", i)
		_, err := svid.ParseID("spiffe://" + b.TrustDomain + "/workload")
		switch {
		case b.TrustDomain == "" || b.Bundle == "":
			p = append(p, at+": trust_domain and bundle are both required")
		case err != nil || strings.Contains(b.TrustDomain, "/"):
			p = append(p, fmt.Sprintf("%s: %.80q is no trust domain", at, b.TrustDomain))
		case b.TrustDomain == c.TrustDomain:
			p = append(p, at+": the trust domain of the nodes is not for workloads: give them one of their own")
		case seen[b.TrustDomain]:
			p = append(p, fmt.Sprintf("%s: trust domain %s is there twice", at, b.TrustDomain))
		}
		seen[b.TrustDomain] = true
	}
	return p
}
