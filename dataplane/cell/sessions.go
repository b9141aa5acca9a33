package cell

import (
	"context"
	"encoding/hex"

	"github.com/mcpvault/mcpvault/dataplane/consensus"
	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/kit/problem"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// devSessions is how many sessions one principal may have in development, where all of a test suite is one person.
const devSessions = 4096

// openSessions makes the leases and what seals the ids.
func (n *Node) openSessions() (err error) {
	if n.sessions, err = session.New(session.Config{Now: n.clock.Now}); err != nil {
		return err
	}
	n.takeSessionKeys()
	cfg := session.LeasesConfig{Log: sessionLog{n}, Disk: n.store.Leases(), Now: n.clock.Now, Logger: n.log, Settings: n.settingsOf}
	if n.cfg.Dev {
		cfg.Defaults.PerPrincipal = devSessions
	}
	n.leases = session.NewLeases(cfg)
	return nil
}

func (n *Node) settingsOf(tenant string) *snapshotv1.Settings {
	if t := n.pdp.Current().Tenant(snapshot.TenantID(tenant)); t != nil {
		return t.Settings
	}
	return nil
}

// sessionLog brings changes of sessions to the leader, wherever it is.
type sessionLog struct{ n *Node }

func (l sessionLog) Leads() bool   { return l.n.consensus.Leads() }
func (l sessionLog) Current() bool { return l.n.consensus.Current() }
func (l sessionLog) HasLeader() bool {
	_, ok := l.n.consensus.Leader()
	return ok
}

func (l sessionLog) ProposeSessions(ctx context.Context, b *cellv1.SessionBatch) ([]cellv1.SessionVerdict, error) {
	if l.Leads() {
		return l.n.consensus.ProposeSessions(ctx, b)
	}
	leader, ok := l.n.consensus.Leader()
	if !ok {
		return nil, problem.New(problem.Unavailable, "the cell has no leader", "it elects one by itself as soon as most of its nodes reach each other")
	}
	return l.n.peers.ProposeSessions(ctx, leader, b)
}

// ProposeSessions makes the node a peer of the others.
func (n *Node) ProposeSessions(ctx context.Context, b *cellv1.SessionBatch) ([]cellv1.SessionVerdict, error) {
	return n.consensus.ProposeSessions(ctx, b)
}

// sessionsApplied hears what the log has put on this node's disk. There is no front yet while the node opens its disk.
func (n *Node) sessionsApplied(a consensus.Applied) {
	n.leases.Applied(a.Entry.GetSessions())
	for _, e := range a.Ended {
		n.pep.SessionEnded(e.Lease, e.Closed)
	}
}

// sessionKilled ends the lease of a session that was killed, so that it counts no more and its upstream session is closed.
func (n *Node) sessionKilled(k *snapshotv1.Kill) {
	raw, err := hex.DecodeString(k.GetSubject())
	if k.GetKind() != snapshotv1.KillKind_KILL_KIND_SESSION || err != nil || len(raw) != 16 {
		return
	}
	n.leases.Kill([16]byte(raw))
}
