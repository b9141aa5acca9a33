package store

import (
	"bytes"
	"encoding/binary"
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
	roots, manifest []byte
	heads           []Head
	floors          floors
	gone            []Head // heads that are no longer kept
	history         map[snapshot.TenantID][]Head
}

// PutUpdate takes a verified update: roots, manifest and the heads that came with it, in one transaction. What is there
// already changes nothing. The error wraps ErrRollback, ErrEquivocation or ErrInvalid, and then nothing has changed.
// Roots older than those held are passed over, as an update is often made before newer roots arrive.
func (s *Store) PutUpdate(u *cellv1.Update) error {
	m, err := readManifest(u.GetManifest())
	if err != nil {
		return err
	}
	heads := make([]Head, 0, len(u.GetHeads()))
	for _, env := range u.GetHeads() {
		h, err := readHead(env)
		if err != nil {
			return err
		}
		heads = append(heads, h)
	}
	s.write.Lock()
	defer s.write.Unlock()
	c := &change{floors: floors{}, history: map[snapshot.TenantID][]Head{}}
	if len(u.GetRoots()) > 0 {
		if err := s.judgeRoots(c, u.GetRoots(), true); err != nil {
			return err
		}
	}
	if err := s.judgeManifest(c, m); err != nil {
		return err
	}
	for _, h := range heads {
		if err := s.judgeHead(c, m, h); err != nil {
			return err
		}
	}
	s.prune(c, m)
	return s.commit(c)
}

// PutRoots takes verified roots that came by themselves. The error wraps ErrRollback or ErrEquivocation.
func (s *Store) PutRoots(env []byte) error {
	s.write.Lock()
	defer s.write.Unlock()
	c := &change{floors: floors{}}
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

func (s *Store) judgeManifest(c *change, m manifest) error {
	fresh, err := s.mem.floors.judge(floorManifest, m.mark)
	if err != nil {
		return err
	}
	if fresh {
		c.floors[floorManifest] = m.mark
	}
	// The same body under a newer signature replaces the envelope: the older key may be withdrawn.
	if fresh || !bytes.Equal(m.envelope, s.mem.manifest) {
		c.manifest = m.envelope
	}
	for id, ref := range m.refs {
		if _, err := s.mem.floors.judge(tenantFloor(id), ref); err != nil {
			return fmt.Errorf("the manifest names %w", err)
		}
	}
	return nil
}

// judgeHead wants a head of a tenant in the manifest. It may be older than the one named there: a tenant whose newest
// generation does not build yet must not hold up the others, nor its own previous one.
func (s *Store) judgeHead(c *change, m manifest, h Head) error {
	ref, ok := m.refs[h.Tenant]
	if !ok || h.Version.Newer(ref.version) || h.Version == ref.version && h.Digest != ref.digest {
		return fmt.Errorf("%w: the manifest does not name head %s of tenant %s", ErrInvalid, h.Version, h.Tenant)
	}
	key, own := tenantFloor(h.Tenant), mark{h.Version, h.Digest}
	if _, twice := c.history[h.Tenant]; twice {
		return fmt.Errorf("%w: two heads of tenant %s", ErrInvalid, h.Tenant)
	}
	fresh, err := s.mem.floors.judge(key, own)
	if err != nil {
		return err
	}
	if fresh {
		c.floors[key] = own
	}
	history := s.mem.heads[h.Tenant]
	if !fresh && len(history) > 0 && bytes.Equal(history[0].Envelope, h.Envelope) {
		return nil
	}
	rest := history
	if len(rest) > 0 && rest[0].Version == h.Version {
		rest = rest[1:]
	}
	next := append([]Head{h}, rest...)
	if len(next) > KeepHeads {
		c.gone = append(c.gone, next[KeepHeads:]...)
		next = next[:KeepHeads]
	}
	c.heads = append(c.heads, h)
	c.history[h.Tenant] = next
	return nil
}

// prune forgets tenants that are homed elsewhere now; their floors stay.
func (s *Store) prune(c *change, m manifest) {
	for id, history := range s.mem.heads {
		if _, ok := m.refs[id]; !ok {
			c.gone = append(c.gone, history...)
			c.history[id] = nil
		}
	}
}

// commit makes a change durable and then visible. write is held.
func (s *Store) commit(c *change) error {
	if c.roots == nil && c.manifest == nil && len(c.heads) == 0 && len(c.gone) == 0 {
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
		s.mem.manifest = c.manifest
	}
	for id, history := range c.history {
		if s.mem.heads[id] = history; history == nil {
			delete(s.mem.heads, id)
		}
	}
	s.mem.floors = all
	s.mu.Unlock()
	if len(c.floors) == 0 && !s.floorStale {
		return nil
	}
	return s.writeFloorFile(all)
}

func (s *Store) writeChange(tx *bbolt.Tx, c *change) error {
	for _, h := range c.gone {
		if err := tx.Bucket(bucketHeads).Delete(headKey(h.Tenant, h.Version)); err != nil {
			return err
		}
	}
	for _, h := range c.heads {
		if err := s.put(tx, bucketHeads, headKey(h.Tenant, h.Version), h.Envelope); err != nil {
			return err
		}
	}
	if c.roots != nil {
		if err := s.put(tx, bucketRoots, current, c.roots); err != nil {
			return err
		}
	}
	if c.manifest != nil {
		if err := s.put(tx, bucketManifest, current, c.manifest); err != nil {
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
