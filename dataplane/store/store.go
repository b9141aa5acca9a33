// Package store is one node's disk: what the node would serve after a restart with nobody else alive. It holds the newest
// verified roots, manifest, heads and deltas, the version floor, the kills, the session keys, the newest heartbeat, the highest
// time ever seen, and the shards as files by digest.
//
// It promises that every value is sealed with AES-256-GCM under the node's own key, so that a flipped byte is an error and
// never a wrong answer; that a version never goes down, not even when the database file is replaced by an older copy
// (a second file beside it remembers); and that what a method has reported as written survives a power cut.
// It verifies no signatures: what comes in was verified by the caller.
//
// Everything but the shards is small and read into memory at Open; readers touch no disk.
package store

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"go.etcd.io/bbolt"
)

// What a caller may act on. The errors of this package wrap one of them, or are failures of the disk.
var (
	// ErrCorrupt names a record or file that does not open: fetch it again from a peer or the control plane.
	ErrCorrupt = errors.New("damaged on disk")
	// ErrRollback means that something newer was accepted before.
	ErrRollback = errors.New("older than what was accepted before")
	// ErrEquivocation means that another body was accepted under the same version or id; the first one stays.
	ErrEquivocation = errors.New("another body under the same version")
	// ErrInvalid means that the message is not one that verification would have let through.
	ErrInvalid = errors.New("not a well-formed update")
	// ErrNotFound means that there is no such blob.
	ErrNotFound = errors.New("not on this disk")
	// ErrTooBig means that a blob is larger than the caller allows.
	ErrTooBig = errors.New("larger than allowed")
	// ErrKey means that the database was sealed with another key.
	ErrKey = errors.New("sealed with another key")
	// ErrInUse means that another process has the database open.
	ErrInUse = errors.New("in use by another process")
)

var (
	bucketMeta      = []byte("meta")
	bucketRoots     = []byte("roots")
	bucketManifest  = []byte("manifest")
	bucketHeads     = []byte("heads")
	bucketDeltas    = []byte("deltas")
	bucketFloor     = []byte("floor")
	bucketHeartbeat = []byte("heartbeat")
	bucketKills     = []byte("kills")
	bucketKeys      = []byte("session_keys")
	bucketClock     = []byte("clock")
	bucketMembers   = []byte("members")

	// current is the key in buckets that hold one record.
	current = []byte("current")
)

// Config says where the disk is.
type Config struct {
	// Dir is created when it is absent.
	Dir string
	// Key seals every value.
	Key    Key
	Logger *slog.Logger
	// NewerKill reports whether a kill is signed by a newer key than the same kill that is held; nil keeps the first one.
	NewerKill func(held, offered []byte) bool
	// BeforeWrite is called before each write to the disk; an error fails it. Nil in production.
	BeforeWrite func() error
	// Now dates the collection of unused blobs.
	Now func() time.Time
}

// Store is safe for concurrent use. Byte slices that it returns are shared: they must not be written to.
type Store struct {
	cfg    Config
	log    *slog.Logger
	db     *bbolt.DB
	sealer *Sealer
	blobs  *blobs
	leases *Leases

	// write serialises changes; it is taken before mu.
	write      sync.Mutex
	floorStale bool // guarded by write: the floor file is behind the database

	mu      sync.RWMutex // guards mem
	mem     memory
	corrupt []error // set by Open only
}

// memory mirrors the database.
type memory struct {
	roots, manifest []byte
	// refs are the references of the manifest, in its order.
	refs []*snapshotv1.HeadRef
	// generations of a tenant are newest first and end with a head.
	generations map[snapshot.TenantID][]Generation
	floors      floors
	heartbeat   []byte
	heartbeatMS int64
	kills       map[string][]byte
	keys        map[uint32]*cellv1.SessionKey
	members     *cellv1.Members // nil while there is no list
	highWater   int64
	confirmed   map[snapshot.TenantID]int64
}

// refMarks are the manifest's references by tenant.
func (m *memory) refMarks() map[snapshot.TenantID]mark {
	refs := make(map[snapshot.TenantID]mark, len(m.refs))
	for _, ref := range m.refs {
		refs[snapshot.TenantID(ref.GetTenantId())] = markOf(ref)
	}
	return refs
}

// Open opens or makes the store. Records that do not open are left out, logged, and listed by Corrupt; the rest is
// served. The error wraps ErrCorrupt when the database as a whole is not usable, ErrKey when the key is not the one it
// was sealed with, ErrInUse when another process has it.
func Open(cfg Config) (*Store, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	sealer, err := NewSealer(cfg.Key, "store")
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	path := filepath.Join(cfg.Dir, "state.db")
	db, err := OpenDB(path, 0)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	if cfg.BeforeWrite == nil {
		cfg.BeforeWrite = func() error { return nil }
	}
	s := &Store{cfg: cfg, log: cfg.Logger, db: db, sealer: sealer}
	s.blobs = &blobs{dir: filepath.Join(cfg.Dir, "blobs"), sealer: sealer, now: cfg.Now}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", path, err), db.Close())
	}
	if s.leases, err = openLeases(cfg.Dir, sealer, cfg.BeforeWrite, cfg.Logger); err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), db.Close())
	}
	return s, nil
}

