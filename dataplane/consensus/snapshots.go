package consensus

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"github.com/mcpvault/mcpvault/dataplane/store"
)

const (
	snapshotSuffix = ".snap"
	keepSnapshots  = 2
	maxSnapshot    = 256 << 20
)

var snapshotPlace = []byte("snapshot")

// snapshotStore keeps Raft's snapshots as sealed files: they hold session keys, and Raft's own file store writes plain.
type snapshotStore struct {
	dir    string
	sealer *store.Sealer
	log    *slog.Logger
}

func openSnapshots(dir string, key store.Key, log *slog.Logger) (*snapshotStore, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	sealer, err := store.NewSealer(key, "raft snapshot")
	if err != nil {
		return nil, err
	}
	return &snapshotStore{dir, sealer, log}, nil
}

// Create begins a snapshot. It is on disk, whole, when its sink was closed without error.
func (s *snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport,
) (raft.SnapshotSink, error) {
	if version != raft.SnapshotVersionMax {
		return nil, fmt.Errorf("snapshot version %d is not supported", version)
	}
	return &sink{store: s, meta: raft.SnapshotMeta{
		Version: version,
		// Fixed width, so that names sort by term and index.
		ID:    fmt.Sprintf("%020d-%020d-%d", term, index, time.Now().UnixMilli()),
		Index: index, Term: term, Configuration: configuration, ConfigurationIndex: configurationIndex,
	}}, nil
}

// List returns the snapshots that can be opened, newest first.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	var all []*raft.SnapshotMeta
	for _, name := range names {
		meta, _, err := s.read(name)
		if err != nil {
			s.log.Error("a snapshot of the log is damaged and left out", "snapshot", name, "error", err)
			continue
		}
		all = append(all, meta)
	}
	slices.SortStableFunc(all, func(a, b *raft.SnapshotMeta) int {
		return cmp.Or(cmp.Compare(b.Index, a.Index), cmp.Compare(b.Term, a.Term), cmp.Compare(b.ID, a.ID))
	})
	return all, nil
}

// Open decrypts a snapshot into memory.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, data, err := s.read(id)
	if err != nil {
		return nil, nil, err
	}
	return meta, io.NopCloser(bytes.NewReader(data)), nil
}

// names lists ids, newest first.
func (s *snapshotStore) names() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), snapshotSuffix); ok {
			names = append(names, id)
		}
	}
	slices.Sort(names)
	slices.Reverse(names)
	return names, nil
}

func (s *snapshotStore) read(id string) (*raft.SnapshotMeta, []byte, error) {
	path := filepath.Join(s.dir, filepath.Base(id)+snapshotSuffix)
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if info.Size() > maxSnapshot+(1<<20) {
		return nil, nil, fmt.Errorf("%w: snapshot %s has %d bytes", store.ErrCorrupt, id, info.Size())
	}
	sealed, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	plain, err := s.sealer.Open(snapshotPlace, []byte(id), sealed)
	if err != nil {
		return nil, nil, err
	}
	if len(plain) < 4 || uint64(len(plain)-4) < uint64(binary.BigEndian.Uint32(plain)) {
		return nil, nil, fmt.Errorf("%w: snapshot %s is cut short", store.ErrCorrupt, id)
	}
	n := binary.BigEndian.Uint32(plain)
	meta := &raft.SnapshotMeta{}
	if err := json.Unmarshal(plain[4:4+n], meta); err != nil {
		return nil, nil, fmt.Errorf("%w: snapshot %s: %w", store.ErrCorrupt, id, err)
	}
	return meta, plain[4+n:], nil
}

// sink gathers one snapshot in memory.
type sink struct {
	store *snapshotStore
	meta  raft.SnapshotMeta
	buf   bytes.Buffer
	over  bool
}

func (s *sink) ID() string { return s.meta.ID }

func (s *sink) Write(p []byte) (int, error) {
	if s.over || s.buf.Len()+len(p) > maxSnapshot {
		return 0, fmt.Errorf("snapshot %s is closed or over %d bytes", s.meta.ID, maxSnapshot)
	}
	return s.buf.Write(p)
}

func (s *sink) Cancel() error {
	s.over = true
	return nil
}

// Close makes the snapshot durable and removes those beyond the newest two. A second Close does nothing.
func (s *sink) Close() error {
	if s.over {
		return nil
	}
	s.over = true
	s.meta.Size = int64(s.buf.Len())
	meta, err := json.Marshal(&s.meta)
	if err != nil {
		return err
	}
	plain := binary.BigEndian.AppendUint32(nil, uint32(len(meta)))
	plain = append(append(plain, meta...), s.buf.Bytes()...)
	path := filepath.Join(s.store.dir, s.meta.ID+snapshotSuffix)
	if err := store.ReplaceFile(path, s.store.sealer.Seal(snapshotPlace, []byte(s.meta.ID), plain)); err != nil {
		return fmt.Errorf("write snapshot %s: %w", s.meta.ID, err)
	}
	names, err := s.store.names()
	if err != nil {
		return err
	}
	for _, old := range names[min(keepSnapshots, len(names)):] {
		if err := os.Remove(filepath.Join(s.store.dir, old+snapshotSuffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
