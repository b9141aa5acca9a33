package devmode

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/mcpvault/mcpvault/kit/svid"
)

// svidTTL is how long an identity lasts; each start issues new ones.
const svidTTL = 7 * 24 * time.Hour

// issueIdentities gives every process its SVID and the cells a certificate that MCP clients see.
func (p *plan) issueIdentities() error {
	ca, err := svid.OpenCA(p.caDir(), trustDomain)
	if err != nil {
		return fmt.Errorf("open the CA: %w", err)
	}
	id, err := svid.ControlPlaneID(trustDomain, "dev")
	if err != nil {
		return err
	}
	if err := issue(ca, id, p.identity("controlplane")); err != nil {
		return err
	}
	for _, n := range p.nodes {
		id, err := svid.NodeID(trustDomain, n.cell, n.name)
		if err != nil {
			return err
		}
		if err := issue(ca, id, p.identity(n.file())); err != nil {
			return err
		}
	}
	if err := p.issueWorkload(); err != nil {
		return err
	}
	// Some clients take no wildcard right below a top-level name, so the tenants are named too.
	names := []string{"localhost", "*" + hostSuffix, tenant + hostSuffix, otherTenant + hostSuffix}
	cert, key, err := ca.IssueServer(names, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, svidTTL)
	if err != nil {
		return fmt.Errorf("issue the front's certificate: %w", err)
	}
	if err := writeFile(p.frontKey(), key); err != nil {
		return err
	}
	return writeFile(p.frontCert(), cert)
}

// issueWorkload makes an authority for each cell's workloads, never the nodes' own, and an SVID of the first one's for trying
// out.
func (p *plan) issueWorkload() error {
	for i, cell := range p.cellNames() {
		ca, err := svid.OpenCA(p.workloadCA(cell), workloadDomain(cell))
		if err != nil {
			return fmt.Errorf("open the CA of the workloads: %w", err)
		}
		if i > 0 {
			continue
		}
		id, err := svid.ParseID(p.workload())
		if err != nil {
			return err
		}
		if err := issue(ca, id, p.workloadDir()); err != nil {
			return err
		}
	}
	return nil
}

// workloadDomain is the trust domain of a cell's workloads.
func workloadDomain(cell string) string { return svid.WorkloadDomain(trustDomain, cell) }

// workload is who holds the SVID for trying out.
func (p *plan) workload() string    { return "spiffe://" + workloadDomain(firstCell) + "/agent/demo" }
func (p *plan) workloadDir() string { return filepath.Join(p.dir, "workload") }

func (p *plan) workloadCA(cell string) string { return filepath.Join(p.keys(), "workloads", cell) }

func (p *plan) frontCert() string { return filepath.Join(p.identity("front"), "tls.crt") }
func (p *plan) frontKey() string  { return filepath.Join(p.identity("front"), "tls.key") }

func issue(ca *svid.CA, id svid.ID, dir string) error { return issueFor(ca, id, dir, svidTTL) }

func issueFor(ca *svid.CA, id svid.ID, dir string, ttl time.Duration) error {
	cert, key, err := ca.IssueNode(id, ttl)
	if err != nil {
		return fmt.Errorf("issue %s: %w", id, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("issue %s: %w", id, err)
	}
	if err := svid.WriteIdentity(dir, cert, key, ca.Bundle()); err != nil {
		return fmt.Errorf("issue %s: %w", id, err)
	}
	return nil
}
