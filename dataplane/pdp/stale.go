package pdp

import (
	"math"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// Bound is how long after the last confirmation of its generation something is still done. It is settled when the tenant is
// built: the class of the deed, narrowed by the labels of what it reaches.
type Bound struct {
	MS int64
	// Effects is true for whatever is not a read: it is also held back while the cell is known to be further.
	Effects bool
}

// noBound is longer than anybody waits, and shorter than the age of what a clock says that is not to be believed.
const noBound = math.MaxInt64 - 1

// narrow is the bound of what carries the labels.
func (b Bound) narrow(limits map[string]int64, labels []string) Bound {
	if len(limits) == 0 {
		return b
	}
	for _, l := range labels {
		if ms, ok := limits[l]; ok {
			b.MS = min(b.MS, ms)
		}
	}
	return b
}

// Bound is that of a class of calls, whatever they reach. A class without an effect is held to that of destructive ones.
func (t *Tenant) Bound(effect snapshotv1.Effect) Bound {
	if effect == snapshotv1.Effect_EFFECT_READ {
		if t.Settings.GetAfterStaleness() == snapshotv1.AfterStaleness_AFTER_STALENESS_READ_ONLY {
			return Bound{MS: noBound}
		}
		return Bound{MS: t.Settings.GetMaxStalenessReadMs()}
	}
	return Bound{MS: t.Settings.GetMaxStalenessWriteMs(), Effects: true}
}

// Bound is that of a class of requests to the server.
func (s *Server) Bound(effect snapshotv1.Effect) Bound {
	if effect == snapshotv1.Effect_EFFECT_READ {
		return s.reads
	}
	return s.writes
}

// bound settles the bounds of a server and its tools. A tool that is listed is read; one that is called has its own class.
func (t *Tenant) bound(s *Server, cs *snapshotv1.CatalogueServer) {
	limits := make(map[string]int64, len(t.Settings.GetLabelStaleness()))
	for _, l := range t.Settings.GetLabelStaleness() {
		if ms, twice := limits[l.GetLabel()]; !twice || l.GetMaxMs() < ms {
			limits[l.GetLabel()] = l.GetMaxMs()
		}
	}
	s.reads = t.Bound(snapshotv1.Effect_EFFECT_READ).narrow(limits, cs.GetLabels())
	s.writes = t.Bound(snapshotv1.Effect_EFFECT_UNSPECIFIED).narrow(limits, cs.GetLabels())
	for i, ct := range cs.GetTools() {
		tool := &s.Tools[i]
		tool.Listed = s.reads.narrow(limits, ct.GetLabels())
		tool.Called = s.Bound(ct.GetEffect()).narrow(limits, ct.GetLabels())
	}
}

// Age is how many milliseconds ago the generation served was last confirmed: for ever while this node's clock is not to be
// believed.
func (s *State) Age(t *Tenant, nowMS int64) int64 {
	if s.suspect.Load() {
		return math.MaxInt64
	}
	return nowMS - t.lease.Load()
}

// Fresh reports whether something is still within its bound at nowMS.
func (s *State) Fresh(t *Tenant, b Bound, nowMS int64) bool {
	if b.Effects {
		if until, held := s.holds[t.ID]; held && until.Newer(t.Version) {
			return false
		}
	}
	return s.Age(t, nowMS) <= b.MS
}
