package store

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/mcpvault/mcpvault/snapshot"
)

func (s *Store) judgeManifest(c *change, m manifest, lines []*line) error {
	fresh, err := s.mem.floors.judge(floorManifest, m.mark)
	if err != nil {
		return err
	}
	if fresh {
		c.floors[floorManifest] = m.mark
	}
	// The same body under a newer signature replaces the envelope: the older key may be withdrawn.
	if fresh || !bytes.Equal(m.envelope, s.mem.manifest) {
		c.manifest = &m
	}
	for id, ref := range m.refs {
		if s.beyond(id, ref, lines) {
			continue
		}
		if _, err := s.mem.floors.judge(tenantFloor(id), ref); err != nil {
			return fmt.Errorf("the manifest names %w", err)
		}
	}
	return nil
}

// beyond reports whether deltas have carried a tenant beyond the head that a manifest names: then the floor is above it by
// right. Of a tenant whose generations this disk has lost nothing is served, and the manifest proves nothing against it.
func (s *Store) beyond(id snapshot.TenantID, ref mark, lines []*line) bool {
	floor, history := s.mem.floors[tenantFloor(id)], s.mem.generations[id]
	if floor.version.Epoch != ref.version.Epoch || !floor.version.Newer(ref.version) {
		return false
	}
	if len(history) == 0 || history[base(history)].mark() == ref {
		return true
	}
	at := slices.IndexFunc(lines, func(l *line) bool { return l.tenant == id })
	return at >= 0 && lines[at].parts[0].mark() == ref
}

// judgeLine wants a tenant that the manifest names, and generations that lead to its floor or beyond. A head may be older
// than the one named there: a tenant whose newest generation does not build yet must not hold up the others, nor its own
// previous one. Deltas go beyond it by themselves.
func (s *Store) judgeLine(c *change, refs map[snapshot.TenantID]mark, l *line) error {
	first, end := &l.parts[0], l.end()
	ref, ok := refs[l.tenant]
	if !ok || first.Delta == nil && first.Version.Newer(ref.version) {
		return fmt.Errorf("%w: the manifest does not name generation %s of tenant %s", ErrInvalid, first.Version, l.tenant)
	}
	key := tenantFloor(l.tenant)
	floor, history := s.mem.floors[key], s.mem.generations[l.tenant]
	for i := range l.parts {
		p := &l.parts[i]
		if p.Version == ref.version && p.Digest != ref.digest {
			return fmt.Errorf("%w: the manifest names another generation %s of tenant %s", ErrInvalid, p.Version, l.tenant)
		}
		if p.Version == floor.version && p.Digest != floor.digest {
			return fmt.Errorf("%w: %s %s", ErrEquivocation, key, p.Version)
		}
	}
	fresh, err := s.mem.floors.judge(key, end.mark())
	if err != nil {
		return err
	}
	if !fresh && known(history, l) {
		return nil
	}
	next, err := extend(history, l)
	if err != nil {
		return err
	}
	if fresh {
		c.floors[key] = end.mark()
	}
	n := kept(next)
	c.gone = append(c.gone, next[n:]...)
	c.fresh = append(c.fresh, l.parts...)
	c.history[l.tenant] = next[:n]
	return nil
}

// known reports whether a history has all of a line, bodies and signatures, and nothing newer.
func known(history []Generation, l *line) bool {
	if len(history) < len(l.parts) {
		return false
	}
	for i := range l.parts {
		have, p := &history[len(l.parts)-1-i], &l.parts[i]
		if have.mark() != p.mark() || !bytes.Equal(have.Envelope, p.Envelope) {
			return false
		}
	}
	return true
}

// extend puts a line, which ends at the floor or above, on top of a history, newest first.
func extend(history []Generation, l *line) ([]Generation, error) {
	first := &l.parts[0]
	rest := history
	for len(rest) > 0 && !first.Version.Newer(rest[0].Version) {
		same := slices.IndexFunc(l.parts, func(p Generation) bool { return p.Version == rest[0].Version })
		if same >= 0 && l.parts[same].Digest != rest[0].Digest {
			return nil, fmt.Errorf("%w: %s %s", ErrEquivocation, tenantFloor(l.tenant), rest[0].Version)
		}
		rest = rest[1:]
	}
	if first.Delta != nil && (len(rest) == 0 || !first.follows(&rest[0])) {
		return nil, fmt.Errorf("%w: delta %s of tenant %s does not follow what is here", ErrInvalid, first.Version, l.tenant)
	}
	next := make([]Generation, 0, len(l.parts)+len(rest))
	for i := len(l.parts) - 1; i >= 0; i-- {
		next = append(next, l.parts[i])
	}
	next = append(next, rest...)
	if base(next) > maxDeltas {
		return nil, fmt.Errorf("%w: more than %d deltas of tenant %s on one head", ErrInvalid, maxDeltas, l.tenant)
	}
	return next, nil
}

// prune forgets tenants that are homed elsewhere now; their floors stay.
func (s *Store) prune(c *change, m manifest) {
	for id, history := range s.mem.generations {
		if _, ok := m.refs[id]; !ok {
			c.gone = append(c.gone, history...)
			c.history[id] = nil
		}
	}
}
