package store

import (
	"bytes"
	"encoding/binary"
	"fmt"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"go.etcd.io/bbolt"
)

// Lease reads one lease; nil when there is none. ended says that there was one, as far back as that is remembered.
func (l *Leases) Lease(id [LeaseIDSize]byte) (lease *cellv1.SessionLease, ended bool, err error) {
	err = l.view(func(tx *bbolt.Tx) (err error) {
		if sealed := tx.Bucket(bucketLeases).Get(id[:]); sealed != nil {
			lease, err = l.unseal(id[:], sealed)
			return err
		}
		ended = tx.Bucket(bucketEnded).Get(id[:]) != nil
		return nil
	})
	return lease, ended, err
}

// Find looks for the leases of sessions by the hashes of their ids, as records and kills name them. It walks over all leases
// once: it is for people, not for requests.
func (l *Leases) Find(hashes ...[16]byte) (found []*cellv1.SessionLease, err error) {
	wanted := make(map[[16]byte]struct{}, len(hashes))
	for _, h := range hashes {
		wanted[h] = struct{}{}
	}
	err = l.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketLeases).Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			if _, ok := wanted[[16]byte(k[8:])]; !ok {
				continue
			}
			lease, err := l.unseal(k, v)
			if err != nil {
				return err
			}
			found = append(found, lease)
		}
		return nil
	})
	return found, err
}

// Counts are how many leases a principal and its tenant have.
func (l *Leases) Counts(tenant string, owner [16]byte) (ofOwner, ofTenant int, err error) {
	err = l.view(func(tx *bbolt.Tx) error {
		t := leaseTx{counts: tx.Bucket(bucketCounts)}
		ofOwner, ofTenant = int(t.counted(append(tenantCount(tenant), owner[:]...))), int(t.counted(tenantCount(tenant)))
		return nil
	})
	return ofOwner, ofTenant, err
}

// List reads the leases of a tenant that keep lets pass, the last used first, at most limit of them; more says that there
// are others behind them.
func (l *Leases) List(tenant string, limit int, keep func(*cellv1.SessionLease) bool) (all []*cellv1.SessionLease, more bool, err error) {
	err = l.view(func(tx *bbolt.Tx) error {
		leases, prefix := tx.Bucket(bucketLeases), tenantCount(tenant)
		c := tx.Bucket(bucketUse).Cursor()
		end := append([]byte(tenant), 1)
		k, _ := c.Seek(end)
		if k == nil {
			k, _ = c.Last()
		} else {
			k, _ = c.Prev()
		}
		for ; bytes.HasPrefix(k, prefix); k, _ = c.Prev() {
			id := k[len(k)-LeaseIDSize:]
			lease, err := l.unseal(id, leases.Get(id))
			if err != nil || !keep(lease) {
				continue // a damaged one ends when it is next changed
			}
			if len(all) == limit {
				more = true
				return nil
			}
			all = append(all, lease)
		}
		return nil
	})
	return all, more, err
}

// Unused names the leases of a tenant that were not used after a time, the oldest first, at most limit of them.
func (l *Leases) Unused(tenant string, sinceMS int64, limit int) (ids []byte, err error) {
	err = l.view(func(tx *bbolt.Tx) error {
		prefix := tenantCount(tenant)
		last := binary.BigEndian.AppendUint64(bytes.Clone(prefix), uint64(max(sinceMS, 0)))
		c := tx.Bucket(bucketUse).Cursor()
		for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix) && len(ids) < limit*LeaseIDSize; k, _ = c.Next() {
			if bytes.Compare(k[:len(last)], last) > 0 {
				return nil
			}
			ids = append(ids, k[len(last):]...)
		}
		return nil
	})
	return ids, err
}

// Tenants are those that have leases, sorted.
func (l *Leases) Tenants() (all []string, err error) {
	err = l.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketUse).Cursor()
		for k, _ := c.First(); k != nil; {
			name, _, ok := bytes.Cut(k, []byte{0})
			if !ok {
				return fmt.Errorf("%w: %q", ErrCorrupt, k)
			}
			all = append(all, string(name))
			k, _ = c.Seek(append(bytes.Clone(name), 1))
		}
		return nil
	})
	return all, err
}

