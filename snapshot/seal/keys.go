package seal

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// Signer is an Ed25519 key that signs. It never prints its key.
type Signer struct {
	id  string
	key ed25519.PrivateKey
}

// NewSigner takes a private key; it copies it.
func NewSigner(key ed25519.PrivateKey) (*Signer, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("signing key of %d bytes: %w", len(key), ErrFormat)
	}
	s := &Signer{key: append(ed25519.PrivateKey(nil), key...)}
	s.id = KeyID(s.Public())
	return s, nil
}

// GenerateKey makes a new key.
func GenerateKey() (*Signer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate signing key: %w", err)
	}
	return NewSigner(key)
}

// KeyID is the first 16 hex digits of the SHA-256 of a public key.
func KeyID(pub ed25519.PublicKey) string {
	sum := sha256.Sum256(pub)
	return hex.EncodeToString(sum[:8])
}

// KeyID is the id of the signer's public key.
func (s *Signer) KeyID() string { return s.id }

// Public is the public key.
func (s *Signer) Public() ed25519.PublicKey { return s.key.Public().(ed25519.PublicKey) }

// Private is the key itself, for another use of the same key such as signing a token. It must not be kept or logged.
func (s *Signer) Private() ed25519.PrivateKey { return s.key }

func (s *Signer) String() string { return "signer " + s.id }

// GoString keeps %#v from printing the key.
func (s *Signer) GoString() string { return s.String() }

// Format keeps every other verb from printing the key.
func (s *Signer) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// LogValue keeps slog from printing the key.
func (s *Signer) LogValue() slog.Value { return slog.StringValue(s.String()) }

const pemType = "PRIVATE KEY"

// WriteKey writes the key as PKCS #8 PEM with mode 0600. It never replaces a file: a key that is overwritten is lost.
func WriteKey(path string, s *Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(s.key)
	if err != nil {
		return fmt.Errorf("write key %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	_, err = f.Write(pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}))
	err = errors.Join(err, f.Sync(), f.Close(), syncDir(filepath.Dir(path)))
	if err != nil {
		return fmt.Errorf("write key %s: %w", path, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ReadKey reads what WriteKey wrote. A file that others than its owner may read is refused.
func ReadKey(path string) (*Signer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	if mode := st.Mode(); !mode.IsRegular() || mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("read key %s: mode %v lets others read it, want 0600: %w", path, mode, fs.ErrPermission)
	}
	b, err := io.ReadAll(io.LimitReader(f, 16<<10))
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", path, err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != pemType {
		return nil, fmt.Errorf("read key %s: no %s in it: %w", path, pemType, ErrFormat)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", path, ErrFormat)
	}
	ed, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read key %s: not an Ed25519 key: %w", path, ErrFormat)
	}
	return NewSigner(ed)
}
