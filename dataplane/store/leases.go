package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/mcpvault/mcpvault/kit/broken"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
)

// The file of the leases is one of its own: it may be large, it may be lost (the cell's log brings it back), and neither may
// keep a node from serving its policy.
var (
	bucketLeases = []byte("leases")      // id -> sealed SessionLease
	bucketUse    = []byte("leases_used") // tenant, 0, used, id
	bucketEnded  = []byte("leases_ended")
	bucketCounts = []byte("lease_counts") // tenant, 0, owner or nothing -> number
	bucketPlace  = []byte("lease_place")
)

const (
	// LeaseIDSize is the length of a lease's id: when the session was opened, and the hash of its own id.
	LeaseIDSize = 24
	ownerSize   = 16
	// leaseMap is how much of the file is mapped at first, so that a reader that takes its time holds up no writer.
	leaseMap = 1 << 30
	// maxLeaseField bounds the texts of a lease.
	maxLeaseField    = 256
	maxLeaseUpstream = 1024
)

// Leases are the sessions of the cell, as its log has them. They are read from the file when asked for: a million that nobody
// uses take no memory. Leases is safe for concurrent use.
type Leases struct {
	db     *bbolt.DB
	sealer *Sealer
	before func() error // runs before each write
	log    *slog.Logger

	write sync.Mutex // serialises changes
	// index is the place in the log up to which everything is in the file; asOfMS is the time that the newest change bore;
	// count is how many there are.
	index  atomic.Uint64
	asOfMS atomic.Int64
	count  atomic.Int64
}

// EndedLease is a lease that a change has ended.
type EndedLease struct {
	Lease *cellv1.SessionLease
	// Closed says that whoever ended it has closed the upstream's session too.
	Closed bool
}

// LeaseChange is what a batch has brought about.
type LeaseChange struct {
	// Verdicts are those on the openings, in order.
	Verdicts []cellv1.SessionVerdict
	Ended    []EndedLease
	// Seen says that the batch was applied before: nothing was looked at.
	Seen bool
}