// OldestEnded is when the oldest session was opened whose end is remembered, in milliseconds; 0 when none is.
func (l *Leases) OldestEnded() (ms int64, err error) {
	err = l.view(func(tx *bbolt.Tx) error {
		if k, _ := tx.Bucket(bucketEnded).Cursor().First(); k != nil {
			ms = int64(binary.BigEndian.Uint64(k))
		}
		return nil
	})
	return ms, err
}

func (l *Leases) view(f func(tx *bbolt.Tx) error) error {
	return Guard(func() error { return l.db.View(f) })
}

// LeaseState is what the leases were at one place of the log. It must be closed.
type LeaseState struct {
	l  *Leases
	tx *bbolt.Tx
	// Index is the place.
	Index uint64
	asOf  int64
}

// State takes the leases as they are now; what is written later does not show in it.
func (l *Leases) State() (*LeaseState, error) {
	l.write.Lock() // place and leases are of one moment
	defer l.write.Unlock()
	tx, err := l.db.Begin(false)
	if err != nil {
		return nil, fmt.Errorf("read sessions: %w", err)
	}
	return &LeaseState{l: l, tx: tx, Index: l.index.Load(), asOf: l.asOfMS.Load()}, nil
}

// Close gives the state back. It may be called twice.
func (s *LeaseState) Close() {
	if s.tx != nil {
		_ = s.tx.Rollback()
		s.tx = nil
	}
}

// partLeases is how many leases or ends one part of a state has.
const partLeases = 4096

// Parts gives the state in parts that Restore takes, the last one with the place.
func (s *LeaseState) Parts(yield func(*cellv1.SessionState) error) error {
	part := &cellv1.SessionState{First: true, Index: s.Index}
	next := func() error {
		err := yield(part)
		part = &cellv1.SessionState{Index: s.Index}
		return err
	}
	err := Guard(func() error {
		err := s.tx.Bucket(bucketLeases).ForEach(func(id, sealed []byte) error {
			lease, err := s.l.unseal(id, sealed)
			if err != nil {
				s.l.log.Error("a session on disk is damaged and left out", "error", err)
				return nil
			}
			if part.Leases = append(part.Leases, lease); len(part.GetLeases()) == partLeases {
				return next()
			}
			return nil
		})
		if err != nil {
			return err
		}
		return s.tx.Bucket(bucketEnded).ForEach(func(id, _ []byte) error {
			if part.Ended = append(part.Ended, id...); len(part.GetEnded()) == partLeases*LeaseIDSize {
				return next()
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	part.Last, part.AtMs = true, s.asOf
	return yield(part)
}

// Restore takes one part of a state. Parts of a state that is no newer than what is here change nothing; a newer one replaces
// all that was here. The error wraps ErrInvalid, or is a failure of the disk.
func (l *Leases) Restore(p *cellv1.SessionState) error {
	for _, lease := range p.GetLeases() {
		if err := checkLease(lease); err != nil {
			return err
		}
	}
	if len(p.GetEnded())%LeaseIDSize != 0 {
		return fmt.Errorf("sessions: %w: %d bytes of ids", ErrInvalid, len(p.GetEnded()))
	}
	l.write.Lock()
	defer l.write.Unlock()
	if p.GetIndex() <= l.index.Load() {
		return nil
	}
	if p.GetFirst() {
		if err := l.clear(); err != nil {
			return err
		}
	}
	index := uint64(0)
	if p.GetLast() {
		index = p.GetIndex()
	}
	return l.change(index, p.GetAtMs(), func(t *leaseTx) error {
		for _, lease := range p.GetLeases() {
			if t.leases.Get(lease.GetId()) != nil {
				continue
			}
			if err := t.insert(lease); err != nil {
				return err
			}
		}
		for id := range eachID(p.GetEnded()) {
			if err := t.ended.Put(id, l.sealer.Seal(bucketEnded, id, nil)); err != nil {
				return err
			}
		}
		return nil
	})
}

// clear empties the file; write is held.
func (l *Leases) clear() error {
	err := l.update(func(tx *bbolt.Tx) error {
		for _, name := range leaseBuckets() {
			if err := tx.DeleteBucket(name); err != nil {
				return err
			}
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("empty the sessions: %w", err)
	}
	l.index.Store(0)
	l.count.Store(0)
	return nil
}
