package store

import (
	"encoding/json"
	"fmt"
	"maps"

	"go.etcd.io/bbolt"

	"github.com/mcpvault/mcpvault/snapshot"
)

// bucketConfirmed came later than the others: a release from before it does not look there, and a file without it is whole.
var bucketConfirmed = []byte("confirmed")

// Confirmed is when a heartbeat last confirmed what this node served of each tenant, in milliseconds. A generation that came after
// it rests on it: its lease counts from there until a heartbeat confirms it itself.
func (s *Store) Confirmed() map[snapshot.TenantID]int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return maps.Clone(s.mem.confirmed)
}

// PutConfirmed remembers later confirmations; earlier ones change nothing.
func (s *Store) PutConfirmed(at map[snapshot.TenantID]int64) error {
	s.write.Lock()
	defer s.write.Unlock()
	all, changed := maps.Clone(s.mem.confirmed), false
	if all == nil {
		all = map[snapshot.TenantID]int64{}
	}
	for id, ms := range at {
		if ms > all[id] {
			all[id], changed = ms, true
		}
	}
	if !changed {
		return nil
	}
	value, err := json.Marshal(all)
	if err != nil {
		return err
	}
	err = s.update(func(tx *bbolt.Tx) error {
		if _, err := tx.CreateBucketIfNotExists(bucketConfirmed); err != nil {
			return err
		}
		return s.put(tx, bucketConfirmed, current, value)
	})
	if err != nil {
		return fmt.Errorf("write confirmations: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mem.confirmed = all
	return nil
}

// loadConfirmed reads them. A record that cannot be read confirms nothing, which closes and opens nothing: the next heartbeat
// writes another.
func (s *Store) loadConfirmed(tx *bbolt.Tx) {
	b := tx.Bucket(bucketConfirmed)
	if b == nil {
		return
	}
	value, err := s.sealer.Open(bucketConfirmed, current, b.Get(current))
	if err != nil || json.Unmarshal(value, &s.mem.confirmed) != nil {
		s.mem.confirmed = nil
	}
}
