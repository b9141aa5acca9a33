package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
)

// change is what one update alters: nothing of it is visible before all of it is on disk.
type change struct {
	roots    []byte
	manifest *manifest
	fresh    []Generation // to be written
	gone     []Generation // no longer kept
	floors   floors
	history  map[snapshot.TenantID][]Generation
}

func newChange() *change {
	return &change{floors: floors{}, history: map[snapshot.TenantID][]Generation{}}
}

func (c *change) empty() bool {
	return c.roots == nil && c.manifest == nil && len(c.fresh) == 0 && len(c.gone) == 0
}

// PutUpdate takes a verified update: roots, manifest and the heads and deltas that came with it, in one transaction. What is
// there already changes nothing. The error wraps ErrRollback, ErrEquivocation or ErrInvalid, and then nothing has changed.
// Roots older than those held are passed over, as an update is often made before newer roots arrive.
func (s *Store) PutUpdate(u *cellv1.Update) error {
	m, err := readManifest(u.GetManifest())
	if err != nil {
		return err
	}
	lines, err := readLines(u)
	if err != nil {
		return err
	}
	s.write.Lock()
	defer s.write.Unlock()
	c := newChange()
	if len(u.GetRoots()) > 0 {
		if err := s.judgeRoots(c, u.GetRoots(), true); err != nil {
			return err
		}
	}
	if err := s.judgeManifest(c, m, lines); err != nil {
		return err
	}
	for _, l := range lines {
		if err := s.judgeLine(c, m.refs, l); err != nil {
			return err
		}
	}
	s.prune(c, m)
	return s.commit(c)
}

// PutDeltas takes verified deltas, of a tenant in order. Each makes the generation that follows the newest one of its
// tenant; what is there already changes nothing. Tenants do not wait for each other: those whose deltas are in order go
// forward also when the error, which wraps ErrRollback, ErrEquivocation or ErrInvalid, names others.
func (s *Store) PutDeltas(deltas []*snapshotv1.SignedDelta) error {
	lines, err := readLines(&cellv1.Update{Deltas: deltas})
	if err != nil {
		return err
	}
	s.write.Lock()
	defer s.write.Unlock()
	refs := s.mem.refMarks()
	c := newChange()
	var refused error
	for _, l := range lines {
		if err := s.judgeLine(c, refs, l); err != nil {
			refused = errors.Join(refused, err)
		}
	}
	return errors.Join(refused, s.commit(c))
}

// Mend takes back what the disk has lost: a verified head, and deltas behind it, that end at the very generation which the
// floor says was accepted here. The error wraps ErrInvalid when they end elsewhere.
func (s *Store) Mend(head []byte, deltas []*snapshotv1.SignedDelta) error {
	lines, err := readLines(&cellv1.Update{Heads: [][]byte{head}, Deltas: deltas})
	if err != nil {
		return err
	}
	s.write.Lock()
	defer s.write.Unlock()
	if l := lines[0]; len(lines) != 1 || s.mem.floors[tenantFloor(l.tenant)] != l.end().mark() {
		return fmt.Errorf("mend tenant %s: %w: not the generation that was accepted", l.tenant, ErrInvalid)
	}
	c := newChange()
	if err := s.judgeLine(c, s.mem.refMarks(), lines[0]); err != nil {
		return err
	}
	return s.commit(c)
}

// PutRoots takes verified roots that came by themselves. The error wraps ErrRollback or ErrEquivocation.
func (s *Store) PutRoots(env []byte) error {
	s.write.Lock()
	defer s.write.Unlock()
	c := newChange()
	if err := s.judgeRoots(c, env, false); err != nil {
		return err
	}
	return s.commit(c)
}

func (s *Store) judgeRoots(c *change, env []byte, passOlder bool) error {
	m, err := readRoots(env)
	if err != nil {
		return err
	}
	if have := s.mem.floors[floorRoots]; passOlder && have.version.Newer(m.version) {
		return nil
	}
	fresh, err := s.mem.floors.judge(floorRoots, m)
	if err != nil {
		return err
	}
	if fresh {
		c.floors[floorRoots] = m
	}
	if fresh || !bytes.Equal(env, s.mem.roots) {
		c.roots = env
	}
	return nil
}

// commit makes a change durable and then visible. write is held.
func (s *Store) commit(c *change) error {
	if c.empty() {
		if s.floorStale {
			return s.writeFloorFile(s.mem.floors)
		}
		return nil
	}
	if err := s.update(func(tx *bbolt.Tx) error { return s.writeChange(tx, c) }); err != nil {
		return fmt.Errorf("write update: %w", err)
	}
	all := maps.Clone(s.mem.floors)
	maps.Copy(all, c.floors)
	s.mu.Lock()
	if c.roots != nil {
		s.mem.roots = c.roots
	}
	if c.manifest != nil {
		s.mem.manifest, s.mem.refs = c.manifest.envelope, c.manifest.order
	}
	for id, history := range c.history {
		if s.mem.generations[id] = history; history == nil {
			delete(s.mem.generations, id)
		}
	}
	s.mem.floors = all
	s.mu.Unlock()
	if len(c.floors) == 0 && !s.floorStale {
		return nil
	}
	return s.writeFloorFile(all)
}

