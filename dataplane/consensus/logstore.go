package consensus

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"github.com/mcpvault/mcpvault/dataplane/store"
	"go.etcd.io/bbolt"
)

var (
	bucketLogs   = []byte("logs")
	bucketStable = []byte("stable")
)

// logStore is Raft's log and stable store on one bbolt file. Each value is sealed; the tag is the checksum that bbolt's
// data pages lack.
type logStore struct {
	db     *bbolt.DB
	sealer *store.Sealer
	w      *writer
}

// openLog opens the file and reads every record once: one that does not open keeps the log out of service, before Raft
// can trip over it. After an error the caller still closes what is returned, if anything is.
func openLog(path string, key store.Key, w *writer) (*logStore, error) {
	sealer, err := store.NewSealer(key, "raft log")
	if err != nil {
		return nil, err
	}
	db, err := store.OpenDB(path, 64<<20)
	if err != nil {
		return nil, err
	}
	s := &logStore{db: db, sealer: sealer, w: w}
	err = w.write(func() error {
		return store.Guard(func() error {
			return db.Update(func(tx *bbolt.Tx) error {
				_, err := tx.CreateBucketIfNotExists(bucketLogs)
				if err == nil {
					_, err = tx.CreateBucketIfNotExists(bucketStable)
				}
				return err
			})
		})
	})
	if err == nil {
		err = s.checkAll()
	}
	return s, err
}

func (s *logStore) checkAll() error {
	return s.view(func(tx *bbolt.Tx) error {
		for _, bucket := range [][]byte{bucketLogs, bucketStable} {
			err := tx.Bucket(bucket).ForEach(func(k, v []byte) error {
				plain, err := s.sealer.Open(bucket, k, v)
				if err == nil && string(bucket) == string(bucketLogs) {
					err = decodeLog(k, plain, &raft.Log{})
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// checkGap wants every entry between a snapshot and the end of the log: Raft applies them in order.
func (s *logStore) checkGap(snapshotIndex uint64) error {
	first, err := s.FirstIndex()
	if err != nil {
		return err
	}
	last, err := s.LastIndex()
	if err != nil || last <= snapshotIndex {
		return err
	}
	if first > snapshotIndex+1 {
		return fmt.Errorf("%w: the log begins at entry %d, its snapshot ends at %d", store.ErrCorrupt, first, snapshotIndex)
	}
	return s.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketLogs).Cursor()
		want := max(first, snapshotIndex+1)
		for k, _ := c.Seek(indexKey(want)); k != nil; k, _ = c.Next() {
			if binary.BigEndian.Uint64(k) != want {
				return fmt.Errorf("%w: entry %d is missing from the log", store.ErrCorrupt, want)
			}
			want++
		}
		return nil
	})
}

func (s *logStore) close() error { return s.db.Close() }

func (s *logStore) view(f func(tx *bbolt.Tx) error) error {
	return store.Guard(func() error { return s.db.View(f) })
}

func (s *logStore) update(f func(tx *bbolt.Tx) error) error {
	return s.w.write(func() error { return store.Guard(func() error { return s.db.Update(f) }) })
}

// FirstIndex is the index of the oldest entry; 0 for none.
func (s *logStore) FirstIndex() (uint64, error) {
	return s.edge(func(c *bbolt.Cursor) []byte { k, _ := c.First(); return k })
}

// LastIndex is the index of the newest entry; 0 for none.
func (s *logStore) LastIndex() (uint64, error) {
	return s.edge(func(c *bbolt.Cursor) []byte { k, _ := c.Last(); return k })
}

func (s *logStore) edge(move func(*bbolt.Cursor) []byte) (index uint64, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		switch k := move(tx.Bucket(bucketLogs).Cursor()); len(k) {
		case 0:
		case 8:
			index = binary.BigEndian.Uint64(k)
		default:
			return fmt.Errorf("%w: logs/%q", store.ErrCorrupt, k)
		}
		return nil
	})
	return index, err
}

// GetLog reads one entry; raft.ErrLogNotFound when there is none, store.ErrCorrupt when it does not open.
func (s *logStore) GetLog(index uint64, out *raft.Log) error {
	key := indexKey(index)
	var plain []byte
	err := s.view(func(tx *bbolt.Tx) (err error) {
		v := tx.Bucket(bucketLogs).Get(key)
		if v == nil {
			return raft.ErrLogNotFound
		}
		plain, err = s.sealer.Open(bucketLogs, key, v)
		return err
	})
	if err != nil {
		return err
	}
	return decodeLog(key, plain, out)
}

// StoreLog writes one entry.
func (s *logStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs writes entries in one transaction, or fails within the writer's limit.
func (s *logStore) StoreLogs(logs []*raft.Log) error {
	type record struct{ key, value []byte }
	// Sealed here: after a time-out the write may still be under way while the caller uses its entries again.
	records := make([]record, len(logs))
	for i, l := range logs {
		key := indexKey(l.Index)
		records[i] = record{key, s.sealer.Seal(bucketLogs, key, encodeLog(l))}
	}
	return s.update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketLogs)
		for _, r := range records {
			if err := b.Put(r.key, r.value); err != nil {
				return err
			}
		}
		return nil
	})
}

