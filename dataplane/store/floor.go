package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mcpvault/mcpvault/snapshot"
)

// floors holds the highest version ever accepted of each thing that has versions, and the digest of its body.
type floors map[string]mark

// The floors that are not a tenant's; a tenant's has the prefix "t/".
const (
	floorRoots    = "roots"
	floorManifest = "manifest"
)

func tenantFloor(id snapshot.TenantID) string { return "t/" + string(id) }

// judge compares a version with its floor. It reports whether the version is new.
func (f floors) judge(key string, m mark) (fresh bool, err error) {
	have, ok := f[key]
	switch {
	case !ok || m.version.Newer(have.version):
		return true, nil
	case have.version.Newer(m.version):
		return false, fmt.Errorf("%w: %s %s, have %s", ErrRollback, key, m.version, have.version)
	case have.digest != m.digest:
		return false, fmt.Errorf("%w: %s %s", ErrEquivocation, key, m.version)
	}
	return false, nil
}

// raise takes the higher of two marks.
func (f floors) raise(key string, m mark) {
	if have, ok := f[key]; !ok || m.version.Newer(have.version) {
		f[key] = m
	}
}

const markLen = 8 + 8 + 32

func (m mark) encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, markLen), uint64(m.version.Epoch))
	b = binary.BigEndian.AppendUint64(b, uint64(m.version.Generation))
	return append(b, m.digest[:]...)
}

func decodeMark(b []byte) (m mark, ok bool) {
	if len(b) != markLen {
		return m, false
	}
	m.version.Epoch = snapshot.Epoch(binary.BigEndian.Uint64(b))
	m.version.Generation = snapshot.Generation(binary.BigEndian.Uint64(b[8:]))
	copy(m.digest[:], b[16:])
	return m, true
}

// encode is a run of (key length, key, mark).
func (f floors) encode() []byte {
	var b []byte
	for key, m := range f {
		b = binary.BigEndian.AppendUint16(b, uint16(len(key)))
		b = append(b, key...)
		b = append(b, m.encode()...)
	}
	return b
}

func decodeFloors(b []byte) (floors, bool) {
	f := floors{}
	for len(b) > 0 {
		if len(b) < 2 {
			return nil, false
		}
		n := int(binary.BigEndian.Uint16(b))
		if b = b[2:]; len(b) < n+markLen {
			return nil, false
		}
		m, _ := decodeMark(b[n : n+markLen])
		f[string(b[:n])] = m
		b = b[n+markLen:]
	}
	return f, true
}

var floorFileName = []byte("floor")

func (s *Store) floorPath() string { return filepath.Join(s.cfg.Dir, string(floorFileName)) }

// readFloorFile is the copy beside the database. A copy that is absent or damaged is made again from the database: it
// guards against an older database, and does not replace it.
func (s *Store) readFloorFile() (floors, error) {
	sealed, err := os.ReadFile(s.floorPath())
	if errors.Is(err, fs.ErrNotExist) {
		return floors{}, nil
	}
	if err != nil {
		return nil, err
	}
	plain, err := s.sealer.Open(floorFileName, floorFileName, sealed)
	if err != nil {
		s.damaged(err)
		return floors{}, nil
	}
	f, ok := decodeFloors(plain)
	if !ok {
		s.damaged(fmt.Errorf("%w: floor file", ErrCorrupt))
		return floors{}, nil
	}
	return f, nil
}

func (s *Store) writeFloorFile(f floors) error {
	err := s.cfg.BeforeWrite()
	if err == nil {
		err = ReplaceFile(s.floorPath(), s.sealer.Seal(floorFileName, floorFileName, f.encode()))
	}
	if s.floorStale = err != nil; err != nil {
		return fmt.Errorf("write floor file: %w", err)
	}
	return nil
}
