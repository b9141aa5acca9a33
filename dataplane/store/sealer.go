package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// Key seals a node's disk. It is never printed.
type Key [32]byte

const masked = "[secret]"

// String prints the mask.
func (Key) String() string { return masked }

// GoString prints the mask for %#v.
func (Key) GoString() string { return masked }

// MarshalText makes every text encoder write the mask.
func (Key) MarshalText() ([]byte, error) { return []byte(masked), nil }

// LogValue makes slog write the mask.
func (Key) LogValue() slog.Value { return slog.StringValue(masked) }

// KeyFile reads the key in path, and makes one, mode 0600, when there is none. A file that others may read or that is not
// 32 bytes long is an error: a node does not guess its key.
func KeyFile(path string) (Key, error) {
	key, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return Key{}, fmt.Errorf("make seal key: %w", err)
	}
	if _, err := rand.Read(key[:]); err != nil {
		return Key{}, fmt.Errorf("make seal key: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".seal.*")
	if err != nil {
		return Key{}, fmt.Errorf("make seal key: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(key[:])
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return Key{}, fmt.Errorf("make seal key: %w", err)
	}
	// Link, unlike rename, does not replace a key that another process has just made.
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return Key{}, fmt.Errorf("make seal key: %w", err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return Key{}, fmt.Errorf("make seal key: %w", err)
	}
	return readKey(path)
}

func readKey(path string) (key Key, err error) {
	f, err := os.Open(path)
	if err != nil {
		return Key{}, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return Key{}, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return Key{}, fmt.Errorf("%s may be read by others (mode %04o); chmod it to 0600", path, info.Mode().Perm())
	}
	if info.Size() != int64(len(key)) {
		return Key{}, fmt.Errorf("%s is %d bytes long; a seal key has %d", path, info.Size(), len(key))
	}
	if _, err := io.ReadFull(f, key[:]); err != nil {
		return Key{}, fmt.Errorf("read %s: %w", path, err)
	}
	return key, nil
}

// Sealer encrypts records with AES-256-GCM. The place of a record (bucket and key) is authenticated with it, so that a
// record cannot be moved; the tag is its checksum.
type Sealer struct{ aead cipher.AEAD }

// NewSealer derives the key of one purpose, so that no two files share nonces.
func NewSealer(key Key, purpose string) (*Sealer, error) {
	derived, err := hkdf.Key(sha256.New, key[:], nil, "mcpvault seal "+purpose, len(key))
	if err != nil {
		return nil, fmt.Errorf("derive seal key: %w", err)
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, fmt.Errorf("derive seal key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("derive seal key: %w", err)
	}
	return &Sealer{aead}, nil
}

// Seal encrypts value for its place.
func (s *Sealer) Seal(bucket, key, value []byte) []byte {
	return s.aead.Seal(nil, nil, value, place(bucket, key)) //nolint:gosec // this AEAD makes the nonce itself
}

// Open decrypts what lies in a place; the error wraps ErrCorrupt and names the place.
func (s *Sealer) Open(bucket, key, sealed []byte) ([]byte, error) {
	return s.Append(nil, bucket, key, sealed)
}

// Append is Open to the end of dst.
func (s *Sealer) Append(dst, bucket, key, sealed []byte) ([]byte, error) {
	value, err := s.aead.Open(dst, nil, sealed, place(bucket, key))
	if err != nil {
		return nil, fmt.Errorf("%w: %s/%q", ErrCorrupt, bucket, key)
	}
	return value, nil
}

// Overhead is how much longer a sealed value is.
func (s *Sealer) Overhead() int { return s.aead.Overhead() }

func place(bucket, key []byte) []byte {
	p := make([]byte, 0, len(bucket)+1+len(key))
	p = append(p, bucket...)
	p = append(p, '|')
	return append(p, key...)
}
