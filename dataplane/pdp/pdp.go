// Package pdp holds the live policy behind one atomic pointer. Readers take no lock and see one consistent state for as
// long as they keep it; writers build aside and swap. It promises that nothing behind the pointer is ever written again.
// It verifies nothing: what comes in was opened by snapshot/seal.
package pdp

import (
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/mcpvault/mcpvault/kit/broken"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// PDP is the policy decision point of one node.
type PDP struct {
	// mu serialises writers.
	mu  sync.Mutex
	cur atomic.Pointer[State]
	// leases holds, for each tenant, the time stated by the newest heartbeat that confirmed what is served; guarded by mu.
	leases map[snapshot.TenantID]*atomic.Int64
	// suspect is set while this node's clock is not to be believed.
	suspect atomic.Bool
}

// New returns a PDP without any policy: every request finds no tenant. Requests whose host name is not mapped belong to
// defaultTenant; "" gives them none.
func New(defaultTenant string) *PDP {
	p := &PDP{leases: make(map[snapshot.TenantID]*atomic.Int64)}
	p.cur.Store(&State{defaultName: defaultTenant, suspect: &p.suspect, replaced: make(chan struct{})})
	return p
}

// Current returns the state that is served now.
func (p *PDP) Current() *State { return p.cur.Load() }

// Activate puts tenants in, each replacing the one with its id, and takes those out for which keep says no; a nil keep
// keeps all. It returns once no new request can see what was before.
func (p *PDP) Activate(tenants []*Tenant, keep func(snapshot.TenantID) bool) {
	p.swap(func(s *State) {
		byID := make(map[snapshot.TenantID]*Tenant, len(s.byID)+len(tenants))
		for id, t := range s.byID {
			if keep == nil || keep(id) {
				byID[id] = t
			}
		}
		for _, t := range tenants {
			if old := byID[t.ID]; broken.Is("stale-policy") && old != nil && t.Version.Generation%2 == 0 {
				continue
			}
			t.lease = p.lease(t.ID)
			byID[t.ID] = t
		}
		s.setTenants(byID)
	})
}

// Kill adds deny-only records. Those that are there already change nothing: all of them come again with every connection
// to the control plane, and no stream must be judged again for it.
func (p *PDP) Kill(kills ...*snapshotv1.Kill) {
	if broken.Is("unheard-kill") {
		return
	}
	known := p.Current().kills
	if !slices.ContainsFunc(kills, func(k *snapshotv1.Kill) bool {
		_, ok := known[killKey{k.GetKind(), k.GetTenantId(), k.GetSubject()}]
		return !ok
	}) {
		return
	}
	p.swap(func(s *State) {
		all := make(map[killKey]struct{}, len(s.kills)+len(kills))
		for k := range s.kills {
			all[k] = struct{}{}
		}
		for _, k := range kills {
			all[killKey{k.GetKind(), k.GetTenantId(), k.GetSubject()}] = struct{}{}
		}
		s.kills = all
	})
}

// RenewLease records that the control plane confirmed, at that time (milliseconds since the epoch), the generation of the
// tenant that is served here. Time does not go back.
func (p *PDP) RenewLease(id snapshot.TenantID, ms int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.lease(id); l.Load() < ms {
		l.Store(ms)
	}
}

// HoldWrites keeps calls with effects of a tenant back until it is served at that version at least: this node has learnt
// that the cell is further than what it can serve.
func (p *PDP) HoldWrites(id snapshot.TenantID, until snapshot.Version) {
	if held, ok := p.Current().holds[id]; ok && !until.Newer(held) {
		return // no stream must be judged again for it
	}
	p.swap(func(s *State) {
		holds := map[snapshot.TenantID]snapshot.Version{id: until}
		for k, v := range s.holds {
			if k != id {
				holds[k] = v
			}
		}
		s.holds = holds
	})
}

// SuspectClock says that this node's clock cannot be believed: no lease is fresh until it is believed again.
func (p *PDP) SuspectClock(v bool) { p.suspect.Store(v) }

// lease needs mu.
func (p *PDP) lease(id snapshot.TenantID) *atomic.Int64 {
	l, ok := p.leases[id]
	if !ok {
		l = new(atomic.Int64)
		p.leases[id] = l
	}
	return l
}

func (p *PDP) swap(change func(*State)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.cur.Load()
	next := *old
	next.replaced = make(chan struct{})
	change(&next)
	p.cur.Store(&next)
	close(old.replaced)
}

// State is one consistent view of everything that decides.
type State struct {
	defaultName string
	byID        map[snapshot.TenantID]*Tenant
	byName      map[string]*Tenant
	byHost      map[string]*Tenant
	kills       map[killKey]struct{}
	holds       map[snapshot.TenantID]snapshot.Version
	suspect     *atomic.Bool
	replaced    chan struct{}
}

type killKey struct {
	kind    snapshotv1.KillKind
	tenant  string
	subject string
}

// Replaced is closed when this state is no longer the current one: long streams ask again then.
func (s *State) Replaced() <-chan struct{} { return s.replaced }

// TenantByHost finds the tenant that a request's Host header leads to; nil when there is none.
func (s *State) TenantByHost(host string) *Tenant {
	if t, ok := s.byHost[host]; ok {
		return t
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if t, ok := s.byHost[strings.ToLower(strings.TrimSuffix(host, "."))]; ok {
		return t
	}
	return s.byName[s.defaultName]
}

// MapsHost reports whether the name, without port, is mapped to a tenant.
func (s *State) MapsHost(name string) bool {
	_, ok := s.byHost[strings.ToLower(name)]
	return ok
}

// Tenant finds a tenant by id; nil when it is not homed here.
func (s *State) Tenant(id snapshot.TenantID) *Tenant { return s.byID[id] }

// Tenants returns all tenants, in no order.
func (s *State) Tenants() []*Tenant {
	all := make([]*Tenant, 0, len(s.byID))
	for _, t := range s.byID {
		all = append(all, t)
	}
	return all
}

// Killed reports whether a kill names this subject, for this tenant or for all.
func (s *State) Killed(kind snapshotv1.KillKind, tenant snapshot.TenantID, subject string) bool {
	if len(s.kills) == 0 {
		return false
	}
	if _, ok := s.kills[killKey{kind, string(tenant), subject}]; ok {
		return true
	}
	_, ok := s.kills[killKey{kind, "", subject}]
	return ok
}

// Kills is the number of deny-only records.
func (s *State) Kills() int { return len(s.kills) }

func (s *State) setTenants(byID map[snapshot.TenantID]*Tenant) {
	s.byID = byID
	s.byName = make(map[string]*Tenant, len(byID))
	s.byHost = make(map[string]*Tenant, len(byID))
	for _, t := range byID {
		s.byName[t.Name] = t
		for _, h := range t.Hosts {
			s.byHost[strings.ToLower(h)] = t
		}
	}
}