// Close waits for the write in progress and closes the database.
func (s *Store) Close() error {
	s.write.Lock()
	defer s.write.Unlock()
	return errors.Join(s.leases.close(), s.db.Close())
}

// Leases are the sessions of the cell. They have a file of their own.
func (s *Store) Leases() *Leases { return s.leases }

// Corrupt lists the records that could not be read at Open.
func (s *Store) Corrupt() []error { return slices.Clone(s.corrupt) }

// Roots is the envelope of the newest roots; nil when there are none.
func (s *Store) Roots() []byte {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.mem.roots
}

// Manifest is the envelope of the newest manifest; nil when there is none.
func (s *Store) Manifest() []byte {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.mem.manifest
}

// Chains is each tenant's newest generation.
func (s *Store) Chains() map[snapshot.TenantID]Chain {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make(map[snapshot.TenantID]Chain, len(s.mem.generations))
	for id, history := range s.mem.generations {
		all[id] = chainOf(history)
	}
	return all
}

// History is what is kept of a tenant's generations, newest first: KeepGenerations, and what the oldest of them is made of.
func (s *Store) History(id snapshot.TenantID) []Generation {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.mem.generations[id])
}

// LastUpdate is all that a node needs in order to serve: roots, manifest and each tenant's newest generation, sorted by
// tenant. Its fields are empty on a node that never had any.
func (s *Store) LastUpdate() *cellv1.Update {
	s.mu.RLock()
	defer s.mu.RUnlock()
	u := &cellv1.Update{Roots: s.mem.roots, Manifest: s.mem.manifest}
	for _, id := range slices.Sorted(maps.Keys(s.mem.generations)) {
		c := chainOf(s.mem.generations[id])
		u.Heads = append(u.Heads, c.Head)
		u.Deltas = append(u.Deltas, c.Deltas...)
	}
	return u
}

// Refs are the manifest's references, each advanced by the deltas that were accepted on top of its head: the root over them
// is the one that a heartbeat confirms. They are nil without a manifest, and must not be written to.
func (s *Store) Refs() []*snapshotv1.HeadRef {
	s.mu.RLock()
	defer s.mu.RUnlock()
	refs := slices.Clone(s.mem.refs)
	for i, ref := range refs {
		history := s.mem.generations[snapshot.TenantID(ref.GetTenantId())]
		if len(history) == 0 || history[0].Delta == nil || string(history[base(history)].Digest[:]) != string(ref.GetHeadSha256()) {
			continue
		}
		newest := history[0]
		refs[i] = &snapshotv1.HeadRef{
			TenantId: ref.GetTenantId(), HeadSha256: newest.Digest[:],
			Epoch: uint64(newest.Version.Epoch), Generation: uint64(newest.Version.Generation),
		}
	}
	return refs
}

// Floor is the highest version of a tenant that was ever accepted here; zero when none was.
func (s *Store) Floor(id snapshot.TenantID) snapshot.Version {
	v, _ := s.FloorDigest(id)
	return v
}

// FloorDigest is the floor, and the digest of the head or delta that was accepted under it.
func (s *Store) FloorDigest(id snapshot.TenantID) (snapshot.Version, snapshot.Digest) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	m := s.mem.floors[tenantFloor(id)]
	return m.version, m.digest
}

// Heartbeat is the envelope of the newest heartbeat and its time in milliseconds; nil when there is none.
func (s *Store) Heartbeat() (env []byte, timeMS int64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.mem.heartbeat, s.mem.heartbeatMS
}

// Kills are the envelopes of all kills, sorted by id.
func (s *Store) Kills() [][]byte {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([][]byte, 0, len(s.mem.kills))
	for _, id := range slices.Sorted(maps.Keys(s.mem.kills)) {
		all = append(all, s.mem.kills[id])
	}
	return all
}

// SessionKeys are the keys that seal session ids, sorted by id; the last one seals, the others only open. They are
// secret and must not be written to.
func (s *Store) SessionKeys() []*cellv1.SessionKey {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]*cellv1.SessionKey, 0, len(s.mem.keys))
	for _, id := range slices.Sorted(maps.Keys(s.mem.keys)) {
		all = append(all, s.mem.keys[id])
	}
	return all
}

// HighWater is the highest time, in milliseconds, that PutHighWater was ever told.
func (s *Store) HighWater() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.mem.highWater
}
