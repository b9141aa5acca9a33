package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
)

var canary = []byte("mcpvault store 1")

// load reads the database into memory and opens every record once.
func (s *Store) load() error {
	if err := s.prepare(); err != nil {
		return err
	}
	s.mem = memory{
		generations: map[snapshot.TenantID][]Generation{}, floors: floors{},
		kills: map[string][]byte{}, keys: map[uint32]*cellv1.SessionKey{},
	}
	err := Guard(func() error { return s.db.View(s.loadRecords) })
	if err != nil {
		return err
	}
	copied, err := s.readFloorFile()
	if err != nil {
		return fmt.Errorf("read floor file: %w", err)
	}
	for key, m := range copied {
		s.mem.floors.raise(key, m)
	}
	s.dropBelowFloor()
	if !maps.Equal(copied, s.mem.floors) {
		return s.writeFloorFile(s.mem.floors)
	}
	return nil
}

// prepare makes the buckets of a new database and proves the key of an old one.
func (s *Store) prepare() error {
	var sealed []byte
	var whole bool
	err := Guard(func() error {
		return s.db.View(func(tx *bbolt.Tx) error {
			if b := tx.Bucket(bucketMeta); b != nil {
				sealed = bytes.Clone(b.Get(current))
			}
			whole = tx.Bucket(bucketDeltas) != nil && tx.Bucket(bucketMembers) != nil
			return nil
		})
	})
	if err != nil {
		return err
	}
	if sealed != nil {
		if plain, err := s.sealer.Open(bucketMeta, current, sealed); err != nil || !bytes.Equal(plain, canary) {
			return ErrKey
		}
		if whole {
			return nil
		}
	}
	wanted := buckets()
	if sealed != nil {
		// A database of before there were deltas, or lists of members, gets their bucket; any other that is missing is damage.
		wanted = [][]byte{bucketDeltas, bucketMembers}
	}
	return s.update(func(tx *bbolt.Tx) error {
		for _, name := range wanted {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		if sealed != nil {
			return nil
		}
		return s.put(tx, bucketMeta, current, canary)
	})
}

func buckets() [][]byte {
	return [][]byte{
		bucketMeta, bucketRoots, bucketManifest, bucketHeads, bucketDeltas, bucketFloor, bucketHeartbeat, bucketKills, bucketKeys, bucketClock,
		bucketMembers,
	}
}

func (s *Store) loadRecords(tx *bbolt.Tx) error {
	loaders := []struct {
		bucket []byte
		take   func(key, value []byte) error
	}{
		{bucketFloor, s.loadFloor},
		{bucketRoots, func(_, v []byte) error {
			m, err := readRoots(v)
			s.mem.roots = v
			s.mem.floors.raise(floorRoots, m)
			return err
		}},
		{bucketManifest, func(_, v []byte) error {
			m, err := readManifest(v)
			s.mem.manifest, s.mem.refs = v, m.order
			s.mem.floors.raise(floorManifest, m.mark)
			return err
		}},
		{bucketHeads, s.loadHead},
		{bucketDeltas, s.loadDelta},
		{bucketHeartbeat, func(_, v []byte) error {
			var h snapshotv1.Heartbeat
			_, err := readEnvelope(v, &h)
			s.mem.heartbeat, s.mem.heartbeatMS = v, h.GetTimeMs()
			return err
		}},
		{bucketKills, func(k, v []byte) error {
			s.mem.kills[string(k)] = v
			return nil
		}},
		{bucketKeys, func(_, v []byte) error {
			key := &cellv1.SessionKey{}
			if err := proto.Unmarshal(v, key); err != nil {
				return err
			}
			s.mem.keys[key.GetId()] = key
			return checkSessionKey(key)
		}},
		{bucketMembers, func(_, v []byte) error {
			m := &cellv1.Members{}
			if err := proto.Unmarshal(v, m); err != nil {
				return err
			}
			s.mem.members = m
			return checkMembers(m)
		}},
		{bucketClock, func(_, v []byte) error {
			if len(v) != 8 {
				return ErrInvalid
			}
			s.mem.highWater = int64(binary.BigEndian.Uint64(v))
			return nil
		}},
	}
	for _, l := range loaders {
		if tx.Bucket(l.bucket) == nil {
			return fmt.Errorf("%w: bucket %s is gone", ErrCorrupt, l.bucket)
		}
		err := tx.Bucket(l.bucket).ForEach(func(k, sealed []byte) error {
			value, err := s.sealer.Open(l.bucket, k, sealed)
			if err != nil {
				s.damaged(err)
				return nil
			}
			if err := l.take(k, value); err != nil {
				return fmt.Errorf("%w: %s/%q: %w", ErrCorrupt, l.bucket, k, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	s.loadConfirmed(tx)
	for id, history := range s.mem.generations {
		slices.SortFunc(history, newestFirst)
		sound, lost := provable(history)
		if s.mem.generations[id] = sound; len(sound) == 0 {
			delete(s.mem.generations, id)
		}
		if lost > 0 {
			s.damaged(fmt.Errorf("%w: %d deltas of tenant %s rest on a generation that is missing", ErrCorrupt, lost, id))
		}
	}
	return nil
}

func (s *Store) loadFloor(k, v []byte) error {
	m, ok := decodeMark(v)
	if !ok {
		return ErrInvalid
	}
	s.mem.floors.raise(string(k), m)
	return nil
}

func (s *Store) loadHead(_, v []byte) error {
	h, err := readHead(v)
	if err != nil {
		return err
	}
	s.loadGeneration(h)
	return nil
}

func (s *Store) loadDelta(_, v []byte) error {
	d := &snapshotv1.SignedDelta{}
	if err := proto.Unmarshal(v, d); err != nil {
		return err
	}
	g, err := readDelta(d)
	if err != nil {
		return err
	}
	s.loadGeneration(g)
	return nil
}

func (s *Store) loadGeneration(g Generation) {
	s.mem.generations[g.Tenant] = append(s.mem.generations[g.Tenant], g)
	// The floor may have been the damaged record.
	s.mem.floors.raise(tenantFloor(g.Tenant), g.mark())
}

// dropBelowFloor withdraws what an older copy of the database brought back. What is below the floor is not served again:
// the node fetches what is newer.
func (s *Store) dropBelowFloor() {
	m, err := readRoots(s.mem.roots)
	if floor, ok := s.mem.floors[floorRoots]; ok && (err != nil || m != floor) {
		s.damaged(fmt.Errorf("%w: roots %s are missing", ErrCorrupt, floor.version))
		s.mem.roots = nil
	}
	man, err := readManifest(s.mem.manifest)
	if floor, ok := s.mem.floors[floorManifest]; ok && (err != nil || man.mark != floor) {
		s.damaged(fmt.Errorf("%w: manifest %d is missing", ErrCorrupt, floor.version.Generation))
		s.mem.manifest, s.mem.refs = nil, nil
	}
	for key, floor := range s.mem.floors {
		name, isTenant := strings.CutPrefix(key, "t/")
		id := snapshot.TenantID(name)
		history := s.mem.generations[id]
		// A tenant that is homed elsewhere has a floor and no head.
		if _, homed := man.refs[id]; !isTenant || len(history) == 0 && !homed {
			continue
		}
		if len(history) == 0 || history[0].Version != floor.version {
			s.damaged(fmt.Errorf("%w: generation %s of tenant %s is missing", ErrCorrupt, floor.version, id))
			delete(s.mem.generations, id)
		}
	}
}

// damaged notes a record that is left out.
func (s *Store) damaged(err error) {
	s.corrupt = append(s.corrupt, err)
	s.log.Error("a record on disk is damaged and left out", "error", err)
}

func newestFirst(a, b Generation) int {
	switch {
	case a.Version.Newer(b.Version):
		return -1
	case b.Version.Newer(a.Version):
		return 1
	}
	return 0
}

func (s *Store) put(tx *bbolt.Tx, bucket, key, value []byte) error {
	return tx.Bucket(bucket).Put(key, s.sealer.Seal(bucket, key, value))
}

// update runs one transaction; a damaged page is an error instead of a crash.
func (s *Store) update(f func(tx *bbolt.Tx) error) error {
	if err := s.cfg.BeforeWrite(); err != nil {
		return err
	}
	return Guard(func() error { return s.db.Update(f) })
}