// record is where a generation lies, and what of it when that is no envelope.
func record(g *Generation) (bucket []byte, m proto.Message) {
	if g.Delta != nil {
		return bucketDeltas, g.Delta
	}
	return bucketHeads, nil
}

func (s *Store) writeChange(tx *bbolt.Tx, c *change) error {
	for _, g := range c.gone {
		bucket, _ := record(&g)
		if err := tx.Bucket(bucket).Delete(generationKey(g.Tenant, g.Version)); err != nil {
			return err
		}
	}
	for _, g := range c.fresh {
		bucket, m := record(&g)
		value := g.Envelope
		if m != nil {
			var err error
			if value, err = proto.Marshal(m); err != nil {
				return err
			}
		}
		if err := s.put(tx, bucket, generationKey(g.Tenant, g.Version), value); err != nil {
			return err
		}
	}
	if c.roots != nil {
		if err := s.put(tx, bucketRoots, current, c.roots); err != nil {
			return err
		}
	}
	if c.manifest != nil {
		if err := s.put(tx, bucketManifest, current, c.manifest.envelope); err != nil {
			return err
		}
	}
	for key, m := range c.floors {
		if err := s.put(tx, bucketFloor, []byte(key), m.encode()); err != nil {
			return err
		}
	}
	return nil
}

// PutHeartbeat keeps the newest heartbeat; an older one changes nothing.
func (s *Store) PutHeartbeat(env []byte, timeMS int64) error {
	if _, err := readEnvelope(env, &snapshotv1.Heartbeat{}); err != nil {
		return fmt.Errorf("heartbeat: %w", err)
	}
	s.write.Lock()
	defer s.write.Unlock()
	if timeMS <= s.mem.heartbeatMS {
		return nil
	}
	err := s.update(func(tx *bbolt.Tx) error { return s.put(tx, bucketHeartbeat, current, env) })
	if err != nil {
		return fmt.Errorf("write heartbeat: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mem.heartbeat, s.mem.heartbeatMS = slices.Clone(env), timeMS
	return nil
}

// AddKill keeps a kill for ever. It reports false when nothing is new; the error wraps ErrEquivocation when another one has
// the id. The same kill under the signature of a newer key replaces the envelope: the older key may be withdrawn.
func (s *Store) AddKill(id string, env []byte) (added bool, err error) {
	if !validName(id) || len(env) == 0 || len(env) > maxEnvelope {
		return false, fmt.Errorf("kill: %w", ErrInvalid)
	}
	s.write.Lock()
	defer s.write.Unlock()
	if have, ok := s.mem.kills[id]; ok {
		same, err := samePayload(have, env)
		if err == nil && !same {
			err = fmt.Errorf("kill %s: %w", id, ErrEquivocation)
		}
		if err != nil || bytes.Equal(have, env) || s.cfg.NewerKill == nil || !s.cfg.NewerKill(have, env) {
			return false, err
		}
	}
	err = s.update(func(tx *bbolt.Tx) error { return s.put(tx, bucketKills, []byte(id), env) })
	if err != nil {
		return false, fmt.Errorf("write kill %s: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mem.kills[id] = slices.Clone(env)
	return true, nil
}

// samePayload compares two kills apart from their signatures.
func samePayload(a, b []byte) (bool, error) {
	if bytes.Equal(a, b) {
		return true, nil
	}
	da, err := readEnvelope(a, &snapshotv1.Kill{})
	if err != nil {
		return false, err
	}
	db, err := readEnvelope(b, &snapshotv1.Kill{})
	return da == db, err
}

// PutSessionKey keeps a session key. The first key under an id stays: the error wraps ErrEquivocation for another.
func (s *Store) PutSessionKey(k *cellv1.SessionKey) error {
	if err := checkSessionKey(k); err != nil {
		return err
	}
	s.write.Lock()
	defer s.write.Unlock()
	if have, ok := s.mem.keys[k.GetId()]; ok {
		if !bytes.Equal(have.GetKey(), k.GetKey()) {
			return fmt.Errorf("session key %d: %w", k.GetId(), ErrEquivocation)
		}
		return nil
	}
	value, err := proto.Marshal(k)
	if err != nil {
		return fmt.Errorf("encode session key: %w", err)
	}
	err = s.update(func(tx *bbolt.Tx) error { return s.put(tx, bucketKeys, keyID(k.GetId()), value) })
	if err != nil {
		return fmt.Errorf("write session key: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mem.keys[k.GetId()] = proto.CloneOf(k)
	return nil
}

// PutHighWater remembers a time in milliseconds; a lower one changes nothing.
func (s *Store) PutHighWater(ms int64) error {
	s.write.Lock()
	defer s.write.Unlock()
	if ms <= s.mem.highWater {
		return nil
	}
	value := binary.BigEndian.AppendUint64(nil, uint64(ms))
	err := s.update(func(tx *bbolt.Tx) error { return s.put(tx, bucketClock, current, value) })
	if err != nil {
		return fmt.Errorf("write clock: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mem.highWater = ms
	return nil
}
