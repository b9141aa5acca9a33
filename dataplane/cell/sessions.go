package cell

import (
	"context"
	"encoding/hex"
	"slices"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/consensus"
	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/dataplane/store"
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

const (
	// maxAsked questions of the control plane may wait; what is more is not answered, and asked of another node.
	maxAsked    = 8
	answerLimit = 2 * time.Second
	maxSessions = 1000
)

func (n *Node) askedForSessions(q *cellv1.SessionQuery) {
	select {
	case n.asked <- q:
	default:
	}
}

// answerSessions answers what the control plane asks about sessions.
func (n *Node) answerSessions(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case q := <-n.asked:
			answer, err := sessionsAsked(n.store.Leases(), q)
			if err == nil {
				actx, cancel := context.WithTimeout(ctx, answerLimit)
				_, err = n.control.AnswerSessions(actx, answer)
				cancel()
			}
			if err != nil {
				n.log.WarnContext(ctx, "a question about sessions was not answered", "err", err)
			}
		}
	}
}

// ordered hears an order; one too many is not answered.
func (n *Node) ordered(o *cellv1.NodeOrder) {
	select {
	case n.orders <- o:
	default:
	}
}

// answerOrders does what the control plane asks for, one thing after the other.
func (n *Node) answerOrders(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case o := <-n.orders:
			var answer *cellv1.AnswerOrderRequest
			if o.GetKind() == cellv1.OrderKind_ORDER_KIND_DRAIN {
				answer = n.startDrain(ctx, o)
			} else {
				answer = n.obey(ctx, o)
			}
			actx, cancel := context.WithTimeout(ctx, answerLimit)
			if _, err := n.control.AnswerOrder(actx, answer); err != nil {
				n.log.WarnContext(ctx, "an order was not answered", "err", err)
			}
			cancel()
		}
	}
}

// sessionsAsked are the sessions that a question is about.
func sessionsAsked(leases *store.Leases, q *cellv1.SessionQuery) (*cellv1.AnswerSessionsRequest, error) {
	answer := &cellv1.AnswerSessionsRequest{Id: q.GetId()}
	wanted := func(l *cellv1.SessionLease) bool {
		return l.GetTenantId() == q.GetTenantId() && (q.GetPrincipal() == "" || q.GetPrincipal() == l.GetPrincipal()) &&
			(q.GetServer() == "" || q.GetServer() == l.GetServer())
	}
	var all []*cellv1.SessionLease
	if len(q.GetSession()) == 16 {
		found, err := leases.Find([16]byte(q.GetSession()))
		if err != nil {
			return nil, err
		}
		all = slices.DeleteFunc(found, func(l *cellv1.SessionLease) bool { return !wanted(l) })
	} else {
		var err error
		if all, answer.More, err = leases.List(q.GetTenantId(), min(int(q.GetLimit()), maxSessions), wanted); err != nil {
			return nil, err
		}
	}
	for _, l := range all {
		id := session.LeaseID(l.GetId())
		answer.Sessions = append(answer.Sessions, &cellv1.SessionInfo{
			Session: id[8:], Node: l.GetNode(), Principal: l.GetPrincipal(), Server: l.GetServer(), Client: l.GetClient(),
			Revision: l.GetRevision(), CreatedMs: id.Created().UnixMilli(), UsedMs: l.GetUsedMs(), Upstream: l.GetUpstream() != "",
		})
	}
	return answer, nil
}
