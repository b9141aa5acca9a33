package cell

import (
	"fmt"
	"os"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/renewal"
	"github.com/mcpvault/mcpvault/kit/svid"
)

// openRenewal makes what renews this node's SVID, where nobody else does.
func (n *Node) openRenewal() error {
	if os.Getenv(svid.SocketEnv) != "" || n.cfg.IdentityDir == "" {
		return nil
	}
	var err error
	n.renewal, err = renewal.New(renewal.Config{Dir: n.cfg.IdentityDir, Signer: n.control, Logger: n.log, Registerer: n.reg})
	return err
}

// living admits whom allow admits, until they are killed.
func (n *Node) living(allow svid.Authorizer) svid.Authorizer {
	return func(peer svid.ID) error {
		if err := allow(peer); err != nil {
			return err
		}
		_, node, _ := svid.ParseNode(peer.String())
		return n.admit(node)
	}
}

// renewalProblem says from half of the SVID's life on that nobody has renewed it.
func (n *Node) renewalProblem() error {
	v, err := n.identity.GetX509SVID()
	if err != nil {
		return err
	}
	c := v.Certificates[0]
	if time.Now().Before(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)) {
		return nil
	}
	reason := "the Workload API has brought no other"
	if n.renewal != nil {
		reason = "the control plane has signed no other"
		if err := n.renewal.Problem(); err != nil {
			reason = err.Error()
		}
	}
	return fmt.Errorf("the SVID ends at %s, and then nobody speaks to this node: %s", c.NotAfter.UTC().Format(time.RFC3339), reason)
}

// ownAddress is where the other nodes reach this one.
func (n *Node) ownAddress() (raft, peer string) {
	for _, m := range n.cfg.Members {
		if m.Node == n.cfg.Node {
			return m.Raft, m.Peer
		}
	}
	return n.cfg.Listen.Raft, n.cfg.Listen.Peer
}
