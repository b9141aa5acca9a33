package store

import (
	"fmt"
	"slices"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// KeepGenerations is how many generations of a tenant stay on disk, beside the heads and deltas that they are made of.
const KeepGenerations = 8

// maxDeltas bounds how many deltas a head may carry: the control plane makes a new head long before.
const maxDeltas = 256

// Generation is one generation of one tenant as it lies on disk: a head, or a delta on the generation before.
type Generation struct {
	Tenant  snapshot.TenantID
	Version snapshot.Version
	// Digest is that of the head's payload or of the delta's body.
	Digest snapshot.Digest
	// Envelope is the head's; nil for a delta.
	Envelope []byte
	// Delta is nil for a head.
	Delta  *snapshotv1.SignedDelta
	shards []snapshot.Digest
	parent snapshot.Digest // of a delta
}

func (g *Generation) mark() mark { return mark{g.Version, g.Digest} }

// follows reports whether a delta was made from the generation before.
func (g *Generation) follows(before *Generation) bool {
	return g.Version.Epoch == before.Version.Epoch && g.Version.Generation == before.Version.Generation+1 && g.parent == before.Digest
}

// Chain is a tenant's newest generation: a head and the deltas that made it out of that head, in order.
type Chain struct {
	Version snapshot.Version
	Digest  snapshot.Digest
	// Head is the head's envelope.
	Head   []byte
	Deltas []*snapshotv1.SignedDelta
}

// base is the place of the newest head in a history that is newest first.
func base(history []Generation) int {
	return slices.IndexFunc(history, func(g Generation) bool { return g.Delta == nil })
}

func chainOf(history []Generation) Chain {
	c := Chain{Version: history[0].Version, Digest: history[0].Digest}
	at := base(history)
	c.Head = history[at].Envelope
	for i := at - 1; i >= 0; i-- {
		c.Deltas = append(c.Deltas, history[i].Delta)
	}
	return c
}

// kept is how much of a history, newest first, stays: the newest generations and what the oldest of them is made of.
func kept(history []Generation) int {
	n := min(len(history), KeepGenerations)
	for n < len(history) && history[n-1].Delta != nil {
		n++
	}
	return n
}

// provable leaves out of a history, newest first, the deltas that do not rest on a head that is there. It reports how many
// those are.
func provable(history []Generation) (sound []Generation, lost int) {
	for i := len(history) - 1; i >= 0; i-- {
		g := history[i]
		if g.Delta == nil || len(sound) > 0 && g.follows(&sound[len(sound)-1]) {
			sound = append(sound, g)
		}
	}
	slices.Reverse(sound)
	return sound, len(history) - len(sound)
}

// line is what one message brings of a tenant: a head, deltas, or a head and the deltas behind it; oldest first.
type line struct {
	tenant snapshot.TenantID
	parts  []Generation
}

func (l *line) end() *Generation { return &l.parts[len(l.parts)-1] }

// readLines sorts what a message brings by tenant, in the order in which the tenants come.
func readLines(u *cellv1.Update) ([]*line, error) {
	var lines []*line
	of := map[snapshot.TenantID]*line{}
	add := func(g Generation) *line {
		l := of[g.Tenant]
		if l == nil {
			l = &line{tenant: g.Tenant}
			of[g.Tenant] = l
			lines = append(lines, l)
		}
		l.parts = append(l.parts, g)
		return l
	}
	for _, env := range u.GetHeads() {
		h, err := readHead(env)
		if err != nil {
			return nil, err
		}
		if l := add(h); len(l.parts) > 1 {
			return nil, fmt.Errorf("%w: two heads of tenant %s", ErrInvalid, h.Tenant)
		}
	}
	for _, d := range u.GetDeltas() {
		g, err := readDelta(d)
		if err != nil {
			return nil, err
		}
		l := add(g)
		if n := len(l.parts); n > 1 && !g.follows(&l.parts[n-2]) {
			return nil, fmt.Errorf("%w: delta %s of tenant %s does not follow %s", ErrInvalid, g.Version, g.Tenant, l.parts[n-2].Version)
		}
	}
	return lines, nil
}
