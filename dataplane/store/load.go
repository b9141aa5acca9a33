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
		heads: map[snapshot.TenantID][]Head{}, floors: floors{},
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
	err := Guard(func() error {
		return s.db.View(func(tx *bbolt.Tx) error {
			if b := tx.Bucket(bucketMeta); b != nil {
				sealed = bytes.Clone(b.Get(current))
			}
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
		return nil
	}
	return s.update(func(tx *bbolt.Tx) error {
		for _, name := range buckets() {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return s.put(tx, bucketMeta, current, canary)
	})
}

func buckets() [][]byte {
	return [][]byte{
		bucketMeta, bucketRoots, bucketManifest, bucketHeads, bucketFloor, bucketHeartbeat, bucketKills, bucketKeys, bucketClock,
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
			s.mem.manifest = v
			s.mem.floors.raise(floorManifest, m.mark)
			return err
		}},
		{bucketHeads, s.loadHead},
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
	for _, history := range s.mem.heads {
		slices.SortFunc(history, newestFirst)
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
	s.mem.heads[h.Tenant] = append(s.mem.heads[h.Tenant], h)
	// The floor may have been the damaged record.
	s.mem.floors.raise(tenantFloor(h.Tenant), mark{h.Version, h.Digest})
	return nil
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
		s.mem.manifest = nil
	}
	for key, floor := range s.mem.floors {
		name, isTenant := strings.CutPrefix(key, "t/")
		id := snapshot.TenantID(name)
		history := s.mem.heads[id]
		// A tenant that is homed elsewhere has a floor and no head.
		if _, homed := man.refs[id]; !isTenant || len(history) == 0 && !homed {
			continue
		}
		if len(history) == 0 || history[0].Version != floor.version {
			s.damaged(fmt.Errorf("%w: head %s of tenant %s is missing", ErrCorrupt, floor.version, id))
			delete(s.mem.heads, id)
		}
	}
}

// damaged notes a record that is left out.
func (s *Store) damaged(err error) {
	s.corrupt = append(s.corrupt, err)
	s.log.Error("a record on disk is damaged and left out", "error", err)
}

func newestFirst(a, b Head) int {
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
	return Guard(func() error { return s.db.Update(f) })
}
