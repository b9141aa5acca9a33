package pep

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// seal gives the answer of an initialize its session id, once the cell has agreed on the session: an answer with a reason
// means that there is none.
func (x *exchange) seal(a *answer, c session.Claims) *answer {
	c.Tenant, c.Server, c.Owner, c.Revision, c.Created = x.tenant.ID, x.route.server, x.owner, x.revision, x.p.cfg.Now()
	id, err := x.p.sessions.Seal(c)
	switch {
	case errors.Is(err, session.ErrNoKey):
		return x.fail(mcp.CodeServer, "session_keys_missing", "this node has not learned the cell's session keys yet; try again or use another node", true)
	case err != nil:
		return x.fail(mcp.CodeServer, "upstream_protocol", "the upstream's session id cannot be used", false)
	}
	x.sessionID, x.claims = id, c
	x.describeSession()
	lease := x.leaseID()
	err = x.p.leases.Open(x.ctx, &cellv1.SessionLease{
		Id: lease[:], TenantId: string(x.tenant.ID), Server: c.Server, Owner: c.Owner[:], Principal: bounded(x.who.Name, 256),
		Client: bounded(clean(x.rec.GetClient().GetName()+" "+x.rec.GetClient().GetVersion()), 192),
		Node:   x.p.cfg.Node, Revision: bounded(c.Revision, 32), UsedMs: c.Created.UnixMilli(), Upstream: c.Upstream,
	}, x.tenant.Settings)
	if err != nil {
		return x.noSession(err)
	}
	a.header = http.Header{mcp.HeaderSession: {id}}
	return a
}

// leaseID names the lease of the exchange's session.
func (x *exchange) leaseID() session.LeaseID {
	return session.LeaseIDOf(x.sessionID, x.claims.Created)
}

// roomForSession refuses an initialize that the cell would refuse, before an upstream is asked.
func (x *exchange) roomForSession() *answer {
	if err := x.p.leases.Room(string(x.tenant.ID), x.owner, x.tenant.Settings); err != nil {
		return x.noSession(err)
	}
	return nil
}

const (
	resumesPerSecond = 10
	// maxEventID bounds a Last-Event-ID: what an upstream gave an event for a name.
	maxEventID = 1024
)

// tooManyResumes judges the Last-Event-ID of a legacy client that takes a stream up again. What it names is the upstream's to
// judge, in the upstream session that is sealed in the caller's own: it can name no other's events. Modern requests have
// none, whatever their headers say.
func (x *exchange) tooManyResumes() *answer {
	ids, resumes := x.r.Header[mcp.HeaderLastEventID]
	switch {
	case x.era == mcp.EraModern || !resumes:
		return nil
	case len(ids) > 1 || len(ids[0]) > maxEventID || !printable(ids[0]):
		return x.reject(http.StatusBadRequest, mcp.CodeServer, "event_id_malformed", "the Last-Event-ID header is malformed")
	case x.p.resumes.Take(session.Hash(x.sessionID), x.p.cfg.Now()):
		return nil
	}
	a := x.reject(http.StatusTooManyRequests, mcp.CodeServer, "too_many_resumes", "the stream is taken up again too often")
	a.header = http.Header{"Retry-After": {"1"}}
	return a
}

// printable reports whether s is text in ASCII, without controls.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

// noSession says why a session is not opened.
func (x *exchange) noSession(err error) *answer {
	status, wait, reason, message := http.StatusServiceUnavailable, "2", "session_no_quorum",
		"the cell cannot agree on a new session at the moment: most of its nodes are out of reach. Sessions that are open go on"
	switch {
	case errors.Is(err, session.ErrPrincipalFull):
		status, wait, reason, message = http.StatusTooManyRequests, "60", "too_many_sessions",
			"you have as many sessions as one principal may have: end one, or wait until one that is not used ends"
	case errors.Is(err, session.ErrTenantFull):
		status, wait, reason, message = http.StatusTooManyRequests, "60", "tenant_sessions_full",
			"your organisation has as many sessions as it may have in this cell: try again later"
	default:
		if gone := x.ctx.Err(); gone != nil {
			return x.upstreamFailed(gone)
		}
		x.p.log.Warn("a session was not opened", "error", err, "request_id", x.rec.GetId())
	}
	d := mcp.ErrorData{DecisionID: x.rec.GetId(), Reason: reason, Retryable: true}
	return &answer{
		status: status, reason: reason, outcome: "refused", header: http.Header{"Retry-After": {wait}},
		body: mcp.AppendError(nil, x.msg.ID, mcp.CodeServer, message, d.Append(nil)),
	}
}

const (
	// goodbyeWorkers close upstream sessions, each at its own pace; maxGoodbyes may wait for them.
	goodbyeWorkers = 4
	maxGoodbyes    = 1 << 16
	hangUpTime     = 2 * time.Second
)

// goodbye is one session that ended somewhere in the cell.
type goodbye struct {
	lease  *cellv1.SessionLease
	closed bool
}