// openLeases opens the file. One that is damaged is moved aside: the cell's log brings back what was in it.
func openLeases(dir string, sealer *Sealer, before func() error, log *slog.Logger) (*Leases, error) {
	path := filepath.Join(dir, "sessions.db")
	l := &Leases{sealer: sealer, before: before, log: log}
	err := l.open(path)
	if errors.Is(err, ErrCorrupt) {
		log.Error("the file of the sessions is damaged and moved aside; the cell's log brings them back", "file", path, "error", err)
		if err := os.Rename(path, path+".damaged"); err != nil {
			return nil, fmt.Errorf("move the damaged %s aside: %w", path, err)
		}
		err = l.open(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return l, nil
}

func (l *Leases) open(path string) error {
	db, err := openChecked(path, &bbolt.Options{FreelistType: bbolt.FreelistMapType, InitialMmapSize: leaseMap, NoFreelistSync: true})
	if err != nil {
		return err
	}
	l.db = db
	err = Guard(func() error {
		return db.Update(func(tx *bbolt.Tx) error {
			for _, name := range leaseBuckets() {
				if _, err := tx.CreateBucketIfNotExists(name); err != nil {
					return err
				}
			}
			return l.loadPlace(tx)
		})
	})
	if err != nil {
		return errors.Join(err, db.Close())
	}
	return nil
}

func leaseBuckets() [][]byte {
	return [][]byte{bucketLeases, bucketUse, bucketEnded, bucketCounts, bucketPlace}
}

func (l *Leases) loadPlace(tx *bbolt.Tx) error {
	sealed := tx.Bucket(bucketPlace).Get(current)
	if sealed == nil {
		return nil
	}
	v, err := l.sealer.Open(bucketPlace, current, sealed)
	if err != nil {
		return err
	}
	if len(v) != 24 {
		return fmt.Errorf("%w: place of the sessions", ErrCorrupt)
	}
	l.index.Store(binary.BigEndian.Uint64(v))
	l.asOfMS.Store(int64(binary.BigEndian.Uint64(v[8:])))
	l.count.Store(int64(binary.BigEndian.Uint64(v[16:])))
	return nil
}

func (l *Leases) close() error { return l.db.Close() }

// Index is the place in the cell's log up to which everything is here.
func (l *Leases) Index() uint64 { return l.index.Load() }

// AsOf is the time, in milliseconds, that the newest change bore; 0 when there was none.
func (l *Leases) AsOf() int64 { return l.asOfMS.Load() }

// Len counts the leases.
func (l *Leases) Len() int { return int(l.count.Load()) }

// Displace forgets the place in the log, for a node whose log is not the one that this file was written from any more.
func (l *Leases) Displace() error {
	l.write.Lock()
	defer l.write.Unlock()
	return l.change(0, 0, func(*leaseTx) error { return nil })
}

// Apply takes the batch at a place of the log; one that was taken before changes nothing. It reads no clock: the same batches
// make the same leases on every node. The error wraps ErrInvalid, or is a failure of the disk.
func (l *Leases) Apply(index uint64, b *cellv1.SessionBatch) (done LeaseChange, err error) {
	if err := checkBatch(b); err != nil {
		return done, err
	}
	l.write.Lock()
	defer l.write.Unlock()
	if index <= l.index.Load() {
		return LeaseChange{Seen: true}, nil
	}
	err = l.change(index, b.GetAtMs(), func(t *leaseTx) error {
		return t.batch(b, &done)
	})
	if err != nil {
		return LeaseChange{}, err
	}
	return done, nil
}

// change runs f in one transaction that leaves the leases at a place and a time; write is held.
func (l *Leases) change(index uint64, atMS int64, f func(t *leaseTx) error) error {
	count, at := l.count.Load(), max(atMS, l.asOfMS.Load())
	err := l.update(func(tx *bbolt.Tx) error {
		t := &leaseTx{
			l: l, leases: tx.Bucket(bucketLeases), use: tx.Bucket(bucketUse), ended: tx.Bucket(bucketEnded),
			counts: tx.Bucket(bucketCounts), count: l.count.Load(),
		}
		if err := f(t); err != nil {
			return err
		}
		count = t.count
		v := binary.BigEndian.AppendUint64(nil, index)
		v = binary.BigEndian.AppendUint64(v, uint64(at))
		v = binary.BigEndian.AppendUint64(v, uint64(count))
		return tx.Bucket(bucketPlace).Put(current, l.sealer.Seal(bucketPlace, current, v))
	})
	if err != nil {
		return fmt.Errorf("write sessions: %w", err)
	}
	l.index.Store(index)
	l.asOfMS.Store(at)
	l.count.Store(count)
	return nil
}

// update runs one transaction.
func (l *Leases) update(f func(tx *bbolt.Tx) error) error {
	if err := l.before(); err != nil {
		return err
	}
	return Guard(func() error { return l.db.Update(f) })
}

// leaseTx is one transaction on the leases.
type leaseTx struct {
	l                          *Leases
	leases, use, ended, counts *bbolt.Bucket
	count                      int64
}

func (t *leaseTx) batch(b *cellv1.SessionBatch, done *LeaseChange) error {
	for _, o := range b.GetOpened() {
		v, err := t.open(o)
		if err != nil {
			return err
		}
		done.Verdicts = append(done.Verdicts, v)
	}
	for id := range eachID(b.GetTouched()) {
		if err := t.touch(id, b.GetTouchedMs()); err != nil {
			return err
		}
	}
	for _, end := range []struct {
		ids    []byte
		closed bool
	}{{b.GetEnded(), true}, {b.GetDropped(), false}} {
		for id := range eachID(end.ids) {
			if err := t.end(id, nil, end.closed, done); err != nil {
				return err
			}
		}
	}
	for _, e := range b.GetExpired() {
		for id := range eachID(e.GetLeases()) {
			since := e.GetUnusedSinceMs()
			if err := t.end(id, &since, false, done); err != nil {
				return err
			}
		}
	}
	return t.forget(b.GetForgetBeforeMs())
}

func (t *leaseTx) open(o *cellv1.SessionOpening) (cellv1.SessionVerdict, error) {
	lease := o.GetLease()
	if t.leases.Get(lease.GetId()) != nil || t.ended.Get(lease.GetId()) != nil {
		return cellv1.SessionVerdict_SESSION_VERDICT_OPENED, nil
	}
	if n := o.GetPrincipalCap(); n > 0 && t.counted(ownerCount(lease)) >= uint64(n) {
		return cellv1.SessionVerdict_SESSION_VERDICT_PRINCIPAL_FULL, nil
	}
	if n := o.GetTenantCap(); n > 0 && t.counted(tenantCount(lease.GetTenantId())) >= uint64(n) {
		return cellv1.SessionVerdict_SESSION_VERDICT_TENANT_FULL, nil
	}
	return cellv1.SessionVerdict_SESSION_VERDICT_OPENED, t.insert(lease)
}

func (t *leaseTx) insert(lease *cellv1.SessionLease) error {
	if err := t.put(lease); err != nil {
		return err
	}
	t.count++
	return errors.Join(t.add(ownerCount(lease), 1), t.add(tenantCount(lease.GetTenantId()), 1))
}

func (t *leaseTx) put(lease *cellv1.SessionLease) error {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(lease)
	if err != nil {
		return fmt.Errorf("encode session: %w", err)
	}
	if err := t.leases.Put(lease.GetId(), t.l.sealer.Seal(bucketLeases, lease.GetId(), value)); err != nil {
		return err
	}
	return t.use.Put(useKey(lease), nil)
}

// get reads a lease; nil when there is none. One that is damaged is taken out: its session ends, nothing else.
func (t *leaseTx) get(id []byte) (*cellv1.SessionLease, error) {
	sealed := t.leases.Get(id)
	if sealed == nil {
		return nil, nil
	}
	lease, err := t.l.unseal(id, sealed)
	if err == nil {
		return lease, nil
	}
	t.l.log.Error("a session on disk is damaged and ends", "error", err)
	t.count--
	if err := t.leases.Delete(id); err != nil {
		return nil, err
	}
	c := t.use.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		if bytes.HasSuffix(k, id) {
			return nil, c.Delete()
		}
	}
	return nil, nil
}

func (t *leaseTx) touch(id []byte, usedMS int64) error {
	lease, err := t.get(id)
	if err != nil || lease == nil || lease.GetUsedMs() >= usedMS {
		return err
	}
	if err := t.use.Delete(useKey(lease)); err != nil {
		return err
	}
	lease.UsedMs = usedMS
	return t.put(lease)
}

// end takes a lease out, unless it was used after unusedSince, and remembers that it ended.
func (t *leaseTx) end(id []byte, unusedSince *int64, closed bool, done *LeaseChange) error {
	if broken.Is("stale-session") && unusedSince == nil {
		return nil
	}
	lease, err := t.get(id)
	if err != nil || lease != nil && unusedSince != nil && lease.GetUsedMs() > *unusedSince {
		return err
	}
	if err := t.ended.Put(id, t.l.sealer.Seal(bucketEnded, id, nil)); err != nil || lease == nil {
		return err
	}
	done.Ended = append(done.Ended, EndedLease{lease, closed})
	t.count--
	return errors.Join(t.leases.Delete(id), t.use.Delete(useKey(lease)),
		t.add(ownerCount(lease), -1), t.add(tenantCount(lease.GetTenantId()), -1))
}

// maxForgotten is how many ends one batch forgets at most: whoever proposes it proposes another for the rest.
const maxForgotten = 4096

func (t *leaseTx) forget(beforeMS int64) error {
	if beforeMS <= 0 {
		return nil
	}
	limit := binary.BigEndian.AppendUint64(nil, uint64(beforeMS))
	var old [][]byte
	c := t.ended.Cursor()
	for k, _ := c.First(); k != nil && len(old) < maxForgotten && bytes.Compare(k[:8], limit) < 0; k, _ = c.Next() {
		old = append(old, bytes.Clone(k))
	}
	for _, k := range old {
		if err := t.ended.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

func (t *leaseTx) counted(key []byte) uint64 {
	if v := t.counts.Get(key); len(v) == 8 {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func (t *leaseTx) add(key []byte, n int64) error {
	now := int64(t.counted(key)) + n
	if now <= 0 {
		return t.counts.Delete(key)
	}
	return t.counts.Put(key, binary.BigEndian.AppendUint64(nil, uint64(now)))
}

func (l *Leases) unseal(id, sealed []byte) (*cellv1.SessionLease, error) {
	value, err := l.sealer.Open(bucketLeases, id, sealed)
	if err != nil {
		return nil, err
	}
	lease := &cellv1.SessionLease{}
	if err := proto.Unmarshal(value, lease); err != nil {
		return nil, fmt.Errorf("%w: session: %w", ErrCorrupt, err)
	}
	return lease, nil
}

func tenantCount(tenant string) []byte { return append([]byte(tenant), 0) }

func ownerCount(lease *cellv1.SessionLease) []byte {
	return append(tenantCount(lease.GetTenantId()), lease.GetOwner()...)
}

func useKey(lease *cellv1.SessionLease) []byte {
	k := tenantCount(lease.GetTenantId())
	k = binary.BigEndian.AppendUint64(k, uint64(lease.GetUsedMs()))
	return append(k, lease.GetId()...)
}

// eachID walks ids that lie one behind the other.
func eachID(ids []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for ; len(ids) >= LeaseIDSize; ids = ids[LeaseIDSize:] {
			if !yield(ids[:LeaseIDSize:LeaseIDSize]) {
				return
			}
		}
	}
}

// checkBatch judges what does not depend on what is there.
func checkBatch(b *cellv1.SessionBatch) error {
	lists := [][]byte{b.GetTouched(), b.GetEnded(), b.GetDropped()}
	for _, e := range b.GetExpired() {
		lists = append(lists, e.GetLeases())
	}
	for _, ids := range lists {
		if len(ids)%LeaseIDSize != 0 {
			return fmt.Errorf("sessions: %w: %d bytes of ids", ErrInvalid, len(ids))
		}
	}
	if b.GetAtMs() <= 0 || b.GetTouchedMs() < 0 || b.GetForgetBeforeMs() < 0 || b.GetForgetBeforeMs() > b.GetAtMs() {
		return fmt.Errorf("sessions: %w: a time out of bounds", ErrInvalid)
	}
	for _, o := range b.GetOpened() {
		if err := checkLease(o.GetLease()); err != nil {
			return err
		}
	}
	return nil
}

func checkLease(l *cellv1.SessionLease) error {
	if len(l.GetId()) != LeaseIDSize || len(l.GetOwner()) != ownerSize || l.GetUsedMs() <= 0 || !validName(l.GetTenantId()) {
		return fmt.Errorf("session: %w: no id, owner, time or tenant", ErrInvalid)
	}
	for _, text := range []string{l.GetServer(), l.GetPrincipal(), l.GetClient(), l.GetNode(), l.GetRevision()} {
		if len(text) > maxLeaseField {
			return fmt.Errorf("session: %w: a text of %d bytes", ErrInvalid, len(text))
		}
	}
	if len(l.GetUpstream()) > maxLeaseUpstream {
		return fmt.Errorf("session: %w: the upstream's id has %d bytes", ErrInvalid, len(l.GetUpstream()))
	}
	return nil
}
