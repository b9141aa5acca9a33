package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/snapshot"
)

// blobGrace is how long a blob may lie unnamed: it is staged before the head that names it is accepted.
const blobGrace = time.Hour

// MaxBlob bounds one shard.
const MaxBlob = 1 << 30

var blobPlace = []byte("blob")

// blobs are shards in files named by their SHA-256.
type blobs struct {
	dir    string
	sealer *Sealer
	now    func() time.Time
	// buffers hold sealed bytes for as long as they are opened: a node that starts reads hundreds of shards, and memory
	// that was never touched before costs more than what is done with it.
	buffers sync.Pool
}

// read reads a file of a size into a buffer that goes back to the pool.
func (b *blobs) read(path string, size int) (*[]byte, error) {
	buf, ok := b.buffers.Get().(*[]byte)
	if !ok || cap(*buf) < size {
		buf = new(make([]byte, size))
	}
	*buf = (*buf)[:size]
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	_, err = io.ReadFull(f, *buf)
	return buf, errors.Join(err, f.Close())
}

func (b *blobs) path(d snapshot.Digest) string {
	name := d.String()
	return filepath.Join(b.dir, name[:2], name)
}

// PutBlob seals a shard onto the disk. The error wraps ErrInvalid when the bytes are not those of the digest. A damaged
// file of the same name is replaced.
func (s *Store) PutBlob(d snapshot.Digest, plain []byte) error {
	if len(plain) > MaxBlob {
		return fmt.Errorf("write blob %s: %w", d, ErrTooBig)
	}
	if snapshot.DigestOf(plain) != d {
		return fmt.Errorf("write blob %s: %w: other bytes", d, ErrInvalid)
	}
	if err := s.cfg.BeforeWrite(); err != nil {
		return fmt.Errorf("write blob %s: %w", d, err)
	}
	path := s.blobs.path(d)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write blob %s: %w", d, err)
	}
	if err := ReplaceFile(path, s.blobs.sealer.Seal(blobPlace, d[:], plain)); err != nil {
		return fmt.Errorf("write blob %s: %w", d, err)
	}
	// The two-digit folder may be new.
	if err := syncDir(s.blobs.dir); err != nil {
		return fmt.Errorf("write blob %s: %w", d, err)
	}
	return nil
}

// GetBlob reads a shard into memory. The error wraps ErrNotFound, ErrTooBig when it has more than limit bytes, or
// ErrCorrupt: then it is to be fetched again.
func (s *Store) GetBlob(d snapshot.Digest, limit int64) ([]byte, error) {
	return s.AppendBlob(nil, d, limit)
}

// AppendBlob is GetBlob to the end of dst: into room that is there, the plain bytes are written nowhere else. The seal
// binds the bytes to their digest, which was compared when they were sealed.
func (s *Store) AppendBlob(dst []byte, d snapshot.Digest, limit int64) ([]byte, error) {
	path := s.blobs.path(d)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read blob %s: %w", d, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d, err)
	}
	if info.Size()-int64(s.blobs.sealer.Overhead()) > limit {
		return nil, fmt.Errorf("read blob %s: %w: %d bytes", d, ErrTooBig, info.Size())
	}
	sealed, err := s.blobs.read(path, int(info.Size()))
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d, err)
	}
	plain, err := s.blobs.sealer.Append(dst, blobPlace, d[:], *sealed)
	s.blobs.buffers.Put(sealed)
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d, ErrCorrupt)
	}
	return plain, nil
}

// HasBlob reports whether there is a file for the digest; only GetBlob knows whether it is whole.
func (s *Store) HasBlob(d snapshot.Digest) bool {
	info, err := os.Stat(s.blobs.path(d))
	return err == nil && info.Mode().IsRegular()
}

// CollectBlobs removes shards that no kept head names and that have lain for an hour, and what a crash has left half
// written. It returns how many files it removed.
func (s *Store) CollectBlobs(ctx context.Context) (removed int, err error) {
	before := s.blobs.now().Add(-blobGrace)
	known := s.shardNames()
	err = filepath.WalkDir(s.blobs.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return skipGone(err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		info, err := e.Info()
		if err != nil || info.ModTime().After(before) {
			return skipGone(err)
		}
		// A head may have been accepted since the names were taken: what looks unused is looked up again.
		if known[e.Name()] || !strings.HasPrefix(e.Name(), tmpPrefix) && s.shardNames()[e.Name()] {
			return nil
		}
		if err := os.Remove(path); err != nil { //nolint:gosec // the folder is this process's own, mode 0700
			return skipGone(err)
		}
		removed++
		return nil
	})
	if err != nil {
		return removed, fmt.Errorf("collect blobs: %w", err)
	}
	return removed, nil
}

// shardNames are the files that kept heads name.
func (s *Store) shardNames() map[string]bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names := map[string]bool{}
	for _, history := range s.mem.generations {
		for _, h := range history {
			for _, d := range h.shards {
				names[d.String()] = true
			}
		}
	}
	return names
}

func skipGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