// DeleteRange removes the entries from first to last, both included.
func (s *logStore) DeleteRange(first, last uint64) error {
	return s.update(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketLogs).Cursor()
		for k, _ := c.Seek(indexKey(first)); k != nil && binary.BigEndian.Uint64(k) <= last; k, _ = c.Next() {
			if err := c.Delete(); err != nil {
				return err
			}
		}
		return nil
	})
}

// Set writes a value of the stable store.
func (s *logStore) Set(key, value []byte) error {
	key, sealed := append([]byte(nil), key...), s.sealer.Seal(bucketStable, key, value)
	return s.update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketStable).Put(key, sealed) })
}

// Get reads a value of the stable store; nil when there is none.
func (s *logStore) Get(key []byte) (value []byte, err error) {
	err = s.view(func(tx *bbolt.Tx) (err error) {
		v := tx.Bucket(bucketStable).Get(key)
		if v == nil {
			return nil
		}
		value, err = s.sealer.Open(bucketStable, key, v)
		return err
	})
	return value, err
}

// SetUint64 writes a number.
func (s *logStore) SetUint64(key []byte, v uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, v))
}

// GetUint64 reads a number; 0 when there is none.
func (s *logStore) GetUint64(key []byte) (uint64, error) {
	v, err := s.Get(key)
	if err != nil || v == nil {
		return 0, err
	}
	if len(v) != 8 {
		return 0, fmt.Errorf("%w: stable/%q", store.ErrCorrupt, key)
	}
	return binary.BigEndian.Uint64(v), nil
}

func indexKey(index uint64) []byte { return binary.BigEndian.AppendUint64(nil, index) }

// encodeLog is term, type, time in nanoseconds, length of data, data, extensions. The index is the key.
func encodeLog(l *raft.Log) []byte {
	var nanos int64
	if !l.AppendedAt.IsZero() {
		nanos = l.AppendedAt.UnixNano()
	}
	b := make([]byte, 0, 8+1+8+4+len(l.Data)+len(l.Extensions))
	b = binary.BigEndian.AppendUint64(b, l.Term)
	b = append(b, byte(l.Type))
	b = binary.BigEndian.AppendUint64(b, uint64(nanos))
	b = binary.BigEndian.AppendUint32(b, uint32(len(l.Data)))
	b = append(b, l.Data...)
	return append(b, l.Extensions...)
}

const logHeader = 8 + 1 + 8 + 4

func decodeLog(key, b []byte, out *raft.Log) error {
	if len(key) != 8 || len(b) < logHeader {
		return fmt.Errorf("%w: logs/%q is cut short", store.ErrCorrupt, key)
	}
	size := binary.BigEndian.Uint32(b[17:])
	if uint64(len(b)-logHeader) < uint64(size) {
		return fmt.Errorf("%w: logs/%q is cut short", store.ErrCorrupt, key)
	}
	*out = raft.Log{
		Index: binary.BigEndian.Uint64(key),
		Term:  binary.BigEndian.Uint64(b),
		Type:  raft.LogType(b[8]),
		Data:  b[logHeader : logHeader+size],
	}
	if ext := b[logHeader+size:]; len(ext) > 0 {
		out.Extensions = ext
	}
	if nanos := int64(binary.BigEndian.Uint64(b[9:])); nanos != 0 {
		out.AppendedAt = time.Unix(0, nanos)
	}
	return nil
}