// goodbyes are the sessions whose upstream sessions are to be closed. An upstream that is never told ends them by itself, so
// what is too much is let go.
type goodbyes struct {
	mu   sync.Mutex
	all  []goodbye // guarded by mu
	wake chan struct{}
}

func newGoodbyes() *goodbyes { return &goodbyes{wake: make(chan struct{}, goodbyeWorkers)} }

func (g *goodbyes) put(e goodbye) {
	g.mu.Lock()
	if len(g.all) < maxGoodbyes {
		g.all = append(g.all, e)
	}
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

func (g *goodbyes) take() (e goodbye, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.all) == 0 {
		g.all = nil
		return goodbye{}, false
	}
	e, g.all[0] = g.all[0], goodbye{}
	g.all = g.all[1:]
	return e, true
}

// SessionEnded hears of the end of a session, whoever ended it: what this node has open upstream for it is closed. closed says
// that somebody has closed the session that was relayed to the upstream. It does not block.
func (p *PEP) SessionEnded(lease *cellv1.SessionLease, closed bool) {
	p.goodbyes.put(goodbye{lease, closed})
}

func (p *PEP) sayGoodbye(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.goodbyes.wake:
		}
		for ctx.Err() == nil {
			e, ok := p.goodbyes.take()
			if !ok {
				break
			}
			p.closeUpstream(ctx, e)
		}
	}
}

// closeUpstream closes the upstream sessions behind one that has ended: those of the gateway's own when it was their owner's
// last, and the one that was relayed, if this node opened it.
func (p *PEP) closeUpstream(ctx context.Context, e goodbye) {
	owner, tenant := session.Owner(e.lease.GetOwner()), snapshot.TenantID(e.lease.GetTenantId())
	if left, err := p.leases.Owned(string(tenant), owner); err == nil && left == 0 {
		p.hangUp(ctx, p.table.End(ownerKey(mcp.EraLegacy, tenant, owner)))
	}
	if e.closed || e.lease.GetUpstream() == "" || e.lease.GetNode() != p.cfg.Node {
		return
	}
	p.hangUp(ctx, []session.Upstream{{
		Tenant: string(tenant), Server: e.lease.GetServer(), ID: e.lease.GetUpstream(), Revision: e.lease.GetRevision(),
	}})
}

// hangUp ends upstream sessions; one that does not answer is left to its own timeout.
func (p *PEP) hangUp(ctx context.Context, ups []session.Upstream) {
	for _, u := range ups {
		p.ears.end(u)
		if u.ID != "" {
			p.hangUpOne(ctx, u)
		}
	}
}

// hangUpOne goes by the policy of now: to where the server is now, with its credential, if that may be sent.
func (p *PEP) hangUpOne(ctx context.Context, u session.Upstream) {
	state := p.policy.Current()
	t := state.Tenant(snapshot.TenantID(u.Tenant))
	if t == nil {
		return
	}
	s, ok := t.Server(u.Server)
	if !ok || u.URL != "" && u.URL != s.URL {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, hangUpTime)
	defer cancel()
	set := sessionHeader(u.ID, u.Revision)
	if _, err := p.credentials(ctx, state, t, s, set); err != nil {
		p.log.Debug("an upstream's session was not closed: no credential", "server", s.Name, "error", err)
		return
	}
	resp, err := p.up.Do(ctx, &upstream.Request{URL: s.URL, Method: http.MethodDelete, Set: set})
	if err == nil {
		resp.Close()
	}
}

// credentials adds to set what the server demands, where no request of a caller's is there to be refused: errRevoked when it
// was killed.
func (p *PEP) credentials(ctx context.Context, state *pdp.State, t *pdp.Tenant, s *pdp.Server, set http.Header) (leaks [][]byte, err error) {
	switch {
	case p.injector == nil:
		return nil, nil
	case p.secretKilled(state, t, s):
		return nil, errRevoked
	}
	return p.injector.Inject(ctx, t, s, set)
}

// secretKilled reports whether a secret was killed that the server would be sent.
func (p *PEP) secretKilled(state *pdp.State, t *pdp.Tenant, s *pdp.Server) bool {
	return state.Kills() > 0 && slices.ContainsFunc(p.injector.Secrets(t, s), func(name string) bool {
		return state.Killed(snapshotv1.KillKind_KILL_KIND_SECRET, t.ID, name)
	})
}

// ownerKey names whose an upstream session of the gateway's own is: one principal's, in one era.
func ownerKey(era mcp.Era, tenant snapshot.TenantID, owner session.Owner) [16]byte {
	word := "legacy"
	if era == mcp.EraModern {
		word = "modern"
	}
	return session.Hash(word + "\x00" + string(tenant) + "\x00" + string(owner[:]))
}

// endOwned ends a session of the gateway's own. What is open upstream for its owner is closed when it was their last.
func (x *exchange) endOwned() *answer {
	x.p.leases.End(x.ctx, x.leaseID(), true)
	x.p.dialogues.End(session.Hash(x.sessionID))
	x.p.kept.End(session.Hash(x.sessionID))
	return &answer{status: http.StatusNoContent, outcome: "ok"}
}
